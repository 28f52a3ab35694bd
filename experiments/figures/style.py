"""What all figures share: labels, ticks, log axes, and how a figure of matplotlib is saved."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:  # the figures of a trial and most pages do not need it
    from matplotlib.figure import Figure

MAX_LABEL = 40
"""Characters of a class name in a picture: a longer one would leave no room for the picture."""
MAX_TICKS = 45
"""Class names that stay readable beside one another on the largest figure."""
LOG_AXIS = 5.0
"""A loss is drawn on a log axis where its largest value is so many times the median."""


def save_figure(figure: Figure, target: Path | BinaryIO, **options: Any) -> None:
    """Write a figure as a picture. What it says is text and never markup: a class may be called `over_$10`.

    Args:
        options: as for `Figure.savefig`.
    """
    from matplotlib.text import Text
    from matplotlib.ticker import LogFormatter

    for label in figure.findobj(Text):
        label.set_parse_math(False)
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if isinstance(axis.get_major_formatter(), LogFormatter):  # powers of ten, which matplotlib writes as formulas
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                tick.label1.set_parse_math(True)
                tick.label2.set_parse_math(True)
    figure.savefig(target, **options)


def short(name: str) -> str:
    """A class name as a picture shows it: in one line, and without its middle if it is long."""
    name = " ".join(name.splitlines())
    return name if len(name) <= MAX_LABEL else f"{name[: MAX_LABEL - 11]}…{name[-10:]}"


def needs_log_axis(metric: str, values: Iterable[float]) -> bool:
    """Whether the largest values of a loss, such as those of the first epoch, would flatten the rest."""
    finite = sorted(value for value in values if math.isfinite(value))
    return (
        metric.endswith("loss") and bool(finite) and finite[0] > 0 and finite[-1] > LOG_AXIS * statistics.median(finite)
    )


def linear_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round numbers from `low` to `high`, at most so many."""
    step = _round_step((high - low) / most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from `low` to `high`; with their double and fivefold if there are few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(decades) <= 4 else (1,)
    every = math.ceil(len(decades) / 8)
    ticks = (factor * 10.0**decade for decade in decades[::every] for factor in factors)
    return [tick for tick in ticks if low <= tick <= high]


def epoch_ticks(first: int, last: int, most: int = 10) -> list[int]:
    """Whole numbers from the first to the last epoch, at most so many."""
    step = max(1, math.ceil(_round_step((last - first) / most))) if last > first else 1
    return list(range(-(-first // step) * step, last + 1, step))


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Ticks as text, with as many digits as tell them apart."""
    rows = ([f"{tick:.{digits}g}" for tick in ticks] for digits in range(4, 18))
    return next(row for row in rows if len(set(row)) == len(ticks))


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 2.5, 5 and 10 times a power of ten that is no less."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= least * (1 - 1e-9))
