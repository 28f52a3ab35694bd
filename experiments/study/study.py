"""The Optuna study: create it, continue it, load it, and read its trials."""

from __future__ import annotations

import itertools
import logging
import math
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.trial import FrozenTrial, TrialState

from experiments.config import RunConfig, override, require, to_flat
from experiments.console import say
from experiments.errors import UserError
from experiments.runs.folder import FINGERPRINT, RunFolder
from experiments.study.claims import Holder, is_abandoned, is_claimed_here, lock_trial
from experiments.study.identity import Photos, StudyIdentity, read_identity, write_identity
from experiments.study.optuna_private import storage_of
from experiments.study.samplers import sampler_name
from experiments.study.search_space import (
    SearchSpace,
    grid_points,
)
from experiments.study.storage import IDENTITY_FILE, journal_file, open_storage, study_folder, study_patience
from lightning_modules.metrics import VAL_LOSS
from lightning_modules.redaction import BLOT

TARGET_ATTR = "target"
"""Target of the last `--more`, in finished trials."""
INPUTS_SECONDS = "inputs_seconds"
"""Attribute of a study: how long opening photos and computing features took, once for all trials."""

FAILURE_REASON = "failure_reason"
"""User attribute of a trial: why it failed, was pruned or diverged."""
DURATION_MS = "duration_ms"
"""User attribute of a trial: how long it took. Optuna's own times follow a clock that may be set back."""

_log = logging.getLogger(__name__)


def trial_folder(config: RunConfig, number: int) -> RunFolder:
    """The folder of a trial."""
    return RunFolder(study_folder(config) / "trials" / f"{number:04d}")


def open_study(
    config: RunConfig, space: SearchSpace, photos: Photos, *, more: int = 0, check: Callable[[], None] = lambda: None
) -> tuple[optuna.Study, int]:
    """Create the study or continue it.

    A study without a finished trial may be started with other settings: a new study replaces it.

    Args:
        photos: of the data set that its trials train on.
        more: trials to add to the finished ones. An interrupted addition is completed first.
        check: called while the study's storage is locked, here and in later calls; raises to stop.

    Returns:
        The study, and the number of finished trials that it ends with.

    Raises:
        UserError: if the study was made with another search space, other settings or other photos.
    """
    require(more >= 0, "--more", "be >= 0", more)
    identity, home = StudyIdentity.of(config, space, photos), study_folder(config)
    with study_patience(config, check).lock(study_lock(config)):
        noted = read_identity(home / IDENTITY_FILE)
        is_replaced = noted is not None and not noted.is_same(identity)
        if noted is not None and _has_finished_trials(home):
            noted.check_same(identity)
        if not is_replaced:
            _copy_to_database(config)
        study = _create_study(config, identity, check)
        if is_replaced:
            _set_aside(home)
        write_identity(home / IDENTITY_FILE, identity)
        finished = count_finished(study)
        target = config.sweep.n_trials
        if more:
            promised = int(study.user_attrs.get(TARGET_ATTR, 0))
            if promised > finished:
                target = promised
            elif finished:
                target = finished + more
            study.set_user_attr(TARGET_ATTR, target)
        if config.sweep.sampler == "grid" and (points := grid_size(space)) < target:
            _log.warning("sweep.n_trials %d: the grid has %d points, the study ends with them", target, points)
    return study, target


def _create_study(config: RunConfig, identity: StudyIdentity, check: Callable[[], None]) -> optuna.Study:
    """The study in its storage, which keeps the identity."""
    storage, name = open_storage(config, check), config.sweep.study_name

    def create() -> optuna.Study:
        return optuna.create_study(
            study_name=name,
            storage=storage,
            direction=config.sweep.direction,
            pruner=make_pruner(config),
            load_if_exists=True,
        )

    study = create()
    noted = StudyIdentity.from_dict(study.user_attrs)
    if noted is None and study.get_trials(deepcopy=False):
        raise UserError(
            f"sweep.study_name must name a study of this program, got {name!r}, which another program has put into "
            "sweep.storage: choose another name"
        )
    if noted is not None and not noted.is_same(identity):
        if count_finished(study):
            noted.check_same(identity)
        _refuse_running(study, config)
        optuna.delete_study(study_name=name, storage=storage)
        study = create()
    if study.user_attrs.get("photos") is None:  # it is new, or of a version that did not note photos
        study.set_user_attr("metric", config.sweep.metric)
        for key, value in identity.to_dict().items():
            study.set_user_attr(key, value)
    return study


