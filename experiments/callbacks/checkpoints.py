"""The checkpoints of a run, from which an interrupted run resumes and a finished one is exported."""

from __future__ import annotations

import os
import pickle
import time
import zipfile
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint

from experiments.callbacks.history import History, run_metrics
from experiments.console import say
from experiments.errors import UserError
from lightning_modules.files import replaced_whole

CHECKPOINT_FOLDER = "checkpoints"
BEST_CHECKPOINT, LAST_CHECKPOINT = "best.ckpt", "last.ckpt"


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

    def find_resumable(self) -> Path | None:
        """The checkpoint to resume from; None for a new training. A damaged file is reported and not used."""
        if self.best.is_file() and not is_whole(self.best):
            say(f"{self.best} is damaged: the run is trained again from its beginning")
            return None
        if self.last.is_file() and not is_whole(self.last):
            found = self.best if self.best.is_file() else None
            starting_point = "from its best epoch" if found else "again from its beginning"
            say(f"{self.last} is damaged: the run is trained {starting_point}")
            return found
        return self.last if self.last.is_file() else None

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
            trainer.save_checkpoint(self.last)
            self._written = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save; the best weights first, as a run that resumes from `last` does not train this epoch again."""
        if trainer.strategy.broadcast(self._history.best_epoch == trainer.current_epoch + 1):
            trainer.save_checkpoint(self.best)
        trainer.save_checkpoint(self.last)
        self._written = time.monotonic()


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


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint, on the CPU.

    Said at each call, `weights_only` also holds where TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set.

    Raises:
        UserError: if it contains more than tensors and plain values: the run folder of somebody else may.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
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
