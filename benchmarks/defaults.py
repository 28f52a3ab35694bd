"""What the defaults come to: a sweep and a training with nothing set but the photos, against a logistic regression.

python -m benchmarks.defaults --weights PATH/resnet50.safetensors --data PATH/dogs6 PATH/clothing PATH/clothing:0.1

`PATH:SHARE` sets `data.fraction`; the validation split is always whole. The sweep is `run_sweep`, without MLflow, and
the training is `train`, as the commands run them. The logistic regression is scikit-learn's on the same features,
trained on all views, with the C of a grid that has the lowest val_loss. Seeds differ in the search, the order of
images, the first weights of the head and, with a share, in the photos. The augmented views of whole data sets are those
of seed 0 unless --own-views is given: computing them for each seed takes five times as long.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import optuna
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from benchmarks.common import parser, report
from experiments import sweep
from experiments.config import RunConfig, load_config, override, with_recipe
from experiments.data import inputs
from experiments.data.inputs import open_features_once
from experiments.runs.folder import RunFolder
from experiments.runs.logger import RunFolderLogger
from experiments.study.epochs import resolve_config
from experiments.train import train
from lightning_modules.caches.features import FeatureSet
from lightning_modules.metrics import VAL_ACCURACY, VAL_LOSS
from lightning_modules.process import prepare_process

SIZE = 128
GRID = np.logspace(-5, 0, 11)
"""Values of C; the loss is summed over images, so more views want a smaller one."""
SWEEP_GOAL, TRAIN_GOAL = 0.005, 0.03
"""How far the mean val_loss of sweeps may be above the regression's, and that of trainings above the sweeps'."""


class NoPublisher:
    """Takes the place of the process that sends runs to MLflow, which changes no figure here."""

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> NoPublisher:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def check(self) -> None:
        """Nothing can go wrong with it."""


@dataclass(frozen=True)
class Scored:
    """One model of one seed."""

    loss: float
    accuracy: float
    epochs: int
    """That its run trained; of a sweep, all trials together."""
    seconds: float
    cpu_seconds: float


def settings(data: Path, fraction: float, weights: Path, cache: Path, views: int | None) -> RunConfig:
    """What a user sets, and where the benchmark keeps its files."""
    values: dict[str, object] = {"data.cache_views": views} if views else {}
    values |= {
        "data.name": "folder",
        "data.root": data.resolve(),
        "data.image_size": SIZE,
        "data.fraction": fraction,
        "data.cache_dir": cache,
        "model.weights": str(weights.resolve()),
    }
    return with_recipe(load_config(None, values))


def timed(call: Callable[[], tuple[float, float, int]]) -> Scored:
    """Loss, accuracy and epochs of a call, and what it took."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    found = call()
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Scored(*found, time.perf_counter() - started, cpu)


def swept(config: RunConfig) -> tuple[float, float, int]:
    """The best trial of a sweep, and the epochs of all its trials."""
    result = sweep.run_sweep(config)
    trials = result.study.get_trials(deepcopy=False)
    attributes = result.best.user_attrs
    return attributes[VAL_LOSS], attributes[VAL_ACCURACY], sum(len(trial.intermediate_values) for trial in trials)


def trained(config: RunConfig) -> tuple[float, float, int]:
    """The best epoch of a single training."""
    folder = RunFolder(config.output_dir / "train")
    folder.start("train", {}, {})
    result = train(resolve_config(config), output_dir=folder.path, logger=RunFolderLogger(folder))
    return result.metrics[VAL_LOSS], result.metrics[VAL_ACCURACY], len(result.history)


def logistic_regression(features: FeatureSet) -> tuple[float, float, float]:
    """Loss and accuracy of scikit-learn's best one, and its C."""
    inputs_, labels = features.train.flatten(0, 1).numpy(), features.train_labels.repeat(len(features.train)).numpy()
    valid, truth = features.valid[0].numpy(), features.valid_labels.numpy()
    found = []
    for c in GRID:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # far from the best C it would take very long
            model = LogisticRegression(C=c, max_iter=500).fit(inputs_, labels)
        scores = model.predict_log_proba(valid)
        loss = -scores[np.arange(len(truth)), truth].mean()
        found.append((float(loss), float((scores.argmax(axis=1) == truth).mean()), float(c)))
    return min(found)


