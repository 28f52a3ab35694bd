"""What `train()` and a sweep cost beside the arithmetic.

python -m benchmarks.overhead

A step: ResNet50, all layers, 224 px, through `train()` and through a bare PyTorch loop over the same batches of
the same photos. Both run in turn, in one process, 3 epochs of 4 steps; the first epoch warms up. A step is the time
from the end of the one before to its own end, so it holds whatever happens in between; an epoch holds the first step
after the validation and the checkpoint too, which the bare loop has not. `--repeat 0` leaves this part out.

A trial: wall-clock seconds of a trial less those of its training, at trial 10, 100 and 1,000 of one study of tiny heads
on cached features; medians over ten trials. And what the trials do not wait for: the seconds from the end of the last
trial to the end of the command, in which the publisher draws and sends what it has not yet. `--trials 0` leaves this
part out.
"""

from __future__ import annotations

import itertools
import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers.logger import DummyLogger
from torch import nn

from benchmarks.common import parser, report, spread, write_photos
from experiments import sweep
from experiments.config import RunConfig, load_config, with_recipe
from experiments.data.inputs import new_network, open_data_once, open_decoded_once, photo_data
from experiments.study import trials
from experiments.study.storage import study_folder
from experiments.train import train
from lightning_modules.process import prepare_process


class EpochTimer(Callback):
    """Wall-clock seconds of the training part of each epoch, of the steps in it, and of the whole training."""

    def __init__(self) -> None:
        self.epochs: list[float] = []
        self.steps: list[list[float]] = []
        self.whole = 0.0

    def on_train_start(self, *args: Any) -> None:
        """Start the clock of the training."""
        self.began = time.perf_counter()

    def on_train_epoch_start(self, *args: Any) -> None:
        """Start the clock of the epoch."""
        self.started = time.perf_counter()
        self.ends: list[float] = []

    def on_train_batch_end(self, *args: Any) -> None:
        """Note the end of a step."""
        self.ends.append(time.perf_counter())

    def on_validation_epoch_start(self, *args: Any) -> None:
        """Stop it: validation runs inside the epoch."""
        self.epochs.append(time.perf_counter() - self.started)
        self.steps.append(between(self.ends))

    def on_train_end(self, *args: Any) -> None:
        """Stop the clock of the training."""
        self.whole = time.perf_counter() - self.began


def between(moments: list[float]) -> list[float]:
    """Seconds from each moment to the next."""
    return [end - start for start, end in itertools.pairwise(moments)]


def bare_loop(config: RunConfig) -> tuple[list[float], list[float]]:
    """Seconds of the epochs and of the steps of a loop without a framework, but for the first epoch."""
    folders = open_data_once(config)
    data = photo_data(config, folders, open_decoded_once(config))
    network = new_network(config, len(folders.class_names)).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.optimizer.learning_rate)
    epochs, steps = [], []
    for _ in range(config.trainer.epochs):
        started, ends = time.perf_counter(), []
        for batch in data.train_dataloader():
            images, labels = data.transfer_batch_to_device(batch, torch.device("cpu"), 0)
            loss = nn.functional.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            ends.append(time.perf_counter())
        epochs.append(time.perf_counter() - started)
        steps.append(between(ends))
    return epochs[1:], [*itertools.chain(*steps[1:])]


def our_loop(config: RunConfig) -> tuple[list[float], list[float]]:
    """The same through `train()`."""
    timer = EpochTimer()
    with tempfile.TemporaryDirectory() as folder:
        train(config, output_dir=Path(folder), logger=DummyLogger(), callbacks=[timer])
    return timer.epochs[1:], [*itertools.chain(*timer.steps[1:])]


@dataclass(frozen=True)
class TrialCosts:
    """Wall-clock seconds of a study's trials and of its end."""

    beyond_training: list[float]
    whole: list[float]
    after_last: float
    """From the end of the last trial to the end of the command: publisher, export, report."""
    publisher_behind: float
    """From the end of the last trial until MLflow has all trials."""


