"""Decode the bodies of requests to crops of the network's size."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from lightning_modules.inference import BadImageError, Preprocessing, decode_request, read_request


@dataclass(frozen=True)
class Decoded:
    """The images of a body."""

    images: list[Tensor | BadImageError]
    """For each image: (3, S, S) uint8, or why it can't be scored; one error for a body that is wrong as a whole."""
    seconds: float


class Decoder:
    """A few threads that decode. An image is cropped at once, so there is at most one large image per thread."""

    def __init__(self, threads: int) -> None:
        # glibc returns freed blocks above 32 MB to the system. Of Pillow's blocks of 16 MB it kept 370 MB after some
        # 500 requests.
        Image.core.set_block_size(1 << 26)  # type: ignore[attr-defined]
        # One thread each for torch's resizing too: the cores are the network's.
        self._pool = ThreadPoolExecutor(threads, "decode", torch.set_num_threads, (1,))
        # A cancelled request leaves this queue; it could not leave the queue of the pool.
        self._turns = asyncio.Semaphore(threads)

    async def decode(self, body: bytes, content_type: str, preprocessing: Preprocessing) -> Decoded:
        """Decode a request. If it is cancelled, it ends after its present image."""
        await self._turns.acquire()
        given_up = threading.Event()
        running = self._pool.submit(_decode, body, content_type, preprocessing, given_up)
        loop = asyncio.get_running_loop()

        def ended(_: Future[Decoded]) -> None:
            loop.call_soon_threadsafe(self._turns.release)

        running.add_done_callback(ended)
        try:
            return await asyncio.wrap_future(running)
        finally:
            given_up.set()

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _decode(body: bytes, content_type: str, preprocessing: Preprocessing, given_up: threading.Event) -> Decoded:
    started = time.perf_counter()
    images: list[Tensor | BadImageError] = []
    try:
        for image in decode_request(read_request(body, content_type)):
            images.append(preprocessing.crop(image) if isinstance(image, Tensor) else image)
            if given_up.is_set():
                break
    except BadImageError as error:
        images = [error]
    return Decoded(images, time.perf_counter() - started)
