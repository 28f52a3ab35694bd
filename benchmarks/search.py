"""Epochs that a sweep needs to find what a random search finds.

python -m benchmarks.search --data PATH/dogs6 --weights PATH/resnet50.safetensors

A seed compares a random search, 40 trials that are trained to their end, with a sweep as users get it: TPE and
Hyperband, asked as `claim` asks them. The sweep may spend the epochs of the random search; where it does not get as
low within them, it counts with all of them. A trial counts from its end on, with the val_loss of its best epoch, and
only if it is complete: a pruned one leaves no model.

Before TPE has anything to learn from, it draws the first points of the random search of the same seed. So each sweep
also chases a second random search, of the same training seed, that draws other points.
"""

from __future__ import annotations

import functools
import itertools
import math
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from matplotlib.figure import Figure
from optuna.trial import TrialState

from benchmarks.common import parser, report
from benchmarks.samplers import run_trial
from experiments.config import RunConfig, load_config, override
from experiments.data.inputs import open_data_once
from experiments.study.population_training import new_population
from experiments.study.search_space import Point, SearchSpace, load_search_space
from experiments.study.study import make_pruner
from experiments.study.trials import draw_point
from experiments.task import HeadTask
from lightning_modules.palette import BLUE, VERMILLION
from lightning_modules.process import prepare_process

TRIALS = 40
OTHER_DRAWS = 1_000
"""What the seed of the sampler is moved by for the second random search."""
TOLERANCE = 1e-4
"""Heads that train together equal those that train alone to this."""


@dataclass(frozen=True)
class Search:
    """How far a search was at the end of each trial."""

    epochs: Sequence[int]
    """Spent until then."""
    best: Sequence[float]
    """Lowest val_loss of a complete trial until then."""

    @property
    def to_its_best(self) -> int:
        """Epochs until the best trial ended."""
        return self.epochs[self.best.index(self.best[-1])]

    def reaches(self, target: float, limit: int) -> int | None:
        """Epochs until a trial was as good, if `limit` suffice."""
        pairs = zip(self.epochs, self.best, strict=True)
        return next((spent for spent, best in pairs if best <= target + TOLERANCE and spent <= limit), None)

    def at(self, epochs: int) -> float:
        """The lowest val_loss after so many epochs; not a number before the first complete trial."""
        ended = [best for spent, best in zip(self.epochs, self.best, strict=True) if spent <= epochs]
        return ended[-1] if ended and math.isfinite(ended[-1]) else math.nan


@dataclass(frozen=True)
class Seed:
    """The searches of one seed."""

    random: Search
    other: Search
    """Random, with other points."""
    sweep: Search


def settings(data: Path, weights: Path, cache: Path, image_size: int, max_epochs: int) -> RunConfig:
    """The preset whose search is measured."""
    values: dict[str, object] = {
        "data.root": data.resolve(),
        "data.image_size": image_size,
        "data.cache_dir": cache,
        "model.weights": str(weights.resolve()),
        "trainer.max_epochs": max_epochs,
    }
    return load_config(Path("conf/dogs6.yaml"), values)


def random_search(config: RunConfig, space: SearchSpace, *, draws: int) -> Search:
    """Trials that know nothing of each other, so that all of them train at once."""
    config = override(config, {"sweep.sampler": "random", "sweep.pruner": "none"})
    study, epochs = optuna.create_study(), config.trainer.epochs
    moved = replace(config, seed=config.seed + draws)  # of the sampler, not of the training
    points = [draw_point(study, moved, space, study.ask())[1] for _ in range(TRIALS)]
    configs = [override(config, point) for point in points]
    values = [math.inf] * TRIALS
    # Heads of one batch size share every batch, which is several times as fast.
    for size in {config.data.batch_size for config in configs}:
        indices = [index for index, config in enumerate(configs) if config.data.batch_size == size]
        population = new_population([HeadTask(configs[index]) for index in indices])
        for _ in range(epochs):
            for row, epoch in population.train_epoch().items():
                loss = epoch[config.sweep.metric]
                values[indices[row]] = min(values[indices[row]], loss if math.isfinite(loss) else math.inf)
    return Search([epochs * (number + 1) for number in range(TRIALS)], list(itertools.accumulate(values, min)))


