"""What a person looks at in the MLflow UI: the figures of a run and of a study.

Every function returns matplotlib `Figure`s and shows nothing. Our own figures never touch pyplot,
so any thread or process may draw them; `study_figures` borrows pyplot under a lock. A job in the
cloud may import this file: nothing but `study_figures` imports Optuna.
"""

from __future__ import annotations

import math
import statistics
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter, MaxNLocator

from experiments.runs.intervals import bracketed, wilson_interval
from lightning_modules.metrics import TRAIN_ACCURACY, TRAIN_LOSS, VAL_LOSS

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

IntArray: TypeAlias = npt.NDArray[np.integer]
FloatArray: TypeAlias = npt.NDArray[np.floating]
ImageArray: TypeAlias = npt.NDArray[np.uint8]

# Okabe and Ito's palette, https://jfly.uni-koeln.de/color/: safe for every kind of colour vision.
BLUE, SKY, GREEN, VERMILLION, PURPLE, GREY = (
    "#0072B2",
    "#56B4E9",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#8C8C8C",
)
STATE_COLORS: Mapping[str, str] = {
    "COMPLETE": BLUE,
    "PRUNED": SKY,
    "FAIL": VERMILLION,
    "RUNNING": GREEN,
    "WAITING": GREY,
}

MAX_CLASSES_WITH_COUNTS = 20
"""Beyond this many classes the cells of a confusion matrix are too small for text."""
MAX_CLASSES_IN_MATRIX = 200
"""Beyond this many classes a confusion matrix has those with the most errors only: it grows with their square."""
MAX_LABEL = 40
"""Characters of a class name in a picture: a longer one would leave no room for the picture."""
MAX_TICKS = 45
"""Class names that stay readable beside one another on the largest figure."""
MAX_BARS = 40
"""Beyond this many classes only the worst and the best half of as many bars are shown."""

LOG_AXIS = 5.0
"""A loss is drawn on a log axis where its largest value is so many times the median."""

_DPI = 120
_PAD_INCHES = 0.1
_PYPLOT = threading.Lock()


def confusion_matrix_figure(labels: IntArray, predictions: IntArray, class_names: Sequence[str]) -> Figure:
    """Draw which classes are taken for which.

    Args:
        labels: (N,) true class indices.
        predictions: (N,) predicted class indices.
        class_names: name of each class, in index order.

    Returns:
        A row for each true class, or for those of `classes_in_matrix`; a cell's colour is its share of the images of
        the class, its text the images.

    Raises:
        ValueError: if there is no image, or the indices do not match each other or `class_names`.
    """
    num_classes = len(class_names)
    _check_indices(labels, predictions, num_classes)
    shown = classes_in_matrix(labels, predictions, num_classes)
    counts = confusion_counts(labels, predictions, shown)
    # A class without an image keeps a row of zeros.
    percent = 100 * counts / np.maximum(np.bincount(labels, minlength=num_classes)[shown, None], 1)
    accuracy = float((labels == predictions).mean())
    interval = bracketed(wilson_interval(accuracy, len(labels)), ".1%")
    title = f"Confusion matrix: {_images(len(labels))}, accuracy {accuracy:.1%} {interval}"
    if len(shown) < num_classes:
        title += f"\nthe {len(shown)} of {num_classes:,} classes with the most errors"
    class_names, num_classes = [class_names[index] for index in shown], len(shown)

    side = min(max(4.0 + 0.5 * num_classes, 5.5), 14.0)
    figure = _figure(side, 0.9 * side)
    axes = figure.subplots()
    image = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(image, ax=axes, label="share of the true class (%)", shrink=0.8)
    ticks = range(0, num_classes, math.ceil(num_classes / MAX_TICKS))
    names = [short(class_names[index]) for index in ticks]
    axes.set_xticks(ticks, names, rotation=90 if num_classes > MAX_CLASSES_WITH_COUNTS else 45)
    axes.set_yticks(ticks, names)
    for tick_label in axes.get_xticklabels():
        tick_label.set(horizontalalignment="right", rotation_mode="anchor", verticalalignment="center")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(title)
    if num_classes <= MAX_CLASSES_WITH_COUNTS:
        for (true, predicted), count in np.ndenumerate(counts):
            color = "white" if percent[true, predicted] > 55 else "black" if count else GREY
            axes.text(predicted, true, str(count), color=color, ha="center", va="center")
    return figure


