"""All private parts of Optuna that we use. `pyproject.toml` has the versions; written against Optuna 5.0.

Each function asserts what it relies on, so that another version fails here, by name, and not with a wrong study.
"""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections.abc import Callable, Container
from typing import Any

from optuna import Study, Trial
from optuna.samplers import CmaEsSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from experiments.errors import UserError

CMAES_CLASSES = {
    ("cmaes._cma", "CMA"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    # numpy 2 and numpy 1
    *((f"numpy.{core}.multiarray", name) for core in ("_core", "core") for name in ("_reconstruct", "scalar")),
}
"""All that the pickled state of CMA-ES consists of (cmaes 0.12 and 0.13). None of them runs code of the pickle."""


def storage_of(study: Study) -> BaseStorage:
    """The storage of a study."""
    storage = study._storage
    assert isinstance(storage, BaseStorage), "Study._storage is the storage"
    return storage


def id_of(trial: Trial | FrozenTrial) -> int:
    """The id of a trial in its storage, which counts the trials of all studies."""
    number = trial._trial_id
    assert isinstance(number, int), "_trial_id of a trial is a number"
    return number


def forget_params(trial: Trial) -> None:
    """Make a trial draw all its parameters again: Optuna keeps those of the storage in memory."""
    assert isinstance(trial._cached_frozen_trial, FrozenTrial), "Trial._cached_frozen_trial is what it knows of itself"
    # Another object may share it.
    trial._cached_frozen_trial = copy.copy(trial._cached_frozen_trial)
    trial._cached_frozen_trial.params, trial._cached_frozen_trial.distributions = {}, {}


def with_storage(trial: Trial, storage: BaseStorage) -> Trial:
    """A copy of a trial whose pruner reads and writes another storage."""
    assert trial.storage is trial.study._storage, "a trial has the storage of its study"
    other = copy.copy(trial)
    other.study = copy.copy(trial.study)
    other.storage = other.study._storage = storage
    return other


class ChangedStudy:
    """A study that shows other trials to its samplers than it contains.

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


class CheckedCmaEs(CmaEsSampler):
    """CMA-ES whose state is read from the study without running what else a pickle may contain.

    Optuna stores the state as a pickle in an attribute of a trial, and a study may come from anybody.
    """

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> Any:
        """The state of the last trial that has one; None if no trial has any."""
        parameters = list(inspect.signature(CmaEsSampler._restore_optimizer).parameters)
        assert parameters == ["self", "completed_trials"], "CMA-ES calls _restore_optimizer"
        for trial in reversed(completed_trials):
            attributes = {
                name: value for name, value in trial.system_attrs.items() if name.startswith(self._attr_key_optimizer)
            }
            if attributes:
                return _unpickle_cmaes(self._concat_optimizer_attrs(attributes), trial.number)
        return None


class _CmaEsUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in CMAES_CLASSES:
            raise pickle.UnpicklingError(f"it contains {module}.{name}")
        return super().find_class(module, name)


def _unpickle_cmaes(text: str, number: int) -> Any:
    try:
        return _CmaEsUnpickler(io.BytesIO(bytes.fromhex(text))).load()
    except Exception as error:  # a damaged pickle raises anything
        raise UserError(
            f"sweep.sampler cmaes must find the state of CMA-ES in trial {number}, which has none that is safe to "
            f"read ({error}): start another study (sweep.study_name)"
        ) from error
