from __future__ import annotations

import io
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageColor

from experiments.figures.canvas import Canvas, Words, fitting, text_width
from experiments.figures.run_figures import (
    confusion_matrix_figure,
    learning_curves_figure,
    per_class_accuracy_figure,
    worst_errors_figure,
)
from experiments.figures.style import epoch_ticks, linear_ticks, log_ticks
from lightning_modules.palette import BLUE, GREEN, VERMILLION
from tests.conftest import REPOSITORY


def png(canvas: Canvas) -> Image.Image:
    """What is in the file."""
    file = io.BytesIO()
    canvas.save(file)
    return Image.open(file, formats=("PNG",))


def texts(canvas: Canvas) -> list[str]:
    return [words.text for words in canvas.words]


def at(canvas: Canvas, text: str) -> Words:
    """The only text that says this."""
    (found,) = [words for words in canvas.words if words.text == text]
    return found


def has_color(canvas: Canvas, color: str) -> bool:
    return bool((np.asarray(canvas.image) == ImageColor.getrgb(color)).all(axis=-1).any())


def test_confusion_matrix_writes_each_count_into_its_cell() -> None:
    labels, predictions = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    canvas = confusion_matrix_figure(labels, predictions, ["cat", "dog", "unseen"])
    rows = [words.y for name in ("cat", "dog", "unseen") for words in canvas.words if words.text == name][::2]
    counts = canvas.words[-9:]
    assert [int(words.text) for words in counts] == [2, 1, 0, 0, 1, 0, 0, 0, 0]
    assert [words.y for words in counts] == [row for row in rows for _ in range(3)]
    assert [words.color for words in counts[:3]] == ["white", "black", "#8C8C8C"], "readable on its cell"
    # Beside the number: a third of a class is lighter than the whole of another one.
    pixels = np.asarray(canvas.image)
    shades = [tuple(pixels[round(words.y) - 25, round(words.x) - 25].tolist()) for words in counts[:5]]
    assert shades[4] == (8, 48, 107)
    assert shades[2] == shades[3] == (247, 251, 255)
    assert shades[4] < shades[0] < shades[1] < shades[2]
    assert "4 images" in texts(canvas)[0]
    assert "75.0%" in texts(canvas)[0]
    assert png(canvas).size == canvas.image.size


def test_confusion_matrix_of_133_breeds_has_no_text_and_few_tick_labels() -> None:
    names = [f"breed {index}" for index in range(133)]
    indices = np.arange(133)
    canvas = confusion_matrix_figure(indices, indices, names)
    shown = [text for text in texts(canvas) if text.startswith("breed ")]
    assert 20 < len(set(shown)) <= 45
    assert shown[::2] == shown[1::2] == names[::3], "each beside its row and below its column"
    assert not {"0", "1"} & {words.text for words in canvas.words[-5:]}, "no counts"


