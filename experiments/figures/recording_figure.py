"""A recording as one picture: losses by step, and gradients, updates and dead units by layer and step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from lightning_modules.insight.recording import Finding, Recording
from lightning_modules.palette import BLUE, GREY, VERMILLION

MAX_LINES = 8
"""Layers up to which lines say more than a heat map."""
MAX_NAMES = 24
"""Layer names that stay readable beside one another."""
MAX_STEPS = 12
"""Steps that stay readable beside one another."""


def recording_figure(recording: Recording, findings: Sequence[Finding]) -> Figure:
    """Draw a recording.

    Args:
        findings: findings of the rules; each is a line through the losses.

    Returns:
        Four panels; the layers are in the order of the network, its input on top.
    """
    figure = Figure(figsize=(14, 10), dpi=120, layout="constrained")
    (losses, gradients), (updates, units) = figure.subplots(2, 2)
    _draw_losses(losses, recording, findings)
    steps = [sample.step for sample in recording.samples]
    names = [recording.parameters[index].removesuffix(".weight") for index in recording.weights]
    norms = _rows([sample.gradient_norm[recording.weights] for sample in recording.samples], len(names))
    ratios = _rows([sample.update_ratio[recording.weights] for sample in recording.samples], len(names))
    dead = _rows([sample.dead_share for sample in recording.samples], len(recording.activations))
    mortal = ~np.isnan(dead).all(axis=1)
    _draw_layers(gradients, norms, names, steps, "Length of the gradient", logarithmic(norms))
    _draw_layers(updates, ratios, names, steps, "Share of the weights that a step changed", LogNorm(1e-6, 1))
    relus = [recording.activations[index] for index in np.flatnonzero(mortal).tolist()]
    _draw_layers(units, dead[mortal], relus, steps, "Share of dead ReLU units", Normalize(0, 1))
    return figure


def _draw_losses(axes: Axes, recording: Recording, findings: Sequence[Finding]) -> None:
    axes.plot(recording.train_steps, recording.train_losses, color=BLUE, linewidth=0.8, alpha=0.7, label="training")
    validations = recording.validations()
    axes.plot(list(validations), list(validations.values()), color=VERMILLION, marker="o", label="validation (mean)")
    for finding in findings:
        axes.axvline(finding.step, color=GREY, linestyle="--", linewidth=1)
        text = finding.rule.replace("_", " ")
        axes.annotate(text, (finding.step, 0.98), xycoords=("data", "axes fraction"), rotation=90, va="top", fontsize=8)
    axes.set(title="Loss by step", xlabel="step", ylabel="cross entropy")
    high, low = (
        (np.nanmax(recording.train_losses), np.nanmin(recording.train_losses)) if recording.train_losses else (1, 1)
    )
    if high > 100 * low > 0:
        axes.set_yscale("log")
    axes.legend(loc="upper right")


def _draw_layers(
    axes: Axes,
    values: npt.NDArray[np.float32],
    names: Sequence[str],
    steps: Sequence[int],
    title: str,
    scale: Normalize,
) -> None:
    """Draw a line per layer; for many layers a heat map, with a row per layer and a column per sampled step."""
    axes.set(title=title, xlabel="step")
    if not values.size:
        axes.text(0.5, 0.5, "the network trains no such layer", ha="center", va="center", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        return
    if len(names) <= MAX_LINES:
        for name, row in zip(names, values, strict=True):
            axes.plot(steps, row, marker=".", label=name)
        if isinstance(scale, LogNorm):
            axes.set_yscale("log")
        axes.legend()
        return
    layer_heatmap(axes, values, names, steps, scale, max_names=MAX_NAMES)


def layer_heatmap(
    axes: Axes,
    values: npt.NDArray[np.floating],
    names: Sequence[str],
    steps: Sequence[int],
    scale: Normalize,
    *,
    max_names: int,
    label: str = "",
) -> None:
    """Draw a row per layer and a column per step; values that are not numbers, or not on the scale, are red.

    Args:
        values: (layers, steps).
        max_names: how many layer names stay readable beside one another.
        label: of the colours.
    """
    image = axes.imshow(
        np.ma.masked_invalid(values), aspect="auto", interpolation="nearest", cmap="cividis", norm=scale
    )
    axes.set_facecolor(VERMILLION)
    assert axes.figure is not None
    axes.figure.colorbar(image, ax=axes, label=label)
    rows = range(0, len(names), math.ceil(len(names) / max_names))
    axes.set_yticks(rows, [names[row] for row in rows], fontsize=7)
    columns = range(0, len(steps), math.ceil(len(steps) / MAX_STEPS))
    axes.set_xticks(columns, [str(steps[column]) for column in columns])


def _rows(columns: Sequence[npt.NDArray[np.float32]], rows: int) -> npt.NDArray[np.float32]:
    """Stack a (layers,) array per sample into (layers, samples)."""
    return np.stack(columns, axis=1) if columns else np.empty((rows, 0), np.float32)


def logarithmic(values: npt.NDArray[np.floating]) -> LogNorm:
    """A scale from the smallest to the largest of some numbers, over nine orders of magnitude at most."""
    finite = values[np.isfinite(values) & (values > 0)]
    high = float(finite.max()) if finite.size else 1.0
    return LogNorm(max(float(finite.min()) if finite.size else high, 1e-9 * high), 1.001 * high)