def sweep(
    config: RunConfig, space: SearchSpace, losses_of: Callable[[Point], Iterable[float]], *, together: int = 1
) -> Search:
    """What `experiments sweep` does until it has spent the epochs of the random search.

    Args:
        losses_of: the val_loss of each epoch of a trial.
        together: trials that are asked for at once and then train epoch by epoch, as in a population.
    """
    # Hyperband deals trials to its brackets by the study's name, which a user chooses.
    study = optuna.create_study(study_name=f"search-{config.seed}", pruner=make_pruner(config))
    spent, ended, values, max_epochs = 0, list[int](), list[float](), config.trainer.epochs
    classes = len(open_data_once(config).class_names)
    while spent < TRIALS * max_epochs:
        drawn = [draw_point(study, config, space, study.ask()) for _ in range(together)]
        running = {
            trial.number: run_trial(losses_of(point), max_epochs, classes, study, trial) for trial, point in drawn
        }
        while running:
            for number, epochs in list(running.items()):
                next(epochs)
                spent += 1
                trial = study.get_trials(deepcopy=False)[number]
                if trial.state.is_finished():
                    assert trial.value is not None
                    ended.append(spent)
                    values.append(trial.value if trial.state == TrialState.COMPLETE else math.inf)
                    del running[number]
    return Search(ended, list(itertools.accumulate(values, min)))


def train(config: RunConfig, point: Point) -> Iterator[float]:
    """The val_loss of each epoch of a trial, which is trained as far as it is asked for."""
    config = override(config, point)
    population = new_population([HeadTask(config)])
    for _ in range(config.trainer.epochs):
        yield population.train_epoch()[0][config.sweep.metric]


def measure(config: RunConfig, seeds: int) -> list[Seed]:
    """The searches of all seeds."""
    assert config.search is not None
    space, found = load_search_space(config.search), []
    for number in range(seeds):
        seeded = override(config, {"seed": number})
        random, other = (random_search(seeded, space, draws=draws) for draws in (0, OTHER_DRAWS))
        found.append(Seed(random, other, sweep(seeded, space, functools.partial(train, seeded))))
        lowest = f"random {random.best[-1]:.4f}, sweep {found[-1].sweep.best[-1]:.4f}"
        print(f"{config.trainer.max_epochs} epochs, seed {number}: {lowest}", file=sys.stderr)
    return found


