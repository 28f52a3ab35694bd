"""The sweep: ask Optuna for a point, `train()`, tell it the result, until the study has its trials.

Nothing here is lost when a process is killed at any moment: a trial that ran is found by its lock, goes on from its
last checkpoint in the same MLflow run, and one that had ended is told and pushed without training again.
"""

from __future__ import annotations

import functools
import gc
import logging
import math
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState

from experiments.callbacks.checkpoints import BEST_CHECKPOINT, CHECKPOINT_FOLDER, is_whole
from experiments.callbacks.history import NotANumberError
from experiments.callbacks.progress import EpochProgress
from experiments.config import RunConfig, override, to_public
from experiments.console import outlive_output, say
from experiments.data.inputs import (
    forget_opened,
    open_data_once,
    say_data,
    training_device,
)
from experiments.errors import CommandError, InterruptedRunError, SweepError
from experiments.figures.figures import save_figure, study_figures
from experiments.interrupts import Interrupts, Watch
from experiments.patience import Patience
from experiments.preflight import check_sweep
from experiments.report.report import report_studies
from experiments.runs.folder import LOCAL, Outcome, RunFolder, environment_tags
from experiments.runs.intervals import metric_text, selection_text
from experiments.runs.logger import RunFolderLogger
from experiments.runs.processes import die_with_parent, start_process
from experiments.study.claims import Claim, ClaimLostError, HeldClaims
from experiments.study.epochs import resolve_config, train_longer
from experiments.study.identity import Photos, StudyIdentity
from experiments.study.population import PopulationRun, together, train_population
from experiments.study.progress import SweepProgress
from experiments.study.pruning import PruningCallback, stored_decision
from experiments.study.search_space import SEARCHED, SearchSpace, study_space
from experiments.study.storage import study_folder
from experiments.study.study import (
    DURATION_MS,
    FAILURE_REASON,
    INPUTS_SECONDS,
    NothingToClaim,
    best_trial,
    claim,
    copy_in_time,
    count_failed,
    count_finished,
    diverged_outcome,
    load_study,
    make_pruner,
    open_study,
    photo_facts,
    tell,
    trial_folder,
)
from experiments.task import HeadTask, task_of
from experiments.tracking.drawers import draw_once
from experiments.tracking.publisher import LOCK_FILE, Publication, Publisher
from experiments.train import data_facts, export, train
from lightning_modules.cores import usable_cores
from lightning_modules.metrics import summary, to_minimize
from lightning_modules.process import prepare_process

POPULATION = 10
"""Heads that train together unless `sweep.population` says otherwise: a sampler learns from each ten."""
POLL_SECONDS = 0.5
"""How often a worker looks whether somebody else's trial has ended."""
COPY_SECONDS = 2.0
"""How long an interrupted sweep waits for a copy of its study."""
STOP_SECONDS = 5.0
"""How long all workers together have to end their batch once the sweep stops."""
CUDA_VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
MAX_CRASHES = 3
"""Workers that may die in a row, without a trial finishing, before the sweep gives up."""


@dataclass(frozen=True)
class SweepResult:
    """A finished (or timed-out) sweep."""

    study: optuna.Study
    best: FrozenTrial
    folder: Path
    report: Path


