from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import matplotlib
import numpy as np
import optuna
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from experiments.figures.figures import (
    confusion_matrix_figure,
    learning_curves_figure,
    per_class_accuracy_figure,
    rankable_parameters,
    save_figure,
    study_figures,
    worst_errors_figure,
)
from tests.conftest import REPOSITORY

DISTRIBUTIONS = {
    "optimizer.learning_rate": FloatDistribution(1e-5, 1e-1, log=True),
    "data.batch_size": CategoricalDistribution((32, 64)),
}
ALL_STUDY_FIGURES = {
    "optimization_history",
    "param_importances",
    "slice",
    "parallel_coordinate",
    "timeline",
}


def png(figure: Figure) -> bytes:
    """Draw for real: layout and font warnings are errors here."""
    file = io.BytesIO()
    save_figure(figure, file, format="png", dpi=40)
    return file.getvalue()


def texts(figure: Figure) -> dict[str, bool]:
    """What a figure says, and whether that is read as a formula."""
    return {one.get_text(): one.get_parse_math() for one in figure.findobj(Text)}


def study_of(
    values: Sequence[float | None],
    *,
    learning_rates: Sequence[float] = (1e-4, 1e-3, 1e-2),
    direction: str = "minimize",
) -> optuna.Study:
    """Add a 10 second trial for each value; None is a pruned one."""
    study = optuna.create_study(study_name="small", direction=direction)
    for number, value in enumerate(values):
        trial = optuna.trial.create_trial(
            state=TrialState.PRUNED if value is None else TrialState.COMPLETE,
            value=value,
            params={
                "optimizer.learning_rate": learning_rates[number % len(learning_rates)],
                "data.batch_size": (32, 64)[number % 2],
            },
            distributions=DISTRIBUTIONS,
        )
        trial.datetime_start = datetime(2026, 11, 23, 9) + timedelta(seconds=5 * number)
        trial.datetime_complete = trial.datetime_start + timedelta(seconds=10)
        study.add_trial(trial)
    return study


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
    assert [axes.get_title() for axes in figure.axes] == ["dog → cat 0.55", "cat → dog 0.80"]
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


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_study_figures_draw_the_whole_set_and_leave_pyplot_alone(direction: str) -> None:
    study = study_of([0.9, 0.5, None, 0.7, 0.4, 0.8], direction=direction)
    study.set_user_attr("metric", "val_accuracy")
    before = dict(matplotlib.rcParams)
    figures = study_figures(study)
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == []
    assert figures.keys() == ALL_STUDY_FIGURES
    assert figures["optimization_history"].axes[0].get_title() == "val_accuracy by trial"
    assert len(figures["timeline"].axes[0].patches) == 6
    assert all(png(figure) for figure in figures.values())


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
        said = texts(figure)
        for name in MARKUP:
            assert any(name in one for one in said), name
        assert not any(said.values())


def test_drawn_values_are_text_and_powers_of_ten_stay_formulas() -> None:
    study = optuna.create_study()
    values = ("none", "weights_$1/a.pth", "$2$3$", "<i>")
    for number in range(8):
        distributions = {
            "model.weights": CategoricalDistribution(values),
            "optimizer.learning_rate": FloatDistribution(1e-5, 1e-1, log=True),
        }
        params = {"model.weights": values[number % 4], "optimizer.learning_rate": 10.0 ** -(1 + number / 2)}
        study.add_trial(optuna.trial.create_trial(value=number / 8, params=params, distributions=distributions))
    figures = study_figures(study)
    assert {"slice", "parallel_coordinate"} <= figures.keys()
    for figure in figures.values():
        assert png(figure)
        said = texts(figure)
        assert not any(is_formula for words, is_formula in said.items() if any(value in words for value in values))
    powers = {words: is_formula for words, is_formula in texts(figures["slice"]).items() if "mathdefault" in words}
    assert powers
    assert all(powers.values())


