"""How a rehearsed tuning job draws hyperparameters."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagemaker_launch.rehearsal.jobs.strategies import (
    ChoiceRange,
    NumberRange,
    Result,
    Scaling,
    Strategy,
    make_strategy,
    ranges_of,
)

RANGES = {
    "ContinuousParameterRanges": [
        {"Name": "learning_rate", "MinValue": "1e-5", "MaxValue": "0.1", "ScalingType": "Logarithmic"},
        {"Name": "momentum", "MinValue": "0.5", "MaxValue": "0.999", "ScalingType": "ReverseLogarithmic"},
    ],
    "IntegerParameterRanges": [{"Name": "epochs", "MinValue": "1", "MaxValue": "3"}],
    "CategoricalParameterRanges": [{"Name": "optimizer", "Values": ["sgd", "adamw"]}],
}


def config(strategy: str, ranges: dict[str, Any] = RANGES, **more: Any) -> dict[str, Any]:
    objective = {"Type": "Minimize", "MetricName": "val_loss"}
    named = {"Strategy": strategy, "HyperParameterTuningJobObjective": objective, "ParameterRanges": ranges}
    return {**named, "RandomSeed": 7, **more}


def draw(strategy: Strategy, count: int) -> list[dict[str, str] | None]:
    drawn = []
    for number in range(count):
        point = strategy.ask(f"job-{number}")
        drawn.append(point)
        strategy.tell(f"job-{number}", None if point is None else float(point.get("learning_rate", 0)))
    return drawn


@pytest.mark.parametrize("name", ["Random", "Bayesian", "Hyperband"])
def test_draws_lie_in_their_ranges_are_strings_and_follow_the_seed(name: str) -> None:
    first, again = draw(make_strategy(config(name)), 12), draw(make_strategy(config(name)), 12)
    assert first == again
    assert draw(make_strategy(config(name, RandomSeed=8)), 12) != first
    for point in first:
        assert point is not None
        assert set(point) == {"learning_rate", "momentum", "epochs", "optimizer"}
        assert 1e-5 <= float(point["learning_rate"]) <= 0.1
        assert 0.5 <= float(point["momentum"]) <= 0.999
        assert point["epochs"] in ("1", "2", "3")
        assert point["optimizer"] in ("sgd", "adamw")


def test_grid_gives_every_combination_once_and_then_none() -> None:
    choices = [{"Name": "a", "Values": ["1", "2"]}, {"Name": "b", "Values": ["x", "y", "z"]}]
    strategy = make_strategy(config("Grid", {"CategoricalParameterRanges": choices}))
    drawn = [strategy.ask(f"job-{number}") for number in range(7)]
    assert drawn[-1] is None
    assert len({tuple(sorted(point.items())) for point in drawn[:-1] if point is not None}) == 6


def test_bayesian_search_closes_in_on_the_optimum() -> None:
    ranges = {"ContinuousParameterRanges": [{"Name": "x", "MinValue": "-10", "MaxValue": "10"}]}
    strategy = make_strategy(config("Bayesian", ranges))
    distances = []
    for number in range(40):
        point = strategy.ask(f"job-{number}")
        assert point is not None
        distances.append(abs(float(point["x"]) - 3))
        strategy.tell(f"job-{number}", distances[-1])
    # Random draws are 5 away in the median.
    assert statistics.median(distances[-20:]) < 2.5


def test_a_warm_start_begins_where_the_parents_ended() -> None:
    ranges = {"ContinuousParameterRanges": [{"Name": "x", "MinValue": "0", "MaxValue": "100"}]}
    earlier = [Result({"x": str(x)}, abs(x - 20.0)) for x in range(0, 100, 2)]
    # One of the old points lies outside of the new range, and is passed over.
    strategy = make_strategy(config("Bayesian", ranges), [*earlier, Result({"x": "1000"}, 0.0)])
    drawn = [point for number in range(10) if (point := strategy.ask(f"job-{number}")) is not None]
    assert sum(abs(float(point["x"]) - 20) < 15 for point in drawn) >= 8


def test_hyperband_ends_jobs_that_fall_behind() -> None:
    ranges = {"ContinuousParameterRanges": [{"Name": "x", "MinValue": "0", "MaxValue": "1"}]}
    bounds = {"HyperbandStrategyConfig": {"MinResource": 1, "MaxResource": 9}}
    strategy = make_strategy(config("Hyperband", ranges, StrategyConfig=bounds))
    ended = 0
    for number in range(30):
        strategy.ask(f"job-{number}")
        ended += any(strategy.report(f"job-{number}", epoch, float(number)) for epoch in range(1, 10))
        strategy.tell(f"job-{number}", float(number))
    assert 0 < ended < 30


def test_a_job_without_objective_teaches_nothing() -> None:
    strategy = make_strategy(config("Bayesian"))
    strategy.ask("job")
    strategy.tell("job", None)
    assert strategy.ask("next") is not None


@given(
    share=st.floats(0, 1),
    ends=st.tuples(st.floats(1e-6, 0.99), st.floats(1e-6, 0.99)),
    scaling=st.sampled_from(["Auto", "Linear", "Logarithmic", "ReverseLogarithmic"]),
)
@settings(deadline=None)
def test_every_share_of_a_range_lies_in_it(share: float, ends: tuple[float, float], scaling: Scaling) -> None:
    low, high = sorted(ends)
    drawn = NumberRange("x", low, high, integer=False, scaling=scaling).at(share)
    assert low <= drawn <= high
    assert float(NumberRange("x", low, high, False).text(drawn)) == drawn


def test_scaling_decides_where_the_middle_lies() -> None:
    assert NumberRange("x", 1e-4, 1.0, False, "Linear").at(0.5) == pytest.approx(0.50005)
    assert NumberRange("x", 1e-4, 1.0, False, "Logarithmic").at(0.5) == pytest.approx(0.01)
    assert NumberRange("x", 1e-4, 1.0, False, "Auto").at(0.5) == pytest.approx(0.01)
    assert NumberRange("x", 0.9, 0.999, False, "ReverseLogarithmic").at(0.5) == pytest.approx(0.99)
    assert [NumberRange("x", 1, 4, True).at(share) for share in (0, 0.2, 0.3, 0.6, 0.8, 1)] == [1, 1, 2, 3, 4, 4]


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("Continuous", {"MinValue": "1", "MaxValue": "0"}, "MinValue must be <= MaxValue"),
        ("Continuous", {"MinValue": "low", "MaxValue": "0"}, "must be numbers, got 'low' and '0'"),
        ("Continuous", {"MinValue": "0", "MaxValue": "inf"}, "must be finite"),
        ("Integer", {"MinValue": "1.5", "MaxValue": "2"}, "must be whole numbers"),
        ("Continuous", {"MinValue": "0", "MaxValue": "1", "ScalingType": "Logarithmic"}, "MinValue must be > 0"),
        ("Continuous", {"MinValue": "0", "MaxValue": "1", "ScalingType": "ReverseLogarithmic"}, "within 0 <= x < 1"),
        ("Categorical", {"Values": ["a", "a"]}, "Values must differ"),
    ],
)
def test_a_range_that_makes_no_sense_is_refused_by_name(kind: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^x: ") as error:
        ranges_of({f"{kind}ParameterRanges": [{"Name": "x", **fields}]})
    assert message in str(error.value)


def test_ranges_are_read_with_their_kind() -> None:
    first, _, third, fourth = ranges_of(RANGES)
    assert first == NumberRange("learning_rate", 1e-5, 0.1, False, "Logarithmic")
    assert third == NumberRange("epochs", 1, 3, True, "Auto")
    assert fourth == ChoiceRange("optimizer", ("sgd", "adamw"))
    assert math.isclose(first.at(0), 1e-5)