def classes_in_matrix(labels: IntArray, predictions: IntArray, num_classes: int) -> IntArray:
    """The classes that a confusion matrix has room for: all, or those with the most errors, in index order."""
    wrong = labels != predictions
    errors = sum(np.bincount(one[wrong], minlength=num_classes) for one in (labels, predictions))
    return np.sort(np.argsort(-np.asarray(errors), kind="stable")[:MAX_CLASSES_IN_MATRIX])


def save_figure(figure: Figure, target: Path | BinaryIO, **options: Any) -> None:
    """Write a figure as a picture. What it says is text and never markup: a class may be called `over_$10`.

    Args:
        options: as for `Figure.savefig`.
    """
    for one in figure.findobj(Text):
        one.set_parse_math(False)
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if isinstance(axis.get_major_formatter(), LogFormatter):  # powers of ten, which matplotlib writes as formulas
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                tick.label1.set_parse_math(True)
                tick.label2.set_parse_math(True)
    figure.savefig(target, **options)


def confusion_counts(labels: IntArray, predictions: IntArray, classes: IntArray) -> IntArray:
    """Count which classes are taken for which.

    Args:
        classes: (C,) indices of the classes to count, in order.

    Returns:
        (C, C) images, a row for each true class.
    """
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    both = np.isin(labels, classes) & np.isin(predictions, classes)
    np.add.at(counts, (np.searchsorted(classes, labels[both]), np.searchsorted(classes, predictions[both])), 1)
    return counts


def short(name: str) -> str:
    """A class name as a picture shows it."""
    return name if len(name) <= MAX_LABEL else f"{name[: MAX_LABEL - 11]}…{name[-10:]}"