def test_a_photo_that_is_gone_is_shown_as_such(tmp_path: Path) -> None:
    def gone(path: Path) -> NDArray[np.uint8]:
        raise FileNotFoundError(path)

    probabilities = np.array([[0.1, 0.9], [0.1, 0.9]])
    figure = worst_errors_figure([tmp_path] * 2, np.array([0, 1]), probabilities, ["a", "b"], open_image=gone)
    assert "no image" in texts(figure)
    assert png(figure)


def test_study_figures_can_be_drawn_by_threads() -> None:
    study = study_of([0.9, 0.5, 0.7])
    with ThreadPoolExecutor(2) as threads:
        drawn = list(threads.map(study_figures, [study] * 2))
    assert [figures.keys() for figures in drawn] == [ALL_STUDY_FIGURES] * 2
    assert drawn[0]["slice"] is not drawn[1]["slice"]


@pytest.mark.parametrize(
    ("values", "learning_rates", "expected"),
    [
        ([], [1e-3], set()),
        ([None, None], [1e-3], {"timeline"}),
        ([0.5], [1e-3], {"timeline", "optimization_history"}),
        ([float("inf")], [1e-3], {"timeline"}),
        # All values are equal: nothing to rank.
        ([0.5, 0.5], [1e-3, 1e-2], ALL_STUDY_FIGURES - {"param_importances"}),
        ([0.5, None, 0.6], [1e-3, 1e-2, 1e-3], {"timeline", "optimization_history"}),
    ],
)
def test_study_figures_leave_out_what_cannot_be_drawn_yet(
    values: list[float | None], learning_rates: list[float], expected: set[str]
) -> None:
    figures = study_figures(study_of(values, learning_rates=learning_rates))
    assert figures.keys() == expected
    assert all(png(figure) for figure in figures.values())


def test_a_timeline_needs_a_trial_that_took_time() -> None:
    trial = optuna.trial.create_trial(value=1.0)
    trial.datetime_complete = trial.datetime_start
    study = optuna.create_study()
    study.add_trial(trial)
    assert study_figures(study).keys() == {"optimization_history"}


def test_importance_needs_a_best_tenth_that_stands_out() -> None:
    # The tenth of 20 trials is bounded by the second best, which here is also the worst.
    assert rankable_parameters(study_of([0.1, *[0.5] * 19])) == []
    assert rankable_parameters(study_of([0.1, 0.2, *[0.5] * 18])) != []


def test_a_parameter_that_was_drawn_once_from_a_range_is_not_ranked() -> None:
    study = study_of([0.9, 0.5, 0.7, 0.6])
    study.add_trial(
        optuna.trial.create_trial(
            value=0.8,
            params={"optimizer.learning_rate": 0.5, "data.batch_size": 64},
            distributions=DISTRIBUTIONS | {"optimizer.learning_rate": FloatDistribution(0.1, 1.0)},
        )
    )
    assert rankable_parameters(study) == ["data.batch_size"]
    assert "param_importances" in study_figures(study)


def test_a_job_without_optuna_can_import_the_figures() -> None:
    script = "import sys; sys.modules['optuna'] = None; import experiments.figures.figures"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=REPOSITORY)


@pytest.mark.parametrize(("first", "scale"), [(466.0, "log"), (1.5, "linear")])
def test_a_first_epoch_that_would_flatten_the_rest_is_drawn_on_a_log_axis(first: float, scale: str) -> None:
    figure = learning_curves_figure({"val_loss": {1: first, 2: 0.6, 3: 0.5}, "val_accuracy": {1: 0.1, 2: 0.9, 3: 0.9}})
    assert [axes.get_yscale() for axes in figure.axes] == [scale, "linear"]


def test_trials_stand_at_whole_numbers() -> None:
    study = optuna.create_study()
    for value in (0.5, 0.4, 90.0):
        study.add_trial(optuna.trial.create_trial(value=value))
    axes = study_figures(study)["optimization_history"].axes[0]
    assert axes.get_yscale() == "log", "one bad trial does not flatten the others"
    assert all(float(tick).is_integer() for tick in axes.get_xticks())
