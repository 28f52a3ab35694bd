"""What `trainer.record` costs a step, beside the same training without it.

python -m benchmarks.recorder

Two trainings: a head of 512 inputs on cached features (batch 64), where a step is shortest and everything shows, and a
whole ResNet18 at 64 px (batch 16). Each runs in turn without a recorder, with `light` and with `full`, in one process,
`--repeat` times. Without a recorder a head takes many steps at once, so it also runs `single`: none, but step by step.
A step is the mean over all steps of all epochs but the first, sampled steps and all; validation is left out. CPU
seconds of the process stand beside wall-clock seconds: others on the machine disturb them less.
"""

from __future__ import annotations

import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers.logger import DummyLogger

from benchmarks.common import parser, report, spread, write_photos
from experiments.config import RunConfig, load_config, override, with_recipe
from experiments.console import quiet_libraries
from experiments.train import train
from lightning_modules.process import prepare_process

PHOTOS = 800
CASES = {
    "head on cached features": {"model.trainable": "head", "data.batch_size": 64, "trainer.max_epochs": 60},
    "ResNet18, all layers": {"model.trainable": "all", "data.batch_size": 16, "trainer.max_epochs": 2},
}


class StepSeconds(Callback):
    """Wall-clock and CPU seconds of the training part of all epochs but the first, and their steps."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self.steps = 0

    def on_train_epoch_start(self, *args: Any) -> None:
        """Start the clocks."""
        self.started = time.perf_counter(), time.process_time()

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        """Stop them."""
        if trainer.current_epoch:
            self.wall += time.perf_counter() - self.started[0]
            self.cpu += time.process_time() - self.started[1]
            self.steps += -(-PHOTOS // trainer.datamodule.batch_size)


def measure(config: RunConfig, folder: Path, record: str) -> tuple[float, float]:
    """Wall-clock and CPU milliseconds a step."""
    timer, single_steps = StepSeconds(), record == "single"
    config = override(config, {"trainer.record": "none" if single_steps else record})
    train(config, output_dir=folder, logger=DummyLogger(), callbacks=[timer], single_steps=single_steps)
    return 1e3 * timer.wall / timer.steps, 1e3 * timer.cpu / timer.steps


def main() -> None:
    """Run it."""
    command = parser(__doc__ or "")
    command.add_argument("--repeat", type=int, default=5, help="runs of each (default 5)")
    arguments = command.parse_args()
    prepare_process()
    quiet_libraries()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)  # it has a handler of its own by now
    torch.set_num_threads(1)
    rows, figures = [], dict[str, object]()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_photos(root / "photos", per_class=PHOTOS // 2, size=64)
        shared = {
            "data.name": "folder",
            "data.root": root / "photos",
            "data.cache_dir": root / "cache",
            "data.image_size": 64,
            "data.augment": "none",
            "data.num_workers": 1,
            "model.backbone": "resnet18",
            "model.weights": "none",
            "trainer.accelerator": "cpu",
        }
        for case, own in CASES.items():
            config = with_recipe(load_config(None, {**shared, **own}))
            records = ("none", *(("single",) if own["model.trainable"] == "head" else ()), "light", "full")
            measured: dict[str, list[tuple[float, float]]] = {record: [] for record in records}
            for number in range(arguments.repeat + 1):
                for record, milliseconds in measured.items():
                    folder = root / case / f"{record}-{number}"
                    seconds = measure(config, folder, record)
                    if number:  # the first of each warms up
                        milliseconds.append(seconds)
            for clock, index in (("CPU", 1), ("wall clock", 0)):
                bare = spread([seconds[index] for seconds in measured["none"]])
                figures[f"{case}, {clock}, none"] = bare
                for record in records[1:]:
                    own_spread = spread([seconds[index] for seconds in measured[record]])
                    figures[f"{case}, {clock}, {record}"] = own_spread
                    cost = own_spread["median"] / bare["median"] - 1
                    figures[f"{case}, {clock}, {record}, ratio"] = 1 + cost
                    text = f"{cost:+.1%} ({bare['median']:.3f} -> {own_spread['median']:.3f} ms a step)"
                    rows.append((f"{case}, {record}, {clock}", text))
    report(rows, figures, arguments.json)


if __name__ == "__main__":
    main()