def trial_costs(config: RunConfig) -> TrialCosts:
    """Run a study and measure it."""
    timers: list[EpochTimer] = []
    ended: list[float] = []
    wall: list[float] = []
    real_train, real_tell = trials.train, trials._tell

    def timed_train(*args: Any, callbacks: Any, **kwargs: Any) -> Any:
        timers.append(EpochTimer())
        return real_train(*args, callbacks=[timers[-1], *callbacks], **kwargs)

    def timed_tell(*args: Any) -> Any:
        outcome = real_tell(*args)
        ended.append(time.perf_counter())
        wall.append(time.time())
        return outcome

    trials.train, trials._tell = timed_train, timed_tell  # type: ignore[assignment]
    sweep.run_sweep(config)
    after = time.perf_counter() - ended[-1]
    whole = between(ended)
    published = [path.stat().st_mtime for path in study_folder(config).glob("trials/*/published.json")]
    assert len(published) == config.sweep.n_trials, "the publisher has sent all"
    return TrialCosts(
        [seconds - timer.whole for seconds, timer in zip(whole, timers[1:], strict=True)],
        whole,
        after,
        max(published) - wall[-1],
    )


def main() -> None:
    """Measure and report."""
    command = parser(__doc__ or "")
    command.add_argument("--repeat", type=int, default=5)
    command.add_argument("--trials", type=int, default=1000)
    arguments = command.parse_args()
    prepare_process()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photos(folder / "large", per_class=32, size=256)
        write_photos(folder / "small", per_class=8, size=32)
        base: dict[str, object] = {"data.name": "folder", "model.weights": "none", "data.augment": "none"}
        base |= {"data.cache_dir": folder / "cache", "output_dir": folder / "runs"}
        values = base | {"data.root": folder / "large", "model.trainable": "all", "data.batch_size": 16}
        large = with_recipe(load_config(None, values | {"trainer.max_epochs": 3}))
        small = load_config(
            None,
            base
            | {"data.root": folder / "small", "data.image_size": 32, "model.backbone": "shufflenet_v2_x0_5"}
            | {"search": Path("conf/search/quick.yaml"), "sweep.n_trials": max(1, arguments.trials)}
            | {"sweep.pruner": "none", "sweep.population": 1, "trainer.max_epochs": 2},
        )
        loops: dict[str, tuple[list[float], list[float]]] = {"bare loop": ([], []), "train()": ([], [])}
        for _ in range(arguments.repeat):
            for name, loop in (("bare loop", bare_loop), ("train()", our_loop)):
                for kept, seconds in zip(loops[name], loop(large), strict=True):
                    kept += seconds
        costs = trial_costs(small) if arguments.trials > 1 else None
    rows: list[tuple[str, str]] = []
    figures: dict[str, object] = {}
    for index, unit in ((1, "step"), (0, "epoch")) if arguments.repeat else ():
        mine, theirs = spread(loops["train()"][index]), spread(loops["bare loop"][index])
        figures[unit] = {"ratio": mine["median"] / theirs["median"], "train": mine, "bare": theirs}
        rows.append((f"train() / bare loop, {unit}", f"{mine['median'] / theirs['median']:.3f}"))
        for name, times in (("train()", mine), ("bare loop", theirs)):
            text = f"{times['median']:.3f} s ({times['min']:.3f} to {times['max']:.3f}, n={times['n']})"
            rows.append((f"  {name}", text))
    if costs is not None:
        for number in (10, 100, 1000):
            if number <= arguments.trials:
                cost = spread(costs.beyond_training[number - 10 : number])
                rows.append((f"fixed cost of trial {number}", f"{cost['median']:.3f} s (to {cost['max']:.3f})"))
                figures[f"trial_{number}_seconds"] = cost
        after = f"{costs.after_last:.1f} s, after {arguments.trials} trials of {spread(costs.whole)['median']:.3f} s"
        rows.append(("from the last trial until MLflow has all", f"{costs.publisher_behind:.1f} s"))
        rows.append(("from the last trial to the end of the command", after))
        figures |= {"seconds_after_last_trial": costs.after_last, "seconds_until_published": costs.publisher_behind}
        figures |= {"trial_whole_seconds": spread(costs.whole), "trial_seconds": costs.beyond_training}
    report(rows, figures, arguments.json)


if __name__ == "__main__":
    main()
