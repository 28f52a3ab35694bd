"""The checkpoints of a run, from which an interrupted run resumes and a finished one is exported.

`last.ckpt` alone is enough to resume and to export. In the cloud each file is copied to S3 by itself, so that after an
interruption one of the two may be missing, or older than the other.
"""

from __future__ import annotations

import os
import pickle
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any, TypeGuard

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.utilities import rank_zero_only

from experiments.callbacks.history import History, run_metrics
from experiments.console import say
from experiments.errors import UserError
from lightning_modules.files import file_sha256, replaced_whole

CHECKPOINT_FOLDER = "checkpoints"
BEST_CHECKPOINT, LAST_CHECKPOINT = "best.ckpt", "last.ckpt"
BEST = "best"
"""Entry of `last`: SHA-256 and epoch of the file of the best weights so far, and the weights themselves (None if
they are those of `last`)."""


class Checkpoints(Checkpoint):
    """Writes the checkpoints, after all other callbacks of an epoch.

    Args:
        folder: gets `best`, the weights of the best epoch so far, and `last`, from which a killed run resumes.
        history: says which epoch is the best.
        minutes: how often `last` is written within an epoch too, so that a kill costs no whole epoch; 0 for never.
            Lightning's own callback (2.6) has no such interval for a module that takes its optimiser steps itself.
    """

    def __init__(self, folder: Path, history: History, *, minutes: float) -> None:
        self.best, self.last = folder / BEST_CHECKPOINT, folder / LAST_CHECKPOINT
        self._history, self._seconds, self._written = history, 60 * minutes, 0.0
        self._saves_last = self._last_is_best = False
        self._best_sha256 = ""
        """Of `best`; empty until it is needed."""

    def find_resumable(self) -> Path | None:
        """The checkpoint with the most epochs; None for a new training.

        A `best` that is missing, damaged or not the one that `last` names is written again from `last`.
        """
        damaged = [path for path in (self.best, self.last) if path.is_file() and not is_whole(path)]
        best, last = (
            read_checkpoint(path, mapped=True) if path.is_file() and path not in damaged else None
            for path in (self.best, self.last)
        )
        found: Path | None = self.best if _is_resumable(best) else None
        remedy = f"the run is trained {'from its best epoch' if found else 'again from its beginning'}"
        if last is not None and not (_is_resumable(best) and _epochs(best) > _epochs(last)):
            if BEST in last and (best is None or file_sha256(self.best) != last[BEST]["sha256"]):
                self._write_best_again(last)
                remedy = f"it is written again from {self.last.name}"
            if BEST in last or not _epochs(last):
                found = self.last
        for path in damaged:
            say(f"{path} is damaged: {remedy}")
        return found

    @rank_zero_only
    def _write_best_again(self, last: dict[str, Any]) -> None:
        named = last[BEST]
        if named["weights"] is None:
            with replaced_whole(self.best) as part:
                shutil.copyfile(self.last, part)
            return
        history = last["callbacks"]["History"]
        epochs = {epoch: values for epoch, values in history["epochs"].items() if epoch <= named["epoch"]}
        callbacks = {"History": {"epochs": epochs, "failure": ""}}
        checkpoint = {"state_dict": named["weights"], "epoch": named["epoch"] - 1, "callbacks": callbacks}
        AtomicCheckpointIO().save_checkpoint(checkpoint, self.best)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._written = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Save if it is time and the epoch has not ended."""
        # An epoch that ends here is validated first. If it were saved after its last batch, or with a decision to stop,
        # Lightning would resume without validating it.
        if not self._seconds or trainer.is_last_batch or trainer.should_stop:
            return
        # All devices write together, by the first one's clock.
        if trainer.strategy.broadcast(time.monotonic() - self._written >= self._seconds):
            self._save_last(trainer, is_best=False)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save; the best weights first, as a run that resumes from `last` does not train this epoch again."""
        is_best = trainer.strategy.broadcast(self._history.best_epoch == trainer.current_epoch + 1)
        if is_best:
            trainer.save_checkpoint(self.best)
            self._best_sha256 = ""
        self._save_last(trainer, is_best=is_best)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Name the best weights in `last`, and put them into it."""
        # Only the first process has the files, and writes.
        if self._saves_last and trainer.is_global_zero and self._history.epochs:
            self._best_sha256 = self._best_sha256 or file_sha256(self.best)
            weights = None if self._last_is_best else read_checkpoint(self.best, mapped=True)["state_dict"]
            named = {"sha256": self._best_sha256, "epoch": self._history.best_epoch}
            checkpoint[BEST] = {**named, "weights": weights}

    def _save_last(self, trainer: pl.Trainer, *, is_best: bool) -> None:
        self._saves_last, self._last_is_best = True, is_best
        trainer.save_checkpoint(self.last)
        self._saves_last = False
        self._written = time.monotonic()


def _is_resumable(checkpoint: dict[str, Any] | None) -> TypeGuard[dict[str, Any]]:
    """Whether it has the state of the optimiser; a `best` that was written again has none."""
    return checkpoint is not None and "optimizer_states" in checkpoint


def _epochs(checkpoint: dict[str, Any]) -> int:
    """The number of complete epochs in a checkpoint."""
    return len(checkpoint["callbacks"]["History"]["epochs"])


def is_whole(checkpoint: Path) -> bool:
    """Whether a file is a complete, undamaged checkpoint."""
    try:
        with zipfile.ZipFile(checkpoint) as file:
            return file.testzip() is None
    except zipfile.BadZipFile:
        return False


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name and renames it, so that a kill never leaves half a file.

    Lightning's own writer goes through a temporary folder, which may be on another file system.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to `path` whole or not at all."""
        del storage_options
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with replaced_whole(target) as part, part.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read `path`, never as a full pickle."""
        del map_location, weights_only
        return read_checkpoint(Path(path))


def read_checkpoint(path: Path, *, mapped: bool = False) -> dict[str, Any]:
    """A checkpoint, on the CPU.

    Said at each call, `weights_only` also holds where TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set.

    Args:
        mapped: read the tensors only where they are used.

    Raises:
        UserError: if it contains more than tensors and plain values: the run folder of somebody else may.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} must contain tensors and plain values only; it contains Python objects, which may run code and "
            "are never unpickled: remove it, and the run is trained again"
        ) from error
    return checkpoint


def best_so_far(output_dir: Path) -> tuple[int, dict[str, float]] | None:
    """The best epoch of the run in `output_dir`, which may still be under way, and its metrics; None before any."""
    path = output_dir / CHECKPOINT_FOLDER / BEST_CHECKPOINT
    if not path.is_file():
        return None
    checkpoint = read_checkpoint(path)
    epoch = int(checkpoint["epoch"]) + 1
    return epoch, run_metrics(checkpoint["callbacks"]["History"]["epochs"], epoch)
