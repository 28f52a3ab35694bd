"""Batches: images of several requests pass through the network together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

Row = tuple[float, ...]
"""One logit per class."""


@dataclass(frozen=True)
class Scored:
    """The scores of one image."""

    logits: Row
    batch_size: int
    seconds: float
    """Seconds of the network for the whole batch."""


@dataclass(eq=False)
class _Waiting:
    crop: Tensor
    since: float
    scored: asyncio.Future[Scored]


@dataclass
class Batcher:
    """A queue in front of the network. Runs on the event loop; the network has its own thread, one batch at a time.

    A batch starts when it is full, or when its oldest image has waited `max_wait_seconds`. While no other image is
    being decoded, it starts at once.
    """

    score_batch: Callable[[Sequence[Tensor]], list[Row]]
    thread: Executor
    """Its one thread runs the network."""
    max_batch: int
    max_wait_seconds: float
    observe: Callable[[int], None] = lambda _: None
    """Called with the size of each batch that starts."""
    _queue: deque[_Waiting] = field(default_factory=deque)
    _coming: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def depth(self) -> int:
        """Number of waiting images."""
        return sum(not one.scored.done() for one in self._queue)

    @contextmanager
    def coming(self) -> Iterator[None]:
        """Announce images: a batch may wait for them."""
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1
            self._changed.set()

    async def score(self, crops: Sequence[Tensor]) -> list[Scored]:
        """Score the crops of one request. If it is cancelled, its waiting crops leave the queue."""
        loop = asyncio.get_running_loop()
        mine = [_Waiting(crop, loop.time(), loop.create_future()) for crop in crops]
        self._queue.extend(mine)
        self._changed.set()
        return await asyncio.gather(*(one.scored for one in mine))

    async def run(self) -> None:
        """Run batches until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._next_batch()
            self.observe(len(batch))
            started = loop.time()
            try:
                rows = await loop.run_in_executor(self.thread, self.score_batch, [one.crop for one in batch])
            except Exception as error:  # each request of the batch raises it; the next batch is tried again
                for one in batch:
                    if not one.scored.done():
                        one.scored.set_exception(error)
                continue
            seconds = loop.time() - started
            for one, row in zip(batch, rows, strict=True):
                if not one.scored.done():
                    one.scored.set_result(Scored(row, len(batch), seconds))

    async def _next_batch(self) -> list[_Waiting]:
        loop = asyncio.get_running_loop()
        while True:
            # A request that timed out, or whose client left, is cancelled.
            self._queue = deque(one for one in self._queue if not one.scored.done())
            left = self._queue[0].since + self.max_wait_seconds - loop.time() if self._queue else None
            if left is not None and (len(self._queue) >= self.max_batch or left <= 0 or not self._coming):
                return [self._queue.popleft() for _ in range(min(self.max_batch, len(self._queue)))]
            self._changed.clear()
            try:
                async with asyncio.timeout(left):
                    await self._changed.wait()
            except TimeoutError:
                pass
