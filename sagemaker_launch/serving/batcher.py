"""Images of many requests go through the network together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

Row = tuple[float, ...]
"""A logit a class."""


@dataclass(frozen=True)
class Scored:
    """What the network made of one image."""

    logits: Row
    batch_size: int
    seconds: float
    """What the network took for the whole batch."""


@dataclass(eq=False)
class _Waiting:
    crop: Tensor
    since: float
    scored: asyncio.Future[Scored]


@dataclass
class Batcher:
    """A queue before the network. Lives on the event loop; the network has a thread of its own, one batch at a time.

    A batch goes when it is full or when its oldest image has waited `max_wait_seconds`. While no other image is being
    decoded, waiting would bring nothing: then it goes at once.
    """

    score_batch: Callable[[Sequence[Tensor]], list[Row]]
    thread: Executor
    """Its one thread runs the network."""
    max_batch: int
    max_wait_seconds: float
    observe: Callable[[int], None] = lambda _: None
    """Told the size of each batch that goes."""
    _queue: deque[_Waiting] = field(default_factory=deque)
    _coming: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def depth(self) -> int:
        """Images that wait."""
        return sum(not one.scored.done() for one in self._queue)

    @contextmanager
    def coming(self) -> Iterator[None]:
        """Say that images are about to be brought: a batch may wait for them."""
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1
            self._changed.set()

    async def score(self, crops: Sequence[Tensor]) -> list[Scored]:
        """Score the crops of one request; cancelled, it takes those that still wait out of the queue."""
        loop = asyncio.get_running_loop()
        mine = [_Waiting(crop, loop.time(), loop.create_future()) for crop in crops]
        self._queue.extend(mine)
        self._changed.set()
        return await asyncio.gather(*(one.scored for one in mine))

    async def run(self) -> None:
        """Bring batches to the network, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._next_batch()
            self.observe(len(batch))
            started = loop.time()
            try:
                rows = await loop.run_in_executor(self.thread, self.score_batch, [one.crop for one in batch])
            except Exception as error:  # each request of the batch raises it, and the next batch has its own chance
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
            # Whoever timed out or went away has cancelled.
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
