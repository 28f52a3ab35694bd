"""Naming photos with a finished model, and scoring it on a split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from experiments.config import CUT_FIELDS, RunConfig, override, require_folder
from experiments.console import say
from experiments.data.datasets import check_photos, locate_photos
from experiments.data.inputs import forget_opened, open_data_once, say_data
from experiments.errors import UserError
from experiments.figures.pictures import draw_scores
from experiments.runs.scoring import score_split
from experiments.train import data_facts
from lightning_modules.data import ClassFolderData
from lightning_modules.folders import ClassFolders, read_class_names, read_photo
from lightning_modules.inference import (
    MANIFEST_FILE,
    BadExportError,
    BadImageError,
    Model,
    decode_image,
    load_export,
    read_json,
)
from lightning_modules.listing import printable, split_folders
from lightning_modules.process import prepare_process

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Ends of the names of photos in a folder; `query` takes what an endpoint decodes."""


@dataclass(frozen=True)
class Prediction:
    """The prediction for one photo."""

    image: Path
    classes: tuple[tuple[str, float], ...]
    """Class names and probabilities, the most probable first."""
    error: str = ""
    """Why the photo can't be read."""

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self) | {"image": str(self.image)}


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
    for prediction in predictions:
        lines.append(f"{printable(prediction.image)}{': ' + prediction.error if prediction.error else ''}")
        lines += [f"  {score:7.2%}  {name}" for name, score in prediction.classes]
    return "\n".join(lines)


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a model on a split."""

    metrics: Mapping[str, float]
    """Loss and accuracies."""
    facts: Mapping[str, object]
    """Facts about the data set, as `data_facts` returns them."""
    folder: Path
    """Folder of confusion matrix, accuracy by class and worst errors, as tables and pictures."""


def evaluate_export(export: Path, config: RunConfig, split: str) -> Evaluation:
    """Score a model on a split of the config's data set, whose class names must be the model's.

    The size of the photos, their preprocessing, and how train is divided into training and validation photos are the
    model's. The folder is the same for the same weights, photos and split.

    Raises:
        UserError: if the data set has no such split, or other classes; if its validation split would have to be cut
            from train and may have photos that the model was trained on; if `output_dir` can't be written.
    """
    prepare_process()
    require_folder("output_dir", config.output_dir)
    check_photos(config.data)
    model = load_export(export)
    trained_on = read_json(export / MANIFEST_FILE).get("data")  # older exports have none
    if trained_on:
        try:
            fingerprint = str(trained_on["fingerprint"])
            config = override(config, {name: trained_on[name.removeprefix("data.")] for name in CUT_FIELDS})
        except (KeyError, TypeError, ValueError) as error:
            raise BadExportError(f"{export / MANIFEST_FILE} must say what it was trained on: {error}") from error
    else:
        fingerprint = None
    root = locate_photos(config.data)
    names = read_class_names(root)
    if names != model.class_names:
        missing, unknown = _few({*model.class_names} - {*names}), _few({*names} - {*model.class_names})
        raise UserError(
            f"data.root {root} must have the model's {len(model.class_names)} classes, got {len(names)}; only the "
            f"model has {missing}, only the data {unknown}"
        )
    if split not in {"valid", *split_folders(root)}:
        raise UserError(f"--split must be one that {root} has, got {split!r}")
    forget_opened()
    folders = open_data_once(config)
    _check_cut(folders, fingerprint, split)
    chosen = folders.test if split == "test" else folders.valid
    assert chosen is not None, "its folder is there"
    data = ClassFolderData(folders, preprocessing=model.preprocessing, batch_size=config.data.batch_size)
    say_data(config)
    scores = score_split(model.network, data, chosen)
    folder = config.output_dir / "evaluate" / f"{model.version[:8]}-{folders.fingerprint[:8]}-{split}"
    folder.mkdir(parents=True, exist_ok=True)
    draw_scores(scores, folder)
    return Evaluation(scores.metrics("test" if split == "test" else "val"), data_facts(folders), folder)


def _check_cut(folders: ClassFolders, fingerprint: str | None, split: str) -> None:
    """Refuse a validation split that is cut from other photos than in training: it may have training photos.

    Args:
        fingerprint: of the photos that the model was trained on, where that is known.
    """
    is_known = fingerprint == folders.fingerprint
    if split == "valid" and folders.valid_is_cut and not is_known:
        known = "has other photos than in training" if fingerprint else "was divided in a way that model.json lacks"
        raise UserError(
            f"--split valid must have no photo that the model was trained on, but {folders.root} has no folder valid, "
            f"and its train folder {known}: take --split test, or a data.root with a folder valid"
        )
    if fingerprint and not is_known:
        say(
            f"the model was trained on another data set than {folders.root}: a photo that is in both flatters the score"
        )


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
