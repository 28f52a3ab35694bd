"""The epochs of a run: which one is the best, and when training ends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from lightning_modules import metrics

STOPPED = "stopped"
"""Entry of a checkpoint: whether training has ended with it."""


class NotANumberError(ValueError):
    """The loss became NaN or infinite."""


def diverged(epoch: int, cause: str) -> NotANumberError:
    """The error of a run that ends because its loss is not a number.

    Args:
        epoch: the last epoch, counted from 1.
        cause: what was found in that epoch.
    """
    return NotANumberError(f"diverged at epoch {epoch}: {cause}")


def bad_val_loss(val_loss: float) -> str:
    """The message about a val_loss that is not finite."""
    return f"val_loss is {val_loss}: lower optimizer.learning_rate or set trainer.gradient_clip"


class History(Callback):
    """Keeps the metrics of each epoch and whether training has ended, also across a resume.

    Everything that ends a training sets `trainer.should_stop` before the checkpoint of that epoch is written, and the
    checkpoint keeps it: a run that resumes from it takes no further step. So no decision is made twice.

    Args:
        metric: the objective, which says what the best epoch is.
        direction: of the objective.
        patience: epochs without a better objective after which training ends; 0 for no limit.
    """

    def __init__(self, metric: str, direction: metrics.Direction, *, patience: int) -> None:
        self.epochs: dict[int, dict[str, float]] = {}
        self.failure = ""
        """Why the run has diverged, once its training has ended."""
        self._metric, self._direction, self._patience = metric, direction, patience

    @property
    def best_epoch(self) -> int:
        """The first epoch with the best objective."""
        return best_epoch(self.epochs, self._metric, self._direction)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the metrics of the epoch, and end training if the loss is not finite or the objective stalls."""
        epoch = trainer.current_epoch + 1
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.epochs[epoch] = values
        if not math.isfinite(values[metrics.VAL_LOSS]):
            self.failure = self.failure or bad_val_loss(values[metrics.VAL_LOSS])
        if trainer.strategy.broadcast(bool(self.failure) or has_stalled(epoch, self.best_epoch, self._patience)):
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint."""
        return {"epochs": self.epochs, "failure": self.failure}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from a checkpoint."""
        self.epochs, self.failure = state_dict["epochs"], state_dict["failure"]

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the decision to stop, which Lightning 2.6 does not."""
        checkpoint[STOPPED] = trainer.should_stop

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Stop where the decision was made before."""
        trainer.should_stop = checkpoint[STOPPED]


def best_epoch(epochs: Mapping[int, Mapping[str, float]], metric: str, direction: metrics.Direction) -> int:
    """The first epoch with the best value of a metric; NaN is the worst value."""
    return min(epochs, key=lambda epoch: metrics.to_minimize(epochs[epoch][metric], direction))


def has_stalled(epoch: int, best: int, patience: int) -> bool:
    """Whether early stopping ends a training with this epoch; never with a patience of 0."""
    return 0 < patience <= epoch - best


def run_metrics(epochs: Mapping[int, Mapping[str, float]], best: int) -> dict[str, float]:
    """Metrics of a run: those of its best epoch, and the highest accuracy of all epochs."""
    highest = max(values[metrics.VAL_ACCURACY] for values in epochs.values())
    return {**epochs[best], metrics.HIGHEST_VAL_ACCURACY: highest}
