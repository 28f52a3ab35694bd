"""Naming photos with a finished model, and scoring it on a split."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from experiments.config import RunConfig
from experiments.datasets import check_photos, locate, open_data
from experiments.errors import UserError
from experiments.scoring import score_split
from lightning_modules.data import ClassFolderData
from lightning_modules.folders import read_class_names, read_photo
from lightning_modules.inference import MANIFEST_FILE, BadImageError, Model, decode_image, load_export
from lightning_modules.listing import split_folders


@dataclass(frozen=True)
class Prediction:
    """What a model makes of one photo."""

    image: Path
    classes: tuple[tuple[str, float], ...]
    """Class names and probabilities, the most probable first."""
    error: str = ""
    """Why the photo can't be read."""

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self) | {"image": str(self.image)}


def locate_export(model: str, config: RunConfig) -> Path:
    """The export folder that `--model` names: a folder, or a registry URI.

    Raises:
        UserError: if there is none.
    """
    if not model.startswith(("models:/", "runs:/")):
        if not (Path(model) / MANIFEST_FILE).is_file():
            raise UserError(f"--model must be an export folder, which holds {MANIFEST_FILE}, got {model!r}")
        return Path(model)
    from experiments.registry import download_export  # MLflow takes seconds to import
    from experiments.tracking import RunStore, check_tracking

    check_tracking(config)
    return download_export(model, RunStore.open_or_wait(config))


def predict_photos(photos: Sequence[Path], export: Path, top_k: int) -> list[Prediction]:
    """Score photos one by one; one that can't be read does not stop the others.

    Raises:
        BadExportError: if the export is not whole.
    """
    model = load_export(export)
    return [_predict(photo, model, top_k) for photo in photos]


def prediction_table(predictions: Sequence[Prediction]) -> str:
    """Names and scores for a person."""
    lines = []
    for one in predictions:
        lines.append(f"{one.image}{': ' + one.error if one.error else ''}")
        lines += [f"  {score:7.2%}  {name}" for name, score in one.classes]
    return "\n".join(lines)


def evaluate_export(export: Path, config: RunConfig, split: str) -> dict[str, float]:
    """Loss and accuracies of a model on a split of the config's data set, whose class names must be the model's.

    Raises:
        UserError: if the data set has no such split, or other classes.
    """
    check_photos(config.data)
    model = load_export(export)
    root = locate(config.data)
    names = read_class_names(root)
    if names != model.class_names:
        missing, unknown = _few({*model.class_names} - {*names}), _few({*names} - {*model.class_names})
        raise UserError(
            f"data.root {root} must have the model's {len(model.class_names)} classes, got {len(names)}; only the "
            f"model has {missing}, only the data {unknown}"
        )
    if split not in {"valid", *split_folders(root)}:
        raise UserError(f"--split must be one that {root} has, got {split!r}")
    folders = open_data(config.data, seed=config.seed)
    chosen = folders.test if split == "test" else folders.valid
    assert chosen is not None, "its folder is there"
    data = ClassFolderData(folders, preprocessing=model.preprocessing, batch_size=config.data.batch_size)
    return score_split(model.network, data, chosen).metrics("test" if split == "test" else "val")


def _few(names: Set[str]) -> str:
    shown = ", ".join(sorted(names)[:5]) or "none"
    return f"{shown} and {len(names) - 5:,} more" if len(names) > 5 else shown


def _predict(photo: Path, model: Model, top_k: int) -> Prediction:
    try:
        image = decode_image(read_photo(photo))
    except OSError as error:
        return Prediction(photo, (), f"the file can't be opened: {error.strerror}")
    except BadImageError as error:
        return Prediction(photo, (), str(error))
    scores = torch.softmax(model.score([image])[0].double(), dim=0)
    best = scores.argsort(descending=True)[:top_k].tolist()
    return Prediction(photo, tuple((model.class_names[index], float(scores[index])) for index in best))
