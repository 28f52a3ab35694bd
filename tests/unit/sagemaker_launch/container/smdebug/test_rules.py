"""The rules of SageMaker Debugger, on trainings that are made up."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pytest

from sagemaker_launch.container.smdebug.rules import RULES, make_rule, matches


@dataclass
class Saved:
    """A step as a rule sees it."""

    number: int
    mode: str = "TRAIN"
    numbers: dict[str, dict[str, float]] = field(default_factory=dict)
    modes: Sequence[str] = ("TRAIN", "EVAL")

    def collection(self, name: str) -> list[str]:
        patterns = {"losses": "loss", "gradients": "^gradient/"}
        return self.matching([patterns[name]])

    def matching(self, patterns: list[str]) -> list[str]:
        return [name for name in self.numbers if matches(name, patterns)]

    def statistic(self, tensor: str, name: str) -> float | None:
        return self.numbers[tensor].get(name)

    def percentiles(self, tensor: str, low: float, high: float) -> tuple[float, float] | None:
        ends = self.numbers[tensor]
        return (ends["min"], ends["max"]) if "min" in ends else None


def epochs(losses: Iterable[tuple[float, float]], batches: int = 6) -> list[Saved]:
    """Steps of a training by the training and validation losses of its epochs."""
    steps: list[Saved] = []
    for train, valid in losses:
        for mode, loss in [("TRAIN", train)] * batches + [("EVAL", valid)] * batches:
            steps.append(Saved(len(steps), mode, {"loss": {"mean": loss}}))
    return steps


def found(steps: Sequence[Saved], name: str, /, **parameters: str) -> list[int]:
    """The steps at which a rule is met; the last one's number again for what it says at the end."""
    rule = make_rule({"rule_to_invoke": name, **parameters})
    met = [step.number for step in steps if rule.at(step)]
    return [*met, steps[-1].number] if rule.end() else met


HEALTHY = epochs([(1.0, 0.95), (0.8, 0.76), (0.6, 0.59), (0.5, 0.51)])


@pytest.mark.parametrize("name", RULES)
def test_a_healthy_training_trips_no_rule(name: str) -> None:
    assert found(HEALTHY, name) == []


def test_overfit_is_a_validation_loss_above_the_training_loss_for_as_long_as_patience_says() -> None:
    steps = epochs([(1.0, 1.0), (0.8, 0.9), (0.6, 0.9), (0.4, 1.0)])
    # A validation is judged when the next epoch begins, or the training ends.
    assert found(steps, "Overfit") == [24, 36, 47]
    assert found(steps, "Overfit", patience="3") == [47]
    assert found(steps, "Overfit", ratio_threshold="1.0") == [47]
    assert found(steps, "Overfit", start_step="40") == [47]
    assert found(steps, "Overfit", tensor_regex="other") == []


def test_overtraining_is_two_losses_that_stand_still() -> None:
    steps = epochs([(1.0, 1.0)] * 12)
    assert found(steps, "Overtraining") == [132, 143]
    assert found(steps, "Overtraining", patience_validation="11") == [143]
    falling = epochs([(1.0 - epoch / 20, 1.0) for epoch in range(12)])
    assert found(falling, "Overtraining") == []
    assert found(falling, "Overtraining", delta="0.2", patience_validation="3", patience_train="3") != []


def test_a_loss_that_does_not_fall_is_forgiven_once() -> None:
    assert found(epochs([(1.0, 1.0), (1.0, 1.0), (1.0, 0.9)]), "LossNotDecreasing") == []
    assert found(epochs([(1.0, 1.0), (1.0, 1.0), (1.0, 1.0), (1.0, 0.9)]), "LossNotDecreasing") == [36]
    assert found(epochs([(1.0, 1.0), (0.5, 1.06)]), "LossNotDecreasing") == [23]
    assert found(epochs([(1.0, 1.0), (0.5, math.nan)]), "LossNotDecreasing") == [23]


