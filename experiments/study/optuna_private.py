"""All private parts of Optuna that we use. `pyproject.toml` has the versions; written against Optuna 5.0.

Each function asserts what it relies on, so that another version fails here, by name, and not with a wrong study.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Container
from typing import Any

from optuna import Study, Trial
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState


def storage_of(study: Study) -> BaseStorage:
    """Where a study is kept."""
    storage = study._storage
    assert isinstance(storage, BaseStorage), "Study._storage is the storage"
    return storage


def id_of(trial: Trial | FrozenTrial) -> int:
    """By which number the storage knows a trial: the trials of all studies are counted."""
    number = trial._trial_id
    assert isinstance(number, int), "_trial_id of a trial is a number"
    return number


def forget_params(trial: Trial) -> None:
    """Let a trial draw all its parameters once more: it keeps those of its storage in memory."""
    assert isinstance(trial._cached_frozen_trial, FrozenTrial), "Trial._cached_frozen_trial is what it knows of itself"
    # Another object may share it.
    trial._cached_frozen_trial = copy.copy(trial._cached_frozen_trial)
    trial._cached_frozen_trial.params, trial._cached_frozen_trial.distributions = {}, {}


def with_storage(trial: Trial, storage: BaseStorage) -> Trial:
    """A copy of a trial whose pruner finds and notes everything in another storage."""
    assert trial.storage is trial.study._storage, "a trial has the storage of its study"
    other = copy.copy(trial)
    other.study = copy.copy(trial.study)
    other.storage = other.study._storage = storage
    return other


class ChangedStudy:
    """A study whose samplers see other trials than it has.

    Args:
        change: takes all trials, returns those that samplers see.
    """

    def __init__(self, study: Study, change: Callable[[list[FrozenTrial]], list[FrozenTrial]]) -> None:
        expected = ["self", "deepcopy", "states", "use_cache"]
        assert list(inspect.signature(Study._get_trials).parameters) == expected, "samplers call Study._get_trials"
        self._study, self._change = study, change

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        trials = self._change(self._study._get_trials(deepcopy=deepcopy, use_cache=use_cache))
        return [trial for trial in trials if states is None or trial.state in states]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)
