"""How a tuning job chooses hyperparameters: Random and Grid exactly, Bayesian and Hyperband by Optuna instead."""

from __future__ import annotations

import itertools
import logging
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

Scaling = Literal["Auto", "Linear", "Logarithmic", "ReverseLogarithmic"]
Point = dict[str, str]
"""Tuned hyperparameters of a job, as strings."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NumberRange:
    """A range of real or whole numbers."""

    name: str
    low: float
    high: float
    integer: bool
    scaling: Scaling = "Auto"

    def __post_init__(self) -> None:
        """Refuse an empty or invalid range."""
        if not self.low <= self.high:
            raise ValueError(f"{self.name}: MinValue must be <= MaxValue, got {self.low} and {self.high}")
        if self.scaling == "Logarithmic" and self.low <= 0:
            raise ValueError(f"{self.name}: MinValue must be > 0 for Logarithmic scaling, got {self.low}")
        if self.scaling == "ReverseLogarithmic" and (self.integer or not 0 <= self.low <= self.high < 1):
            raise ValueError(
                f"{self.name}: ReverseLogarithmic scaling takes a continuous range within 0 <= x < 1, "
                f"got {self.low} to {self.high}"
            )

    @property
    def logarithmic(self) -> bool:
        """Whether draws are uniform in the logarithm; AWS's Auto does this for wide positive ranges."""
        wide = self.low > 0 and self.high / self.low >= 1000
        return self.scaling == "Logarithmic" or (self.scaling == "Auto" and wide)

    def at(self, share: float) -> float:
        """The number at a share (0 to 1) of the scaled range."""
        # A whole number represents the half before and after it.
        low, high = (self.low - 0.5, self.high + 0.5) if self.integer else (self.low, self.high)
        if self.scaling == "ReverseLogarithmic":
            # Uniform in the logarithm of the distance to 1.
            drawn = 1 - math.exp(_between(math.log1p(-low), math.log1p(-high), share))
        elif self.logarithmic:
            drawn = math.exp(_between(math.log(low), math.log(high), share))
        else:
            drawn = _between(low, high, share)
        return min(max(round(drawn) if self.integer else drawn, self.low), self.high)

    def text(self, value: float) -> str:
        """The number as a hyperparameter."""
        return str(int(value)) if self.integer else repr(float(value))


