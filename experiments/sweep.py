"""The sweep: ask Optuna for a point, `train()`, tell it the result, until the study has its trials.

Nothing is lost when a process is killed at any moment: see `study/trials.py`.
"""

from __future__ import annotations

import math
import shlex
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from experiments.callbacks.checkpoints import BEST_CHECKPOINT, CHECKPOINT_FOLDER, is_whole
from experiments.config import RunConfig, override, to_public
from experiments.console import say
from experiments.data.inputs import forget_opened, open_data_once, say_data
from experiments.errors import InterruptedRunError, SweepError
from experiments.interrupts import Interrupts, Watch
from experiments.patience import Patience
from experiments.preflight import check_sweep
from experiments.report.report import report_studies
from experiments.runs.folder import LOCAL, Outcome, RunFolder, environment_tags
from experiments.runs.intervals import metric_text, selection_text
from experiments.study.epochs import resolve_config, train_longer
from experiments.study.identity import Photos, StudyIdentity
from experiments.study.search_space import SEARCHED, SearchSpace, study_space
from experiments.study.storage import study_folder
from experiments.study.study import (
    best_trial,
    copy_in_time,
    count_failed,
    count_finished,
    objective_value,
    open_study,
    photo_facts,
    trial_folder,
)
from experiments.study.trials import SweepContext, keep_best_checkpoints, mark_taken_over, trial_config
from experiments.study.workers import run_workers
from experiments.task import HeadTask, task_of
from experiments.tracking.drawers import draw_once
from experiments.tracking.publisher import LOCK_FILE, Publication, Publisher
from experiments.train import export
from lightning_modules.metrics import summary, to_minimize
from lightning_modules.process import prepare_process

POPULATION = 10
"""Heads that train together unless `sweep.population` says otherwise: a sampler learns from each ten."""
COPY_SECONDS = 2.0
"""How long an interrupted sweep waits for a copy of its study."""


@dataclass(frozen=True)
class SweepResult:
    """A finished (or timed-out) sweep."""

    study: optuna.Study
    best: FrozenTrial
    folder: Path
    report: Path


def run_sweep(config: RunConfig, *, more: int = 0) -> SweepResult:
    """Run a new or an interrupted study to its end.

    Args:
        more: trials to add to a study that has all its trials.

    Raises:
        UserError: for a config that no sweep can use.
        SweepError: if no trial completes, more than `sweep.max_failures` fail, or the workers keep dying.
        TrackingError: if MLflow does not answer; nothing is lost.
        InterruptedRunError: after Ctrl-C.
    """
    prepare_process()
    space = study_space(config)
    check_sweep(config, space)
    forget_opened()
    photos = Photos.of(open_data_once(config))
    say_data(config)
    config = with_population(resolve_config(config, space), space)
    interrupts = Interrupts()
    study, target = open_study(config, space, photos, more=more, check=interrupts.raise_if_requested)
    identity = StudyIdentity.of(config, space, photos)
    max_failed = count_failed(study) + config.sweep.max_failures
    parent = _open_parent(config, space)
    deadline = time.monotonic() + (config.sweep.timeout_seconds or float("inf"))
    folder = study_folder(config)
    publication = Publication(config, folder / "trials" / "*", folder / LOCK_FILE, parent=parent.path)
    with interrupts, Publisher(publication, interrupts.raise_if_requested) as publisher:
        watches = [Watch(interrupts.raise_if_requested), Watch(publisher.check)]
        context = SweepContext(config, space, identity, study, target, max_failed, deadline, watches)
        try:
            run_workers(context)
        except InterruptedRunError:
            raise InterruptedRunError(_report_interrupted(config, study, target)) from None
        except SweepError as error:
            parent.finish(Outcome("FAIL", reason=str(error)))
            raise
        if time.monotonic() > deadline and (finished := count_finished(study)) < target:
            limit = f"sweep.timeout_seconds {config.sweep.timeout_seconds:g}"
            say(f"{limit} has passed after {finished} of {target} trials; the same command continues from here")
        # Two sweeps on one study may end at the same time.
        with Patience(math.inf, interrupts.raise_if_requested).lock(study_folder(config) / "conclude.lock"):
            return _export_and_report(config, study, parent)


def _open_parent(config: RunConfig, space: SearchSpace) -> RunFolder:
    """The run folder of the study itself, in MLflow the parent of its trials."""
    parent = RunFolder(study_folder(config) / "study")
    if not parent.has_started:
        fixed = {name: value for name, value in to_public(config).items() if name not in space}
        params = fixed | {f"{SEARCHED}{name}": str(search_range) for name, search_range in space.items()}
        parent.start(config.sweep.study_name, params, {"study": config.sweep.study_name, **LOCAL, **environment_tags()})
    elif parent.outcome:
        parent.reopen()
    return parent


