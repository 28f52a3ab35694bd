"""Optuna's pruning as a Lightning callback (optuna-integration's needs the `lightning` package, not this one)."""

from __future__ import annotations

import optuna
import pytorch_lightning as pl
from optuna.trial import Trial
from pytorch_lightning.callbacks import Callback


class PruningCallback(Callback):
    """Reports the objective at each epoch's end and stops a trial that falls behind.

    Raises:
        optuna.TrialPruned: from within `Trainer.fit`.
    """

    def __init__(self, trial: Trial, metric: str) -> None:
        self.trial, self.metric = trial, metric
        frozen = trial.study.get_trials(deepcopy=False)[trial.number]
        self._reported = set(frozen.intermediate_values)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report this epoch."""
        epoch = trainer.current_epoch + 1
        behind = self.report(epoch, float(trainer.callback_metrics[self.metric]))
        if behind and epoch < (trainer.max_epochs or 0):
            raise optuna.TrialPruned(f"pruned after epoch {epoch}")

    def report(self, epoch: int, value: float) -> bool:
        """Report the objective of an epoch, unless that was done before a kill, and say whether to stop there."""
        if epoch not in self._reported:
            self.trial.report(value, epoch)
        return self.trial.should_prune()
