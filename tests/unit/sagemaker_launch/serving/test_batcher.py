"""How images of many requests come into batches."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from sagemaker_launch.serving.batcher import Batcher, Row, Scored


class Network:
    """Gives back each crop's number, when it may."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may_go = threading.Event()
        self.may_go.set()

    def __call__(self, crops: Sequence[Tensor]) -> list[Row]:
        numbers = [int(crop) for crop in crops]
        self.batches.append(numbers)
        self.may_go.wait()
        if 99 in numbers:
            raise RuntimeError("out of memory")
        return [(float(number),) for number in numbers]


def crops(*numbers: int) -> list[Tensor]:
    return [torch.tensor(number) for number in numbers]


def run(
    check: Callable[[Batcher, Network], Awaitable[None]], *, max_batch: int = 4, max_wait_seconds: float = 5.0
) -> Network:
    """Run a check against a batcher that works."""
    network = Network()

    async def main() -> None:
        with ThreadPoolExecutor(1) as thread:
            batcher = Batcher(network, thread, max_batch, max_wait_seconds)
            running = asyncio.create_task(batcher.run())
            try:
                async with asyncio.timeout(10):
                    await check(batcher, network)
            finally:
                network.may_go.set()
                running.cancel()

    asyncio.run(main())
    return network


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_a_lone_request_does_not_wait() -> None:
    async def check(batcher: Batcher, network: Network) -> None:
        started = asyncio.get_running_loop().time()
        assert [one.logits for one in await batcher.score(crops(1, 2))] == [(1.0,), (2.0,)]
        assert asyncio.get_running_loop().time() - started < 1

    assert run(check).batches == [[1, 2]]


def test_what_is_being_decoded_is_waited_for_and_shares_the_batch() -> None:
    async def check(batcher: Batcher, network: Network) -> None:
        with batcher.coming():
            first = asyncio.create_task(batcher.score(crops(1)))
            await asyncio.sleep(0.05)
            assert network.batches == []
        await batcher.score(crops(2))
        await first

    assert run(check).batches == [[1, 2]]


def test_the_wait_is_bounded() -> None:
    async def check(batcher: Batcher, network: Network) -> None:
        with batcher.coming():
            await batcher.score(crops(1))

    assert run(check, max_wait_seconds=0.05).batches == [[1]]


def test_a_full_batch_goes_at_once_and_the_rest_follows_in_order() -> None:
    async def check(batcher: Batcher, network: Network) -> None:
        with batcher.coming():
            scored = await batcher.score(crops(*range(8)))
        assert [one.logits for one in scored] == [(float(number),) for number in range(8)]

    assert run(check).batches == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_requests_that_come_while_the_network_works_go_together() -> None:
    async def check(batcher: Batcher, network: Network) -> None:
        network.may_go.clear()
        first = asyncio.create_task(batcher.score(crops(1)))
        await until(lambda: network.batches)
        others = [asyncio.create_task(batcher.score(crops(number))) for number in (2, 3)]
        await until(lambda: batcher.depth == 2)
        network.may_go.set()
        answers = await asyncio.gather(first, *others)
        assert [one[0].batch_size for one in answers] == [1, 2, 2]

    assert run(check).batches == [[1], [2, 3]]


def test_what_is_cancelled_is_not_computed() -> None:
    async def check(batcher: Batcher, network: Network) -> None:
        network.may_go.clear()
        first = asyncio.create_task(batcher.score(crops(1)))
        await until(lambda: network.batches)
        gone, stays = (asyncio.create_task(batcher.score(crops(number))) for number in (2, 3))
        await until(lambda: batcher.depth == 2)
        gone.cancel()
        await until(gone.done)
        assert batcher.depth == 1
        network.may_go.set()
        await asyncio.gather(first, stays)

    assert run(check).batches == [[1], [3]]


def test_an_error_reaches_all_of_its_batch_and_not_the_next() -> None:
    async def check(batcher: Batcher, network: Network) -> None:
        with batcher.coming():
            first, second = (asyncio.create_task(batcher.score(crops(number))) for number in (1, 99))
            await asyncio.sleep(0.01)
        for one in (first, second):
            with pytest.raises(RuntimeError, match="out of memory"):
                await one
        assert await batcher.score(crops(3)) == [Scored((3.0,), 1, pytest.approx(0, abs=1))]

    assert run(check).batches == [[1, 99], [3]]


def test_no_images_need_no_network() -> None:
    async def check(batcher: Batcher, network: Network) -> None:
        assert await batcher.score([]) == []

    assert run(check).batches == []
