"""The page of a debug job: losses by step and mode, layers over steps, and the findings of the rules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.figures.recording_figure import layer_heatmap, logarithmic
from experiments.figures.style import MAX_TICKS
from experiments.report.page import NOTHING, Plot, Table, render_page, to_png
from lightning_modules.palette import BLUE, VERMILLION

MAX_LINES, MAX_STEPS = 500, 50
"""Rows of a table of losses, and steps of a table of layers."""
SHOWN = (
    ("gradients", "abs_mean", "Gradients by layer", "mean of the absolute values"),
    ("weights", "l2_norm", "Weights by layer", "L2 norm"),
    ("biases", "l2_norm", "Biases by layer", "L2 norm"),
    ("other", "std", "Other tensors", "standard deviation"),
)
"""Collection, statistic, title and name of the statistic."""


def write_report(
    title: str,
    facts: Mapping[str, str],
    tensors: Mapping[str, Any],
    statuses: Sequence[Mapping[str, Any]],
    page: Path,
) -> list[Plot]:
    """Write the page, which needs no network and no scripts.

    Args:
        tensors: as `debugger.environment.read_tensors` returns them.
        statuses: findings of the rules: RuleConfigurationName, RuleEvaluationStatus, StatusDetails, `by` and `when`.

    Returns:
        The plots on the page.
    """
    plots = [losses_plot(tensors["losses"])]
    for collection, statistic, heading, meaning in SHOWN:
        layers = {
            name: {point["step"]: point[statistic] for point in entry["points"] if statistic in point}
            for name, entry in tensors["tensors"].items()
            if entry["collection"] == collection
        }
        if any(layers.values()):
            plots.append(layers_plot(collection, heading, meaning, layers))
    rules = Table(
        ("Rule", "Found", "By", "When", "Details"),
        tuple(
            (
                str(status["RuleConfigurationName"]),
                str(status["RuleEvaluationStatus"]),
                str(status["by"]),
                str(status["when"]),
                str(status.get("StatusDetails") or NOTHING),
            )
            for status in statuses
        ),
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    text = render_page(
        "sagemaker_launch.debugger", "report.html.j2", title=title, facts=facts, rules=rules, plots=plots
    )
    page.write_text(text, encoding="utf-8")
    return plots


def losses_plot(losses: Mapping[str, Mapping[str, Sequence[Sequence[Any]]]]) -> Plot:
    """Draw the losses by step and mode: each batch, and the mean of each validation."""
    figure = Figure(figsize=(11.0, 4.6), dpi=100, layout="constrained")
    axes = figure.subplots()
    rows: list[tuple[int, str, str]] = []
    for name, modes in losses.items():
        for mode, color in (("TRAIN", VERMILLION), ("EVAL", BLUE), ("GLOBAL", BLUE)):
            points = [(int(step), float(value)) for step, _, value in modes.get(mode, ())]
            if not points:
                continue
            steps, values = zip(*points, strict=True)
            style = "." if mode == "EVAL" else ".-"
            axes.plot(steps, values, style, color=color, alpha=0.5, lw=1, markersize=3, label=f"{name}, {mode}")
            if mode == "EVAL":
                ends, means = zip(*validations(points), strict=True)
                axes.plot(ends, means, "o-", color=BLUE, markersize=4, label=f"{name}, mean of each validation")
            rows += [(step, mode, f"{value:.6g}") for step, value in points]
    axes.set(title="Loss by step", xlabel="global step (a batch of TRAIN or EVAL)", ylabel="loss")
    drawn = [float(value) for _, _, value in rows]
    if drawn and min(drawn) > 0 and max(drawn) > 100 * min(drawn):
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if rows:
        axes.legend(frameon=False)
    else:
        axes.text(0.5, 0.5, "no losses were saved", transform=axes.transAxes, ha="center")
    rows.sort()
    shown = _thinned(rows, MAX_LINES)
    caption = f"The loss of each batch that was saved, by global step: {len(rows)} in all"
    caption += f", the table shows {len(shown)} of them." if len(shown) < len(rows) else "."
    table = Table(("Global step", "Mode", "Loss"), tuple((str(step), mode, value) for step, mode, value in shown))
    return Plot("losses", "Losses", caption, to_png(figure), table)


def validations(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Mean losses of consecutive steps, each at the last of them."""
    runs: list[list[tuple[int, float]]] = []
    for step, value in points:
        if not runs or step != runs[-1][-1][0] + 1:
            runs.append([])
        runs[-1].append((step, value))
    return [(run[-1][0], float(np.mean([value for _, value in run]))) for run in runs]


def layers_plot(name: str, title: str, meaning: str, layers: Mapping[str, Mapping[int, float]]) -> Plot:
    """Draw a statistic of each layer over the steps: a row per layer, coloured on a logarithmic scale."""
    steps = sorted({step for values in layers.values() for step in values})
    values = np.array([[layers[layer].get(step, math.nan) for step in steps] for layer in layers])
    figure = Figure(figsize=(11.0, min(2.0 + 0.2 * len(layers), 16.0)), dpi=100, layout="constrained")
    axes = figure.subplots()
    names = list(layers)
    shown_names = [layer.removeprefix("gradient/") for layer in names]
    layer_heatmap(axes, values, shown_names, steps, logarithmic(values), max_names=MAX_TICKS, label=meaning)
    axes.set(title=f"{title}: {meaning}", xlabel="global step")
    shown = _thinned(steps, MAX_STEPS)
    table = Table(
        ("Tensor", *(f"Step {step}" for step in shown)),
        tuple((layer, *(_text(layers[layer].get(step)) for step in shown)) for layer in names),
    )
    caption = f"The {meaning} of {len(names)} tensors at {len(steps)} steps; what is zero or no number is red."
    return Plot(name, title, caption, to_png(figure), table)


def _thinned(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of some items, evenly spaced, with the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(position)] for position in np.linspace(0, len(items) - 1, most)]


def _text(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4g}"
