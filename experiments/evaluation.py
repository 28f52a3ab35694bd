"""Scoring a whole split, and the pictures and numbers that follow from the scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from experiments.figures import (
    confusion_matrix_figure,
    learning_curves_figure,
    per_class_accuracy_figure,
    worst_errors_figure,
)
from lightning_modules.data import ClassFolderData, load_photo
from lightning_modules.folders import Split


@dataclass(frozen=True)
class Scores:
    """A split and what a network made of it."""

    split: Split
    probabilities: NDArray[np.float64]
    """(N, C), rows sum to 1."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) true classes."""
        return np.asarray(self.split.labels)

    @property
    def predictions(self) -> NDArray[np.int64]:
        """(N,) most probable classes."""
        return np.asarray(self.probabilities.argmax(axis=1))

    def metrics(self, prefix: str) -> dict[str, float]:
        """Average loss, top-1 and top-5 accuracy as `{prefix}_loss` and so on."""
        right = self.probabilities[np.arange(len(self.labels)), self.labels]
        better = (self.probabilities > right[:, None]).sum(axis=1)
        return {
            f"{prefix}_loss": float(-np.log(np.maximum(right, 1e-38)).mean()),
            f"{prefix}_accuracy": float((self.predictions == self.labels).mean()),
            f"{prefix}_top5_accuracy": float((better < 5).mean()),
        }


def score_split(network: nn.Module, data: ClassFolderData, split: Split) -> Scores:
    """Score every photo of a split in float32, as an endpoint will."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = network.eval().to(device)
    probabilities = []
    with torch.inference_mode():
        for batch in data.split_dataloader(split):
            images, _ = data.on_after_batch_transfer((batch[0].to(device), batch[1]), 0)
            probabilities.append(network(images).double().softmax(dim=1).cpu())
    network.cpu()
    return Scores(split, torch.cat(probabilities).numpy())


def write_pictures(
    scores: Scores, data: ClassFolderData, history: Mapping[int, Mapping[str, float]], folder: Path
) -> None:
    """Draw what people look at: confusion matrix, accuracy by class, worst errors, learning curves."""
    folder.mkdir(parents=True, exist_ok=True)
    names = data.folders.class_names
    curves: dict[str, dict[int, float]] = {}
    for epoch, values in history.items():
        for name, value in values.items():
            curves.setdefault(name, {})[epoch] = value
    figures = {
        "confusion_matrix": confusion_matrix_figure(scores.labels, scores.predictions, names),
        "per_class_accuracy": per_class_accuracy_figure(scores.labels, scores.predictions, names),
        "worst_errors": worst_errors_figure(
            scores.split.paths,
            scores.labels,
            scores.probabilities,
            names,
            open_image=lambda path: load_photo(path, data.preprocessing).permute(1, 2, 0).numpy(),
        ),
        "learning_curves": learning_curves_figure(curves),
    }
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png")
    rows = ["class,images,accuracy"]
    for index, name in enumerate(names):
        own = scores.labels == index
        accuracy = float((scores.predictions[own] == index).mean()) if own.any() else float("nan")
        rows.append(f'"{name}",{int(own.sum())},{accuracy:.6g}')
    (folder / "per_class_accuracy.csv").write_text("\n".join(rows) + "\n")
