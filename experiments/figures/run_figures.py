"""The figures of a run: confusion matrix, accuracy by class, worst errors, learning curves.

Every function returns a `Canvas`, which saves itself as a PNG and which a notebook displays. Each trial has all four
of them, so no library of plots draws them: see `canvas.py`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from experiments.figures.canvas import LINE_HEIGHT, TEXT, TITLE, Canvas, fitting, text_width
from experiments.figures.style import (
    MAX_TICKS,
    epoch_ticks,
    linear_ticks,
    log_ticks,
    needs_log_axis,
    short,
    tick_labels,
)
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
_BLUES = np.array([(247, 251, 255), (198, 219, 239), (107, 174, 214), (33, 113, 181), (8, 48, 107)])
"""Colours of 0, 25, 50, 75 and 100 % (ColorBrewer's Blues)."""
_GRID = "#E5E5E5"
_TICK, _EDGE = 6, 14
"""Pixels of a tick, and between the parts of a figure."""
_LINE = round(LINE_HEIGHT * TEXT)
_ROTATED = math.sin(math.pi / 4)
_CELL, _CAPTION = 172, 11
"""Pixels of a photo with its margin, among the worst errors, and of the letters above it."""
_CLASS_AXIS = ("class (number of images)", "class (images)", "class")


def confusion_matrix_figure(labels: IntArray, predictions: IntArray, class_names: Sequence[str]) -> Canvas:
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

    cell = max(60, 240 // num_classes) if num_classes <= MAX_CLASSES_WITH_COUNTS else max(6, 1200 // num_classes)
    side = cell * num_classes
    ticks = range(0, num_classes, math.ceil(num_classes / MAX_TICKS))
    names = [short(class_names[index]) for index in ticks]
    longest = max(map(text_width, names))
    angle = 90 if num_classes > MAX_CLASSES_WITH_COUNTS else 45
    below = longest if angle == 90 else _ROTATED * (longest + TEXT)
    left, top = _EDGE + _LINE + _EDGE + longest + _TICK + 4, _EDGE + _height(title, TITLE) + _EDGE
    bottom, right = top + side, left + side
    scale = right + 2 * _EDGE
    width = max(scale + 24 + _TICK + 40 + _LINE + _EDGE, text_width(title, TITLE) + 2 * _EDGE)
    canvas = Canvas(width, bottom + _TICK + 4 + below + _EDGE + _LINE + _EDGE)
    canvas.text(width / 2, _EDGE + _height(title, TITLE) / 2, title, size=TITLE)
    canvas.photo(left, top, _blues(percent), (side, side))
    canvas.frame(left, top, right, bottom)
    for index, name in zip(ticks, names, strict=True):
        along = (index + 0.5) * cell
        canvas.line((left - _TICK, top + along), (left, top + along))
        canvas.text(left - _TICK - 4, top + along, name, align="right")
        canvas.line((left + along, bottom), (left + along, bottom + _TICK))
        canvas.text(left + along, bottom + _TICK + 4, name, align="right", angle=angle)
    canvas.text(_EDGE + _LINE / 2, top + side / 2, "true class", angle=90)
    canvas.text(left + side / 2, canvas.image.height - _EDGE - _LINE / 2, "predicted class")
    high = min(side, 480)
    canvas.photo(scale, top, _blues(np.linspace(100, 0, high)[:, None]), (24, high))
    canvas.frame(scale, top, scale + 24, top + high)
    for share in range(0, 101, 20):
        y = top + (1 - share / 100) * high
        canvas.line((scale + 24, y), (scale + 24 + _TICK, y))
        canvas.text(scale + 24 + _TICK + 4, y, str(share), align="left")
    canvas.text(scale + 24 + _TICK + 40 + _LINE / 2, top + high / 2, "share of the true class (%)", angle=90)
    if num_classes <= MAX_CLASSES_WITH_COUNTS:
        for (true, predicted), count in np.ndenumerate(counts):
            color = "white" if percent[true, predicted] > 55 else "black" if count else GREY
            canvas.text(left + (predicted + 0.5) * cell, top + (true + 0.5) * cell, str(count), color=color)
    return canvas


def _blues(percent: FloatArray) -> ImageArray:
    """(H, W, 3) colours of (H, W) shares in percent."""
    stops = np.linspace(0, 100, len(_BLUES))
    return np.stack([np.interp(percent, stops, channel) for channel in _BLUES.T], axis=-1).astype(np.uint8)


def _height(text: str, size: int = TEXT) -> float:
    return LINE_HEIGHT * size * (text.count("\n") + 1)


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


def per_class_accuracy_figure(labels: IntArray, predictions: IntArray, class_names: Sequence[str]) -> Canvas:
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

    names = [f"{short(class_names[index])} ({images[index]})" for index in shown]
    bar = 32
    overall = 100 * correct.sum() / images.sum()
    left, top = _EDGE + _LINE + _EDGE + max(map(text_width, names)) + _TICK + 4, _EDGE + _height(title, TITLE) + 8
    unit = 5.2  # pixels of one percent
    bottom, right = top + bar * len(shown), left + 108 * unit
    width = max(right + _EDGE, text_width(title, TITLE) + 2 * _EDGE)
    canvas = Canvas(width, bottom + _TICK + 3 * _LINE + 2 * _EDGE)
    canvas.text(width / 2, _EDGE + _height(title, TITLE) / 2, title, size=TITLE)
    for row, (index, name) in enumerate(zip(shown, names, strict=True)):
        middle, end = top + (row + 0.5) * bar, left + unit * percent[index]
        canvas.rectangle(left, middle - 0.4 * bar, end, middle + 0.4 * bar, color=BLUE)
        canvas.line((left - _TICK, middle), (left, middle))
        canvas.text(left - _TICK - 4, middle, name, align="right")
    for y in np.arange(top, bottom, 10):  # dashed, over the bars and below the numbers
        canvas.line((left + unit * overall, y), (left + unit * overall, min(y + 6, bottom)), color=VERMILLION, width=2)
    for row, index in enumerate(shown):
        middle = top + (row + 0.5) * bar
        low, high = wilson_interval(percent[index] / 100, int(images[index]))
        canvas.line((left + 100 * unit * low, middle), (left + 100 * unit * high, middle), width=2)
        end = max(left + 100 * unit * high, left + unit * percent[index])
        canvas.text(end + 6, middle, f"{percent[index]:.0f}", align="left", background="white")
    if len(shown) < len(worst_first):
        canvas.line((left, top + MAX_BARS // 2 * bar), (right, top + MAX_BARS // 2 * bar), color=GREY)
    canvas.line((left, top), (left, bottom))
    canvas.line((left, bottom), (right, bottom))
    for share in range(0, 101, 20):
        canvas.line((left + unit * share, bottom), (left + unit * share, bottom + _TICK))
        canvas.text(left + unit * share, bottom + _TICK + _LINE / 2 + 2, str(share))
    axis = next(text for text in _CLASS_AXIS if text_width(text) < bottom - top or text == _CLASS_AXIS[-1])
    canvas.text(_EDGE + _LINE / 2, (top + bottom) / 2, axis, angle=90)
    below = bottom + _TICK + 1.5 * _LINE + 4
    canvas.text((left + right) / 2, below, "accuracy (%), with its 95 % interval")
    legend, below = f"all images: {overall:.1f} %", below + _LINE + 4
    canvas.text(right, below, legend, align="right")
    start = right - text_width(legend) - 8
    for x in (start - 30, start - 20, start - 10):
        canvas.line((x, below), (x + 6, below), color=VERMILLION, width=2)
    return canvas


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
) -> Canvas:
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
        text = f"No errors: {_images(len(labels))}, all predicted right"
        canvas = Canvas(text_width(text) + 120, 120)
        canvas.text(canvas.image.width / 2, 60, text)
        return canvas

    shown = wrong[:count]
    columns = math.ceil(math.sqrt(len(shown)))
    rows = math.ceil(len(shown) / columns)
    title = f"Worst {len(shown)} of {len(wrong)} errors among {_images(len(labels))}"
    # Wide enough for the heading over a single picture.
    width, heading = max(_CELL * columns, text_width(title) + 2 * _EDGE), 2 * _LINE
    above = _height("two\nlines", _CAPTION) + 4
    canvas = Canvas(width, heading + (above + _CELL) * rows)
    canvas.text(width / 2, heading / 2, title)
    margin = (width - _CELL * columns) / 2
    for position, index in enumerate(shown):
        row, column = divmod(position, columns)
        middle, top = margin + (column + 0.5) * _CELL, heading + (above + _CELL) * row + above
        true_name, predicted_name = short(class_names[labels[index]]), short(class_names[predictions[index]])
        probability = f"{probabilities[index].max():.2f}"
        words = [f"{true_name} → {predicted_name} {probability}"]
        if text_width(words[0], _CAPTION) > _CELL - 8:
            room = _CELL - 8 - text_width(f" {probability}", _CAPTION)
            words = [
                f"{fitting(name, room, _CAPTION)} {end}"
                for name, end in ((true_name, "→"), (predicted_name, probability))
            ]
        caption = "\n".join(words)
        canvas.text(middle, top - 4 - _height(caption, _CAPTION) / 2, caption, size=_CAPTION)
        try:
            photo = open_image(images[index])
        except (OSError, ValueError):  # moved, deleted or damaged since it was scored
            canvas.text(middle, top + _CELL / 2, "no image", size=_CAPTION)
        else:
            canvas.photo(middle - photo.shape[1] / 2, top, photo)
    return canvas


def learning_curves_figure(history: Mapping[str, Mapping[int, float]]) -> Canvas:
    """Draw losses and accuracies by epoch.

    Args:
        history: metric name to {epoch, from 1: value}. Only `train_loss`, `val_loss` and the
            accuracies are drawn.

    Returns:
        Losses on the left, accuracies on the right. Training is dashed; the others name the
        epoch with the lowest loss or the highest accuracy.
    """
    losses = [name for name in (TRAIN_LOSS, VAL_LOSS) if history.get(name)]
    accuracies = [name for name in history if name.endswith("_accuracy") and history[name]]
    is_log = needs_log_axis(VAL_LOSS, (value for name in losses for value in history[name].values()))
    legends = max(len(losses), len(accuracies), 1)
    top = _EDGE + _LINE + 8 + legends * _LINE + 8
    canvas = Canvas(1320, top + 400 + _TICK + 2 * _LINE + _EDGE)
    curves = (losses, "Loss by epoch", "cross entropy (nats)", is_log, min)
    _draw_curves(canvas, 0, top, history, *curves)
    curves = (accuracies, "Accuracy by epoch", "accuracy (share of the images)", False, max)
    _draw_curves(canvas, 660, top, history, *curves)
    return canvas


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
    canvas: Canvas,
    left: float,
    top: float,
    history: Mapping[str, Mapping[int, float]],
    names: Sequence[str],
    title: str,
    axis: str,
    is_log: bool,
    best: Callable[[Iterable[float]], float],
) -> None:
    """Draw one panel of the learning curves, its legend above it: there it hides no curve."""
    canvas.text(left + 370, _EDGE + _LINE / 2, title, size=TITLE)
    start, end, bottom = left + 105, left + 640, top + 400
    canvas.text(left + 16, (top + bottom) / 2, axis, angle=90)
    values = [value for name in names for value in history[name].values() if math.isfinite(value)]
    epochs = sorted({epoch for name in names for epoch in history[name]})
    if not values:
        canvas.text((start + end) / 2, (top + bottom) / 2, "nothing recorded", color=GREY)
    else:
        across, _, _ = _axis(epochs[0], epochs[-1], start + 20, end - 20, is_log=False)
        up, low, high = _axis(min(values), max(values), bottom - 20, top + 10, is_log=is_log)
        ticks = log_ticks(low, high) if is_log else linear_ticks(low, high)
        for tick, label in zip(ticks, tick_labels(ticks), strict=True):
            canvas.line((start, up(tick)), (end, up(tick)), color=_GRID)
            canvas.text(start - 10, up(tick), label, align="right")
        for epoch in epoch_ticks(epochs[0], epochs[-1]):
            canvas.line((across(epoch), top), (across(epoch), bottom + _TICK), color=_GRID)
            canvas.text(across(epoch), bottom + _TICK + _LINE / 2, str(epoch))
        colors = itertools.cycle((BLUE, GREEN, PURPLE, GREY))
        for number, name in enumerate(names):
            is_training = name in (TRAIN_LOSS, TRAIN_ACCURACY)
            color = VERMILLION if is_training else next(colors)
            points = [(across(epoch), up(value)) for epoch, value in sorted(history[name].items())]
            canvas.curve(points, color=color, is_dashed=is_training)
            height = top - 8 - (len(names) - number - 0.5) * _LINE
            canvas.curve(
                [(start + 10, height), (start + 30, height), (start + 50, height)], color=color, is_dashed=is_training
            )
            canvas.text(start + 62, height, _legend(name, history[name], best), align="left")
    canvas.line((start, top), (start, bottom))
    canvas.line((start, bottom), (end, bottom))
    canvas.text((start + end) / 2, bottom + _TICK + 1.5 * _LINE, "epoch")


def _legend(name: str, values: Mapping[int, float], best: Callable[[Iterable[float]], float]) -> str:
    """The name of a metric; unless it is of training, with its best value and the first epoch that has it."""
    finite = {epoch: value for epoch, value in sorted(values.items()) if math.isfinite(value)}
    if name in (TRAIN_LOSS, TRAIN_ACCURACY) or not finite:
        return name
    found = best(finite.values())
    epoch = next(epoch for epoch, value in finite.items() if value == found)
    return f"{name}, {'highest' if best is max else 'lowest'} {found:.4g} in epoch {epoch}"


def _axis(
    low: float, high: float, start: float, end: float, *, is_log: bool
) -> tuple[Callable[[float], float], float, float]:
    """A scale from values to pixels, `low` at `start` and `high` at `end`, and the range that it has at least."""
    if low == high:
        low, high = (low / 2, high * 2) if is_log else (low - 0.5, high + 0.5)
    of = math.log10 if is_log else float
    unit = (end - start) / (of(high) - of(low))

    def pixel(value: float) -> float:
        if not math.isfinite(value) or (is_log and value <= 0):
            return math.nan
        return start + unit * (of(value) - of(low))

    return pixel, low, high