def run_sweep(config: RunConfig, *, more: int = 0) -> SweepResult:
    """Run the study to its end, from wherever it stands.

    Args:
        more: trials to add to a study that has all its trials.

    Raises:
        UserError: for a config that no sweep can use.
        SweepError: if no trial completes, more than `sweep.max_failures` fail, or the workers keep dying.
        TrackingError: if MLflow stays away; nothing is lost.
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
    parent = RunFolder(study_folder(config) / "study")
    if not parent.exists:
        fixed = {name: value for name, value in to_public(config).items() if name not in space}
        params = fixed | {f"{SEARCHED}{name}": str(one) for name, one in space.items()}
        parent.start(config.sweep.study_name, params, {"study": config.sweep.study_name, **LOCAL, **environment_tags()})
    elif parent.outcome:
        parent.reopen()
    deadline = time.monotonic() + (config.sweep.timeout_seconds or float("inf"))
    here = study_folder(config)
    publication = Publication(config, here / "trials" / "*", here / LOCK_FILE, parent=parent.path)
    with interrupts, Publisher(publication, interrupts.raise_if_requested) as publisher:
        watches = [Watch(interrupts.raise_if_requested), Watch(publisher.check)]
        job = _Job(config, space, identity, study, target, max_failed, deadline, watches)
        progress = SweepProgress(study, target, deadline, shows_epochs=config.sweep.workers > 1)
        try:
            if config.sweep.workers == 1:
                started = time.monotonic()
                task_of(resolve_config(config)).open()  # while the publisher comes up
                if (seconds := time.monotonic() - started) >= 1:  # else they were opened before
                    study.set_user_attr(INPUTS_SECONDS, study.user_attrs.get(INPUTS_SECONDS, 0.0) + seconds)
                progress.start_clock()
                _work(job, interrupts, progress)
            else:
                _supervise(job, interrupts, progress, publisher)
        except InterruptedRunError:
            raise InterruptedRunError(_conclude_so_far(config, study, target)) from None
        except SweepError as error:
            parent.finish(Outcome("FAIL", reason=str(error)))
            raise
        finally:
            progress.close()
        if time.monotonic() > deadline and (finished := count_finished(study)) < target:
            limit = f"sweep.timeout_seconds {config.sweep.timeout_seconds:g}"
            say(f"{limit} has passed after {finished} of {target} trials; the same command goes on from here")
        # Two sweeps on one study may end at the same time.
        with Patience(math.inf, interrupts.raise_if_requested).lock(study_folder(config) / "conclude.lock"):
            return _conclude(config, study, parent)


def with_population(config: RunConfig, space: SearchSpace) -> RunConfig:
    """The config with `sweep.population` set: heads on cached features train together, unless a trial may need more."""
    if config.sweep.population:
        return config
    varies = {"data.cache", "model.trainable", "trainer.record"} & space.keys()
    trains_together = not varies and config.trainer.record == "none" and isinstance(task_of(config), HeadTask)
    return override(config, {"sweep.population": POPULATION if trains_together else 1})


@dataclass(frozen=True)
class _Job:
    """What a worker works on."""

    config: RunConfig
    space: SearchSpace
    identity: StudyIdentity
    study: optuna.Study
    target: int
    """Finished trials that the study ends with."""
    max_failed: int
    """Failed trials that the study may have."""
    deadline: float
    watches: Sequence[Watch]
    """What may stop training between two batches."""

    def check(self) -> None:
        """Stop here if something has happened."""
        for watch in self.watches:
            watch.check()


def _work(job: _Job, interrupts: Interrupts, progress: SweepProgress | None = None) -> None:
    """Claim and run trials until there is nothing left to do."""
    waiting_for: tuple[str, ...] = ()
    while True:
        interrupts.raise_if_requested()
        if progress is not None:
            progress.update()
        claims: list[Claim] = []
        while len(claims) < job.config.sweep.population:
            claimed = claim(
                job.study, job.config, job.space, job.target, new=time.monotonic() < job.deadline, check=job.check
            )
            if not isinstance(claimed, Claim):
                break
            claims.append(claimed)
        if not claims:
            assert isinstance(claimed, NothingToClaim)
            if claimed.done:
                return
            if claimed.waiting_for != waiting_for:
                waiting_for = claimed.waiting_for
                say(f"waiting for {', '.join(waiting_for)}: another process works on it, here or on that machine")
            time.sleep(POLL_SECONDS)
            continue
        with HeldClaims(claims, job.study._storage, job.config) as held:
            try:
                for outcome in _run_trials(job, claims, held):
                    if progress is not None:
                        progress.update()
                    if outcome.state == "FAIL":
                        _check_failures(job)
            except ClaimLostError as error:
                say(str(error))
                assert held.lost is not None
                _leave(held.lost.folder)


def _run_trials(job: _Job, claims: Sequence[Claim], held: HeldClaims) -> Iterator[Outcome]:
    """Train new trials, resume interrupted ones, and report each result."""
    job = replace(job, watches=[*job.watches, Watch(held.check)])
    fresh: dict[RunConfig, list[PopulationRun]] = {}
    by_folder = {claimed.folder.path: claimed for claimed in claims}
    for claimed in claims:
        config, folder = trial_config(job.config, claimed.point), claimed.folder
        if folder.exists:
            job.identity.check_trial(folder, config)
            if folder.outcome is not None and folder.outcome.state == "STOPPED":
                folder.reopen()  # another machine took it over, and left it again
        else:
            tags = {"study": job.config.sweep.study_name, "trial": str(claimed.trial.number)}
            tags |= {**LOCAL, **environment_tags()}
            study = job.identity.for_trial()
            folder.start(f"trial {claimed.trial.number:04d}", to_public(config), tags, study=study)
        if folder.outcome is None and (pruned := _pruned(claimed)):
            folder.finish(pruned)
        task = task_of(config)
        if len(claims) > 1 and folder.outcome is None and isinstance(task, HeadTask):
            run = PopulationRun(task, folder, _pruning(job, claimed, held).report)
            fresh.setdefault(together(config), []).append(run)
        else:
            if folder.outcome is None:
                _finish(claimed, held, _attempt(job, claimed, held))
            yield _tell(job, claimed, held)
    for runs in fresh.values():
        try:
            for run, ended in train_population(runs, check=job.check):
                claimed = by_folder[run.folder.path]
                _finish(claimed, held, _diverged(job, ended) if isinstance(ended, NotANumberError) else ended)
                yield _tell(job, claimed, held)
        except (InterruptedRunError, CommandError):
            raise
        except Exception as error:  # alone, each trial has its own attempts and its own error
            left = [by_folder[run.folder.path] for run in runs if run.folder.outcome is None]
            say(f"{len(left)} trials that trained together are trained one by one after {_text(error)}")
            for claimed in left:
                _finish(claimed, held, _attempt(job, claimed, held))
                yield _tell(job, claimed, held)


def trial_config(config: RunConfig, point: Mapping[str, object]) -> RunConfig:
    """The config of a trial: that of its study at its point."""
    return resolve_config(override(config, point))


def _leave(folder: RunFolder) -> None:
    """Note that a trial ended on another machine: here it is no model and no result."""
    if folder.exists and folder.outcome is None:
        folder.finish(Outcome("STOPPED", reason="another machine took this trial over"))


def _check_failures(job: _Job) -> None:
    """End a sweep whose trials keep failing."""
    failed = job.study.get_trials(deepcopy=False, states=[TrialState.FAIL])
    if len(failed) > job.max_failed:
        allowed, last = job.config.sweep.max_failures, failed[-1]
        raise SweepError(
            f"trials keep failing: {allowed + 1}, and sweep.max_failures is {allowed}; the last one, trial "
            f"{last.number}: {last.user_attrs.get(FAILURE_REASON, 'no reason was noted')}. Finished trials are kept: "
            "remove the cause, then the same command continues"
        )


def _pruning(job: _Job, claimed: Claim, held: HeldClaims) -> PruningCallback:
    confirm = functools.partial(held.confirm, claimed.trial.number)
    return PruningCallback(claimed.trial, job.config.sweep.metric, confirm)


def _tell(job: _Job, claimed: Claim, held: HeldClaims) -> Outcome:
    """Tell Optuna how a trial ended. A kill on the way costs nothing: the next claim finds the outcome and does it."""
    trial, outcome = claimed.trial, claimed.folder.outcome
    assert outcome is not None
    held.confirm(trial.number)
    noted = claimed.folder.read()
    trial.set_user_attr(DURATION_MS, noted["ended_ms"] - noted["started_ms"])
    held.give_back(trial.number)
    tell(job.study, trial, outcome)
    _tidy(job.config, job.study)
    return outcome


def _attempt(job: _Job, claimed: Claim, held: HeldClaims) -> Outcome:
    """Train a trial, and once more from its last checkpoint after an error that may have gone by then."""
    folder, name = claimed.folder, f"trial {claimed.trial.number}"
    for may_retry in (True, False):
        try:
            return _train_trial(job, claimed, held)
        except (InterruptedRunError, CommandError):
            raise  # no fault of the trial: it goes on later
        except NotANumberError as error:
            return _diverged(job, error)
        except Exception as error:
            reason = _text(error)
            if not (may_retry and _may_pass(error)):
                folder.artifacts.mkdir(exist_ok=True)
                text = traceback.format_exc()
                (folder.artifacts / "error.txt").write_text(text, encoding="utf-8", errors="backslashreplace")
                return Outcome("FAIL", reason=reason)
            say(f"{name} is tried once more after {reason}")
        gc.collect()
        torch.cuda.empty_cache()
    raise AssertionError("the last attempt returns")


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _may_pass(error: Exception) -> bool:
    """Whether a retry can cure an error: memory or a file system that another process used up or that was away."""
    return isinstance(error, MemoryError | OSError) or "out of memory" in str(error)


def _train_trial(job: _Job, claimed: Claim, held: HeldClaims) -> Outcome:
    """Train a trial once."""
    folder, name = claimed.folder, f"trial {claimed.trial.number}"
    config = trial_config(job.config, claimed.point)
    facts = data_facts(open_data_once(config))
    try:
        result = train(
            config,
            output_dir=folder.path,
            logger=RunFolderLogger(folder),
            # The epoch's line comes before the pruner may end the trial with it.
            callbacks=[EpochProgress(name, facts, position=1), _pruning(job, claimed, held), *job.watches],
        )
    except optuna.TrialPruned:
        pruned = _pruned(claimed)
        assert pruned is not None, "the decision is stored before the trial is stopped"
        return pruned
    result.validation.save(folder.scores)
    return Outcome("COMPLETE", result.metrics[job.config.sweep.metric], result.scored)


def _finish(claimed: Claim, held: HeldClaims, outcome: Outcome) -> None:
    """Note how a trial ended."""
    held.confirm(claimed.trial.number)
    claimed.folder.finish(outcome)


def _diverged(job: _Job, error: NotANumberError) -> Outcome:
    photos = job.identity.photos
    assert photos is not None
    return diverged_outcome(job.study, job.config.sweep.metric, len(photos.class_names), str(error))


def _pruned(claimed: Claim) -> Outcome | None:
    """The outcome of a trial that the pruner has decided to stop, maybe before a kill."""
    decision = stored_decision(claimed.trial)
    if decision is None or not decision.stop:
        return None
    value = claimed.trial.storage.get_trial(claimed.trial._trial_id).intermediate_values[decision.epoch]
    return Outcome("PRUNED", value, reason=f"pruned after epoch {decision.epoch}")


def _tidy(config: RunConfig, study: optuna.Study) -> None:
    """Keep the checkpoints of no finished trial but the best one, whose model the sweep ends with."""
    best = best_trial(study)
    for trial in study.get_trials(deepcopy=False):
        checkpoints = trial_folder(config, trial.number).path / CHECKPOINT_FOLDER
        if trial.state.is_finished() and (best is None or trial.number != best.number) and checkpoints.is_dir():
            shutil.rmtree(checkpoints, ignore_errors=True)  # another worker may be at it too


def _conclude(config: RunConfig, study: optuna.Study, parent: RunFolder) -> SweepResult:
    """Export the best model, draw the study and write its report."""
    say("exporting the best model, drawing the study and writing its report")
    _tidy(config, study)  # a kill may have come between a trial's end and this
    for trial in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]):
        _leave(trial_folder(config, trial.number))
    best = best_trial(study)
    if best is not None:
        if advice := _train_longer(config, best):
            say(f"trial {best.number}, the best one: {advice}")
        _export(config, study, best)
        if (folder := trial_folder(config, best.number)).needs_drawing:  # the publisher may have been faster
            draw_once(folder.path)
    parent.artifacts.mkdir(exist_ok=True)
    for name, figure in study_figures(study).items():
        save_figure(figure, parent.artifacts / f"{name}.png")
    study.trials_dataframe().to_csv(parent.artifacts / "trials.csv", index=False)
    report = report_studies([study], config)
    shutil.copy(report, parent.artifacts / report.name)
    # The same names as a run's, so that a search stands beside its trials; it has no course of its own.
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
    if not values:  # a study that was made anew is told how its trials ended, not their epochs
        return ""
    best_epoch = min(values, key=lambda epoch: to_minimize(values[epoch], direction))
    return train_longer(best_epoch, override(config, best.params).trainer.epochs)


def _conclude_so_far(config: RunConfig, study: optuna.Study, target: int) -> str:
    """Export the best model of a study that is interrupted, write its report, and say so."""
    try:
        copy = copy_in_time(study, COPY_SECONDS)
    except Exception as error:  # each database has errors of its own
        return _storage_is_silent(error)
    best = best_trial(copy)
    if best is None:
        return " before the first trial was complete, so there is no model and no report yet"
    _export(config, copy, best)
    report = report_studies([copy], config)
    facts, finished = photo_facts(copy), count_finished(copy)
    scored = metric_text(config.sweep.metric, _value(best), facts)
    model = f"trial {best.number} ({scored}, {selection_text(finished, 'trial', facts)})"
    where = f"{trial_folder(config, best.number).export}, report: {report}"
    return f" after {finished} of {target} trials; best model so far: {model} in {where}"


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
        say(
            f"{best_checkpoint} is damaged: the study ends without a model, and `train --from-best {study.study_name}` "
            "trains one with the settings of its best trial"
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


# Several workers


def _supervise(job: _Job, interrupts: Interrupts, progress: SweepProgress, publisher: Publisher) -> None:
    """Keep `sweep.workers` processes at work; one that dies is replaced, and its trial goes on."""
    config, study = job.config, job.study
    finished, crashes = count_finished(study), 0
    gpus = visible_gpus()

    def start(index: int) -> BaseProcess:
        seconds = job.deadline - time.monotonic()
        return start_process(
            _worker_main,
            (config, dict(job.space), job.identity, job.target, job.max_failed, seconds, index),
            name=f"worker-{index}",
            environment={CUDA_VISIBLE_DEVICES: gpus[index % len(gpus)]} if gpus else {},  # read before CUDA starts
        )

    workers = {index: start(index) for index in range(config.sweep.workers)}
    try:
        while workers:
            if interrupts.requested:
                raise InterruptedRunError
            time.sleep(POLL_SECONDS)
            progress.update()
            publisher.check()
            for index, process in list(workers.items()):
                if process.is_alive():
                    continue
                del workers[index]
                if process.exitcode == 0:
                    continue
                if process.exitcode == _EXIT_SWEEP_ERROR:
                    _check_failures(job)
                    raise SweepError(f"worker {index} gave up: see {_worker_log(config, index)}")
                crashes = 1 if count_finished(study) > finished else crashes + 1
                finished = count_finished(study)
                if crashes > MAX_CRASHES:
                    raise SweepError(f"workers keep dying: see {_worker_log(config, index)}")
                say(f"worker {index} died ({_death(process.exitcode)}); another one goes on with its trial")
                workers[index] = start(index)
    finally:
        _stop(list(workers.values()))


_EXIT_SWEEP_ERROR = 3


def _worker_main(
    config: RunConfig,
    space: SearchSpace,
    identity: StudyIdentity,
    target: int,
    max_failed: int,
    seconds: float,
    index: int,
) -> None:
    """A worker process: its share of the cores or one GPU, and a log file of its own."""
    outlive_output()
    log = _worker_log(config, index).open("a", buffering=1)
    os.dup2(log.fileno(), sys.stdout.fileno())
    os.dup2(log.fileno(), sys.stderr.fileno())
    logging.basicConfig(level=logging.INFO)
    for number in (signal.SIGINT, signal.SIGUSR1):  # they reach all processes; the supervisor says what they mean
        signal.signal(number, signal.SIG_IGN)
    die_with_parent()
    if training_device(config).type == "cpu":
        _pin(index, config.sweep.workers)
    prepare_process()
    interrupts = Interrupts([signal.SIGTERM])
    study = load_study(config, config.sweep.study_name, interrupts.raise_if_requested)
    study.pruner = make_pruner(config)
    deadline = time.monotonic() + seconds
    with interrupts:
        watches = [Watch(interrupts.raise_if_requested)]
        job = _Job(config, space, identity, study, target, max_failed, deadline, watches)
        try:
            _work(job, interrupts)
        except InterruptedRunError:
            return
        except SweepError:
            traceback.print_exc()
            sys.exit(_EXIT_SWEEP_ERROR)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES has for them: numbers or UUIDs."""
    count, named = torch.cuda.device_count(), os.environ.get(CUDA_VISIBLE_DEVICES)
    return [one.strip() for one in named.split(",")][:count] if named else [str(index) for index in range(count)]


def _pin(index: int, workers: int) -> None:
    """Keep a worker that trains on the CPU on its share of the cores: two that use all of them slow each other down."""
    count = usable_cores()
    torch.set_num_threads(len(range(index % count, count, workers)))
    if hasattr(os, "sched_setaffinity"):  # macOS binds no process to cores
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[index % len(cores) :: workers] or [cores[index % len(cores)]])


def _stop(workers: Sequence[BaseProcess]) -> None:
    """Ask the workers to stop, and kill those that do not in time: checkpoints and run folders are always whole."""
    for process in workers:
        process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for process in workers:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _worker_log(config: RunConfig, index: int) -> Path:
    return study_folder(config) / f"worker-{index}.log"


def _death(exit_code: int | None) -> str:
    return f"signal {-exit_code}" if exit_code is not None and exit_code < 0 else f"exit code {exit_code}"


def _value(trial: FrozenTrial) -> float:
    assert trial.value is not None
    return trial.value
