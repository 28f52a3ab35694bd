"""Tiny seeded trainings and their losses to the last digit, which no change of structure may change.

`python -m tests.seeded_losses` writes the losses of this machine into the fixture. Do that only with a change that is
meant to change them, and say so in CHANGELOG.md.
"""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import Callback

from experiments.config import RunConfig, load_config, override
from experiments.runs.folder import RunFolder
from experiments.runs.logger import RunFolderLogger
from experiments.study.population_training import PopulationRun, train_population
from experiments.task import HeadTask
from experiments.train import train
from tests.conftest import tiny
from tests.pictures import make_class_folders

FIXTURE = Path(__file__).with_suffix(".json")
METRICS = ("train_loss", "val_loss", "val_accuracy")
Losses = dict[str, dict[str, list[str]]]
"""Training -> metric -> the value of each epoch as `float.hex`."""

TRAININGS: Mapping[str, Mapping[str, object]] = {
    "photos, not cached": {
        "model.trainable": "all",
        "data.cache": "none",
        "data.augment": "light",
        "optimizer.backbone_learning_rate_scale": 0.5,
    },
    "photos, decoded cache": {
        "model.trainable": "last_block",
        "data.cache": "decoded",
        "data.augment": "strong",
        "model.dropout": 0.2,
        "optimizer.name": "sgd",
        "optimizer.schedule": "one_cycle",
    },
    "frozen backbone, photos": {"data.cache": "none", "trainer.gradient_clip": 1.0},
    "head on features": {
        "data.cache": "features",
        "data.augment": "light",
        "model.dropout": 0.3,
        "model.label_smoothing": 0.1,
        "trainer.gradient_clip": 0.5,
    },
    "head on features, single steps": {"data.cache": "features", "trainer.record": "light"},
}
MEMBERS: tuple[Mapping[str, object], ...] = (
    {"optimizer.learning_rate": 0.05, "data.batch_size": 8},
    {"optimizer.learning_rate": 0.003, "data.batch_size": 5, "model.dropout": 0.3},
    {"optimizer.learning_rate": 0.5, "optimizer.weight_decay": 0.1, "model.label_smoothing": 0.1},
)
"""What tells the heads of a population apart."""


class Killed(Exception):
    """Ends a training as a kill does."""


class KillAfterEpoch(Callback):
    """Ends a training at the start of its second epoch."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            raise Killed


def environment() -> dict[str, str]:
    """What decides the last digit beside our code."""
    packages = {name: version(name) for name in ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "pillow")}
    return {
        **packages,
        "machine": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
    }


def seeded_losses(work: Path) -> Losses:
    """Train all of them below a folder and return what they come to."""
    photos = work / "photos"
    make_class_folders(photos, classes=3, per_class={"train": 6, "valid": 4}, size=24, seed=3)
    config = load_config(None, tiny(photos, work) | {"seed": 5, "optimizer.warmup_epochs": 0.5})
    found: Losses = {}
    for number, (name, values) in enumerate(TRAININGS.items()):
        found[name] = _losses(_train(override(config, values), work / str(number)))
    found["population"] = {}
    for number, folder in enumerate(_train_population(config, work)):
        found["population"] |= {f"{number} {metric}": values for metric, values in _losses(folder).items()}
    found["resumed"] = _losses(_train_and_resume(override(config, TRAININGS["photos, decoded cache"]), work / "cut"))
    return found


def _started(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.start(path.name, {}, {})
    return folder


def _train(config: RunConfig, path: Path) -> RunFolder:
    folder = _started(path)
    train(config, output_dir=path, logger=RunFolderLogger(folder))
    return folder


def _train_and_resume(config: RunConfig, path: Path) -> RunFolder:
    folder = _started(path)
    try:
        train(config, output_dir=path, logger=RunFolderLogger(folder), callbacks=[KillAfterEpoch()])
    except Killed:
        train(config, output_dir=path, logger=RunFolderLogger(folder))
        return folder
    raise AssertionError("it was to be cut off")


def _train_population(config: RunConfig, work: Path) -> list[RunFolder]:
    configs = [override(config, {"data.cache": "features", "data.augment": "light", **values}) for values in MEMBERS]
    runs = [
        PopulationRun(HeadTask(member), _started(work / f"member-{number}"), report=lambda *_: False)
        for number, member in enumerate(configs)
    ]
    assert len(list(train_population(runs, check=lambda: None))) == len(runs)
    return [run.folder for run in runs]


def _losses(folder: RunFolder) -> dict[str, list[str]]:
    curves = folder.curves()
    return {name: [curves[name][epoch].hex() for epoch in sorted(curves[name])] for name in METRICS}


def main() -> None:
    """Write the fixture."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        losses = seeded_losses(Path(work))
    FIXTURE.write_text(json.dumps({"environment": environment(), "losses": losses}, indent=1) + "\n")


if __name__ == "__main__":
    main()
