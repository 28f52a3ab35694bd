"""A white picture for text, lines and rectangles, which Pillow draws: every trial has four of these pictures.

matplotlib took 0.1 to 0.15 seconds of a core for each, most of them for ticks, layout and text; this takes a tenth.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

TEXT, TITLE = 16, 19
"""Sizes of letters in pixels."""
LINE_HEIGHT = 1.25
"""Height of a line of text, in sizes of its letters."""
SMOOTHING = 4
"""A curve is drawn so many times as large and made smaller, which gives it smooth edges."""
DASH, GAP = 8.0, 5.0
"""Pixels of a dashed line."""
Align: TypeAlias = Literal["left", "middle", "right"]
Point: TypeAlias = tuple[float, float]
_ANCHORS = {"left": "lm", "middle": "mm", "right": "rm"}


class Words(NamedTuple):
    """A text in a picture."""

    text: str
    x: float
    y: float
    color: str


class Canvas:
    """A picture in pixels; x grows to the right, y downwards.

    Attributes:
        image: what is drawn so far, RGB.
        words: the texts in it, in the order in which they were written.
    """

    def __init__(self, width: float, height: float) -> None:
        self.image = Image.new("RGB", (math.ceil(width), math.ceil(height)), "white")
        self.words: list[Words] = []
        self._draw = ImageDraw.Draw(self.image)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: int = TEXT,
        color: str = "black",
        align: Align = "middle",
        angle: int = 0,
        background: str | None = None,
    ) -> None:
        """Write one or more lines. What they say is text and never markup: a class may be called `over_$10`.

        Args:
            x: where lines begin, have their middle, or end, as `align` says.
            y: the middle of all lines.
            angle: degrees counter-clockwise, about that point.
            background: colour of a box behind the text.
        """
        self.words.append(Words(text, x, y, color))
        lines = text.split("\n")
        for number, line in enumerate(lines):
            line_y = y + (number - (len(lines) - 1) / 2) * LINE_HEIGHT * size
            if angle:
                self._turned(x, line_y, line, size, color, align, angle)
                continue
            if background is not None:
                left, top, right, bottom = self._draw.textbbox((x, line_y), line, _font(size), _ANCHORS[align])
                self._draw.rectangle((left - 2, top - 2, right + 2, bottom + 2), fill=background)
            self._draw.text((x, line_y), line, color, _font(size), _ANCHORS[align])

    def _turned(self, x: float, y: float, line: str, size: int, color: str, align: Align, angle: int) -> None:
        reach = math.ceil(text_width(line, size)) + size
        mask = Image.new("L", (2 * reach, 2 * reach))
        ImageDraw.Draw(mask).text((reach, reach), line, 255, _font(size), _ANCHORS[align])
        mask = mask.rotate(angle, Image.Resampling.BICUBIC)
        self.image.paste(color, (round(x) - reach, round(y) - reach), mask)

    def line(self, start: Point, end: Point, *, color: str = "black", width: int = 1) -> None:
        """Draw a horizontal or vertical line."""
        self._draw.line((*start, *end), color, width)

    def rectangle(self, left: float, top: float, right: float, bottom: float, *, color: str) -> None:
        """Fill a rectangle."""
        self._draw.rectangle((left, top, right, bottom), fill=color)

    def frame(self, left: float, top: float, right: float, bottom: float) -> None:
        """Draw the edges of a rectangle."""
        self._draw.rectangle((left, top, right, bottom), outline="black")

    def photo(
        self, left: float, top: float, pixels: npt.NDArray[np.uint8], size: tuple[int, int] | None = None
    ) -> None:
        """Show an array as a picture.

        Args:
            pixels: (H, W, 3).
            size: width and height to which its pixels grow; by default they stay as they are.
        """
        image = Image.fromarray(pixels)
        self.image.paste(
            image if size is None else image.resize(size, Image.Resampling.NEAREST), (round(left), round(top))
        )

    def curve(self, points: Sequence[Point], *, color: str, is_dashed: bool = False) -> None:
        """Draw lines from point to point, with a dot at each; a point that is not finite interrupts them."""
        finite = [point for point in points if all(map(math.isfinite, point))]
        if not finite:
            return
        left, top = (min(point[axis] for point in finite) - 4 for axis in (0, 1))
        right, bottom = (max(point[axis] for point in finite) + 4 for axis in (0, 1))
        size = math.ceil(right - left), math.ceil(bottom - top)
        mask = Image.new("L", (SMOOTHING * size[0], SMOOTHING * size[1]))
        draw = ImageDraw.Draw(mask)
        for part in _runs(points):
            large = [(SMOOTHING * (x - left), SMOOTHING * (y - top)) for x, y in part]
            for stroke in _dashes(large) if is_dashed else [large]:
                draw.line(stroke, 255, 2 * SMOOTHING, joint="curve")
            for x, y in large:
                draw.circle((x, y), 3 * SMOOTHING, 255)
        self.image.paste(color, (round(left), round(top)), mask.reduce(SMOOTHING))

    def save(self, target: Path | BinaryIO) -> None:
        """Write a PNG file. It is a tenth larger than with the strongest compression, and written in half the time."""
        self.image.save(target, "PNG", compress_level=1)

    def _repr_png_(self) -> bytes:
        """The picture, for a notebook."""
        target = io.BytesIO()
        self.save(target)
        return target.getvalue()


def text_width(text: str, size: int = TEXT) -> float:
    """Width of the longest line of a text in pixels."""
    return max(_font(size).getlength(line) for line in text.split("\n"))


def fitting(text: str, width: float, size: int) -> str:
    """A line of text, its middle left out if it is wider than that."""
    shown, kept = text, len(text) - 1
    while kept > 1 and text_width(shown, size) > width:
        end = kept // 3
        shown = f"{text[: kept - end]}…{text[len(text) - end :]}"
        kept -= 1
    return shown


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings and draws with: it has the letters of most alphabets."""
    found = importlib.util.find_spec("matplotlib")  # to import it takes longer than to draw a picture
    assert found is not None, "a package that we require"
    assert found.origin is not None, "it is a package with a file"
    return ImageFont.truetype(str(Path(found.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"), size)


def _runs(points: Sequence[Point]) -> list[list[Point]]:
    """The points between those that are not finite."""
    runs: list[list[Point]] = [[]]
    for point in points:
        if all(map(math.isfinite, point)):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _dashes(points: Sequence[Point]) -> list[list[Point]]:
    """The dashes along lines from point to point."""
    dash, period = SMOOTHING * DASH, SMOOTHING * (DASH + GAP)
    found: list[list[Point]] = []
    before = 0.0  # how far the pattern has come
    for (x, y), (next_x, next_y) in itertools.pairwise(points):
        length = math.hypot(next_x - x, next_y - y)
        if not length:
            continue
        across, down = (next_x - x) / length, (next_y - y) / length
        start = -(before % period)
        while start < length:
            first, last = max(start, 0.0), min(start + dash, length)
            if first < last:
                found.append([(x + first * across, y + first * down), (x + last * across, y + last * down)])
            start += period
        before += length
    return found
