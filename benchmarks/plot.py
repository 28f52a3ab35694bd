"""Draw what the benchmarks wrote.

python -m benchmarks.plot docs/figures

Reads `sweep.json` and `overhead.json` in that folder and draws `sweep.png` and `trial_cost.png` beside them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lightning_modules.palette import BLUE, GREY, VERMILLION


def sweep(figures: dict[str, Any]) -> Figure:
    """Seconds of the same sweep, three ways."""
    bars = {
        "plain loop (scaled)": (figures["plain_seconds_scaled"], GREY),
        "experiments sweep": (figures["ours_seconds"]["median"], BLUE),
        "experiments sweep,\nfeatures on disk": (figures["ours_seconds_features_on_disk"]["median"], BLUE),
    }
    figure = Figure(figsize=(8, 2.6), dpi=120, layout="constrained")
    axes = figure.subplots()
    drawn = axes.barh(
        list(bars), [seconds for seconds, _ in bars.values()], color=[colour for _, colour in bars.values()]
    )
    axes.bar_label(drawn, labels=[f"{seconds:,.0f} s" for seconds, _ in bars.values()], padding=4)
    axes.set_xlim(right=1.15 * max(seconds for seconds, _ in bars.values()))
    axes.invert_yaxis()
    axes.set_xlabel("seconds, 20 trials of 5 epochs")
    axes.set_title(
        f"{figures['ratio']:.0f} times as fast as the plain loop, "
        f"with features on disk {figures['ratio_features_on_disk']:.0f} times"
    )
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def trial_cost(figures: dict[str, Any]) -> Figure:
    """What each trial of a study costs beyond its training."""
    seconds = np.array(figures["trial_seconds"])
    trials = np.arange(2, len(seconds) + 2)  # what came before the first one is the start of the study
    width = min(25, len(seconds))
    running = [float(np.median(seconds[max(0, index - width) : index + 1])) for index in range(len(seconds))]
    figure = Figure(figsize=(8, 3), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.plot(trials, seconds, ".", color=GREY, markersize=2, label="a trial")
    axes.plot(trials, running, color=BLUE, label=f"median of {width}")
    axes.axhline(0.2, color=VERMILLION, linestyle="--", label="goal")
    axes.set_ylim(0, max(0.25, 1.2 * float(np.quantile(seconds, 0.99))))
    axes.set_xlabel("trial")
    axes.set_ylabel("seconds beyond training")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """Draw."""
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("folder", type=Path, help="where the JSON files are and the pictures go")
    folder = command.parse_args().folder
    for source, name, draw in (("sweep", "sweep", sweep), ("overhead", "trial_cost", trial_cost)):
        figures = json.loads((folder / f"{source}.json").read_text())["figures"]
        draw(figures).savefig(folder / f"{name}.png")
        print(folder / f"{name}.png")


if __name__ == "__main__":
    main()
