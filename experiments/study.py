"""The Optuna study: its storage, its sampler and pruner, and who works on which trial."""

from __future__ import annotations

import logging
import math
import os
import platform
import sqlite3
from collections.abc import Callable, Mapping
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
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import NullPool

from experiments.config import BLOT, RunConfig, override, require, to_flat, to_public
from experiments.errors import CommandError, UserError
from experiments.patience import Patience
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
STORAGE_SECONDS = 60.0
"""How long a call to the study's storage waits for a lock, unless `tracking.flush_timeout_seconds` is longer."""

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

    def __init__(self, journal: Path, patience: Patience) -> None:
        super().__init__(str(journal))
        self._journal, self._patience = journal, patience
        self._lock: FileLock | None = None

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._lock = self._patience.lock(Path(f"{self._journal}.lock"))
        with self._journal.open("r+b") as file:
            if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        """Give it back."""
        assert self._lock is not None
        self._lock.release()


def open_storage(config: RunConfig, check: Callable[[], None] = lambda: None) -> BaseStorage:
    """The storage that `sweep.storage` names, or a journal file in the study's folder.

    A call to it waits for a lock that another process holds, up to STORAGE_SECONDS.

    Args:
        check: called while it waits; raises to stop, such as after Ctrl-C.

    Raises:
        UserError: for a database that can't be reached.
        SweepError: if it stays locked; from each later call, too.
    """
    patience = _patience(config, check)
    if config.sweep.storage is None:
        study_folder(config).mkdir(parents=True, exist_ok=True)
        journal = study_folder(config) / "journal.log"
        return JournalStorage(JournalFileBackend(str(journal), JournalLock(journal, patience)))
    try:
        url = make_url(config.sweep.storage)
    except ArgumentError:
        raise UserError("sweep.storage must be a URL such as postgresql+psycopg://user@host/database") from None
    # The URL may hold a password, in more than one place, and the driver's own message may repeat it.
    place = f"{url.host or ''}{f':{url.port}' if url.port else ''}/{url.database or ''}"
    # No pool: a database closes connections that idle for the hours of a trial, and nobody is left to close ours.
    options: dict[str, Any] = {"poolclass": NullPool}
    if url.get_backend_name() == "sqlite":
        options["connect_args"] = {"timeout": 0.5}  # SQLite's own waiting looks at no signal
    try:
        storage = patience.call(
            lambda: RDBStorage(str(config.sweep.storage), engine_kwargs=dict(options)),
            _is_locked,
            f"sweep.storage {place}",
        )
    except CommandError:
        raise
    except Exception as error:  # SQLAlchemy's drivers have kinds of their own
        raise UserError(f"sweep.storage must be a database that answers, got {place}: {type(error).__name__}") from None
    if url.get_backend_name() == "sqlite":
        _wait_for_locks(storage.engine, patience, f"sweep.storage {place}")
    return storage


def _patience(config: RunConfig, check: Callable[[], None]) -> Patience:
    # A trial without its study is lost, so this waits longer than for MLflow, which gets everything later.
    return Patience(max(config.tracking.flush_timeout_seconds, STORAGE_SECONDS), check)


def _is_locked(error: Exception) -> bool:
    return "database is locked" in str(error) or "database table is locked" in str(error)


def _wait_for_locks(engine: Engine, patience: Patience, name: str) -> None:
    """Wait for SQLite's lock at the two places where a transaction is whole: before it, and when it is committed.

    BEGIN IMMEDIATE takes the lock at once. A transaction that reads first and then writes can't wait: of two of that
    kind, each waits for the other.
    """

    def run(connection: Connection, statement: str) -> None:
        driver = connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        patience.call(lambda: driver.execute(statement), _is_locked, name)

    @event.listens_for(engine, "connect")
    def connect(driver: sqlite3.Connection, record: object) -> None:
        del record
        driver.isolation_level = None  # no BEGIN of its own

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        run(connection, "BEGIN IMMEDIATE")

    @event.listens_for(engine, "commit")
    def commit(connection: Connection) -> None:
        run(connection, "COMMIT")


def open_study(
    config: RunConfig, space: SearchSpace, *, more: int = 0, check: Callable[[], None] = lambda: None
) -> tuple[optuna.Study, int]:
    """Create the study or continue it.

    Args:
        more: trials to add to a study that has all its trials.
        check: called while the study's storage is locked, here and in later calls; raises to stop.

    Returns:
        The study, and the number of finished trials that it ends with.

    Raises:
        UserError: if the study was made with another search space or another config.
    """
    require(more >= 0, "--more", "be >= 0", more)
    with _patience(config, check).lock(_lock_path(config)):
        study = optuna.create_study(
            study_name=config.sweep.study_name,
            storage=open_storage(config, check),
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
    study: optuna.Study,
    config: RunConfig,
    space: SearchSpace,
    target: int,
    *,
    new: bool = True,
    check: Callable[[], None] = lambda: None,
) -> Claim | NothingToClaim:
    """Take over a trial whose process died, or else ask for a new one.

    Args:
        new: whether a new trial may start.
        check: called while another process claims a trial; raises to stop.
    """
    with _patience(config, check).lock(_lock_path(config)):
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