@dataclass(frozen=True)
class ChoiceRange:
    """A set of strings."""

    name: str
    values: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse a duplicate value."""
        if len(set(self.values)) < len(self.values):
            raise ValueError(f"{self.name}: Values must differ, got {list(self.values)}")


Range = NumberRange | ChoiceRange


def ranges_of(parameter_ranges: Mapping[str, Any]) -> list[Range]:
    """Read the ParameterRanges of a request.

    Raises:
        ValueError: naming the hyperparameter and what is wrong with its range.
    """
    ranges: list[Range] = []
    for kind, integer in (("ContinuousParameterRanges", False), ("IntegerParameterRanges", True)):
        for each in parameter_ranges.get(kind, ()):
            name = each["Name"]
            try:
                low, high = (int(each[end]) if integer else float(each[end]) for end in ("MinValue", "MaxValue"))
            except ValueError as error:
                wanted = "whole numbers" if integer else "numbers"
                found = f"{each['MinValue']!r} and {each['MaxValue']!r}"
                raise ValueError(f"{name}: MinValue and MaxValue must be {wanted}, got {found}") from error
            if not (math.isfinite(low) and math.isfinite(high)):
                raise ValueError(f"{name}: MinValue and MaxValue must be finite, got {low} and {high}")
            ranges.append(NumberRange(name, low, high, integer, each.get("ScalingType", "Auto")))
    for each in parameter_ranges.get("CategoricalParameterRanges", ()):
        ranges.append(ChoiceRange(each["Name"], tuple(each["Values"])))
    return ranges


@dataclass(frozen=True)
class Result:
    """A point that an earlier tuning job tried, and its objective."""

    point: Point
    objective: float


class Strategy(Protocol):
    """Chooses the points of a tuning job. Jobs are known by name."""

    def ask(self, job: str) -> Point | None:
        """The point of the next job; None when there are no more."""

    def report(self, job: str, epoch: int, value: float) -> bool:
        """Take an objective that a running job reported; return whether the strategy ends the job."""

    def tell(self, job: str, objective: float | None) -> None:
        """Take the final objective of a job that ended, or None if it has none."""


class RandomStrategy:
    """Draws each point independently."""

    def __init__(self, ranges: Sequence[Range], seed: int | None) -> None:
        self._ranges, self._random = ranges, random.Random(seed)

    def ask(self, job: str) -> Point:
        """Draw a point."""
        point = {}
        for each in self._ranges:
            if isinstance(each, ChoiceRange):
                point[each.name] = self._random.choice(each.values)
            else:
                point[each.name] = each.text(each.at(self._random.random()))
        return point

    def report(self, job: str, epoch: int, value: float) -> bool:
        """Learn nothing."""
        return False

    def tell(self, job: str, objective: float | None) -> None:
        """Learn nothing."""


class GridStrategy:
    """Goes through all combinations, once each."""

    def __init__(self, ranges: Sequence[Range]) -> None:
        choices = [each for each in ranges if isinstance(each, ChoiceRange)]
        assert len(choices) == len(ranges)
        self._names = [each.name for each in choices]
        self._left = itertools.product(*(each.values for each in choices))

    def ask(self, job: str) -> Point | None:
        """The next combination."""
        values = next(self._left, None)
        return None if values is None else dict(zip(self._names, values, strict=True))

    def report(self, job: str, epoch: int, value: float) -> bool:
        """Learn nothing."""
        return False

    def tell(self, job: str, objective: float | None) -> None:
        """Learn nothing."""


class OptunaStrategy:
    """Optuna's TPE sampler replaces AWS's Bayesian search; with Hyperband, Optuna's Hyperband pruner too."""

    def __init__(
        self,
        ranges: Sequence[Range],
        seed: int | None,
        maximize: bool,
        earlier: Iterable[Result],
        pruner: optuna.pruners.BasePruner,
    ) -> None:
        """Begin a study.

        Args:
            earlier: results of other tuning jobs to start from.
        """
        self._ranges = ranges
        self._study = optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=seed),
            pruner=pruner,
            direction="maximize" if maximize else "minimize",
        )
        self._trials: dict[str, optuna.Trial] = {}
        self._distributions = {each.name: _distribution(each) for each in ranges}
        for result in earlier:
            self._add(result)

    def ask(self, job: str) -> Point:
        """Ask the sampler."""
        trial = self._trials[job] = self._study.ask(self._distributions)
        return {each.name: _as_text(each, trial.params[each.name]) for each in self._ranges}

    def report(self, job: str, epoch: int, value: float) -> bool:
        """Ask the pruner."""
        self._trials[job].report(value, epoch)
        return self._trials[job].should_prune()

    def tell(self, job: str, objective: float | None) -> None:
        """Tell the study."""
        failed = TrialState.FAIL if objective is None else None
        self._study.tell(self._trials.pop(job), objective, state=failed)

    def _add(self, result: Result) -> None:
        try:
            params = {each.name: _as_value(each, result.point[each.name]) for each in self._ranges}
            trial = create_trial(params=params, distributions=self._distributions, value=result.objective)
        except (KeyError, ValueError) as error:
            # A warm start may change ranges: points outside of the new ranges are dropped.
            log.info("warm start: a point of a parent is outside of the ranges (%s)", error)
            return
        self._study.add_trial(trial)


def make_strategy(config: Mapping[str, Any], earlier: Iterable[Result] = ()) -> Strategy:
    """The strategy that a HyperParameterTuningJobConfig asks for.

    Args:
        earlier: results of the parents in a warm start.
    """
    ranges = ranges_of(config["ParameterRanges"])
    seed = config.get("RandomSeed")
    maximize = config["HyperParameterTuningJobObjective"]["Type"] == "Maximize"
    if config["Strategy"] == "Random":
        return RandomStrategy(ranges, seed)
    if config["Strategy"] == "Grid":
        return GridStrategy(ranges)
    log.info("strategy %s: Optuna replaces AWS's own", config["Strategy"])
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if config["Strategy"] == "Hyperband":
        bounds = config.get("StrategyConfig", {}).get("HyperbandStrategyConfig", {})
        pruner = optuna.pruners.HyperbandPruner(
            min_resource=bounds.get("MinResource", 1), max_resource=bounds.get("MaxResource", "auto")
        )
    return OptunaStrategy(ranges, seed, maximize, earlier, pruner)


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share


def _distribution(each: Range) -> BaseDistribution:
    if isinstance(each, ChoiceRange):
        return CategoricalDistribution(each.values)
    if each.scaling == "ReverseLogarithmic":
        # Optuna searches the distance to 1.
        return FloatDistribution(1 - each.high, 1 - each.low, log=True)
    if each.integer:
        return IntDistribution(int(each.low), int(each.high), log=each.logarithmic)
    return FloatDistribution(each.low, each.high, log=each.logarithmic)


def _as_text(each: Range, value: Any) -> str:
    if isinstance(each, ChoiceRange):
        return str(value)
    return each.text(1 - value if each.scaling == "ReverseLogarithmic" else value)


def _as_value(each: Range, text: str) -> str | float | int:
    if isinstance(each, ChoiceRange):
        return text
    if each.integer:
        return int(text)
    return 1 - float(text) if each.scaling == "ReverseLogarithmic" else float(text)
