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
        """Report this epoch, unless it was reported before a kill."""
        epoch = trainer.current_epoch + 1
        if epoch not in self._reported:
            self.trial.report(float(trainer.callback_metrics[self.metric]), epoch)
        if epoch < (trainer.max_epochs or 0) and self.trial.should_prune():
            raise optuna.TrialPruned(f"pruned after epoch {epoch}")
