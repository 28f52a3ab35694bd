"""The sweep: ask Optuna for a point, `train()`, tell it the result, until the study has its trials.

Nothing here is lost when a process is killed at any moment: a trial that ran is found by its lock, goes on from its
last checkpoint in the same MLflow run, and one that had ended is told and pushed without training again.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState

from experiments.config import RunConfig, override, require
from experiments.evaluation import score_split, write_pictures
from experiments.figures import study_figures
from experiments.interrupts import EXIT_INTERRUPTED, InterruptedRunError, Interrupts
from experiments.progress import EpochProgress, SweepProgress, say
from experiments.pruning import PruningCallback
from experiments.report import write_report
from experiments.run_folder import Outcome, RunFolder
from experiments.search_space import SearchSpace, check_against, load_search_space
from experiments.study import (
    Claim,
    best_trial,
    claim,
    open_study,
    study_folder,
    trial_folder,
)
from experiments.tracking import (
    RunFolderLogger,
    RunStore,
    TrackingError,
    environment_tags,
    pushing,
    run_params,
)
from experiments.train import CHECKPOINT_FOLDER, export, train

POLL_SECONDS = 0.5
"""How often a worker looks whether somebody else's trial has ended."""
MAX_CRASHES = 3
"""Workers that may die in a row, without a trial finishing, before the sweep gives up."""

_log = logging.getLogger(__name__)


class SweepError(RuntimeError):
    """The sweep can't go on; what it has done is kept."""


@dataclass(frozen=True)
class SweepResult:
    """A finished (or timed-out) sweep."""

    study: optuna.Study
    best: FrozenTrial | None
    folder: Path
    report: Path
    mlflow_run_id: str


def run_sweep(config: RunConfig, *, more: int = 0) -> SweepResult:
    """Run the study to its end, from wherever it stands.

    Args:
        more: trials to add to a study that has all its trials.

    Raises:
        ValueError: for a config that no sweep can use.
        SweepError: if the trials all fail, or the workers keep dying.
        TrackingError: if MLflow stays away; nothing is lost.
        InterruptedRunError: after Ctrl-C.
    """
    if config.search is None:
        raise ValueError("search must name a search-space YAML such as conf/search/head.yaml, got None")
    require(
        config.trainer.devices == 1,
        "trainer.devices",
        "be 1 in a sweep (use sweep.workers)",
        config.trainer.devices,
    )
    space = load_search_space(config.search)
    check_against(space, config)
    study, target = open_study(config, space, more=more)
    store = RunStore(config)
    parent = RunFolder(study_folder(config) / "study")
    if not parent.exists:
        params = run_params(config) | {f"search.{name}": one for name, one in space.items()}
        parent.start(
            config.sweep.study_name,
            params,
            {"study": config.sweep.study_name, **environment_tags()},
        )
    elif parent.outcome:
        parent.reopen()
    parent_run_id = store.push_or_wait(parent)
    _push_pending(config, study, store, parent_run_id)

    progress = SweepProgress(target, _finished(study))
    deadline = time.monotonic() + (config.sweep.timeout_seconds or float("inf"))
    with Interrupts() as interrupts:
        try:
            if config.sweep.workers == 1:
                job = _Job(config, space, study, target, store, parent_run_id, deadline)
                _work(job, interrupts, progress)
            else:
                _supervise(config, study, target, parent_run_id, deadline, interrupts, progress)
        except InterruptedRunError:
            store.set_status(parent, "KILLED")
            raise
        finally:
            progress.close()
    return _conclude(config, study, store, parent)


@dataclass(frozen=True)
class _Job:
    """What a worker works on."""

    config: RunConfig
    space: SearchSpace
    study: optuna.Study
    target: int
    store: RunStore
    parent_run_id: str
    deadline: float


def _work(job: _Job, interrupts: Interrupts, progress: SweepProgress | None) -> None:
    """Claim and run trials until there is nothing left to do."""
    reasons: list[str] = []
    waiting_for: tuple[str, ...] = ()
    while True:
        interrupts.raise_if_requested()
        if progress is not None:
            progress.update(_finished(job.study), _best_text(job.study))
        claimed = claim(job.study, job.config, job.space, job.target, new=time.monotonic() < job.deadline)
        if not isinstance(claimed, Claim):
            if claimed.done:
                return
            if claimed.waiting_for != waiting_for:
                waiting_for = claimed.waiting_for
                say(f"waiting for {', '.join(waiting_for)}: another process works on it, here or on that machine")
            time.sleep(POLL_SECONDS)
            continue
        try:
            outcome = _run_trial(job, claimed, interrupts)
        finally:
            claimed.lock.release()
        reasons.append(f"{outcome.state} {re.sub(r'[0-9.e+-]+', '#', outcome.reason)}")
        if len(reasons) == 3 and outcome.state == "FAIL" and len(set(reasons)) == 1:
            raise SweepError(f"the first three trials all failed for the same reason: {outcome.reason}")


