"""Which sampler and which pruner find a good head in the fewest epochs.

python -m benchmarks.search_settings --data PATH/dogs6 PATH/clothing --weights PATH/resnet50.safetensors

`benchmarks.search` trains each trial, which takes hours for many settings. Here a grid of heads is trained once, all
heads of a batch size at once, and the curve of a trial is interpolated between its neighbours in the grid, by cubic
splines over the logarithms of learning rate and weight decay. All else is what a sweep does.

Each search may spend the epochs of a random search of 40 trials that are trained to their end, and is compared with it:
how many of these epochs it needs to get as low, and how much lower it is after a third of them and after all.
"""

from __future__ import annotations

import itertools
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import optuna
from scipy.interpolate import RegularGridInterpolator

from benchmarks.common import parser, report
from benchmarks.search import OTHER_DRAWS, Search, quartiles, settings, sweep
from experiments.config import RunConfig, override
from experiments.study.population_training import new_population
from experiments.study.search_space import ChoiceRange, FloatRange, Point, SearchSpace, load_search_space
from experiments.task import HeadTask

SETTINGS = (
    ("random", "none"),
    ("tpe", "hyperband"),
    ("gp", "none"),
    ("cmaes", "none"),
    ("tpe", "none"),
    ("random", "hyperband"),
    ("cmaes", "hyperband"),
    ("gp", "hyperband"),
)
"""The first says what luck alone gives."""
FIELDS = ("optimizer.learning_rate", "optimizer.weight_decay", "data.batch_size")
RATES, DECAYS = 11, 5
"""Points of the grid."""


class Curves:
    """The val_loss by epoch of any head of a search space of learning rate, weight decay and batch size."""

    def __init__(self, config: RunConfig, space: SearchSpace) -> None:
        rates, decays, sizes = (space[name] for name in FIELDS)
        assert isinstance(rates, FloatRange) and isinstance(decays, FloatRange) and isinstance(sizes, ChoiceRange)
        axes = [
            np.linspace(math.log10(search_range.low), math.log10(search_range.high), count)
            for search_range, count in ((rates, RATES), (decays, DECAYS))
        ]
        self._of_size = {}
        for size in sizes.values:
            points = [(10**rate, 10**decay, size) for rate, decay in itertools.product(*axes)]
            configs = [override(config, dict(zip(FIELDS, point, strict=True))) for point in points]
            population = new_population([HeadTask(config) for config in configs])
            epochs = [population.train_epoch() for _ in range(config.trainer.epochs)]
            losses = np.array([[epoch[index][config.sweep.metric] for epoch in epochs] for index in range(len(points))])
            assert np.isfinite(losses).all()
            self._of_size[size] = RegularGridInterpolator(axes, losses.reshape(RATES, DECAYS, -1), method="cubic")

    def losses(self, point: Point) -> list[float]:
        """The val_loss of each epoch of a trial."""
        rate, decay, size = (point[name] for name in FIELDS)
        coordinates = math.log10(float(rate)), math.log10(float(decay))
        found: list[float] = np.ravel(self._of_size[size](coordinates)).tolist()
        return found


def main() -> None:
    """Measure and report."""
    command = parser(__doc__ or "")
    command.add_argument("--data", type=Path, nargs="+", required=True)
    command.add_argument("--weights", type=Path, required=True)
    command.add_argument("--cache", type=Path, help="folder that keeps the features (default: a temporary one)")
    command.add_argument("--image-size", type=int, default=128, help="pixels per side (default: 128)")
    command.add_argument("--epochs", type=int, nargs="+", default=[5, 20], help="lengths of a trial")
    command.add_argument("--seeds", type=int, default=10)
    command.add_argument("--together", type=int, default=1, help="trials asked for at once, as in a population")
    arguments = command.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rows, figures = list[tuple[str, str]](), dict[str, object]()
    with tempfile.TemporaryDirectory() as folder:
        for data, max_epochs in itertools.product(arguments.data, arguments.epochs):
            cache = arguments.cache or Path(folder)
            config = settings(data, arguments.weights, cache, arguments.image_size, max_epochs)
            assert config.search is not None
            space = load_search_space(config.search)
            measured = measure(config, space, Curves(config, space), range(arguments.seeds), arguments.together)
            figures[f"{data.name}, {max_epochs} epochs"] = measured
            rows += [(f"{data.name}, {max_epochs} epochs: {name}", row(figures)) for name, figures in measured.items()]
    report(rows, figures, arguments.json)


def measure(
    config: RunConfig, space: SearchSpace, curves: Curves, seeds: Sequence[int], together: int
) -> dict[str, dict[str, dict[str, float]]]:
    """How each setting does, paired by seed with a random search whose trials are trained to their end."""

    def searches(sampler: str, pruner: str, draws: int = 0) -> list[Search]:
        named = override(config, {"sweep.sampler": sampler, "sweep.pruner": pruner})
        return [
            sweep(override(named, {"seed": seed + draws}), space, curves.losses, together=together) for seed in seeds
        ]

    # Samplers draw their first points at random, by the seed: the search that they are compared with draws others.
    targets, measured = searches("random", "none", OTHER_DRAWS), {}
    for sampler, pruner in SETTINGS:
        name = f"{sampler}, {pruner}"
        measured[name] = figures_of(searches(sampler, pruner), targets)
        print(f"{name}: {row(measured[name])}", file=sys.stderr)
    return measured


def figures_of(searches: Sequence[Search], targets: Sequence[Search]) -> dict[str, dict[str, float]]:
    """Epochs until a search was as good as the random search of its seed, and how much better it ended."""
    budget = targets[0].epochs[-1]
    pairs = [(search, target.best[-1]) for search, target in zip(searches, targets, strict=True)]
    return {
        "ratio": quartiles([(search.reaches(target, budget) or budget) / budget for search, target in pairs]),
        "at_a_third": quartiles([search.at(budget // 3) - target for search, target in pairs]),
        "at_the_end": quartiles([search.at(budget) - target for search, target in pairs]),
    }


def row(figures: dict[str, dict[str, float]]) -> str:
    """One line of the table."""
    ratio, third, end = (figures[name] for name in ("ratio", "at_a_third", "at_the_end"))
    return (
        f"{ratio['median']:.2f} of the epochs ({ratio['q1']:.2f} to {ratio['q3']:.2f}); val_loss after a third "
        f"{third['median']:+.4f}, at the end {end['median']:+.4f} ({end['min']:+.4f} to {end['max']:+.4f})"
    )


if __name__ == "__main__":
    main()
