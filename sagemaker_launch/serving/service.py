"""One model and its accepted requests: admit, decode, score in batches, answer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_modules.inference import Model, Prediction
from sagemaker_launch.serving.batcher import Batcher, Row
from sagemaker_launch.serving.decoder import Decoder
from sagemaker_launch.serving.engine import load_engine
from sagemaker_launch.serving.metrics import Metrics
from sagemaker_launch.serving.settings import Settings

STATES = {
    "loading": "the model is being loaded",
    "ready": "ready",
    "broken": "no image can be decoded: the system gives no process",
    "stopping": "the server is stopping",
    "no_gpu": "this instance has a GPU, and PyTorch sees none; the log says why",
}


class RefusedError(Exception):
    """A request that is not answered with scores; the message is one plain sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        """Status code of HTTP."""


@dataclass
class Record:
    """The log line of a request."""

    bytes: int = 0
    images: int = 0
    decode_seconds: float = 0.0
    network_seconds: float = 0.0
    batch_size: int = 0


class Service:
    """The server without HTTP. Runs on the event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._phase: Literal["loading", "ready", "stopping", "no_gpu"] = "no_gpu" if settings.lacks_gpu else "loading"
        self.metrics = Metrics(lambda: self.batcher.depth, lambda: self._in_progress)
        self._in_progress = 0
        self._empty = asyncio.Event()
        self._empty.set()
        self._model: Model | None = None
        # Everything that concerns the network happens on its one thread.
        self._network = ThreadPoolExecutor(1, "network")
        self._decoder = Decoder(settings.decode_threads)  # before there is a thread
        self.batcher = Batcher(
            self._score, self._network, settings.max_batch, settings.max_wait_seconds, self.metrics.batch_size.observe
        )

    @property
    def state(self) -> Literal["loading", "ready", "broken", "stopping", "no_gpu"]:
        """Requests are accepted in `ready` only."""
        return "broken" if self._phase == "ready" and not self._decoder.is_working else self._phase

    async def load(self) -> None:
        """Load the model, check the golden photo and warm up.

        Raises:
            BadExportError: if the model is incomplete, or the scores of its golden photo differ from the trainer's.
        """
        self._model = await asyncio.get_running_loop().run_in_executor(self._network, self._load)
        await self._decoder.start(self._model.preprocessing)
        self._phase = "ready"

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Accept a request.

        Raises:
            RefusedError: if the server is not ready, or has too many requests.
        """
        if self.state != "ready":
            raise RefusedError(503, STATES[self.state])
        if self._in_progress >= self.settings.max_queue:
            raise RefusedError(503, f"the server has its {self.settings.max_queue} requests: try again later")
        self._in_progress += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._in_progress -= 1
            if not self._in_progress:
                self._empty.set()

    async def answer(
        self, body: bytes, content_type: str, accept: str, attributes: str, record: Record
    ) -> tuple[int, str]:
        """Status and JSON of a request. If it is cancelled, its computation stops.

        Args:
            attributes: SageMaker's custom attributes.
            record: is filled with the values of the log line.
        """
        model = self._model
        assert model is not None, "requests are admitted when it is loaded"
        with self.batcher.coming():
            decoded = await self._decoder.decode(body, content_type)
        record.images, record.decode_seconds = len(decoded.images), decoded.seconds
        scored = await self.batcher.score([image for image in decoded.images if isinstance(image, Tensor)])
        record.network_seconds = max((one.seconds for one in scored), default=0.0)
        record.batch_size = max((one.batch_size for one in scored), default=0)
        rows = (one.logits for one in scored)
        logits = tuple(next(rows) if isinstance(image, Tensor) else image for image in decoded.images)
        return Prediction(logits, model.class_names, model.version).answer(accept, attributes)

    async def drain(self) -> None:
        """Refuse new requests, and wait for accepted ones as long as the settings allow."""
        self._phase = "stopping"
        try:
            async with asyncio.timeout(self.settings.stop_seconds):
                await self._empty.wait()
        except TimeoutError:
            pass

    def close(self) -> None:
        """End processes and threads."""
        self._decoder.close()
        self._network.shutdown(wait=False, cancel_futures=True)

    def _load(self) -> Model:
        model = load_engine(self.settings.model, self.settings.precision)
        side = model.preprocessing.image_size
        sizes = [2**power for power in range(self.settings.max_batch.bit_length())]
        for size in sorted({*sizes, self.settings.max_batch}):
            # The first batch of a size takes longer.
            model.score_crops([torch.zeros(3, side, side, dtype=torch.uint8)] * size)
        return model

    def _score(self, crops: Sequence[Tensor]) -> list[Row]:
        assert self._model is not None
        return [tuple(row) for row in self._model.score_crops(crops).tolist()]
