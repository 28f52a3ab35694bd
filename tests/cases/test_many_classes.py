"""Thousands of classes, and long names: tables and pictures have a limit and say what they leave out."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from experiments.figures.pictures import CONFUSION, PER_CLASS, draw
from experiments.figures.run_figures import MAX_CLASSES_IN_MATRIX, confusion_matrix_figure
from experiments.predict import _few
from experiments.report.comparison import _class_plot, _confusion_plot
from experiments.runs.folder import RunFolder
from experiments.runs.scoring import Scores
from experiments.tracking.registry import MAX_TAG, _listed
from tests.pictures import smooth_picture

CLASSES = 4000


def scores(folder: Path, names: tuple[str, ...], images: int) -> Scores:
    """Each image is of the next class; the network is sure of its class or, for every tenth, of the one after it."""
    labels = np.arange(images) % len(names)
    taken_for = np.where(np.arange(images) % 10 == 0, (labels + 1) % len(names), labels)
    probabilities = np.full((images, len(names)), 1e-6, dtype="float32")
    probabilities[np.arange(images), taken_for] = 0.9
    smooth_picture().save(folder / "photo.jpg")
    return Scores(folder, (Path("photo.jpg"),) * images, labels, np.log(probabilities), names)


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_the_files_of_a_trial_with_4000_classes_stay_small(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.start("run", {}, {})
    folder.record(1, {"val_loss": 1.0, "val_accuracy": 0.9})
    scores(tmp_path, tuple(f"class {index}" for index in range(CLASSES)), CLASSES).save(folder.scores)
    draw(folder)
    written = {path.name: path.stat().st_size for path in folder.artifacts.iterdir()}
    assert max(written.values()) < 1_000_000, written
    matrix = rows(folder.artifacts / CONFUSION)
    assert matrix[0][0] == f"true class ({MAX_CLASSES_IN_MATRIX} of 4,000: those with the most errors)"
    assert len(matrix) == 1 + MAX_CLASSES_IN_MATRIX == len(matrix[1])
    assert len(rows(folder.artifacts / PER_CLASS)) == 1 + CLASSES, "of each class a line"
    plots = _confusion_plot(matrix, "test"), _class_plot(rows(folder.artifacts / PER_CLASS), "test")
    assert plots[0].caption.endswith(
        "It has 200 of 4,000: those with the most errors. The table lists the 100 most frequent of 100 confusions."
    )
    assert plots[1].caption.endswith("Of 4000, the 20 worst and the 20 best. The table lists the 200 worst.")
    assert len(plots[1].table.rows) == 200


def test_a_large_confusion_matrix_shows_the_classes_with_errors_as_shares_of_all_their_images() -> None:
    names = [f"class {index}" for index in range(300)]
    labels, predictions = np.repeat(np.arange(300), 2), np.repeat(np.arange(300), 2)
    predictions[2 * 250] = 7  # one of two images of class 250
    canvas = confusion_matrix_figure(labels, predictions, names)
    title = canvas.words[0].text
    assert "600 images, accuracy 99.8% [99.1%, 100.0%]\nthe 200 of 300 classes with the most errors" in title
    cell = 1200 // 200
    first, below = [words for words in canvas.words if words.text == "class 0"]
    left, top = round(below.x - cell / 2), round(first.y - cell / 2)
    shown = np.asarray(canvas.image)[top + cell // 2 :: cell, left + cell // 2 :: cell][:200, :200]
    half, whole, none = (107, 174, 214), (8, 48, 107), (247, 251, 255)
    assert tuple(shown[8, 8]) == whole
    assert [int((shown[199] == colour).all(axis=-1).sum()) for colour in (half, none)] == [2, 198], "class 250 is last"


@pytest.mark.filterwarnings("error")
def test_pictures_of_names_with_250_characters_have_room_for_the_picture(tmp_path: Path) -> None:
    names = tuple(f"{letter * 120} {letter * 129}" for letter in "abcÄ柴")
    folder = RunFolder(tmp_path / "run")
    folder.start("run", {}, {})
    folder.record(1, {"val_loss": 1.0, "val_accuracy": 0.9})
    found = scores(tmp_path, tuple(name.replace("柴", "s") for name in names), 30)
    found.save(folder.scores)
    draw(folder)
    assert rows(folder.artifacts / PER_CLASS)[1][0] == names[0], "a table has the whole name"
    canvas = confusion_matrix_figure(found.labels, found.predictions, found.class_names)
    assert f"{'a' * 29}…{'a' * 10}" in [words.text for words in canvas.words]
    assert canvas.image.width > 600


def test_the_names_of_many_classes_fit_into_a_tag_and_a_message() -> None:
    names = [f"class {index}" for index in range(CLASSES)]
    tag = _listed(names)
    assert len(tag) <= MAX_TAG
    *shown, rest = json.loads(tag)
    assert shown == names[: len(shown)]
    assert rest == f"… and {CLASSES - len(shown):,} more"
    assert json.loads(_listed(names[:3])) == names[:3]
    assert _few(set(names)) == "class 0, class 1, class 10, class 100, class 1000 and 3,995 more"
    assert _few(set()) == "none"