def _refuse_running(study: optuna.Study, config: RunConfig) -> None:
    """Refuse to replace a study while one of its trials is being trained."""
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        folder = trial_folder(config, trial.number)
        lock = lock_trial(folder) if is_abandoned(trial, folder, storage_of(study), config) else None
        if lock is None:
            raise UserError(
                f"sweep.study_name must name a study that no other command works on, to start it again with other "
                f"settings, got {study.study_name!r}: trial {trial.number} is being trained on "
                f"{Holder.of(trial.user_attrs).host}"
            )
        lock.release()


def _has_finished_trials(home: Path) -> bool:
    outcomes = [RunFolder(path.parent).outcome for path in (home / "trials").glob("*/run.json")]
    return any(outcome is not None and outcome.state in ("COMPLETE", "PRUNED") for outcome in outcomes)


def _set_aside(home: Path) -> None:
    """Move the trials in a study's folder away for a new study; nothing is deleted."""
    number = next(number for number in itertools.count(1) if not (home / f"replaced-{number}").exists())
    aside = home / f"replaced-{number}"
    aside.mkdir()
    for name in ("trials", "study"):
        if (home / name).exists():
            (home / name).rename(aside / name)
    say(
        f"study {home.name!r} had no finished trial: it starts again with these settings, its old trials are in {aside}"
    )


def _copy_to_database(config: RunConfig) -> None:
    """Copy a study from its journal to a database."""
    if config.sweep.storage is None or not journal_file(config).is_file():
        return
    storage, name = open_storage(config), config.sweep.study_name
    if name in optuna.get_all_study_names(storage):
        return
    journal = open_storage(override(config, {"sweep.storage": None}))
    if name in optuna.get_all_study_names(journal):
        optuna.copy_study(from_study_name=name, from_storage=journal, to_storage=storage)
        say(f"study {name!r} is copied from {journal_file(config)} to sweep.storage, and continues there")


def count_finished(study: optuna.Study) -> int:
    """Trials that count: complete and pruned ones. One that failed is replaced by another."""
    return len(study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED]))


def count_failed(study: optuna.Study) -> int:
    """Trials that ended with an error."""
    return len(study.get_trials(deepcopy=False, states=[TrialState.FAIL]))


def grid_size(space: SearchSpace) -> int:
    """The number of points of a grid."""
    return math.prod(len(values) for values in grid_points(space).values())


def journals(config: RunConfig) -> list[Path]:
    """The journal files of the studies under `output_dir`, each in its study's folder."""
    # A kill before the study is created leaves a journal without a line.
    return [path for path in study_folder(config).parent.glob("*/journal.log") if path.stat().st_size]


def load_study(config: RunConfig, name: str, check: Callable[[], None] = lambda: None) -> optuna.Study:
    """A study that exists.

    Args:
        check: as for `open_storage`.

    Raises:
        UserError: if it does not, with the names of existing ones.
    """
    config = override(config, {"sweep.study_name": name})
    if config.sweep.storage is None:
        location, storage = f"under {study_folder(config).parent}", None
        names = sorted(path.parent.name for path in journals(config))
    else:
        location, storage = "in sweep.storage", open_storage(config, check)
        names = sorted(optuna.get_all_study_names(storage))
    if name not in names:
        known = f"there are {', '.join(names)}" if names else "there is none yet"
        raise UserError(f"study must exist {location}, got {name!r}; {known}")
    try:
        return optuna.load_study(study_name=name, storage=storage or open_storage(config, check))
    except KeyError:  # deleted, by a dashboard that may write; its journal is left
        raise UserError(
            f"study must exist {location}, got {name!r}, which was deleted: its trials are still in "
            f"{study_folder(config)}"
        ) from None


