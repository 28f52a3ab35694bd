"""The figures of a run: confusion matrix, accuracy by class, worst errors, learning curves.

Every function returns a matplotlib `Figure` and shows nothing. None touches pyplot, so any thread or process may draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.figures.style import DPI, MAX_TICKS, needs_log_axis, new_figure, short
from experiments.runs.intervals import bracketed, wilson_interval
from lightning_modules.metrics import TRAIN_ACCURACY, TRAIN_LOSS, VAL_LOSS
from lightning_modules.palette import BLUE, GREEN, GREY, PURPLE, VERMILLION

IntArray: TypeAlias = npt.NDArray[np.integer]
FloatArray: TypeAlias = npt.NDArray[np.floating]
ImageArray: TypeAlias = npt.NDArray[np.uint8]

MAX_CLASSES_WITH_COUNTS = 20
"""Beyond this many classes the cells of a confusion matrix are too small for text."""
MAX_CLASSES_IN_MATRIX = 200
"""Beyond this many classes a confusion matrix has those with the most errors only: it grows with their square."""
MAX_BARS = 40
"""Beyond this many classes only the worst and the best half of as many bars are shown."""


def confusion_matrix_figure(labels: IntArray, predictions: IntArray, class_names: Sequence[str]) -> Figure:
    """Draw a confusion matrix.

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
    figure = new_figure(side, 0.9 * side)
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
    errors = sum(np.bincount(indices[wrong], minlength=num_classes) for indices in (labels, predictions))
    return np.sort(np.argsort(-np.asarray(errors), kind="stable")[:MAX_CLASSES_IN_MATRIX])


def confusion_counts(labels: IntArray, predictions: IntArray, classes: IntArray) -> IntArray:
    """Count which classes are taken for which.

    Args:
        classes: (C,) indices of the classes to count, in order.

    Returns:
        (C, C) images, a row for each true class.
    """
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    counted = np.isin(labels, classes) & np.isin(predictions, classes)
    np.add.at(counts, (np.searchsorted(classes, labels[counted]), np.searchsorted(classes, predictions[counted])), 1)
    return counts


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

    figure = new_figure(8.0, 1.8 + 0.28 * len(shown))
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


def worst_errors_figure(
    images: Sequence[Path],
    labels: IntArray,
    probabilities: FloatArray,
    class_names: Sequence[str],
    *,
    open_image: Callable[[Path], ImageArray],
    count: int = 16,
) -> Figure:
    """Show the wrong predictions with the largest loss.

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
        figure = new_figure(6.0, 2.0)
        figure.text(0.5, 0.5, f"No errors: {_images(len(labels))}, all predicted right", ha="center")
        return figure

    shown = wrong[:count]
    columns = math.ceil(math.sqrt(len(shown)))
    rows = math.ceil(len(shown) / columns)
    # Wide enough for the heading over a single picture.
    width, height = max(2.6 * columns, 5.0), 2.9 * rows + 0.5
    figure = Figure(figsize=(width, height), dpi=DPI * 2 / 3)  # photos make large files
    figure.suptitle(f"Worst {len(shown)} of {len(wrong)} errors among {_images(len(labels))}")
    # One hidden pair of axes, in inches: sixteen pairs take five times as long as all the rest.
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    margin = (width - 2.6 * columns) / 2
    for position, index in enumerate(shown):
        row, column = divmod(position, columns)
        left, bottom = margin + 2.6 * column + 0.1, height - 0.5 - 2.9 * (row + 1) + 0.1
        true_name, predicted_name = short(class_names[labels[index]]), short(class_names[predictions[index]])
        gap = "\n" if len(true_name) + len(predicted_name) > 20 else " "
        title = f"{true_name} →{gap}{predicted_name} {probabilities[index].max():.2f}"
        try:
            photo = open_image(images[index])
        except (OSError, ValueError):  # moved, deleted or damaged since it was scored
            axes.text(left + 1.2, bottom + 1.2, "no image", ha="center", va="center")
        else:
            longest = max(photo.shape[:2])
            right, top = (left + 2.4 * photo.shape[1] / longest, bottom + 2.4 * photo.shape[0] / longest)
            axes.imshow(photo, extent=(left, right, bottom, top), aspect="auto")
        axes.text(left + 1.2, bottom + 2.45, title, fontsize=8 if gap == "\n" else 10, ha="center", va="bottom")
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
    # Its labels are known, so it needs no layout engine, which takes as long as all the rest.
    figure = Figure(figsize=(11.0, 4.2), dpi=DPI)
    figure.subplots_adjust(left=0.065, right=0.99, bottom=0.12, top=0.91, wspace=0.16)
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