def _run_trial(job: _Job, claimed: Claim, interrupts: Interrupts) -> Outcome:
    """Train a trial, or take up one that was cut off, and tell everybody what it came to."""
    trial, folder = claimed.trial, claimed.folder
    if not folder.exists:
        config = override(job.config, claimed.point)
        tags = {
            "study": job.config.sweep.study_name,
            "trial": str(trial.number),
            **environment_tags(),
        }
        folder.start(f"trial {trial.number:04d}", run_params(config), tags)
    outcome = folder.outcome
    if outcome is None:
        outcome = _attempt(job, claimed, interrupts)
        folder.finish(outcome)
    # From here on a kill costs nothing: the next claim finds the outcome and goes on below.
    for name, value in outcome.metrics.items():
        trial.set_user_attr(name, value)
    if outcome.reason:
        trial.set_user_attr("failure_reason", outcome.reason)
    values = outcome.value if outcome.state == "COMPLETE" else None
    job.study.tell(trial, values, state=TrialState[outcome.state])
    _tidy(job.config, job.study, folder)
    job.store.push_or_wait(folder, job.parent_run_id)
    return outcome


def _attempt(job: _Job, claimed: Claim, interrupts: Interrupts) -> Outcome:
    """Train a trial once."""
    trial, folder, metric = claimed.trial, claimed.folder, job.config.sweep.metric
    name = f"trial {trial.number}"
    try:
        config = override(job.config, claimed.point)
        with pushing(job.store, folder, job.parent_run_id):
            result = train(
                config,
                output_dir=folder.path,
                logger=RunFolderLogger(folder),
                callbacks=[
                    PruningCallback(trial, metric),
                    EpochProgress(name, position=1),
                    interrupts,
                ],
            )
            scores = score_split(result.model.network, result.data, result.data.folders.valid)
            write_pictures(scores, result.data, result.history, folder.artifacts)
        value = result.metrics[metric]
        best = best_trial(job.study)
        sign = 1 if job.config.sweep.direction == "minimize" else -1
        if best is None or sign * value < sign * _value(best):
            export(result, folder.export)
    except optuna.TrialPruned:
        frozen = job.study.get_trials(deepcopy=False)[trial.number]
        last = max(frozen.intermediate_values)
        say(f"{name}: pruned after epoch {last}")
        return Outcome("PRUNED", frozen.intermediate_values[last], reason=f"pruned after epoch {last}")
    except InterruptedRunError:
        job.store.set_status(folder, "KILLED")
        raise
    except TrackingError:
        raise
    except Exception as error:
        folder.artifacts.mkdir(exist_ok=True)
        (folder.artifacts / "error.txt").write_text(traceback.format_exc())
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        say(f"{name} failed: {reason}")
        return Outcome("FAIL", reason=reason)
    return Outcome("COMPLETE", value, dict(result.metrics))


def _tidy(config: RunConfig, study: optuna.Study, folder: RunFolder) -> None:
    """Keep the checkpoints of no finished trial, and the export of the best one only."""
    shutil.rmtree(folder.path / CHECKPOINT_FOLDER, ignore_errors=True)
    best = best_trial(study)
    for trial in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
        if best is not None and trial.number != best.number:
            shutil.rmtree(trial_folder(config, trial.number).export, ignore_errors=True)


def _push_pending(config: RunConfig, study: optuna.Study, store: RunStore, parent_run_id: str) -> None:
    """Send what an earlier process finished and could not send."""
    for trial in study.get_trials(deepcopy=False):
        folder = trial_folder(config, trial.number)
        if trial.state.is_finished() and folder.exists and not folder.read()["pushed"]:
            store.push_or_wait(folder, parent_run_id)


def _conclude(config: RunConfig, study: optuna.Study, store: RunStore, parent: RunFolder) -> SweepResult:
    """Draw the study, write its report and close its MLflow run."""
    best = best_trial(study)
    parent.artifacts.mkdir(exist_ok=True)
    for name, figure in study_figures(study).items():
        figure.savefig(parent.artifacts / f"{name}.png")
    study.trials_dataframe().to_csv(parent.artifacts / "trials.csv", index=False)
    report = report_study(study, config)
    shutil.copy(report, parent.artifacts / "report.html")
    metrics = {name: value for name, value in (best.user_attrs if best else {}).items() if isinstance(value, float)}
    parent.finish(Outcome("COMPLETE", best.value if best else None, metrics))
    run_id = store.push_or_wait(parent)
    return SweepResult(study, best, study_folder(config), report, run_id)