@pytest.mark.parametrize("draw", [confusion_matrix_figure, per_class_accuracy_figure])
@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([0, 1], [0, 2], "predictions must lie in 0..1"),
        ([-1, 1], [0, 1], "labels must lie in 0..1"),
        ([0], [0, 1], "two vectors of one length"),
        ([], [], "at least 1"),
    ],
)
def test_impossible_indices_are_refused_by_name(
    draw: Callable[..., object], labels: list[int], predictions: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        draw(np.array(labels, dtype=int), np.array(predictions, dtype=int), ["cat", "dog"])


def test_per_class_accuracy_puts_the_worst_class_first_and_leaves_out_the_unseen() -> None:
    labels, predictions = np.array([0, 0, 2, 2]), np.array([0, 0, 2, 0])
    canvas = per_class_accuracy_figure(labels, predictions, ["cat", "unseen", "dog"])
    dog, cat = at(canvas, "dog (2)"), at(canvas, "cat (2)")
    assert dog.y < cat.y, "the worst class is the topmost"
    scale = {share: at(canvas, str(share)).x for share in (0, 40, 60)}
    for words, share in ((dog, 50), (cat, 100)):
        row = np.asarray(canvas.image)[round(words.y) + 10] == ImageColor.getrgb(BLUE)
        end = scale[0] + (scale[60] - scale[0]) / 60 * share
        assert np.flatnonzero(row.all(axis=-1)).max() == pytest.approx(end, abs=2)
    assert "1 of 3 classes have no image" in texts(canvas)[0]
    assert "all images: 75.0 %" in texts(canvas)
    assert has_color(canvas, VERMILLION)
    assert png(canvas).size == canvas.image.size


def test_per_class_accuracy_of_many_classes_shows_the_20_worst_and_20_best() -> None:
    num_classes, images = 60, 60
    labels = np.repeat(np.arange(num_classes), images)
    # Class i is right in i of its 60 images.
    right = np.tile(np.arange(images), num_classes) < labels
    predictions = np.where(right, labels, (labels + 1) % num_classes)
    names = [f"breed {index}" for index in range(num_classes)]
    canvas = per_class_accuracy_figure(labels, predictions, names)
    expected = [f"breed {index} (60)" for index in (*range(20), *range(40, 60))]
    assert [text for text in texts(canvas) if text.startswith("breed ")] == expected


def test_worst_errors_open_only_the_costliest_errors_in_order() -> None:
    images = [Path(name) for name in ("right.jpg", "mild.jpg", "worst.jpg", "bad.jpg")]
    # The most confident error is not the costliest: what counts is what the true class got.
    probabilities = np.array([[0.9, 0.1, 0.0], [0.3, 0.4, 0.3], [0.55, 0.05, 0.4], [0.2, 0.8, 0.0]])
    opened: list[str] = []

    def open_image(path: Path) -> np.ndarray:
        opened.append(path.name)
        return np.full((60, 40, 3), (0, 0, 255), dtype=np.uint8)

    canvas = worst_errors_figure(
        images,
        np.array([0, 0, 1, 0]),
        probabilities,
        ["cat", "dog", "fox"],
        open_image=open_image,
        count=2,
    )
    assert opened == ["worst.jpg", "bad.jpg"]
    assert texts(canvas) == ["Worst 2 of 3 errors among 4 images", "dog → cat 0.55", "cat → dog 0.80"]
    photos = (np.asarray(canvas.image) == (0, 0, 255)).all(axis=-1)
    assert sorted(set(photos.sum(axis=0))) == [0, 60], "photos keep their shape"
    assert photos.any(axis=0).sum() == 2 * 40, "and are side by side"
    assert png(canvas).size == canvas.image.size


def test_worst_errors_say_when_there_is_none() -> None:
    canvas = worst_errors_figure(
        [Path("right.jpg")],
        np.array([0]),
        np.array([[0.9, 0.1]]),
        ["cat", "dog"],
        open_image=lambda path: pytest.fail(f"opened {path}"),
    )
    assert texts(canvas) == ["No errors: 1 image, all predicted right"]
    assert png(canvas).size == canvas.image.size


def test_worst_errors_refuse_a_row_too_many() -> None:
    with pytest.raises(ValueError, match=r"\(1, 2\), got \(2, 2\)"):
        worst_errors_figure(
            [Path("a.jpg")],
            np.array([0, 1]),
            np.full((2, 2), 0.5),
            ["cat", "dog"],
            open_image=lambda path: np.zeros((1, 1, 3), dtype=np.uint8),
        )


def test_learning_curves_draw_losses_left_and_accuracies_right() -> None:
    history = {
        "train_loss": {1: 2.0, 2: 1.0, 3: 0.5},
        "val_loss": {3: 1.5, 1: 1.9, 2: 1.2},
        "val_accuracy": {1: 0.2, 2: 0.6, 3: 0.5},
        "epoch_seconds": {1: 9.0},
    }
    canvas = learning_curves_figure(history)
    left, right = ("train_loss", "val_loss, lowest 1.2 in epoch 2"), ("val_accuracy, highest 0.6 in epoch 2",)
    half = canvas.image.width / 2
    assert all(at(canvas, text).x < half for text in left)
    assert all(at(canvas, text).x > half for text in right)
    assert not [text for text in texts(canvas) if "epoch_seconds" in text]
    # The dot of the lowest val_loss is where the axes say.
    ticks = {words.text: words for words in canvas.words if words.x < half}
    x, unit = ticks["2"].x, (ticks["0.75"].y - ticks["1.25"].y) / 0.5
    assert canvas.image.getpixel((round(x), round(ticks["1.25"].y + 0.05 * unit))) == ImageColor.getrgb(BLUE)
    assert png(canvas).size == canvas.image.size


@pytest.mark.parametrize("history", [{}, {"val_loss": {}}, {"val_loss": {1: 0.4}}, {"val_loss": {1: float("nan")}}])
def test_learning_curves_need_no_second_epoch(history: Mapping[str, Mapping[int, float]]) -> None:
    canvas = learning_curves_figure(history)
    recorded = any(math.isfinite(value) for values in history.values() for value in values.values())
    assert texts(canvas).count("nothing recorded") == (1 if recorded else 2)
    assert png(canvas).size == canvas.image.size


def test_learning_curves_of_diverged_epochs_have_a_gap() -> None:
    whole = learning_curves_figure({"val_loss": {1: 1.0, 2: 0.9, 3: 0.8, 4: 0.7}})
    broken = learning_curves_figure({"val_loss": {1: 1.0, 2: float("inf"), 3: float("nan"), 4: 0.7}})
    blue = [np.asarray(canvas.image) == ImageColor.getrgb(BLUE) for canvas in (whole, broken)]
    assert 0 < blue[1].all(axis=-1).sum() < 0.7 * blue[0].all(axis=-1).sum()
    assert "val_loss, lowest 0.7 in epoch 4" in texts(broken)


MARKUP = ("over_$10", "from_$5_to_$10", "a$^{$b", "<b>bold</b> & <a href='x'>", r"\$\frac{", "{x}%s%(y)d")


def black(path: Path) -> NDArray[np.uint8]:
    return np.zeros((2, 2, 3), np.uint8)


def test_class_names_are_text_and_never_formulas(tmp_path: Path) -> None:
    labels = np.arange(len(MARKUP))
    wrong = np.roll(labels, 1)
    probabilities = np.eye(len(MARKUP))[wrong]
    pictures = [
        confusion_matrix_figure(labels, wrong, MARKUP),
        per_class_accuracy_figure(labels, wrong, MARKUP),
        worst_errors_figure([tmp_path] * len(MARKUP), labels, probabilities, MARKUP, open_image=black),
    ]
    for canvas in pictures:
        assert png(canvas).size == canvas.image.size
        for name in MARKUP:
            assert any(name[:9] in text for text in texts(canvas)), name
    assert set(MARKUP) <= set(texts(pictures[0]))


def test_a_photo_that_is_gone_is_shown_as_such(tmp_path: Path) -> None:
    def gone(path: Path) -> NDArray[np.uint8]:
        raise FileNotFoundError(path)

    probabilities = np.array([[0.1, 0.9], [0.1, 0.9]])
    canvas = worst_errors_figure([tmp_path] * 2, np.array([0, 1]), probabilities, ["a", "b"], open_image=gone)
    assert "no image" in texts(canvas)


@pytest.mark.parametrize(("first", "ticks"), [(466.0, ["1", "10", "100"]), (1.5, ["0.6", "0.8", "1", "1.2", "1.4"])])
def test_a_first_epoch_that_would_flatten_the_rest_is_drawn_on_a_log_axis(first: float, ticks: list[str]) -> None:
    canvas = learning_curves_figure({"val_loss": {1: first, 2: 0.6, 3: 0.5}, "val_accuracy": {1: 0.1, 2: 0.9, 3: 0.9}})
    left = [words for words in canvas.words if words.x < at(canvas, "Loss by epoch").x - 260]
    heights = [words.y for words in left if words.text in ticks]
    assert set(ticks) <= {words.text for words in left}
    assert np.diff(heights) == pytest.approx(np.diff(heights)[0]), "evenly spaced"


def test_ticks_are_round_numbers_within_the_axis() -> None:
    assert linear_ticks(0.13, 0.58) == pytest.approx([0.2, 0.3, 0.4, 0.5])
    assert linear_ticks(-1, 1, most=4) == pytest.approx([-1, -0.5, 0, 0.5, 1])
    assert log_ticks(0.5, 466) == pytest.approx([1, 10, 100])
    assert log_ticks(0.5, 4) == pytest.approx([0.5, 1, 2])
    assert epoch_ticks(1, 5) == [1, 2, 3, 4, 5]
    assert epoch_ticks(1, 50) == [5, 10, 15, 20, 25, 30, 35, 40, 45, 50]
    assert epoch_ticks(7, 7) == [7]


def test_nearly_equal_values_and_many_metrics_are_drawn() -> None:
    nearly = learning_curves_figure({"val_loss": {1: 1.0000000001, 2: 1.0}})
    labels = [text for text in texts(nearly) if text.startswith("1.0000000000")]
    assert len(set(labels)) == len(labels) >= 3
    many = learning_curves_figure({f"of_{number}_accuracy": {1: 0.1 * number, 2: 0.5} for number in range(8)})
    assert len([text for text in texts(many) if "_accuracy, highest" in text]) == 8


@pytest.mark.parametrize(
    "name", ["", "\x00", "\udcff", "\u05e9\u05dc\u05d5\u05dd", "\U0001f436", "a" * 9999, "\r\n\u2028", "\x1b[31mred"]
)
def test_any_class_name_can_be_drawn(name: str, tmp_path: Path) -> None:
    labels, probabilities = np.array([0, 1]), np.array([[0.1, 0.9], [0.1, 0.9]])
    names = [name, "other"]
    for canvas in (
        confusion_matrix_figure(labels, labels[::-1], names),
        per_class_accuracy_figure(labels, labels[::-1], names),
        worst_errors_figure([tmp_path] * 2, labels, probabilities, names, open_image=black),
    ):
        assert png(canvas).width < 1400


def test_a_text_that_is_too_wide_loses_its_middle() -> None:
    assert fitting("cat", 100, 12) == "cat"
    shown = fitting("abcdefghijklmnopqrstuvwxyz", 100, 12)
    assert text_width(shown, 12) <= 100
    assert shown.startswith("abc")
    assert shown.endswith("z")
    assert "…" in shown


def test_a_dashed_curve_has_gaps() -> None:
    canvas = Canvas(200, 20)
    canvas.curve([(10, 10), (190, 10)], color=GREEN, is_dashed=True)
    row = (np.asarray(canvas.image)[10, 20:180] == ImageColor.getrgb(GREEN)).all(axis=-1)
    assert 0.4 < row.mean() < 0.8


def test_pictures_of_trials_need_no_matplotlib_and_none_pyplot() -> None:
    script = """
import sys
sys.modules["optuna"] = None
import experiments.figures.pictures
assert "matplotlib" not in sys.modules
assert "torch" not in sys.modules
import experiments.figures.recording_figure
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=REPOSITORY)