def best_config(study: optuna.Study, config: RunConfig) -> tuple[RunConfig, FrozenTrial]:
    """The config of the study's best trial, with the folders and the tracking of `config`.

    Raises:
        UserError: if no trial is complete, or another program has made the study.
    """
    best = best_trial(study)
    if "config" not in study.user_attrs:
        raise UserError(f"study must be one of this program, got {study.study_name!r}, which another program has made")
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


def metric_name(study: optuna.Study) -> str:
    """Name the metric that the study's values and intermediate values hold."""
    return str(study.user_attrs.get("metric", VAL_LOSS))


def completed_trials(study: optuna.Study) -> list[FrozenTrial]:
    """List the trials that ended with a finite value, in the order of their numbers."""
    trials = study.get_trials(deepcopy=False)
    return [trial for trial in trials if trial.state.name == "COMPLETE" and math.isfinite(objective_value(trial))]


def objective_value(trial: FrozenTrial) -> float:
    """Read the value of a completed trial."""
    assert trial.value is not None
    return trial.value


def photo_facts(study: optuna.Study) -> dict[str, str]:
    """Facts about the photos of a study, as far as they are recorded."""
    photos = study.user_attrs.get("photos")
    if photos is None:
        return {}
    counts = {f"data.{split}_images": str(photos[split]) for split in ("train", "valid", "test")}
    return {FINGERPRINT: photos["fingerprint"], "data.classes": str(len(photos["class_names"])), **counts}


def trial_seconds(trial: FrozenTrial) -> float | None:
    """How long a trial took, from its start to its end; None before that."""
    if DURATION_MS in trial.user_attrs:
        return float(trial.user_attrs[DURATION_MS]) / 1000
    return None if trial.duration is None else max(0.0, trial.duration.total_seconds())


def covered_seconds(trials: Iterable[FrozenTrial]) -> float:
    """How long at least one of the trials ran: those of a population or of several workers overlap."""
    total = covered_until = 0.0
    spans = [
        (trial.datetime_complete.timestamp() - seconds, trial.datetime_complete.timestamp())
        for trial in trials
        if (seconds := trial_seconds(trial)) is not None and trial.datetime_complete is not None
    ]
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, covered_until))
        covered_until = max(covered_until, end)
    return total


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


def make_pruner(config: RunConfig) -> BasePruner:
    """The pruner that `sweep.pruner` names, or that suits the sampler; all of them act on epochs, counted from 1."""
    pruner = config.sweep.pruner or ("none" if sampler_name(config) in ("gp", "cmaes") else "hyperband")
    if pruner == "hyperband":
        return HyperbandPruner(min_resource=1, max_resource=config.trainer.epochs)
    if pruner == "median":
        return MedianPruner()
    return NopPruner()


def has_diverged(trial: FrozenTrial) -> bool:
    """Whether the loss of a trial that has ended was no number."""
    return trial.state == TrialState.PRUNED and trial.user_attrs.get(FAILURE_REASON, "").startswith("diverged at epoch")


def interrupted_trials(study: optuna.Study, config: RunConfig) -> set[int]:
    """The unfinished trials that no process of this machine trains: their locks are free."""
    free = set()
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        folder = trial_folder(config, trial.number)
        if is_claimed_here(trial, folder, config) and (lock := lock_trial(folder)) is not None:
            lock.release()
            free.add(trial.number)
    return free


def study_lock(config: RunConfig) -> Path:
    """The file whose lock a process holds while it opens the study or claims a trial."""
    study_folder(config).mkdir(parents=True, exist_ok=True)
    return study_folder(config) / "study.lock"
