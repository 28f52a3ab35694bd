"""Optuna's pruning as a Lightning callback (optuna-integration's needs the `lightning` package, not this one)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import optuna
import pytorch_lightning as pl
from optuna.storages import BaseStorage
from optuna.trial import Trial
from pytorch_lightning.callbacks import Callback

from experiments.study.optuna_private import id_of, with_storage
from lightning_modules import metrics

DECISION = "pruning_decision"
"""System attribute of a trial: the pruner's last decision that must not be made again."""


@dataclass(frozen=True)
class Decision:
    """The pruner's decision at the end of an epoch."""

    epoch: int
    stop: bool
    notes: dict[str, Any] = field(default_factory=dict)
    """The pruner's notes about the trial: Hyperband's successive halving counts a trial's completed rungs."""


class PruningCallback(Callback):
    """Reports the objective at each epoch's end and stops a trial that falls behind.

    A decision is stored before anything acts on it. After a kill it is read, not made again: other trials may have
    reported since, and a pruner whose notes are in the storage takes an epoch for one that it has already judged.

    Args:
        confirm: called before an epoch is reported; raises if the trial belongs to another process.

    Raises:
        optuna.TrialPruned: from within `Trainer.fit`.
    """

    def __init__(self, trial: Trial, metric: str, confirm: Callable[[], None] = lambda: None) -> None:
        self.trial, self.metric, self._confirm = trial, metric, confirm
        frozen = trial.study.get_trials(deepcopy=False)[trial.number]
        self._reported = max(frozen.intermediate_values, default=0)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report this epoch, unless the run fails with it."""
        epoch, values = trainer.current_epoch + 1, trainer.callback_metrics
        if not math.isfinite(values[metrics.VAL_LOSS]):
            return
        ends = trainer.should_stop or epoch == trainer.max_epochs
        if self.report(epoch, float(values[self.metric]), ends):
            raise optuna.TrialPruned(f"pruned after epoch {epoch}")

    def report(self, epoch: int, value: float, ends: bool) -> bool:
        """Report the objective of an epoch, unless that was done before a kill, and say whether to prune the trial.

        Args:
            ends: whether training ends with this epoch anyway. Such a trial is complete, and the pruner only notes it.
        """
        self._confirm()
        if epoch < self._reported:
            return False  # trained once more after a kill: the trial had continued from here
        if epoch > self._reported:
            self.trial.report(value, epoch)
            self._reported = epoch
        decision = stored_decision(self.trial)
        if decision is None or decision.epoch < epoch:
            decision = self._decide(epoch, ends)
        return decision.stop

    def _decide(self, epoch: int, ends: bool) -> Decision:
        """Ask the pruner, and store its answer."""
        draft = _Draft(self.trial.storage)
        stop = with_storage(self.trial, cast(BaseStorage, draft)).should_prune() and not ends
        decision = Decision(epoch, stop, draft.notes)
        if decision.stop or decision.notes:
            self.trial.storage.set_trial_system_attr(id_of(self.trial), DECISION, asdict(decision))
            stored_decision(self.trial)
        return decision


def stored_decision(trial: Trial) -> Decision | None:
    """The pruner's last decision about a trial that must not be made again; None if it may be asked.

    The notes of the decision are in the trial after this, also if a kill came before they were written.
    """
    attributes = trial.storage.get_trial_system_attrs(id_of(trial))
    if DECISION not in attributes:
        return None
    decision = Decision(**attributes[DECISION])
    for name, note in decision.notes.items():
        if attributes.get(name) != note:
            trial.storage.set_trial_system_attr(id_of(trial), name, note)
    return decision


class _Draft:
    """A storage to which the pruner's notes are not written yet."""

    def __init__(self, storage: BaseStorage) -> None:
        self._storage, self.notes = storage, dict[str, Any]()

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Keep a note."""
        del trial_id  # a pruner notes something about the trial that it judges
        self.notes[key] = value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)
