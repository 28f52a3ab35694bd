"""The pictures of a finished run, drawn from the scores that it left. Whoever draws needs no torch."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from experiments.figures import (
    ImageArray,
    confusion_matrix_figure,
    learning_curves_figure,
    per_class_accuracy_figure,
    worst_errors_figure,
)
from experiments.recording_figure import recording_figure
from experiments.run_folder import RunFolder
from experiments.scoring import Scores
from lightning_modules.recording import Recording, load_findings

_THUMBNAIL_SIDE = 160


def draw(folder: RunFolder) -> None:
    """Draw what people look at: its recording, and of a run that was scored the pictures of its scores.

    Raises:
        FileNotFoundError: if it has neither, or no longer.
    """
    folder.artifacts.mkdir(exist_ok=True)
    if folder.recording.is_dir():
        _save(folder, "recording", recording_figure(Recording.load(folder.recording), load_findings(folder.recording)))
        if not folder.scores.is_file():
            return
    _draw_scores(folder, Scores.load(folder.scores))


def _draw_scores(folder: RunFolder, scores: Scores) -> None:
    """Confusion matrix, accuracy by class, worst errors, learning curves."""
    curves: dict[str, dict[int, float]] = {}
    for line in folder.metric_lines():
        for name, value in line.metrics.items():
            curves.setdefault(name, {})[line.step] = value
    names = scores.class_names
    figures = {
        "confusion_matrix": confusion_matrix_figure(scores.labels, scores.predictions, names),
        "per_class_accuracy": per_class_accuracy_figure(scores.labels, scores.predictions, names),
        "worst_errors": worst_errors_figure(
            scores.paths,
            scores.labels,
            scores.probabilities,
            names,
            open_image=thumbnail,
        ),
        "learning_curves": learning_curves_figure(curves),
    }
    for name, figure in figures.items():
        _save(folder, name, figure)
    rows = ["class,images,accuracy"]
    for index, name in enumerate(names):
        own = scores.labels == index
        accuracy = float((scores.predictions[own] == index).mean()) if own.any() else float("nan")
        rows.append(f'"{name}",{int(own.sum())},{accuracy:.6g}')
    (folder.artifacts / "per_class_accuracy.csv").write_text("\n".join(rows) + "\n")


def _save(folder: RunFolder, name: str, figure: Figure) -> None:
    # Beside its place and renamed: another process may be drawing it, or sending the artifacts, at the same time.
    part = folder.path / f".{name}.{os.getpid()}.png"
    figure.savefig(part, pil_kwargs={"compress_level": 3})  # a tenth larger, and drawn in a fifth less time
    part.replace(folder.artifacts / f"{name}.png")


def thumbnail(path: Path) -> ImageArray:
    """The centre of a photo as `lightning_modules.inference` reads it, which stands alone and costs torch to import.

    Returns:
        (160, 160, 3) uint8.

    Raises:
        OSError: if the file is gone or no image.
    """
    with Image.open(path) as image:
        image.draft(None, (_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
        picture = ImageOps.fit(_to_rgb(_upright(image)), (_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), Image.Resampling.BILINEAR)
    return np.asarray(picture)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF costs no picture; Pillow raises SyntaxError, struct.error and more for it
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, which Pillow's own conversion cuts at 255
        image = image.convert("I").point(lambda value: value * (1 / 257), "L")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")
