"""The Optuna study: its storage, its sampler and pruner, and who works on which trial."""

from __future__ import annotations

import copy
import logging
import math
import os
import platform
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import yaml
from filelock import FileLock, Timeout
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    GridSampler,
    RandomSampler,
    TPESampler,
)
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import NullPool

from experiments.config import BLOT, RunConfig, override, require, to_flat, to_public
from experiments.errors import UserError
from experiments.run_folder import RunFolder
from experiments.search_space import (
    ChoiceRange,
    FloatRange,
    Point,
    SearchSpace,
    dump_search_space,
    grid_points,
)

MAY_CHANGE = (
    "sweep.n_trials",
    "sweep.timeout_seconds",
    "sweep.sampler",
    "sweep.pruner",
    "sweep.storage",
    "sweep.workers",
    "sweep.population",
    "tracking.",
    "data.root",
    "data.num_workers",
    "data.cache_dir",
    "trainer.accelerator",
    "trainer.compile",
    "trainer.checkpoint_minutes",
    "search",
    "output_dir",
)
"""Fields that may differ when a study is continued: its trials stay comparable."""
HOST_ATTR = "host"
GRACE_SECONDS = 60.0
"""How long a running trial in a shared database may have no host before it is taken for abandoned."""

_log = logging.getLogger(__name__)


def study_folder(config: RunConfig) -> Path:
    """Where a study and its trials are kept."""
    return config.output_dir / "studies" / config.sweep.study_name


def trial_folder(config: RunConfig, number: int) -> RunFolder:
    """Where a trial is kept."""
    return RunFolder(study_folder(config) / "trials" / f"{number:04d}")


class JournalLock(JournalFileOpenLock):
    """Locks a journal file with a lock that the kernel releases when its holder dies, and mends a torn last line.

    Optuna's own locks stay behind after a kill and block everybody for 30 seconds.
    """

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal))
        self._journal = journal
        self._lock = FileLock(f"{journal}.lock", is_singleton=False)

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._lock.acquire()
        with self._journal.open("r+b") as file:
            if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        """Give it back."""
        self._lock.release()


def open_storage(config: RunConfig) -> BaseStorage:
    """The storage that `sweep.storage` names, or a journal file in the study's folder.

    Raises:
        UserError: for a database that can't be reached.
    """
    if config.sweep.storage is None:
        study_folder(config).mkdir(parents=True, exist_ok=True)
        journal = study_folder(config) / "journal.log"
        return JournalStorage(JournalFileBackend(str(journal), JournalLock(journal)))
    try:
        url = make_url(config.sweep.storage)
    except ArgumentError:
        raise UserError("sweep.storage must be a URL such as postgresql+psycopg://user@host/database") from None
    try:
        # No pool: a database closes connections that idle for the hours of a trial, and nobody is left to close ours.
        return RDBStorage(config.sweep.storage, engine_kwargs={"poolclass": NullPool})
    except Exception as error:  # SQLAlchemy's drivers have kinds of their own
        # The URL may hold a password, in more than one place, and the driver's own message may repeat it.
        place = f"{url.host or ''}{f':{url.port}' if url.port else ''}/{url.database or ''}"
        raise UserError(f"sweep.storage must be a database that answers, got {place}: {type(error).__name__}") from None


def open_study(config: RunConfig, space: SearchSpace, *, more: int = 0) -> tuple[optuna.Study, int]:
    """Create the study or continue it.

    Args:
        more: trials to add to a study that has all its trials.

    Returns:
        The study, and the number of finished trials that it ends with.

    Raises:
        UserError: if the study was made with another search space or another config.
    """
    require(more >= 0, "--more", "be >= 0", more)
    with FileLock(_lock_path(config)):
        study = optuna.create_study(
            study_name=config.sweep.study_name,
            storage=open_storage(config),
            direction=config.sweep.direction,
            pruner=make_pruner(config),
            load_if_exists=True,
        )
        attrs = study.user_attrs
        if "config" not in attrs:
            study.set_user_attr("metric", config.sweep.metric)
            study.set_user_attr("search_space", dump_search_space(space))
            study.set_user_attr("config", to_public(config))
        else:
            _check_same(config, space, attrs)
        finished = sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
        target = max(config.sweep.n_trials, int(study.user_attrs.get("n_trials", 0)))
        if finished >= target:
            target = finished + more
        if config.sweep.sampler == "grid":
            points = math.prod(len(values) for values in grid_points(space).values())
            if points < target:
                _log.warning("sweep.n_trials %d: the grid has %d points, the study ends with them", target, points)
            target = max(finished, min(target, points))
        study.set_user_attr("n_trials", target)
    return study, target


