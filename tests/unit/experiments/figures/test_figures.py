from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

from experiments.figures.run_figures import (
    confusion_matrix_figure,
    learning_curves_figure,
    per_class_accuracy_figure,
    worst_errors_figure,
)
from experiments.figures.style import save_figure
from tests.conftest import REPOSITORY


def png(figure: Figure) -> bytes:
    """Draw for real: layout and font warnings are errors here."""
    file = io.BytesIO()
    save_figure(figure, file, format="png", dpi=40)
    return file.getvalue()


def texts(figure: Figure) -> dict[str, bool]:
    """What a figure says, and whether that is read as a formula."""
    return {label.get_text(): label.get_parse_math() for label in figure.findobj(Text)}


def test_confusion_matrix_writes_each_count_into_its_cell() -> None:
    labels, predictions = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    figure = confusion_matrix_figure(labels, predictions, ["cat", "dog", "unseen"])
    axes = figure.axes[0]
    cells = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts}
    counts = [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert cells == {(r, c): str(counts[r][c]) for r in range(3) for c in range(3)}
    percent = np.asarray(axes.images[0].get_array())
    np.testing.assert_allclose(percent, [[200 / 3, 100 / 3, 0], [0, 100, 0], [0, 0, 0]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "unseen"]
    assert "4 images" in axes.get_title()
    assert "75.0%" in axes.get_title()
    assert png(figure)


def test_confusion_matrix_of_133_breeds_has_no_text_and_few_tick_labels() -> None:
    names = [f"breed {index}" for index in range(133)]
    indices = np.arange(133)
    axes = confusion_matrix_figure(indices, indices, names).axes[0]
    assert not axes.texts
    shown = {int(tick): label.get_text() for tick, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)}
    assert 20 < len(shown) <= 45
    assert all(names[tick] == label for tick, label in shown.items())


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
    figure = per_class_accuracy_figure(labels, predictions, ["cat", "unseen", "dog"])
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["dog (2)", "cat (2)"]
    assert [bar.get_width() for bar in axes.patches] == [50, 100]
    bottom, top = axes.get_ylim()
    assert bottom > top, "the first bar must be the topmost"
    assert "1 of 3 classes have no image" in axes.get_title()
    assert "75.0 %" in figure.legends[0].get_texts()[0].get_text()
    assert png(figure)


def test_per_class_accuracy_of_many_classes_shows_the_20_worst_and_20_best() -> None:
    num_classes, images = 60, 60
    labels = np.repeat(np.arange(num_classes), images)
    # Class i is right in i of its 60 images.
    right = np.tile(np.arange(images), num_classes) < labels
    predictions = np.where(right, labels, (labels + 1) % num_classes)
    names = [f"breed {index}" for index in range(num_classes)]
    axes = per_class_accuracy_figure(labels, predictions, names).axes[0]
    expected = [f"breed {index} (60)" for index in (*range(20), *range(40, 60))]
    assert [label.get_text() for label in axes.get_yticklabels()] == expected


def test_worst_errors_open_only_the_costliest_errors_in_order() -> None:
    images = [Path(name) for name in ("right.jpg", "mild.jpg", "worst.jpg", "bad.jpg")]
    # The most confident error is not the costliest: what counts is what the true class got.
    probabilities = np.array([[0.9, 0.1, 0.0], [0.3, 0.4, 0.3], [0.55, 0.05, 0.4], [0.2, 0.8, 0.0]])
    opened: list[str] = []

    def open_image(path: Path) -> np.ndarray:
        opened.append(path.name)
        return np.zeros((6, 4, 3), dtype=np.uint8)

    figure = worst_errors_figure(
        images,
        np.array([0, 0, 1, 0]),
        probabilities,
        ["cat", "dog", "fox"],
        open_image=open_image,
        count=2,
    )
    assert opened == ["worst.jpg", "bad.jpg"]
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.texts] == ["dog → cat 0.55", "cat → dog 0.80"]
    (left, right, bottom, top), second = (photo.get_extent() for photo in axes.images)
    assert (top - bottom) / (right - left) == pytest.approx(6 / 4), "photos keep their shape"
    assert second[0] > right, "side by side"
    assert figure.get_suptitle() == "Worst 2 of 3 errors among 4 images"
    assert png(figure)


def test_worst_errors_say_when_there_is_none() -> None:
    figure = worst_errors_figure(
        [Path("right.jpg")],
        np.array([0]),
        np.array([[0.9, 0.1]]),
        ["cat", "dog"],
        open_image=lambda path: pytest.fail(f"opened {path}"),
    )
    assert [text.get_text() for text in figure.texts] == ["No errors: 1 image, all predicted right"]
    assert not figure.axes
    assert png(figure)


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
    figure = learning_curves_figure(history)
    losses, accuracies = figure.axes
    drawn = {str(line.get_label()): line.get_xydata().tolist() for line in losses.lines}
    assert drawn == {
        "train_loss": [[1, 2.0], [2, 1.0], [3, 0.5]],
        "val_loss, lowest 1.2 in epoch 2": [[1, 1.9], [2, 1.2], [3, 1.5]],
    }
    assert [line.get_label() for line in accuracies.lines] == ["val_accuracy, highest 0.6 in epoch 2"]
    assert png(figure)


@pytest.mark.parametrize("history", [{}, {"val_loss": {}}, {"val_loss": {1: 0.4}}, {"val_loss": {1: float("nan")}}])
def test_learning_curves_need_no_second_epoch(history: Mapping[str, Mapping[int, float]]) -> None:
    figure = learning_curves_figure(history)
    assert "nothing recorded" in [text.get_text() for text in figure.axes[1].texts]
    assert png(figure)


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
    for figure in pictures:
        assert png(figure)
        drawn_texts = texts(figure)
        for name in MARKUP:
            assert any(name in label for label in drawn_texts), name
        assert not any(drawn_texts.values())


def test_a_photo_that_is_gone_is_shown_as_such(tmp_path: Path) -> None:
    def gone(path: Path) -> NDArray[np.uint8]:
        raise FileNotFoundError(path)

    probabilities = np.array([[0.1, 0.9], [0.1, 0.9]])
    figure = worst_errors_figure([tmp_path] * 2, np.array([0, 1]), probabilities, ["a", "b"], open_image=gone)
    assert "no image" in texts(figure)
    assert png(figure)


@pytest.mark.parametrize(("first", "scale"), [(466.0, "log"), (1.5, "linear")])
def test_a_first_epoch_that_would_flatten_the_rest_is_drawn_on_a_log_axis(first: float, scale: str) -> None:
    figure = learning_curves_figure({"val_loss": {1: first, 2: 0.6, 3: 0.5}, "val_accuracy": {1: 0.1, 2: 0.9, 3: 0.9}})
    assert [axes.get_yscale() for axes in figure.axes] == [scale, "linear"]


def test_powers_of_ten_on_an_axis_stay_formulas() -> None:
    figure = learning_curves_figure({"val_loss": {1: 466.0, 2: 0.6, 3: 0.5}})
    assert png(figure)
    powers = [is_formula for words, is_formula in texts(figure).items() if "mathdefault" in words]
    assert powers
    assert all(powers)


def test_figures_need_no_optuna_and_no_pyplot() -> None:
    script = """
import sys
sys.modules["optuna"] = None
import experiments.figures.pictures, experiments.figures.recording_figure
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=REPOSITORY)
