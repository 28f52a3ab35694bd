"""A long list is worked through in order, with few calls waiting at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from lightning_modules.threads import AHEAD, map_in_order


def test_results_are_in_order_and_items_are_taken_when_there_is_room() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(3 * AHEAD):
            taken.append(number)
            yield number

    with ThreadPoolExecutor(3) as pool:
        results = map_in_order(pool, lambda number: 2 * number, items())
        assert next(results) == 0
        assert len(taken) <= AHEAD + 1
        assert list(results) == [2 * number for number in range(1, 3 * AHEAD)]


def test_an_error_cancels_the_calls_that_have_not_begun() -> None:
    may_go_on, called = threading.Event(), []

    def call(number: int) -> None:
        called.append(number)
        if number == 0:
            raise ValueError("the first one")
        may_go_on.wait(10)

    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(ValueError, match="the first one"):
            list(map_in_order(pool, call, range(100)))
        may_go_on.set()
    assert len(called) <= 2
