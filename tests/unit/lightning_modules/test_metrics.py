"""The metrics' names and directions."""

from __future__ import annotations

import math

import pytest

from lightning_modules.metrics import Direction, to_minimize


@pytest.mark.parametrize(("direction", "best"), [("minimize", -1.0), ("maximize", 2.0)])
def test_the_smallest_is_the_best_and_nan_the_worst(direction: Direction, best: float) -> None:
    ranked = sorted([math.nan, 2.0, 0.5, -1.0], key=lambda value: to_minimize(value, direction))
    assert ranked[0] == best and ranked[1] == 0.5 and math.isnan(ranked[3])
