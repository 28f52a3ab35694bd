"""Style of all figures: sizes, labels, log axes, and how a figure is saved."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter

MAX_LABEL = 40
"""Characters of a class name in a picture: a longer one would leave no room for the picture."""
MAX_TICKS = 45
"""Class names that stay readable beside one another on the largest figure."""
LOG_AXIS = 5.0
"""A loss is drawn on a log axis where its largest value is so many times the median."""
DPI = 120
PAD_INCHES = 0.1


def save_figure(figure: Figure, target: Path | BinaryIO, **options: Any) -> None:
    """Write a figure as a picture. What it says is text and never markup: a class may be called `over_$10`.

    Args:
        options: as for `Figure.savefig`.
    """
    for label in figure.findobj(Text):
        label.set_parse_math(False)
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if isinstance(axis.get_major_formatter(), LogFormatter):  # powers of ten, which matplotlib writes as formulas
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                tick.label1.set_parse_math(True)
                tick.label2.set_parse_math(True)
    figure.savefig(target, **options)


def short(name: str) -> str:
    """A class name as a picture shows it."""
    return name if len(name) <= MAX_LABEL else f"{name[: MAX_LABEL - 11]}…{name[-10:]}"


def needs_log_axis(metric: str, values: Iterable[float]) -> bool:
    """Whether the largest values of a loss, such as those of the first epoch, would flatten the rest."""
    finite = sorted(value for value in values if math.isfinite(value))
    return (
        metric.endswith("loss") and bool(finite) and finite[0] > 0 and finite[-1] > LOG_AXIS * statistics.median(finite)
    )


def new_figure(width_inches: float, height_inches: float) -> Figure:
    """An empty figure that lays itself out."""
    layout = ConstrainedLayoutEngine(w_pad=PAD_INCHES, h_pad=PAD_INCHES)
    return Figure(figsize=(width_inches, height_inches), dpi=DPI, layout=layout)