def figures_of(seeds: Sequence[Seed]) -> dict[str, Any]:
    """Ratios of epochs."""
    budget = seeds[0].random.epochs[-1]
    pairs = {
        "same_draws": [(seed.sweep, seed.random) for seed in seeds],
        "other_draws": [(seed.sweep, seed.other) for seed in seeds],
        # The second random search against the first: what luck alone gives.
        "random_again": [(seed.other, seed.random) for seed in seeds],
    }
    figures: dict[str, Any] = {"budget_epochs": budget}
    for name, searches in pairs.items():
        reached = [search.reaches(random.best[-1], budget) for search, random in searches]
        spent = [budget if epochs is None else epochs for epochs in reached]
        own = [random.to_its_best for _, random in searches]
        figures[name] = {
            "ratio": quartiles([epochs / budget for epochs in spent]),
            "ratio_to_its_best": quartiles([epochs / best for epochs, best in zip(spent, own, strict=True)]),
            "never": reached.count(None),
            "epochs": reached,
            "random_epochs_to_its_best": own,
        }
    for name, epochs in (("at_a_third", budget // 3), ("at_the_end", budget)):
        figures[name] = quartiles([seed.sweep.at(epochs) - seed.random.best[-1] for seed in seeds])
    figures["random_val_loss"] = quartiles([seed.random.best[-1] for seed in seeds])
    return figures


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Five numbers and how many values they stand for."""
    low, first, median, third, high = (float(value) for value in np.quantile(values, [0, 0.25, 0.5, 0.75, 1]))
    return {"median": median, "min": low, "q1": first, "q3": third, "max": high, "n": len(values)}


def draw(measured: dict[int, list[Seed]], path: Path, name: str) -> None:
    """Best val_loss so far against the epochs spent, for each length of a trial."""
    figure = Figure(figsize=(5.5 * len(measured), 4.2), dpi=120, layout="constrained")
    for axes, (max_epochs, seeds) in zip(
        figure.subplots(1, len(measured), squeeze=False)[0], measured.items(), strict=True
    ):
        budget = seeds[0].random.epochs[-1]
        spent = range(max_epochs, budget + 1)
        curves_to_draw = (
            ("random search", VERMILLION, "--", [seed.random for seed in seeds]),
            (name, BLUE, "-", [seed.sweep for seed in seeds]),
        )
        for label, color, style, searches in curves_to_draw:
            curves = np.array([[search.at(epochs) for epochs in spent] for search in searches])
            # Not a number, so not drawn, until each search has a complete trial.
            low, middle, high = np.quantile(curves, [0.25, 0.5, 0.75], axis=0)
            axes.fill_between(spent, low, high, color=color, alpha=0.2, linewidth=0)
            axes.plot(spent, middle, style, color=color, label=f"{label}: median, quartiles")
        final = np.median([seed.random.best[-1] for seed in seeds])
        axes.set_ylim(final - 0.01, final + 0.09)
        axes.axvline(budget / 3, color="black", linestyle=":", linewidth=1, label="a third of the epochs")
        axes.set(xlabel="epochs spent", ylabel="lowest val_loss so far (nats)")
        axes.set_title(f"Trials of up to {max_epochs} epochs, {len(seeds)} seeds")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def rows_of(figures: dict[str, Any], max_epochs: int) -> list[tuple[str, str]]:
    """The part of the table for trials of one length."""
    budget = figures["budget_epochs"]

    def row(name: str, key: str, ratio: str = "ratio") -> tuple[str, str]:
        ratio_figures = figures[key]
        never = f"never {ratio_figures['never']}, counted as all epochs"
        return name, f"{_five(ratio_figures[ratio], '.2f')}; {never}"

    return [
        row(f"{max_epochs}-epoch trials: epochs of the sweep / all {budget} of the random search", "same_draws"),
        row("  / those until the random search's best trial ended", "same_draws", "ratio_to_its_best"),
        row("  against a random search with other draws", "other_draws"),
        row("  / those until its best trial ended", "other_draws", "ratio_to_its_best"),
        row("  a second random search in place of the sweep", "random_again"),
        (
            "  val_loss of the sweep after a third of the epochs, less random's best",
            _five(figures["at_a_third"], "+.4f"),
        ),
        ("  the same after all epochs", _five(figures["at_the_end"], "+.4f")),
        ("  random's best val_loss", _five(figures["random_val_loss"], ".4f")),
    ]


def main() -> None:
    """Measure and report."""
    command = parser(__doc__ or "")
    command.add_argument("--data", type=Path, required=True)
    command.add_argument("--weights", type=Path, required=True)
    command.add_argument("--cache", type=Path, help="folder that keeps the features (default: a temporary one)")
    command.add_argument("--plot", type=Path, metavar="FILE", help="also draw the searches there")
    command.add_argument("--image-size", type=int, default=144, help="pixels per side (default: 144)")
    command.add_argument("--seeds", type=int, default=16, help="for trials of 5 epochs, as in the presets")
    command.add_argument("--long-seeds", type=int, default=10, help="for trials of 20 epochs")
    command.add_argument("--sampler", default="tpe", help="sweep.sampler in place of tpe")
    command.add_argument("--pruner", default="hyperband", help="sweep.pruner in place of hyperband")
    arguments = command.parse_args()
    prepare_process()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        for max_epochs, seeds in ((5, arguments.seeds), (20, arguments.long_seeds)):
            if seeds:
                cache = arguments.cache or Path(folder)
                config = settings(arguments.data, arguments.weights, cache, arguments.image_size, max_epochs)
                config = override(config, {"sweep.sampler": arguments.sampler, "sweep.pruner": arguments.pruner})
                measured[max_epochs] = measure(config, seeds)
    figures: dict[str, object] = {"sampler": arguments.sampler, "pruner": arguments.pruner, "trials": TRIALS}
    rows = []
    for max_epochs, searches in measured.items():
        found = figures_of(searches)
        rows += rows_of(found, max_epochs)
        figures[f"{max_epochs}_epochs"] = found
    report(rows, figures, arguments.json)
    if arguments.plot is not None:
        draw(measured, arguments.plot, f"{arguments.sampler} and {arguments.pruner}")


def _five(values: dict[str, float], form: str) -> str:
    low, first, third, high = (f"{values[name]:{form}}" for name in ("min", "q1", "q3", "max"))
    return f"{values['median']:{form}} (quartiles {first} to {third}, all {low} to {high}, n={values['n']})"


if __name__ == "__main__":
    main()
