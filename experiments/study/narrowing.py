"""A smaller search space from what a local study has learned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from experiments.config import require
from experiments.study.search_space import ChoiceRange, FloatRange, IntRange, Range, SearchSpace
from experiments.study.study import completed_trials, objective_value
from lightning_modules.metrics import Direction, to_minimize

if TYPE_CHECKING:  # a study exists only if it is imported
    from optuna import Study

MIN_TRIALS = 8
"""Fewest complete trials for a meaningful best quarter."""
MARGIN = 0.1
"""How far a range extends beyond the best quarter on either side, as a share of the original range."""


def narrow(space: SearchSpace, points: Sequence[Mapping[str, object]], values: Sequence[float]) -> SearchSpace:
    """Shrink each range to that of the best quarter of the points, with a margin, within the original.

    Args:
        points: drawn points.
        values: objective of each; smaller is better.

    Raises:
        ValueError: if there are too few points, or they were drawn from another space.
    """
    require(len(points) >= MIN_TRIALS, "--from-study", f"have {MIN_TRIALS} complete trials or more", len(points))
    best = sorted(range(len(points)), key=lambda index: values[index])[: math.ceil(len(points) / 4)]
    narrowed: dict[str, Range] = {}
    for name, search_range in space.items():
        drawn = [points[index].get(name) for index in best]
        require(None not in drawn, f"--from-study: {name}", "be a field that the study tuned", drawn)
        narrowed[name] = _narrow(search_range, drawn)
    return MappingProxyType(narrowed)


def narrow_by_study(space: SearchSpace, study: Study) -> SearchSpace:
    """`narrow` to the best complete trials of a study, by the study's own objective.

    Raises:
        ValueError: as `narrow`.
    """
    trials = completed_trials(study)
    direction: Direction = "maximize" if study.direction.name == "MAXIMIZE" else "minimize"
    values = [to_minimize(objective_value(trial), direction) for trial in trials]
    return narrow(space, [trial.params for trial in trials], values)


def describe(before: SearchSpace, after: SearchSpace) -> str:
    """Both spaces, line by line."""
    return "\n".join(f"  {name}: {range_text(before[name])} -> {range_text(after[name])}" for name in before)


def _narrow(search_range: Range, drawn: Sequence[object]) -> Range:
    if isinstance(search_range, ChoiceRange):
        return ChoiceRange(tuple(value for value in search_range.values if value in drawn))
    numbers = [float(value) for value in drawn]  # type: ignore[arg-type]
    low, high = _scaled(search_range.low, search_range.log), _scaled(search_range.high, search_range.log)
    margin = MARGIN * (high - low)
    inside = max(low, min(_scaled(value, search_range.log) for value in numbers) - margin)
    outside = min(high, max(_scaled(value, search_range.log) for value in numbers) + margin)
    least, most = (math.exp(inside), math.exp(outside)) if search_range.log else (inside, outside)
    if isinstance(search_range, FloatRange):
        return FloatRange(max(search_range.low, least), min(search_range.high, most), search_range.log)
    narrowed = IntRange(
        max(search_range.low, math.floor(least)), min(search_range.high, math.ceil(most)), search_range.log
    )
    return narrowed if narrowed.low < narrowed.high else search_range


def _scaled(value: float, log: bool) -> float:
    return math.log(value) if log else value


def range_text(search_range: Range) -> str:
    """A range as a person reads it."""
    if isinstance(search_range, ChoiceRange):
        return ", ".join(map(str, search_range.values))
    return f"{search_range.low:.4g}..{search_range.high:.4g}{' (log)' if search_range.log else ''}"
