"""Narrowing a search space to where a local study did well."""

from __future__ import annotations

import math

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution

from experiments.study.narrowing import describe, narrow, narrow_by_study
from experiments.study.search_space import ChoiceRange, FloatRange, IntRange, SearchSpace

SPACE: SearchSpace = {
    "optimizer.learning_rate": FloatRange(1e-5, 1e-1, log=True),
    "trainer.max_epochs": IntRange(1, 20),
    "data.batch_size": ChoiceRange((32, 64, 128)),
}
POINTS = st.lists(
    st.fixed_dictionaries(
        {
            "optimizer.learning_rate": st.floats(1e-5, 1e-1),
            "trainer.max_epochs": st.integers(1, 20),
            "data.batch_size": st.sampled_from((32, 64, 128)),
        }
    ),
    min_size=8,
    max_size=24,
)


def test_ranges_shrink_to_the_best_quarter_with_a_margin() -> None:
    points = [
        {
            "optimizer.learning_rate": 10.0**-index,
            "trainer.max_epochs": 4 + index,
            "data.batch_size": 32 * (1 + index // 3),
        }
        for index in (1, 2, 3, 4, 5, 1, 2, 3)
    ]
    narrowed = narrow(SPACE, points, values=[1, 0.1, 0.2, 3, 4, 5, 6, 7])
    rate, epochs, batch = narrowed.values()
    assert isinstance(rate, FloatRange)
    assert (math.log10(rate.low), math.log10(rate.high)) == pytest.approx((-3.4, -1.6))
    assert epochs == IntRange(4, 9)
    assert batch == ChoiceRange((32, 64))
    assert "data.batch_size: 32, 64, 128 -> 32, 64" in describe(SPACE, narrowed)


@given(points=POINTS, data=st.data())
def test_a_narrowed_space_stays_inside_and_holds_the_best(points: list[dict[str, object]], data: st.DataObject) -> None:
    values = data.draw(st.lists(st.floats(0, 1), min_size=len(points), max_size=len(points)))
    narrowed = narrow(SPACE, points, values)
    best = points[min(range(len(points)), key=lambda index: values[index])]
    for name, after in narrowed.items():
        before = SPACE[name]
        if isinstance(after, ChoiceRange):
            assert isinstance(before, ChoiceRange)
            assert set(after.values) <= set(before.values)
            assert best[name] in after.values
        else:
            assert not isinstance(before, ChoiceRange)
            assert before.low <= after.low < after.high <= before.high
            assert after.low <= float(str(best[name])) <= after.high


def test_too_few_trials_and_another_space_are_refused() -> None:
    with pytest.raises(ValueError, match="must have 8 complete trials or more, got 3"):
        narrow(SPACE, [{}] * 3, [1, 2, 3])
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate must be a field that the study tuned"):
        narrow(SPACE, [{}] * 8, [1] * 8)


@pytest.mark.parametrize(("direction", "low", "high"), [("minimize", 1e-4, 1.2e-3), ("maximize", 8e-3, 1e-1)])
def test_a_study_narrows_by_its_own_direction(direction: str, low: float, high: float) -> None:
    """And not by that of the command, which may have another objective."""
    study = optuna.create_study(direction=direction)
    ranges = {"optimizer.learning_rate": FloatDistribution(1e-4, 1e-1, log=True)}
    for number in range(13):
        rate = 1e-4 * 10 ** (number / 4)
        params = {"optimizer.learning_rate": rate}
        study.add_trial(optuna.create_trial(params=params, distributions=ranges, value=rate))
    narrowed = narrow_by_study({"optimizer.learning_rate": FloatRange(1e-4, 1e-1, log=True)}, study)[
        "optimizer.learning_rate"
    ]
    assert isinstance(narrowed, FloatRange)
    assert low / 1.01 <= narrowed.low < narrowed.high <= high * 1.01
