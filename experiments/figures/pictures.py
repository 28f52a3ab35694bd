"""The pictures of a finished run, drawn from its scores. Drawing needs no torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from experiments.figures.canvas import Canvas
from experiments.figures.run_figures import (
    ImageArray,
    classes_in_matrix,
    confusion_counts,
    confusion_matrix_figure,
    learning_curves_figure,
    per_class_accuracy_figure,
    worst_errors_figure,
    worst_first,
)
from experiments.figures.style import save_figure
from experiments.runs.folder import RunFolder
from experiments.runs.scoring import Scores
from lightning_modules.files import replaced_whole
from lightning_modules.insight.recording import Recording, load_findings
from lightning_modules.listing import why_no_photo

PER_CLASS, CONFUSION, ERRORS = "per_class_accuracy.csv", "confusion_matrix.csv", "worst_errors.csv"
"""Tables among a run's artifacts."""
WORST = 16
"""Errors that are shown."""
_THUMBNAIL_SIDE = 160
_PLAIN_BYTES, _PLAIN_PIXELS, _PLAIN_MARKERS = 8_000_000, 20_000_000, 100
"""Of files that Pillow opens here. The one reader, in `inference.py`, decides about larger files, and about those in
which more bytes look like the start of a JPEG's scan: thousands take minutes."""


def draw(folder: RunFolder) -> None:
    """Draw the pictures of a run: its recording, and those of its scores if it was scored.

    Raises:
        FileNotFoundError: if it has neither, or no longer.
    """
    folder.artifacts.mkdir(exist_ok=True)
    if folder.recording.is_dir():
        from experiments.figures.recording_figure import recording_figure  # matplotlib takes a third of a second

        with replaced_whole(folder.artifacts / "recording.png", shared=True) as part:
            figure = recording_figure(Recording.load(folder.recording), load_findings(folder.recording))
            save_figure(figure, part, format="png")
        if not folder.scores.is_file():
            return
    _save(folder.artifacts, "learning_curves", learning_curves_figure(folder.curves()))
    draw_scores(Scores.load(folder.scores), folder.artifacts)


def draw_scores(scores: Scores, folder: Path) -> None:
    """Tables, confusion matrix, accuracy by class; worst errors last, which alone need the photos."""
    write_tables(scores, folder)
    names = scores.class_names
    _save(folder, "confusion_matrix", confusion_matrix_figure(scores.labels, scores.predictions, names))
    _save(folder, "per_class_accuracy", per_class_accuracy_figure(scores.labels, scores.predictions, names))
    photos = [scores.root / path for path in scores.paths]
    worst = worst_errors_figure(photos, scores.labels, scores.probabilities, names, open_image=thumbnail, count=WORST)
    _save(folder, "worst_errors", worst)


def write_tables(scores: Scores, folder: Path) -> None:
    """The numbers behind the pictures, as CSV: accuracy by class, confusions, the worst errors."""
    names, labels, predictions = scores.class_names, scores.labels, scores.predictions
    images = np.bincount(labels, minlength=len(names))
    correct = np.bincount(labels[labels == predictions], minlength=len(names))
    accuracy = np.divide(correct, images, out=np.full(len(names), np.nan), where=images > 0)
    rows = [(name, int(number), f"{share:.6g}") for name, number, share in zip(names, images, accuracy, strict=True)]
    _write_csv(folder / PER_CLASS, ("class", "images", "accuracy"), rows)
    shown = classes_in_matrix(labels, predictions, len(names))
    counts = confusion_counts(labels, predictions, shown)
    matrix = [(names[index], *row.tolist()) for index, row in zip(shown, counts, strict=True)]
    few = "" if len(shown) == len(names) else f" ({len(shown)} of {len(names):,}: those with the most errors)"
    _write_csv(folder / CONFUSION, (f"true class{few}", *(names[index] for index in shown)), matrix)
    worst = worst_first(labels, scores.probabilities)[:WORST]
    errors = [
        (
            scores.paths[index].as_posix(),
            names[labels[index]],
            names[predictions[index]],
            f"{scores.probabilities[index].max():.4f}",
            f"{scores.probabilities[index, labels[index]]:.4g}",
        )
        for index in worst
    ]
    _write_csv(folder / ERRORS, ("photo", "true", "predicted", "probability", "probability of the true class"), errors)


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with replaced_whole(path, shared=True) as part, part.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])


def _save(folder: Path, name: str, canvas: Canvas) -> None:
    with replaced_whole(folder / f"{name}.png", shared=True) as part:
        canvas.save(part)


def thumbnail(path: Path) -> ImageArray:
    """The centre of a photo, as training and endpoints decode it.

    Returns:
        (160, 160, 3) uint8.

    Raises:
        OSError, ValueError: if the file is gone or no image.
    """
    if why := why_no_photo(path):
        raise ValueError(why)
    data = path.read_bytes()
    picture = _plain_picture(data)
    if picture is None:
        from lightning_modules.inference import open_image  # torch takes four seconds to import

        picture = open_image(data, short_side=_THUMBNAIL_SIDE)
    return np.asarray(ImageOps.fit(picture, (_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), Image.Resampling.BILINEAR))


def _plain_picture(data: bytes) -> Image.Image | None:
    """A photo for which the decoder needs no rule of its own: complete, 8 bits per channel, nothing transparent."""
    if len(data) > _PLAIN_BYTES or data.count(b"\xff\xda") > _PLAIN_MARKERS:
        return None
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            if image.mode not in ("L", "RGB", "CMYK", "P") or "transparency" in image.info:
                return None
            if image.width * image.height > _PLAIN_PIXELS:
                return None
            image.draft(None, (_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
            return ImageOps.exif_transpose(image).convert("RGB")
    except Exception:  # Pillow raises SyntaxError, struct.error and more; the decoder reports what is wrong
        return None