def report_study(study: optuna.Study, config: RunConfig) -> Path:
    """Write `report.html` of a study into its folder."""
    config = override(config, {"sweep.study_name": study.study_name})
    path = study_folder(config) / "report.html"
    best = best_trial(study)
    pictures = sorted(trial_folder(config, best.number).artifacts.glob("*.png")) if best else []
    command = f"python -m experiments train --from-best {study.study_name}"
    write_report([study], path, pictures={study.study_name: pictures}, commands={study.study_name: command})
    return path


# Several workers


def _supervise(
    config: RunConfig,
    study: optuna.Study,
    target: int,
    parent_run_id: str,
    deadline: float,
    interrupts: Interrupts,
    progress: SweepProgress,
) -> None:
    """Keep `sweep.workers` processes at work; one that dies is replaced, and its trial goes on."""
    context = multiprocessing.get_context("spawn")  # CUDA and threads do not survive a fork
    finished, crashes = _finished(study), 0

    def start(index: int) -> BaseProcess:
        seconds = deadline - time.monotonic()
        process = context.Process(
            target=_worker_main,
            args=(config, target, parent_run_id, seconds, index),
            name=f"worker-{index}",
        )
        if gpus := torch.cuda.device_count():
            os.environ["CUDA_VISIBLE_DEVICES"] = str(index % gpus)  # the child reads it before CUDA starts
        process.start()
        return process

    workers = {index: start(index) for index in range(config.sweep.workers)}
    try:
        while workers:
            if interrupts.requested:
                raise InterruptedRunError
            time.sleep(POLL_SECONDS)
            progress.update(_finished(study), _best_text(study))
            for index, process in list(workers.items()):
                if process.is_alive():
                    continue
                del workers[index]
                if process.exitcode == 0:
                    continue
                if process.exitcode == _EXIT_SWEEP_ERROR:
                    raise SweepError(f"worker {index} gave up: see {_worker_log(config, index)}")
                crashes = 1 if _finished(study) > finished else crashes + 1
                finished = _finished(study)
                if crashes > MAX_CRASHES:
                    raise SweepError(f"workers keep dying: see {_worker_log(config, index)}")
                say(f"worker {index} died ({_death(process.exitcode)}); another one goes on with its trial")
                workers[index] = start(index)
    finally:
        _stop(list(workers.values()))


_EXIT_SWEEP_ERROR = 3


def _worker_main(config: RunConfig, target: int, parent_run_id: str, seconds: float, index: int) -> None:
    """A worker process: its share of the cores or one GPU, and a log file of its own."""
    log = _worker_log(config, index).open("a", buffering=1)
    os.dup2(log.fileno(), sys.stdout.fileno())
    os.dup2(log.fileno(), sys.stderr.fileno())
    logging.basicConfig(level=logging.INFO)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor says what it means
    _die_with_parent()
    _pin(index, config.sweep.workers)
    assert config.search is not None
    space = load_search_space(config.search)
    study, _ = open_study(config, space)
    job = _Job(config, space, study, target, RunStore(config), parent_run_id, time.monotonic() + seconds)
    with Interrupts([signal.SIGTERM]) as interrupts:
        try:
            _work(job, interrupts, None)
        except InterruptedRunError:
            return
        except (SweepError, TrackingError):
            traceback.print_exc()
            sys.exit(_EXIT_SWEEP_ERROR)


def _pin(index: int, workers: int) -> None:
    """Keep a worker without a GPU on its share of the cores: two that use all of them slow each other down."""
    if torch.cuda.is_available() or not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    share = cores[index % len(cores) :: workers] or [cores[index % len(cores)]]
    os.sched_setaffinity(0, share)
    torch.set_num_threads(len(share))


def _die_with_parent() -> None:
    """Leave when the supervisor is gone, however it went: its terminal has no way to stop us any more."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(EXIT_INTERRUPTED)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def _stop(workers: Sequence[BaseProcess]) -> None:
    """Ask the workers to stop, and make those stop that do not."""
    for process in workers:
        process.terminate()
    for process in workers:
        process.join(30)
        if process.is_alive():
            process.kill()
            process.join()


def _worker_log(config: RunConfig, index: int) -> Path:
    return study_folder(config) / f"worker-{index}.log"


def _death(exit_code: int | None) -> str:
    return f"signal {-exit_code}" if exit_code is not None and exit_code < 0 else f"exit code {exit_code}"


def _finished(study: optuna.Study) -> int:
    return sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))


def _value(trial: FrozenTrial) -> float:
    assert trial.value is not None
    return trial.value


def _best_text(study: optuna.Study) -> str:
    best = best_trial(study)
    metric = study.user_attrs["metric"]
    return f"best {metric} {_value(best):.4f} (trial {best.number})" if best else f"no {metric} yet"