def per_class_accuracy_figure(labels: IntArray, predictions: IntArray, class_names: Sequence[str]) -> Figure:
    """Draw the accuracy of each class, worst first.

    Args:
        labels: (N,) true class indices.
        predictions: (N,) predicted class indices.
        class_names: name of each class, in index order.

    Returns:
        A bar with its 95 % interval for each class that has images, their number beside the name; of
        more than 40 classes the 20 worst and the 20 best.

    Raises:
        ValueError: if there is no image, or the indices do not match each other or `class_names`.
    """
    num_classes = len(class_names)
    _check_indices(labels, predictions, num_classes)
    images = np.bincount(labels, minlength=num_classes)
    correct = np.bincount(labels[labels == predictions], minlength=num_classes)
    percent = 100 * correct / np.maximum(images, 1)
    seen = np.flatnonzero(images)
    worst_first = seen[np.argsort(percent[seen], kind="stable")]
    shown, title = worst_first, "Accuracy of each class (%)"
    if len(worst_first) > MAX_BARS:
        half = MAX_BARS // 2
        shown = np.concatenate([worst_first[:half], worst_first[-half:]])
        title = f"Accuracy of the {half} worst and the {half} best of {len(worst_first)} classes (%)"
    if len(seen) < num_classes:
        title += f"\n{num_classes - len(seen)} of {num_classes} classes have no image"

    figure = _figure(8.0, 1.8 + 0.28 * len(shown))
    axes = figure.subplots()
    names = [f"{short(class_names[index])} ({images[index]})" for index in shown]
    # Positions, not names, on the axis: two classes of one name would share a bar.
    known = [wilson_interval(percent[index] / 100, int(images[index])) for index in shown]
    reach = [
        [percent[index] - 100 * low, 100 * high - percent[index]]
        for index, (low, high) in zip(shown, known, strict=True)
    ]
    bars = axes.barh(range(len(shown)), percent[shown], color=BLUE, xerr=np.clip(reach, 0, None).T, ecolor="black")
    axes.bar_label(bars, fmt="%.0f", padding=3, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
    axes.set_yticks(range(len(shown)), names)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    overall = 100 * correct.sum() / images.sum()
    axes.axvline(overall, color=VERMILLION, linestyle="--", label=f"all images: {overall:.1f} %")
    if len(shown) < len(worst_first):
        axes.axhline(MAX_BARS // 2 - 0.5, color="black", linestyle=":", linewidth=1)
    axes.set_xlim(0, 108)
    axes.set_xlabel("accuracy (%), with its 95 % interval")
    axes.set_ylabel("class (number of images)")
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower right", frameon=False)
    return figure


def worst_first(labels: IntArray, probabilities: FloatArray) -> IntArray:
    """Indices of the wrong predictions, by falling loss.

    Args:
        labels: (N,) true class indices.
        probabilities: (N, C), each row sums to 1.
    """
    # The loss, -log of the true class's probability, falls as that probability rises.
    hardest_first = np.argsort(probabilities[np.arange(len(labels)), labels], kind="stable")
    return np.asarray(hardest_first[(probabilities.argmax(axis=1) != labels)[hardest_first]])


def needs_log_axis(metric: str, values: Iterable[float]) -> bool:
    """Whether the largest values of a loss, such as those of the first epoch, would flatten the rest."""
    finite = sorted(value for value in values if math.isfinite(value))
    return (
        metric.endswith("loss") and bool(finite) and finite[0] > 0 and finite[-1] > LOG_AXIS * statistics.median(finite)
    )


def worst_errors_figure(
    images: Sequence[Path],
    labels: IntArray,
    probabilities: FloatArray,
    class_names: Sequence[str],
    *,
    open_image: Callable[[Path], ImageArray],
    count: int = 16,
) -> Figure:
    """Show the wrong predictions that cost the most.

    Args:
        images: N image files.
        labels: (N,) true class indices.
        probabilities: (N, C), each row sums to 1.
        class_names: name of each of the C classes, in index order.
        open_image: reads a file as (H, W, 3) uint8. A photo that it can't read is shown as "no image".
        count: how many pictures to show at most.

    Returns:
        The pictures by falling loss, each titled `true → predicted probability`.

    Raises:
        ValueError: if there is no image, or the arguments do not match in length.
    """
    if probabilities.shape != (len(images), len(class_names)):
        raise ValueError(
            f"probabilities must have a row an image and a column a class, that is shape "
            f"{(len(images), len(class_names))}, got {probabilities.shape}"
        )
    predictions = probabilities.argmax(axis=1)
    _check_indices(labels, predictions, len(class_names))
    wrong = worst_first(labels, probabilities)
    if len(wrong) == 0:
        figure = _figure(6.0, 2.0)
        figure.text(0.5, 0.5, f"No errors: {_images(len(labels))}, all predicted right", ha="center")
        return figure

    shown = wrong[:count]
    columns = math.ceil(math.sqrt(len(shown)))
    rows = math.ceil(len(shown) / columns)
    # Wide enough for the heading over a single picture. Pictures of one size need no layout engine, which would take
    # ten times as long as all the rest.
    width, height = max(2.6 * columns, 5.0), 2.9 * rows + 0.5
    figure = Figure(figsize=(width, height), dpi=_DPI * 2 / 3)  # photos make large files
    figure.subplots_adjust(
        left=0.1 / width, right=1 - 0.1 / width, bottom=0.1 / height, top=1 - 0.9 / height, wspace=0.06, hspace=0.2
    )
    figure.suptitle(f"Worst {len(shown)} of {len(wrong)} errors among {_images(len(labels))}")
    for position, index in enumerate(shown, start=1):
        true_name, predicted_name = short(class_names[labels[index]]), short(class_names[predictions[index]])
        gap = "\n" if len(true_name) + len(predicted_name) > 20 else " "
        title = f"{true_name} →{gap}{predicted_name} {probabilities[index].max():.2f}"
        axes = figure.add_subplot(rows, columns, position)
        try:
            axes.imshow(open_image(images[index]))
        except (OSError, ValueError):  # moved, deleted or damaged since it was scored
            axes.text(0.5, 0.5, "no image", ha="center", va="center")
        # Without y, every title is laid out around ticks that nobody sees.
        axes.set_title(title, fontsize=8 if gap == "\n" else 10, y=1.0)
        axes.set_axis_off()
    return figure


def learning_curves_figure(history: Mapping[str, Mapping[int, float]]) -> Figure:
    """Draw losses and accuracies by epoch.

    Args:
        history: metric name to {epoch, from 1: value}. Only `train_loss`, `val_loss` and the
            accuracies are drawn.

    Returns:
        Losses on the left, accuracies on the right. Training is dashed; the others name the
        epoch with the lowest loss or the highest accuracy.
    """
    figure = _figure(11.0, 4.2)
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    losses = [name for name in (TRAIN_LOSS, VAL_LOSS) if history.get(name)]
    accuracies = [name for name in history if name.endswith("_accuracy") and history[name]]
    _draw_curves(loss_axes, history, losses, best=min)
    _draw_curves(accuracy_axes, history, accuracies, best=max)
    if needs_log_axis(VAL_LOSS, (value for name in losses for value in history[name].values())):
        loss_axes.set_yscale("log")
    loss_axes.set(title="Loss by epoch", ylabel="cross entropy (nats)")
    accuracy_axes.set(title="Accuracy by epoch", ylabel="accuracy (share of the images)")
    return figure


def study_figures(study: Study) -> dict[str, Figure]:
    """Draw a study with Optuna's own plots.

    Args:
        study: a study of one objective; its attribute `metric` names the objective.

    Returns:
        Figures by name: `optimization_history`, `param_importances`, `slice`,
        `parallel_coordinate` and `timeline`, without those that need more trials than there are.
    """
    from optuna.visualization import matplotlib as plots

    metric = metric_name(study)
    completed = completed_trials(study)
    varying = varying_parameters(completed)
    ranked = rankable_parameters(study)
    trials = study.get_trials(deepcopy=False)
    flattened = needs_log_axis(metric, map(objective_value, completed))
    figures: dict[str, Figure] = {}
    if completed:
        figure = _optuna_figure(plots.plot_optimization_history, study, target_name=metric)
        figure.axes[0].set(title=f"{metric} by trial", xlabel="trial")
        figure.axes[0].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if flattened:
            figure.axes[0].set_yscale("log")
        figures["optimization_history"] = figure
    if ranked:
        figure = _optuna_figure(plots.plot_param_importances, study, params=ranked, target_name=metric)
        axes = figure.axes[0]
        axes.set_title("", loc="left")
        axes.set(title=f"What moved {metric}", xlabel="share of importance", ylabel="")
        figures["param_importances"] = figure
    if varying:
        figure = _optuna_figure(plots.plot_slice, study, params=varying, target_name=metric)
        for axes in figure.axes:
            axes.set_title("")
        if flattened:
            figure.axes[0].set_yscale("log")  # which its neighbours share
        figure.suptitle(f"{metric} by parameter, one dot a finished trial")
        figures["slice"] = figure
        figure = _optuna_figure(plots.plot_parallel_coordinate, study, params=varying, target_name=metric)
        axes = figure.axes[0]
        axes.set_title("")
        # Optuna's palest lines vanish on white.
        (lines,) = axes.collections
        lines.set_cmap("cividis_r" if study.direction.name == "MAXIMIZE" else "cividis")
        for tick_label in (text for scale in figure.axes for text in scale.get_yticklabels()):
            tick_label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
        figure.suptitle("Parameters of each finished trial, darker is better")
        figures["parallel_coordinate"] = figure
    # Bars that all lack a length would leave the time axis without a range.
    if any(trial.duration for trial in trials):
        figure = _optuna_figure(plots.plot_timeline, study, own_layout=True)
        axes = figure.axes[0]
        axes.set(title="Trials over time", xlabel="time (hour:minute:second)", ylabel="trial")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        for bar, trial in zip(axes.patches, trials, strict=True):
            bar.set_facecolor(STATE_COLORS[trial.state.name])
        legend = axes.get_legend()
        assert legend is not None
        for handle, text in zip(legend.get_patches(), legend.get_texts(), strict=True):
            handle.set_facecolor(STATE_COLORS[text.get_text()])
        figures["timeline"] = figure
    return figures


def metric_name(study: Study) -> str:
    """Name the metric that the study's values and intermediate values hold."""
    return str(study.user_attrs.get("metric", VAL_LOSS))


def completed_trials(study: Study) -> list[FrozenTrial]:
    """List the trials that ended with a finite value, in the order of their numbers."""
    trials = study.get_trials(deepcopy=False)
    return [trial for trial in trials if trial.state.name == "COMPLETE" and math.isfinite(objective_value(trial))]


def objective_value(trial: FrozenTrial) -> float:
    """Read the value of a completed trial."""
    assert trial.value is not None
    return trial.value


def varying_parameters(trials: Iterable[FrozenTrial]) -> list[str]:
    """Name the parameters that took more than one value; the others span no axis."""
    values: dict[str, set[object]] = {}
    for trial in trials:
        for name, value in trial.params.items():
            values.setdefault(name, set()).add(value)
    return sorted(name for name, taken in values.items() if len(taken) > 1)


def rankable_parameters(study: Study) -> list[str]:
    """Name the parameters whose importance the completed trials can tell.

    Optuna's estimate compares the best tenth of the trials with all of them, so that tenth must
    stand out; and each range that a parameter was drawn from, absence included, needs two trials.

    Source: `optuna.importance.PedAnovaImportanceEvaluator`, Optuna 5.0.
    """
    trials = completed_trials(study)
    best_first = sorted(map(objective_value, trials), reverse=study.direction.name == "MAXIMIZE")
    if not best_first or best_first[math.ceil(len(trials) / 10) - 1] == best_first[-1]:
        return []
    return [
        name
        for name in varying_parameters(trials)
        if min(Counter(trial.distributions.get(name) for trial in trials).values()) >= 2
    ]


def _check_indices(labels: IntArray, predictions: IntArray, num_classes: int) -> None:
    if labels.shape != predictions.shape or labels.ndim != 1 or len(labels) == 0:
        raise ValueError(
            "labels and predictions must be two vectors of one length, at least 1, "
            f"got shapes {labels.shape} and {predictions.shape}"
        )
    for name, indices in (("labels", labels), ("predictions", predictions)):
        if indices.min() < 0 or indices.max() >= num_classes:
            raise ValueError(
                f"{name} must lie in 0..{num_classes - 1}, one index for each class name, "
                f"got {indices.min()}..{indices.max()}"
            )


def _figure(width_inches: float, height_inches: float) -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=_PAD_INCHES, h_pad=_PAD_INCHES)
    return Figure(figsize=(width_inches, height_inches), dpi=_DPI, layout=layout)


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _draw_curves(
    axes: Axes,
    history: Mapping[str, Mapping[int, float]],
    names: Sequence[str],
    *,
    best: Callable[[Iterable[float]], float],
) -> None:
    colors = iter((BLUE, GREEN, PURPLE))
    for name in names:
        epochs = sorted(history[name])
        values = [history[name][epoch] for epoch in epochs]
        if name in (TRAIN_LOSS, TRAIN_ACCURACY):
            axes.plot(epochs, values, "o--", color=VERMILLION, markersize=4, label=name)
            continue
        label = name
        finite = [value for value in values if math.isfinite(value)]
        if finite:
            best_epoch = epochs[values.index(best(finite))]
            word = "highest" if best is max else "lowest"
            label = f"{name}, {word} {best(finite):.4g} in epoch {best_epoch}"
        axes.plot(epochs, values, "o-", color=next(colors), markersize=4, label=label)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if names:
        axes.legend(frameon=False)
    else:
        axes.text(0.5, 0.5, "nothing recorded", transform=axes.transAxes, ha="center", color=GREY)


def _optuna_figure(
    plot: Callable[..., object], study: Study, *, own_layout: bool = False, **arguments: object
) -> Figure:
    """Let Optuna draw with pyplot: one thread at a time, off screen, and with nothing left behind.

    Args:
        plot: one of `optuna.visualization.matplotlib`.
        study: what to draw.
        own_layout: the plot lays itself out, and matplotlib warns where two layouts meet.
        arguments: of the plot.
    """
    from matplotlib import pyplot
    from optuna.exceptions import ExperimentalWarning

    # Optuna switches the style sheet of the whole process; the context puts the old one back.
    style = matplotlib.rc_context(
        {
            "figure.constrained_layout.use": not own_layout,
            "figure.constrained_layout.w_pad": _PAD_INCHES,
            "figure.constrained_layout.h_pad": _PAD_INCHES,
            "figure.dpi": _DPI,
        }
    )
    with _PYPLOT, style, warnings.catch_warnings():
        # All of Optuna's matplotlib plots are marked experimental: their interface may change.
        warnings.simplefilter("ignore", ExperimentalWarning)
        backend = pyplot.get_backend()
        pyplot.switch_backend("agg")
        try:
            drawn = plot(study, **arguments)
            figure = np.ravel(np.asarray(drawn, dtype=object))[0].get_figure(root=True)
            assert isinstance(figure, Figure)
            figure.set_layout_engine("constrained")
            pyplot.close(figure)
        finally:
            pyplot.switch_backend(backend)
    figure.set_size_inches(max(figure.get_figwidth(), 9.0), 4.8)
    return figure
