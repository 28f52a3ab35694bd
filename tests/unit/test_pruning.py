"""Pruning: what is reported to Optuna at each epoch's end, and when a trial stops."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import optuna
import pytest
import torch

from experiments.pruning import PruningCallback


def trainer_at(epoch: int, value: float, max_epochs: int = 3) -> Any:
    """A trainer at the end of an epoch, counted from 1."""
    metrics = {"val_loss": torch.tensor(value)}
    return SimpleNamespace(current_epoch=epoch - 1, max_epochs=max_epochs, callback_metrics=metrics)


@pytest.fixture
def study() -> optuna.Study:
    """One good trial, and a pruner that stops whatever is worse than its median."""
    study = optuna.create_study(pruner=optuna.pruners.MedianPruner(n_startup_trials=1))
    good = study.ask()
    for epoch in (1, 2, 3):
        good.report(0.1, epoch)
    study.tell(good, 0.1)
    return study


def end(callback: PruningCallback, trainer: Any) -> None:
    callback.on_validation_end(trainer, cast(Any, None))


def test_epochs_are_reported_from_1(study: optuna.Study) -> None:
    callback = PruningCallback(study.ask(), "val_loss")
    end(callback, trainer_at(1, 0.09))
    end(callback, trainer_at(2, 0.08))
    assert study.trials[1].intermediate_values == pytest.approx({1: 0.09, 2: 0.08})


def test_a_trial_that_falls_behind_is_pruned(study: optuna.Study) -> None:
    callback = PruningCallback(study.ask(), "val_loss")
    with pytest.raises(optuna.TrialPruned, match="after epoch 1"):
        end(callback, trainer_at(1, 0.9))


def test_a_trial_in_its_last_epoch_is_complete_not_pruned(study: optuna.Study) -> None:
    callback = PruningCallback(study.ask(), "val_loss")
    end(callback, trainer_at(3, 0.9))
    assert study.trials[1].intermediate_values == pytest.approx({3: 0.9})


def test_an_epoch_that_was_reported_before_a_kill_is_not_reported_again(
    study: optuna.Study, recwarn: pytest.WarningsRecorder
) -> None:
    trial = study.ask()
    trial.report(0.05, 1)
    callback = PruningCallback(trial, "val_loss")
    end(callback, trainer_at(1, 0.07))
    end(callback, trainer_at(2, 0.06))
    assert study.trials[1].intermediate_values == pytest.approx({1: 0.05, 2: 0.06})
    assert not recwarn.list, "Optuna warns of a step that is reported twice"