def measure(common: RunConfig, seeds: Sequence[int], *, own_views: bool) -> dict[str, Any]:
    """All figures of one data set."""
    sweeps, trainings = [], []
    regressions: list[tuple[float, float, float]] = []
    for seed in seeds:
        config = override(common, {"seed": seed})
        of_seed_0 = common.data.fraction == 1 and not own_views
        features = open_features_once(override(config, {"seed": 0}) if of_seed_0 else config)
        inputs._open_features = lambda _, kept=features: kept  # type: ignore[assignment]
        inputs._open_features.cache_clear = lambda: None
        if not (of_seed_0 and regressions):
            regressions.append(logistic_regression(features))
        with tempfile.TemporaryDirectory() as folder:
            config = override(config, {"output_dir": folder})
            sweeps.append(timed(lambda config=config: swept(config)))  # type: ignore[misc]
            trainings.append(timed(lambda config=config: trained(config)))  # type: ignore[misc]
        inputs._open_features = OPEN_FEATURES
        last = f"sweep {sweeps[-1].loss:.4f}, train {trainings[-1].loss:.4f}, regression {regressions[-1][0]:.4f}"
        print(f"{common.data.root}, seed {seed}: {last}", file=sys.stderr)
    regression = fmean(regression_figures[0] for regression_figures in regressions)
    return {
        "regression": {
            "val_loss": regression,
            "val_accuracy": fmean(regression_figures[1] for regression_figures in regressions),
            "c": [regression_figures[2] for regression_figures in regressions],
        },
        "sweep": figures_of(sweeps),
        "train": figures_of(trainings),
        "sweep_above_regression": fmean(scored_run.loss for scored_run in sweeps) - regression,
        "train_above_sweep": fmean(scored_run.loss for scored_run in trainings)
        - fmean(scored_run.loss for scored_run in sweeps),
    }


OPEN_FEATURES = inputs._open_features


def figures_of(scored: Sequence[Scored]) -> dict[str, Any]:
    """Means, and all losses."""
    return {
        "val_loss": fmean(scored_run.loss for scored_run in scored),
        "val_losses": [scored_run.loss for scored_run in scored],
        "val_accuracy": fmean(scored_run.accuracy for scored_run in scored),
        "epochs": [scored_run.epochs for scored_run in scored],
        "seconds": fmean(scored_run.seconds for scored_run in scored),
        "cpu_seconds": fmean(scored_run.cpu_seconds for scored_run in scored),
    }


def rows_of(name: str, figures: dict[str, Any]) -> list[tuple[str, str]]:
    """The part of the table for one data set."""

    def scores(of: dict[str, Any]) -> str:
        return f"{of['val_loss']:.4f} / {of['val_accuracy']:.3f}"

    def run(of: dict[str, Any]) -> str:
        low, high = min(of["val_losses"]), max(of["val_losses"])
        took = f"{of['seconds']:.1f} s, {of['cpu_seconds']:.1f} s of CPU, epochs {of['epochs']}"
        return f"{scores(of)} ({low:.4f} to {high:.4f}, n={len(of['val_losses'])}); {took}"

    return [
        (f"{name}: logistic regression, val_loss / val_accuracy", scores(figures["regression"])),
        ("  sweep, 20 trials", run(figures["sweep"])),
        (f"    above the regression (goal {SWEEP_GOAL:+})", f"{figures['sweep_above_regression']:+.4f}"),
        ("  train", run(figures["train"])),
        (f"    above the sweep (goal {TRAIN_GOAL:+})", f"{figures['train_above_sweep']:+.4f}"),
    ]


def main() -> None:
    """Measure and report."""
    command = parser(__doc__ or "")
    command.add_argument("--data", nargs="+", required=True, metavar="PATH[:SHARE]")
    command.add_argument("--weights", type=Path, required=True)
    command.add_argument("--cache", type=Path, help="folder that keeps the features (default: a temporary one)")
    command.add_argument("--seeds", type=int, default=5)
    command.add_argument("--first-seed", type=int, default=0)
    command.add_argument("--views", type=int, help="data.cache_views in place of its default")
    command.add_argument("--sampler", help="sweep.sampler in place of its default")
    command.add_argument("--own-views", action="store_true", help="augmented views of its own for each seed")
    arguments = command.parse_args()
    prepare_process()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sweep.Publisher = NoPublisher  # type: ignore[assignment]
    figures: dict[str, object] = {}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for data in arguments.data:
            root, _, share = data.partition(":")
            cache = arguments.cache or Path(folder)
            config = settings(Path(root), float(share or 1), arguments.weights, cache, arguments.views)
            if arguments.sampler:
                config = override(config, {"sweep.sampler": arguments.sampler})
            seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
            found = measure(config, seeds, own_views=arguments.own_views)
            figures[Path(data).name] = found
            rows += rows_of(Path(data).name, found)
    report(rows, figures, arguments.json)


if __name__ == "__main__":
    main()
