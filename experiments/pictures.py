"""The pictures of a finished run, drawn from the scores that it left."""

from __future__ import annotations

import os

from experiments.figures import (
    confusion_matrix_figure,
    learning_curves_figure,
    per_class_accuracy_figure,
    worst_errors_figure,
)
from experiments.run_folder import RunFolder
from experiments.scoring import Scores
from lightning_modules.inference import Preprocessing, decode_image

_THUMBNAIL = Preprocessing(image_size=160, resize_size=160)


def draw(folder: RunFolder) -> None:
    """Draw what people look at: confusion matrix, accuracy by class, worst errors, learning curves.

    Raises:
        FileNotFoundError: if the run has no scores, or no longer.
    """
    scores = Scores.load(folder.scores)
    folder.artifacts.mkdir(exist_ok=True)
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
            open_image=lambda path: _THUMBNAIL.crop(decode_image(path.read_bytes())).permute(1, 2, 0).numpy(),
        ),
        "learning_curves": learning_curves_figure(curves),
    }
    for name, figure in figures.items():
        # Beside its place and renamed: another process may be drawing it, or sending the artifacts, at the same time.
        part = folder.path / f".{name}.{os.getpid()}.png"
        figure.savefig(part)
        part.replace(folder.artifacts / f"{name}.png")
    rows = ["class,images,accuracy"]
    for index, name in enumerate(names):
        own = scores.labels == index
        accuracy = float((scores.predictions[own] == index).mean()) if own.any() else float("nan")
        rows.append(f'"{name}",{int(own.sum())},{accuracy:.6g}')
    (folder.artifacts / "per_class_accuracy.csv").write_text("\n".join(rows) + "\n")
