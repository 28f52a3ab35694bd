"""Elements of our HTML pages: tables, and plots with the table of their data.

A page loads nothing. The table below a plot is what a screen reader or a browser without JavaScript gets.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from experiments.figures.style import needs_log_axis, save_figure
from lightning_modules.palette import BLUE, GREEN, GREY, VERMILLION

if TYPE_CHECKING:  # pages with pictures only do not need it
    import plotly.graph_objects as go
    from matplotlib.figure import Figure

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
    """A picture, its caption, and the table of its data."""

    name: str
    title: str
    caption: str
    png: bytes
    table: Table

    @property
    def data_uri(self) -> str:
        """The picture, for a page that loads nothing."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class InteractivePlot:
    """A plot by plotly and the data behind it."""

    title: str
    caption: str
    figure_json: Markup
    table: Table
    min_width_px: int = 0
    """Below this width it scrolls sideways."""
    height_px: int = 416


@dataclass(frozen=True)
class Photo:
    """A photo inside the page, and its description for screen readers."""

    caption: str
    alt: str
    jpeg: bytes

    @property
    def data_uri(self) -> str:
        """The photo, for a page that loads nothing."""
        return f"data:image/jpeg;base64,{base64.b64encode(self.jpeg).decode()}"


def render_page(package: str, template: str, **values: object) -> str:
    """Fill a template of a package, which may extend `page.html.j2` and use `parts.html.j2`."""
    loader = ChoiceLoader([PackageLoader(package, ""), PackageLoader("experiments.report", "")])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {"GREEN": GREEN, "VERMILLION": VERMILLION}
    return environment.get_template(template).render(**values)


def to_png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file."""
    target = io.BytesIO()
    save_figure(figure, target, format="png")
    return target.getvalue()


def whole_ticks(last: int) -> dict[str, int]:
    """Ticks of an axis of whole numbers from 0 or 1 to `last`, ten at most."""
    return {"tick0": 0, "dtick": max(1, -(-last // 10))}


def name_epochs(figure: go.Figure, last: int) -> None:
    """Label the axis of the epochs, with ticks at whole numbers."""
    figure.update_xaxes(title="epoch", **whole_ticks(last))


def unflatten(figure: go.Figure, metric: str, values: Iterable[float]) -> None:
    """Draw a loss on a log axis where a linear one would flatten most of it."""
    if needs_log_axis(metric, values):
        figure.update_yaxes(type="log")


def figure_json(figure: go.Figure) -> Markup:
    """Style a plot for the page and write it as JSON, in which plotly escapes `<`, `>` and `/`."""
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
        # Dragging with a finger scrolls the page; a button zooms.
        dragmode=False,
    )
    return Markup(figure.to_json())


def plotly_text(words: str) -> str:
    """Text of a user, escaped for plotly, which reads `<b>` and `<a href>` as HTML does."""
    return str(escape(words))


def text(value: object) -> str:
    """A value as text of a table."""
    if value is None:
        return NOTHING
    return f"{value:.4g}" if isinstance(value, float) else str(value)
