"""A process that trains with smdebug watching, for tests: `python -m tests.debug_trainings OUT PHOTOS NAME...`."""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from experiments.callbacks.history import NotANumberError
from experiments.config import load_config
from experiments.runs.folder import RunFolder
from experiments.runs.logger import RunFolderLogger
from experiments.train import train
from lightning_modules.classifier import ImageClassifier
from lightning_modules.network import find_head
from sagemaker_launch.container.smdebug.callback import DebuggerHook
from sagemaker_launch.container.smdebug.compat import DebuggerError
from sagemaker_launch.container.smdebug.recorder import END_OF_JOB
from tests.conftest import tiny

REDUCTIONS = "mean,std,min,max,abs_mean,l2_norm"
LAYERS = {"save_interval": "6", "reductions": REDUCTIONS}
COLLECTIONS = {"losses": {"save_interval": "1"}, "weights": LAYERS, "gradients": LAYERS}
# Without normalisation a small network can be healthy within seconds: its two losses are alike.
HEALTHY: dict[str, object] = {
    "data.cache": "none",
    "model.backbone": "squeezenet1_1",
    "model.trainable": "all",
    "optimizer.learning_rate": 0.0003,
    "trainer.max_epochs": 6,
    "trainer.record": "full",  # what our own recorder sees of the same training
}
TRAININGS: dict[str, dict[str, object]] = {
    "healthy": HEALTHY,
    "learning_rate": HEALTHY | {"optimizer.learning_rate": 1e3},
    "zeroed_head": HEALTHY,
    "shuffled_labels": HEALTHY,
    "interrupted": HEALTHY | {"trainer.max_epochs": 3},
    "sabotaged": HEALTHY | {"trainer.max_epochs": 3},
    "silent": HEALTHY | {"trainer.max_epochs": 1},
    "refused": HEALTHY | {"trainer.max_epochs": 1},
}


def write_config(path: Path, tensors: Path, collections: dict[str, dict[str, str]]) -> Path:
    """What the service writes for a job that is debugged."""
    listed = [{"CollectionName": name, "CollectionParameters": each} for name, each in collections.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"LocalPath": str(tensors), "CollectionConfigurations": listed}))
    return path


class Witness(Callback):
    """Notes what smdebug is to have seen, and what is left of it afterwards."""

    def __init__(self) -> None:
        self.losses: dict[str, list[float]] = {"TRAIN": [], "EVAL": []}
        self.hooks_left = -1

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, ImageClassifier)
        for mode, loss in (("TRAIN", pl_module.train_criterion), ("EVAL", pl_module.criterion)):
            noted = self.losses[mode]
            loss.register_forward_hook(lambda *seen, noted=noted: noted.append(float(seen[2].detach())))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        tables: list[object] = [parameter._backward_hooks or () for parameter in pl_module.parameters()]
        for module in pl_module.modules():
            tables += [module._forward_hooks, module._forward_pre_hooks]
        self.hooks_left = sum(map(len, tables)) - 2


class Sabotage(Callback):
    """Takes the folder from under smdebug."""

    def __init__(self, tensors: Path) -> None:
        self.tensors = tensors

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 1:
            shutil.rmtree(self.tensors / "events")
            (self.tensors / "events").touch()


class ZeroHead(Callback):
    """An initialisation through which no gradient passes."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, ImageClassifier)
        head = pl_module.network.get_submodule(find_head(pl_module.network))
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.zero_()


def shuffled(photos: Path, target: Path) -> Path:
    """The same photos, each in a class that a die has thrown."""
    dice = random.Random(0)
    for split in ("train", "valid", "test"):
        classes = sorted(path.name for path in (photos / split).iterdir())
        files = sorted((photos / split).rglob("*.jpg"))
        labels = [classes[number % len(classes)] for number in range(len(files))]
        dice.shuffle(labels)
        for number, (file, label) in enumerate(zip(files, labels, strict=True)):
            (target / split / label).mkdir(parents=True, exist_ok=True)
            (target / split / label / f"{number}{file.suffix}").symlink_to(file)
    return target


def run(out: Path, photos: Path, name: str) -> None:
    """Train, and leave `result.json` beside the tensors."""
    root = shuffled(photos, out / "photos") if name == "shuffled_labels" else photos
    overrides = tiny(root, out / "home") | TRAININGS[name]
    tensors, folder, witness = out / "tensors", RunFolder(out / "run"), Witness()
    others: list[Callback] = [witness]
    collections = COLLECTIONS
    if name == "zeroed_head":
        others.append(ZeroHead())
    if name == "sabotaged":
        others.append(Sabotage(tensors))
    if name == "silent":
        collections = {"losses": {"start_step": "1000000"}}
    folder.start(name, {}, {})
    if name == "refused":
        collections = {"mine": {"save_interval": "1"}}
    if name == "interrupted":
        hook = train_watched(out, folder, overrides | {"trainer.max_epochs": 2}, collections, others)
        hook.check()
        # What a process that was killed leaves.
        (tensors / END_OF_JOB).unlink()
        (tensors / "claim.smd").touch()
        (tensors / "index" / "000000000" / "000000000024_worker_0.json.tmp").write_text("{")
    error = ""
    try:
        hook = train_watched(out, folder, overrides, collections, others)
        hook.check()
    except (NotANumberError, DebuggerError) as caught:
        error = f"{type(caught).__name__}: {caught}"
    result = {
        "error": error,
        "losses": witness.losses,
        "hooks_left": witness.hooks_left,
        "epochs": [line.step for line in folder.metric_lines()],
    }
    (out / "result.json").write_text(json.dumps(result))


def train_watched(
    out: Path,
    folder: RunFolder,
    overrides: dict[str, object],
    collections: dict[str, dict[str, str]],
    others: list[Callback],
) -> DebuggerHook:
    hook = DebuggerHook(write_config(out / "config.json", out / "tensors", collections))
    config = load_config(None, overrides)
    train(config, output_dir=folder.path, logger=RunFolderLogger(folder), callbacks=[*others, hook])
    return hook


if __name__ == "__main__":
    for each in sys.argv[3:]:
        run(Path(sys.argv[1]) / each, Path(sys.argv[2]), each)
