"""What our HTML pages are built of: tables, and plots over the table of their data.

A page needs no network. The table below a plot is what a screen reader or a browser without JavaScript gets.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

import plotly.graph_objects as go
from markupsafe import Markup

from experiments.figures import BLUE, GREY, VERMILLION

NOTHING = "—"
"""A cell without a value."""


@dataclass(frozen=True)
class Table:
    """A table of texts; the first cell of a row names it."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best_row: int | None = None


@dataclass(frozen=True)
class Plot:
    """An interactive plot and the data behind it."""

    title: str
    caption: str
    figure_json: Markup
    table: Table
    min_width_px: int = 0
    """Below this width it scrolls sideways."""
    height_px: int = 416


@dataclass(frozen=True)
class Picture:
    """A picture inside the page, and what it shows for those who do not see it."""

    caption: str
    alt: str
    data_uri: str

    @staticmethod
    def jpeg(content: bytes) -> str:
        """The bytes of a JPEG as an address that loads nothing."""
        return f"data:image/jpeg;base64,{base64.b64encode(content).decode('ascii')}"


def figure_json(figure: go.Figure) -> Markup:
    """Dress a plot for the page and write it as JSON, in which plotly escapes `<`, `>` and `/`."""
    axis = {
        "automargin": True,
        "zeroline": False,
        "gridcolor": "#CCCCCC",
        "exponentformat": "power",
    }
    figure.update_layout(
        template={"layout": {"colorway": [BLUE, VERMILLION], "xaxis": axis, "yaxis": axis}},
        title=None,
        autosize=True,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        margin={"l": 50, "r": 20, "t": 64, "b": 50},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": BLUE},
        hoverlabel={"bgcolor": "#1C2126", "bordercolor": GREY},
        # A finger that drags over a plot scrolls the page; zooming is a button away.
        dragmode=False,
    )
    return Markup(figure.to_json())


def text(value: object) -> str:
    """A value as it stands in a table."""
    if value is None:
        return NOTHING
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """Seconds with a digit more than a person says, for tables that are compared."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, whole_seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole_seconds} s"
