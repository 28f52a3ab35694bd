"""What samplers learn from trials that diverge and from trials that are pruned.

python -m benchmarks.samplers

No network is trained: a formula says the val_loss of each epoch. All else is what a sweep does: trials are asked for,
judged by the pruner after each epoch, and told. Two questions, each with every sampler and with and without Hyperband:

1. Learning rates above EDGE diverge, 62 % of the range. Which share of the trials 20 to 39 still diverges? Before a
   trial diverges its loss is the lowest of all, so that no pruner stops it.
2. No learning rate diverges. How far is the best of 30 trials from the optimum, against random search with as many
   trials that are all trained to their end?
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from benchmarks.common import parser, report
from experiments.config import RunConfig, override
from experiments.runs.folder import Outcome
from experiments.study.pruning import PruningCallback
from experiments.study.search_space import ChoiceRange, FloatRange, Point, SearchSpace
from experiments.study.study import make_pruner
from experiments.study.trials import diverged_outcome, draw_point, tell
from lightning_modules.metrics import VAL_LOSS

LEARNING_RATE, WEIGHT_DECAY, BATCH_SIZE = "optimizer.learning_rate", "optimizer.weight_decay", "data.batch_size"
WIDE: SearchSpace = {
    LEARNING_RATE: FloatRange(1e-5, 1e3, log=True),
    WEIGHT_DECAY: FloatRange(1e-5, 1e-1, log=True),
    BATCH_SIZE: ChoiceRange((32, 64, 128)),
}
EDGE = 10 ** (-5 + 0.38 * 8)
"""Learning rate above which a training of the first question diverges: 62 % of the range, in its logarithm."""
NARROW: SearchSpace = {**WIDE, LEARNING_RATE: FloatRange(1e-5, 1e-2, log=True)}
BEST = 10**-3.3, 10**-2.0
"""The best learning rate and weight decay."""
CLASSES, OPTIMUM, EPOCHS = 10, 0.69, 9
SAMPLERS, PRUNERS = ("tpe", "gp", "cmaes"), ("none", "hyperband")
Diverges = Literal["never", "first epoch", "middle epoch", "last epoch", "huge loss"]
"""When a training with a learning rate above EDGE diverges; "huge loss" means that its loss is huge, but a number."""
DIVERGES: tuple[Diverges, ...] = ("first epoch", "middle epoch", "last epoch", "huge loss")


@dataclass(frozen=True)
class Training:
    """A training by a formula."""

    point: Point
    diverges: Diverges

    @property
    def final(self) -> float:
        """The val_loss of the last epoch, unless it diverges."""
        rate, decay = (math.log10(float(self.point[name])) for name in (LEARNING_RATE, WEIGHT_DECAY))
        away = 0.05 * (rate - math.log10(BEST[0])) ** 2 + 0.005 * (decay - math.log10(BEST[1])) ** 2
        return OPTIMUM + away + 0.004 * (self.point[BATCH_SIZE] != 64)

    def losses(self, epochs: int) -> list[float]:
        """The val_loss of each epoch; after one that is no number none follows."""
        rate = float(self.point[LEARNING_RATE])
        guess = math.log(CLASSES)
        if rate <= EDGE or self.diverges == "never":
            # A small learning rate also needs longer.
            pace = 1.5 + math.log10(rate / 1e-5) / 2
            return [self.final + (guess - OPTIMUM) * math.exp(-pace * epoch / 2) for epoch in range(1, epochs + 1)]
        if self.diverges == "huge loss":
            return [1e4 * rate * epoch for epoch in range(1, epochs + 1)]
        last = {"first epoch": 1, "middle epoch": (epochs + 1) // 2, "last epoch": epochs}[self.diverges]
        return [*(OPTIMUM + (guess - OPTIMUM) * math.exp(-3 * epoch) for epoch in range(1, last)), math.nan]


def search(config: RunConfig, space: SearchSpace, *, diverges: Diverges = "never", trials: int) -> optuna.Study:
    """A study of so many trials."""
    # Hyperband deals trials to its brackets by the study's name, which a user chooses.
    study = optuna.create_study(study_name=f"samplers-{config.seed}", pruner=make_pruner(config))
    for _ in range(trials):
        trial, point = draw_point(study, config, space, study.ask())
        epochs = config.trainer.epochs
        for _ in run_trial(Training(point, diverges).losses(epochs), epochs, CLASSES, study, trial):
            pass
    return study


def run_trial(
    losses: Iterable[float], epochs: int, classes: int, study: optuna.Study, trial: optuna.Trial
) -> Iterator[None]:
    """Report the val_loss of each epoch until the trial ends, and tell the study how; yields after each epoch."""
    pruning, best = PruningCallback(trial, VAL_LOSS), math.inf
    for epoch, loss in enumerate(losses, start=1):
        best = min(best, loss)
        if not math.isfinite(loss):
            ended = diverged_outcome(study, VAL_LOSS, classes, f"diverged at epoch {epoch}")
        elif pruning.report(epoch, loss, ends=epoch == epochs):
            ended = Outcome("PRUNED", loss)
        elif epoch == epochs:
            ended = Outcome("COMPLETE", best)
        else:
            yield
            continue
        tell(study, trial, ended)
        yield
        return


def diverging_share(trials: Sequence[FrozenTrial]) -> float:
    """The share of trials whose learning rate is above EDGE."""
    return float(np.mean([trial.params[LEARNING_RATE] > EDGE for trial in trials]))


def gap(study: optuna.Study) -> float:
    """How far the best complete trial is from the optimum."""
    return study.best_value - OPTIMUM


def main() -> None:
    """Measure and report."""
    command = parser(__doc__ or "")
    command.add_argument("--seeds", type=int, default=10)
    command.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=SAMPLERS, help="besides random")
    arguments = command.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    base, seeds = override(RunConfig(), {"trainer.max_epochs": EPOCHS}), range(arguments.seeds)
    shares, gaps = dict[str, list[float]](), dict[str, list[float]]()
    for sampler, pruner in itertools.product(("random", *arguments.samplers), PRUNERS):
        config = override(base, {"sweep.sampler": sampler, "sweep.pruner": pruner})
        seeded = [override(config, {"seed": seed}) for seed in seeds]
        for diverges in DIVERGES:
            studies = [search(seed, WIDE, diverges=diverges, trials=40) for seed in seeded]
            name = f"{sampler}, {pruner}, {diverges}"
            shares[name] = [diverging_share(study.trials[20:]) for study in studies]
            print(f"{name}: {_text(shares[name], '.2f')}", file=sys.stderr)
        gaps[f"{sampler}, {pruner}"] = [gap(search(seed, NARROW, trials=30)) for seed in seeded]
    rows = [(f"{name}: share of trials 20 to 39 that diverge", _text(found, ".2f")) for name, found in shares.items()]
    for name, found in gaps.items():
        closer = sum(found_gap < random_gap for found_gap, random_gap in zip(found, gaps["random, none"], strict=True))
        rows.append(
            (f"{name}: gap to the optimum", f"{_text(found, '.5f')}, below random's on {closer} of {len(found)}")
        )
    report(rows, {"shares": shares, "gaps": gaps}, arguments.json)


def _text(values: Sequence[float], form: str) -> str:
    return f"mean {np.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    main()
