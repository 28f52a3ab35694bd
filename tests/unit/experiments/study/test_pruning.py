"""Pruning: what is reported to Optuna at each epoch's end, and when a trial stops."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import optuna
import pytest
import torch
from optuna.storages import InMemoryStorage
from optuna.trial import Trial, TrialState

from experiments.study.pruning import PruningCallback, stored_decision


def trainer_at(epoch: int, value: float, max_epochs: int = 3, *, should_stop: bool = False) -> Any:
    """A trainer at the end of an epoch, counted from 1."""
    metrics = {"val_loss": torch.tensor(value)}
    return SimpleNamespace(
        current_epoch=epoch - 1, max_epochs=max_epochs, callback_metrics=metrics, should_stop=should_stop
    )


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


def test_a_trial_that_stops_for_another_reason_is_complete_not_pruned(study: optuna.Study) -> None:
    trial = study.ask()
    end(PruningCallback(trial, "val_loss"), trainer_at(1, 0.9, should_stop=True))
    assert stored_decision(trial) is None
    assert study.trials[1].intermediate_values == pytest.approx({1: 0.9})


def test_a_loss_that_is_no_number_is_not_reported(study: optuna.Study) -> None:
    end(PruningCallback(study.ask(), "val_loss"), trainer_at(1, float("nan"), should_stop=True))
    assert study.trials[1].intermediate_values == {}


def test_a_decision_is_not_made_again_when_other_trials_have_reported_since(study: optuna.Study) -> None:
    trial = study.ask()
    with pytest.raises(optuna.TrialPruned):
        end(PruningCallback(trial, "val_loss"), trainer_at(1, 0.9))
    for _ in range(9):  # now its value would be the best
        worse = study.ask()
        worse.report(5.0, 1)
        study.tell(worse, 5.0)
    resumed = Trial(study, trial._trial_id)
    assert not resumed.should_prune()
    with pytest.raises(optuna.TrialPruned):
        end(PruningCallback(resumed, "val_loss"), trainer_at(1, 0.9))


# Kills


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def storage_writes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts down: at 0 the process ends, before a write reaches the storage."""
    left = [10**9]

    def dying(write: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return write(*args, **named)

        return call

    for name in ("create_new_trial", "set_trial_intermediate_value", "set_trial_system_attr", "set_trial_state_values"):
        monkeypatch.setattr(InMemoryStorage, name, dying(getattr(InMemoryStorage, name)))
    return left


class Counting(optuna.pruners.BasePruner):
    """Prunes a trial the second time that it sees it in one state; notes each time in two attributes."""

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        seen = trial.system_attrs.get("seen", 0)
        for name in ("seen", "also"):
            study._storage.set_trial_system_attr(trial._trial_id, name, seen + 1)
        return trial.number == 4 and seen == 2


VALUES = [
    [0.5, 0.4, 0.3, 0.2],
    [0.6, 0.5, 0.4, 0.3],
    [0.4, 0.3, 0.2, 0.1],
    [0.7, 0.2, 0.3, 0.1],
    [0.45, 0.35, 0.3, 0.3],
]
"""Of each trial by epoch."""


class Trainings:
    """What a kill leaves: the storage and the checkpoints.

    Args:
        from_start: trials have no checkpoints, as in a population.
    """

    def __init__(self, pruner: optuna.pruners.BasePruner, *, from_start: bool) -> None:
        self.storage, self.pruner, self.from_start = InMemoryStorage(), pruner, from_start
        self.saved: dict[int, int] = {}
        optuna.create_study(storage=self.storage, study_name="one")

    def run(self) -> None:
        """Train all trials that have not ended, from the last epoch that was saved."""
        study = optuna.load_study(storage=self.storage, study_name="one", pruner=self.pruner)
        for number, values in enumerate(VALUES):
            trials = study.get_trials(deepcopy=False)
            if number < len(trials) and trials[number].state.is_finished():
                continue
            trial = Trial(study, trials[number]._trial_id) if number < len(trials) else study.ask()
            callback = PruningCallback(trial, "val_loss")
            try:
                for epoch in range(self.saved.get(number, 0) + 1, 5):
                    end(callback, trainer_at(epoch, values[epoch - 1], max_epochs=4))
                    if not self.from_start:
                        self.saved[number] = epoch
            except optuna.TrialPruned:
                study.tell(trial, state=TrialState.PRUNED)
            else:
                study.tell(trial, min(values))

    def ended(self) -> list[Any]:
        """All that Optuna knows of the trials but for the time."""
        trials = optuna.load_study(storage=self.storage, study_name="one").get_trials()
        return [(trial.state.name, trial.value, trial.intermediate_values, trial.system_attrs) for trial in trials]


@pytest.mark.parametrize("from_start", [False, True], ids=["checkpoints", "population"])
@pytest.mark.parametrize(
    "pruner",
    [optuna.pruners.HyperbandPruner(1, 4, 2), optuna.pruners.MedianPruner(n_startup_trials=2), Counting()],
    ids=["hyperband", "median", "notes"],
)
def test_a_kill_at_any_write_changes_no_decision(
    storage_writes: list[int], pruner: optuna.pruners.BasePruner, from_start: bool
) -> None:
    whole = Trainings(pruner, from_start=from_start)
    whole.run()
    assert {state for state, *_ in whole.ended()} == {"PRUNED", "COMPLETE"}
    for write in itertools.count(1):
        killed = Trainings(pruner, from_start=from_start)
        storage_writes[0] = write
        try:
            killed.run()
        except Killed:
            storage_writes[0] = 10**9
            killed.run()
            assert killed.ended() == whole.ended(), f"killed at write {write}"
        else:
            break
    assert write > 20
