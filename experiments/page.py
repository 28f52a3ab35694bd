"""What our pages about runs share: they load nothing and run nothing, and each picture stands over a table."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

NOTHING = "—"


@dataclass(frozen=True)
class Table:
    """A table of texts; the first cell of a row names it."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Plot:
    """A picture, what it shows, and the numbers behind it."""

    name: str
    title: str
    caption: str
    png: bytes
    table: Table

    @property
    def data_uri(self) -> str:
        """The picture, for a page that loads nothing."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


def to_png(figure: Figure) -> bytes:
    """The file that a figure makes."""
    target = io.BytesIO()
    figure.savefig(target, format="png")
    return target.getvalue()


def render_page(package: str, template: str, **values: object) -> str:
    """Fill a template of a package, which may extend `page.html.j2` and use `parts.html.j2`."""
    loader = ChoiceLoader([PackageLoader(package, ""), PackageLoader("experiments", "")])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(**values)