def test_a_loss_is_looked_at_in_the_mode_that_was_asked_for() -> None:
    steps = epochs([(1.0, 1.0), (1.1, 0.9), (1.2, 0.8)])
    assert found(steps, "LossNotDecreasing") == []
    assert found(steps, "LossNotDecreasing", mode="TRAIN", num_steps="6") == [17, 29]
    only_training = [Saved(n, "TRAIN", {"loss": {"mean": 1.0 + n}}, modes=["TRAIN"]) for n in range(30)]
    assert found(only_training, "LossNotDecreasing") == [19, 29]


def test_a_gradient_vanishes_below_the_threshold_and_a_bias_does_not_count() -> None:
    numbers = {"gradient/a.weight": {"abs_mean": 1e-8}, "gradient/b.bias": {"abs_mean": 0.0}}
    assert found([Saved(3, numbers=numbers)], "VanishingGradient") == [3]
    assert found([Saved(3, numbers=numbers)], "VanishingGradient", threshold="1e-9") == []


def test_a_tensor_explodes_where_it_is_no_number_and_its_spread_does_not_count() -> None:
    assert found([Saved(0, numbers={"a": {"mean": math.inf}})], "ExplodingTensor") == [0]
    assert found([Saved(0, numbers={"a": {"mean": math.inf}})], "ExplodingTensor", only_nan="True") == []
    assert found([Saved(0, numbers={"a": {"mean": math.nan}})], "ExplodingTensor", only_nan="true") == [0]
    assert found([Saved(0, numbers={"a": {"mean": 1.0, "std": math.nan}})], "ExplodingTensor") == []
    assert found([Saved(0, numbers={"a": {"mean": math.nan}})], "ExplodingTensor", tensor_regex="b") == []


def test_weights_are_poor_where_the_loss_stands_still_and_the_layers_show_why() -> None:
    def steps(loss: Sequence[float], layers: dict[str, dict[str, float]]) -> list[Saved]:
        return [Saved(n, numbers={"loss": {"mean": value}} | layers) for n, value in enumerate(loss)]

    still, falling = [1.0] * 8, [1.0 - n / 10 for n in range(8)]
    narrow = {"gradient/a": {"min": -1e-4, "max": 1e-4}}
    apart = {"1.relu_input_0": {"variance": 1.0}, "2.relu_input_0": {"variance": 11.0}}
    assert found(steps(still, narrow), "PoorWeightInitialization") == [5, 6, 7]
    assert found(steps(still, apart), "PoorWeightInitialization") == [5, 6, 7]
    assert found(steps(falling, narrow | apart), "PoorWeightInitialization") == []
    assert found(steps(still, apart), "PoorWeightInitialization", threshold="12") == []
    assert found(steps(still, narrow), "PoorWeightInitialization", steps="5") == []


@pytest.mark.parametrize("name", RULES)
def test_a_rule_that_saw_nothing_says_what_it_needs(name: str) -> None:
    rule = make_rule({"rule_to_invoke": name})
    assert rule.at(Saved(0)) is None
    assert rule.looked_at == 0 and rule.needs


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rule_to_invoke": "DeadRelu"}, "rule_to_invoke must be one of VanishingGradient, .*got 'DeadRelu'"),
        ({"rule_to_invoke": "Overfit", "patient": "1"}, "Overfit has no parameter 'patient'; did you mean patience"),
        ({"rule_to_invoke": "Overfit", "patience": "some"}, r"Overfit\.patience must be a int, got 'some'"),
        (
            {"rule_to_invoke": "LossNotDecreasing", "mode": "eval"},
            "mode must be one of EVAL, TRAIN, GLOBAL, got 'eval'",
        ),
        ({"rule_to_invoke": "ExplodingTensor", "only_nan": "yes"}, r"only_nan must be a bool, got 'yes'"),
    ],
)
def test_a_parameter_that_is_wrong_is_named(parameters: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_rule(parameters)