def journals(config: RunConfig) -> list[Path]:
    """The journal files of the studies under `output_dir`, each in its study's folder."""
    # One without a line is what a kill leaves before the study was created.
    return [path for path in study_folder(config).parent.glob("*/journal.log") if path.stat().st_size]


def load_study(config: RunConfig, name: str) -> optuna.Study:
    """A study that exists.

    Raises:
        UserError: if it does not, with the names of those that do.
    """
    config = override(config, {"sweep.study_name": name})
    if config.sweep.storage is None:
        where, storage = f"under {study_folder(config).parent}", None
        names = sorted(path.parent.name for path in journals(config))
    else:
        where, storage = "in sweep.storage", open_storage(config)
        names = sorted(optuna.get_all_study_names(storage))
    if name not in names:
        known = f"there are {', '.join(names)}" if names else "there is none yet"
        raise UserError(f"study must exist {where}, got {name!r}; {known}")
    return optuna.load_study(study_name=name, storage=storage or open_storage(config))


def best_config(study: optuna.Study, config: RunConfig) -> tuple[RunConfig, FrozenTrial]:
    """The config of the study's best trial, kept and tracked where `config` says.

    Raises:
        UserError: if no trial is complete.
    """
    best = best_trial(study)
    if best is None:
        raise UserError(f"study {study.study_name!r} has no complete trial yet")
    values = {**study.user_attrs["config"], **best.params}
    values |= {name: to_flat(config)[name] for name in ("output_dir", "sweep.storage")}
    if config.tracking.uri is not None or BLOT in str(values["tracking.uri"]):
        values["tracking.uri"] = config.tracking.uri
    return override(RunConfig(), values), best


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """The best complete trial; None while there is none."""
    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    return study.best_trial if complete else None


def copy_in_time(study: optuna.Study, seconds: float) -> optuna.Study:
    """A copy of a study in memory.

    Raises:
        TimeoutError: if its storage does not answer in time, because another process locks it.
        Exception: what the storage raises.
    """
    answer: Future[optuna.Study] = Future()

    def read() -> None:
        try:
            trials, attributes = study.get_trials(deepcopy=False), study.user_attrs
            copied = optuna.create_study(study_name=study.study_name, direction=study.direction)
            for name, value in attributes.items():
                copied.set_user_attr(name, value)
            copied.add_trials(trials)
            answer.set_result(copied)
        except Exception as error:
            answer.set_exception(error)

    # A driver that waits for a lock can't be interrupted: it is left behind, and the process ends without it.
    threading.Thread(target=read, name="copy of the study", daemon=True).start()
    return answer.result(seconds)


def make_sampler(config: RunConfig, space: SearchSpace, seed: int) -> BaseSampler:
    """The sampler that `sweep.sampler` names."""
    if config.sweep.sampler == "grid":
        return _Grid(grid_points(space), seed=config.seed)
    if config.sweep.sampler == "random":
        return RandomSampler(seed=seed)
    if config.sweep.sampler == "gp":
        return GPSampler(seed=seed)
    if config.sweep.sampler == "cmaes":
        return CmaEsSampler(seed=seed, warn_independent_sampling=False)  # choices are drawn at random
    # Points that are still in training count as bad ones, or those that are drawn at once would lie side by side.
    return TPESampler(seed=seed, constant_liar=config.sweep.workers * config.sweep.population > 1)