def with_population(config: RunConfig, space: SearchSpace) -> RunConfig:
    """The config with `sweep.population` set: heads on cached features train together, unless a trial may need more."""
    if config.sweep.population:
        return config
    varies = {"data.cache", "model.trainable", "trainer.record"} & space.keys()
    trains_together = not varies and config.trainer.record == "none" and isinstance(task_of(config), HeadTask)
    return override(config, {"sweep.population": POPULATION if trains_together else 1})


def _export_and_report(config: RunConfig, study: optuna.Study, parent: RunFolder) -> SweepResult:
    """Export the best model, draw the study and write its report."""
    say("exporting the best model, drawing the study and writing its report")
    keep_best_checkpoints(config, study)  # a kill may have prevented it at the end of a trial
    for trial in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]):
        mark_taken_over(trial_folder(config, trial.number))
    best = best_trial(study)
    if best is not None:
        if advice := _train_longer(config, best):
            say(f"trial {best.number}, the best one: {advice}")
        _export(config, study, best)
        if (folder := trial_folder(config, best.number)).needs_drawing:  # the publisher may have been faster
            draw_once(folder.path)
    parent.artifacts.mkdir(exist_ok=True)
    study.trials_dataframe().to_csv(parent.artifacts / "trials.csv", index=False)
    report = report_studies([study], config)
    shutil.copy(report, parent.artifacts / report.name)
    # The names of a run's metrics, so that a search and its trials share columns in MLflow; a search has no epochs.
    found = summary(best.user_attrs) if best else {}
    parent.finish(Outcome("COMPLETE", best.value if best else None, found))
    if best is None:
        raise SweepError(
            f"no trial of study {study.study_name!r} is complete: {count_finished(study)} pruned, "
            f"{count_failed(study)} failed. See {report}"
        )
    return SweepResult(study, best, study_folder(config), report)


def _train_longer(config: RunConfig, best: FrozenTrial) -> str:
    values, direction = best.intermediate_values, config.sweep.direction
    if not values:  # a study that was created again has the outcomes of its trials, not their epochs
        return ""
    best_epoch = min(values, key=lambda epoch: to_minimize(values[epoch], direction))
    return train_longer(best_epoch, override(config, best.params).trainer.epochs)


def _report_interrupted(config: RunConfig, study: optuna.Study, target: int) -> str:
    """Export the best model of an interrupted study, write its report, and describe both."""
    try:
        copy = copy_in_time(study, COPY_SECONDS)
    except Exception as error:  # each database driver has its own errors
        return _storage_is_silent(error)
    best = best_trial(copy)
    if best is None:
        return " before the first trial was complete, so there is no model and no report yet"
    _export(config, copy, best)
    report = report_studies([copy], config)
    facts, finished = photo_facts(copy), count_finished(copy)
    scored = metric_text(config.sweep.metric, objective_value(best), facts)
    model = f"trial {best.number} ({scored}, {selection_text(finished, 'trial', facts)})"
    location = f"{trial_folder(config, best.number).export}, report: {report}"
    return f" after {finished} of {target} trials; best model so far: {model} in {location}"


def _storage_is_silent(error: Exception) -> str:
    why = "" if isinstance(error, InterruptedRunError) else f" ({type(error).__name__})"
    return f"; no model and no report, as the study's storage does not answer{why}"


def _export(config: RunConfig, study: optuna.Study, best: FrozenTrial) -> None:
    """Export the best trial from its checkpoint, unless that was done before or the trial ran elsewhere."""
    folder = trial_folder(config, best.number)
    checkpoints = folder.path / CHECKPOINT_FOLDER
    is_complete = folder.outcome is not None and folder.outcome.state == "COMPLETE"
    best_checkpoint = checkpoints / BEST_CHECKPOINT
    if is_complete and best_checkpoint.is_file() and not is_whole(best_checkpoint):
        name = shlex.quote(study.study_name)
        say(
            f"{best_checkpoint} is damaged: the study ends without a model, and `train --from-best {name}` trains one "
            "with the settings of its best trial"
        )
        shutil.rmtree(checkpoints)
    elif is_complete and best_checkpoint.is_file():
        config = trial_config(config, best.params)
        metrics = {name: value for name, value in best.user_attrs.items() if isinstance(value, float)}
        export(task_of(config), folder.path, folder.export, metrics)
        shutil.rmtree(checkpoints)
    for trial in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
        other = trial_folder(config, trial.number).export
        if trial.number != best.number and other.is_dir():
            shutil.rmtree(other)
