"""A picture of photos with their true and their predicted names."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from experiments.figures.pictures import thumbnail
from lightning_modules.palette import GREEN, GREY, VERMILLION
from sagemaker_launch.endpoints.query import PhotoAnswer

MAX_PHOTOS = 48
COLOURS = {True: GREEN, False: VERMILLION, None: GREY}
"""Right, wrong, unknown."""


def photo_grid(answers: Sequence[PhotoAnswer]) -> Figure:
    """At most 48 photos, each with its true name, if that is known, and the predicted name."""
    shown = answers[:MAX_PHOTOS]
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(2.9 * columns, 3.4 * rows), layout="constrained")
    for number, answer in enumerate(shown):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.set_axis_off()
        try:
            axes.imshow(thumbnail(answer.image))
        except (OSError, ValueError):
            axes.text(0.5, 0.5, "no image", ha="center", va="center")
        right: bool | None = False
        caption = answer.error[:60]
        if not answer.error:
            name, score = answer.classes[0]
            caption = f"says {name} ({score:.0%})"
            right = None if answer.true_name is None else name == answer.true_name
        known = f"is {answer.true_name}" if answer.true_name else answer.image.name
        axes.set_title(f"{known}\n{caption}", fontsize=9, color=COLOURS[right])
    return figure