class _Grid(GridSampler):
    """Leaves it to `n_trials` when the study ends: Optuna's own stops `optimize()`, which nobody calls here."""

    def after_trial(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""


def make_pruner(config: RunConfig) -> BasePruner:
    """The pruner that `sweep.pruner` names; all of them act on epochs, counted from 1."""
    if config.sweep.pruner == "hyperband":
        return HyperbandPruner(min_resource=1, max_resource=config.trainer.max_epochs)
    if config.sweep.pruner == "median":
        return MedianPruner()
    return NopPruner()


def suggest(trial: Trial, space: SearchSpace) -> Point:
    """The trial's point: drawn now, or read back where it was drawn before a kill."""
    if trial.params.keys() < space.keys():
        # A kill may have come between two values, and the sampler's random numbers come in order: draw all once more.
        trial._cached_frozen_trial = copy.copy(trial._cached_frozen_trial)
        trial._cached_frozen_trial.params, trial._cached_frozen_trial.distributions = {}, {}
    point: Point = {}
    for name, one in space.items():
        if isinstance(one, ChoiceRange):
            drawn = trial.suggest_categorical(name, one.values)
            assert drawn is not None, "a search space holds no null"
            point[name] = drawn
        elif isinstance(one, FloatRange):
            point[name] = trial.suggest_float(name, one.low, one.high, log=one.log)
        else:
            point[name] = trial.suggest_int(name, one.low, one.high, log=one.log)
    return point


@dataclass(frozen=True)
class Claim:
    """A trial that this process works on, and the lock that says so: the kernel releases it if the process dies."""

    trial: Trial
    point: Point
    folder: RunFolder
    lock: FileLock


@dataclass(frozen=True)
class NothingToClaim:
    """No trial to start now."""

    done: bool
    """All trials have finished; otherwise others still work on the last ones, and one of them may die."""
    waiting_for: tuple[str, ...] = ()
    """Those trials and the machines that run them."""


def claim(
    study: optuna.Study, config: RunConfig, space: SearchSpace, target: int, *, new: bool = True
) -> Claim | NothingToClaim:
    """Take over a trial whose process died, or else ask for a new one.

    Args:
        new: whether a new trial may start.
    """
    with FileLock(_lock_path(config)):
        trials = study.get_trials(deepcopy=False)
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        for trial in running:
            if _is_ours(trial, config):
                taken = _lock_trial(config, trial.number)
                if taken is not None:
                    study.sampler = make_sampler(config, space, seed=_draw_seed(config, trial.number))
                    resumed = Trial(study, trial._trial_id)
                    return _claimed(resumed, config, space, taken)
        finished = sum(trial.state.is_finished() for trial in trials)
        if not new or finished + len(running) >= target:
            return NothingToClaim(
                not running, tuple(f"trial {one.number} on {one.user_attrs.get(HOST_ATTR, '?')}" for one in running)
            )
        study.sampler = make_sampler(config, space, seed=_draw_seed(config, len(trials)))
        asked = study.ask()
        asked.set_user_attr(HOST_ATTR, platform.node())
        taken = _lock_trial(config, asked.number)
        assert taken is not None, "a trial that was just asked for can't be somebody else's"
        return _claimed(asked, config, space, taken)


def _draw_seed(config: RunConfig, number: int) -> int:
    """Seeded by the trial's number, so that a study that was interrupted draws what it would have drawn."""
    return (config.seed * 100_003 + number) % 2**32


def _claimed(trial: Trial, config: RunConfig, space: SearchSpace, lock: FileLock) -> Claim:
    return Claim(trial, suggest(trial, space), trial_folder(config, trial.number), lock)


def _lock_trial(config: RunConfig, number: int) -> FileLock | None:
    path = trial_folder(config, number).path
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / "lock", is_singleton=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


def _is_ours(trial: FrozenTrial, config: RunConfig) -> bool:
    """Whether a running trial's process would be on this machine, where its lock and checkpoints are."""
    host = trial.user_attrs.get(HOST_ATTR)
    if host is not None or config.sweep.storage is None:
        return host in (None, platform.node())
    assert trial.datetime_start is not None
    return (datetime.now() - trial.datetime_start).total_seconds() > GRACE_SECONDS


def _lock_path(config: RunConfig) -> Path:
    study_folder(config).mkdir(parents=True, exist_ok=True)
    return study_folder(config) / "study.lock"


def _check_same(config: RunConfig, space: SearchSpace, attrs: Mapping[str, object]) -> None:
    name = config.sweep.study_name
    advice = "choose another sweep.study_name, or go back"
    if yaml.safe_load(str(attrs["search_space"])) != yaml.safe_load(dump_search_space(space)):
        raise UserError(f"search must stay as it was for study {name!r}: {advice}; it was\n{attrs['search_space']}")
    before = attrs["config"]
    assert isinstance(before, dict)
    for key, value in to_flat(config).items():
        if not key.startswith(MAY_CHANGE) and key not in space:
            require(
                before.get(key, value) == value,
                key,
                f"stay {before.get(key)!r} for study {name!r} ({advice})",
                value,
            )
