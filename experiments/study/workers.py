"""Workers on the trials of a study: this process, or several that it supervises."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from experiments.config import RunConfig
from experiments.console import guard_output, say
from experiments.data.inputs import training_device
from experiments.errors import InterruptedRunError, SweepError
from experiments.interrupts import Interrupts, Watch
from experiments.runs.processes import die_with_parent, start_process
from experiments.study.claims import Claim, ClaimLostError, HeldClaims
from experiments.study.epochs import resolve_config
from experiments.study.identity import StudyIdentity
from experiments.study.optuna_private import storage_of
from experiments.study.progress import SweepProgress
from experiments.study.search_space import SearchSpace
from experiments.study.storage import study_folder
from experiments.study.study import INPUTS_SECONDS, count_finished, load_study, make_pruner
from experiments.study.trials import (
    NothingToClaim,
    SweepContext,
    claim_trial,
    mark_taken_over,
    raise_if_too_many_failed,
    run_trials,
)
from experiments.task import task_of
from lightning_modules.cores import usable_cores
from lightning_modules.process import prepare_process

POLL_SECONDS = 0.5
"""Seconds between two checks whether another worker's trial has ended."""
STOP_SECONDS = 5.0
"""How long all workers together have to end their batch once the sweep stops."""
CUDA_VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
MAX_CRASHES = 3
"""Workers that may die in a row, without a finished trial, before the sweep fails."""
_EXIT_SWEEP_ERROR = 3
"""Exit code of a worker that has written to its log why it gave up."""


def run_workers(context: SweepContext) -> None:
    """Run trials until the study has its target: in this process, or in `sweep.workers` others.

    Raises:
        SweepError: if too many trials fail, or the workers keep dying.
    """
    config = context.config
    progress = SweepProgress(context.study, context.target, context.deadline, shows_epochs=config.sweep.workers > 1)
    try:
        if config.sweep.workers > 1:
            _supervise(context, progress)
            return
        _open_inputs(context)  # while the publisher starts
        progress.start_clock()
        _claim_and_run(context, progress)
    finally:
        progress.close()


def _open_inputs(context: SweepContext) -> None:
    """Open photos and compute features for all trials, and note how long it took."""
    started = time.monotonic()
    task_of(resolve_config(context.config)).open()
    if (seconds := time.monotonic() - started) >= 1:  # else they were opened before
        before = context.study.user_attrs.get(INPUTS_SECONDS, 0.0)
        context.study.set_user_attr(INPUTS_SECONDS, before + seconds)


def _claim_and_run(context: SweepContext, progress: SweepProgress | None = None) -> None:
    """Claim and run trials until there is nothing left to do."""
    config, study = context.config, context.study
    waiting_for: tuple[str, ...] = ()
    while True:
        context.check()
        if progress is not None:
            progress.update()
        claims: list[Claim] = []
        while len(claims) < config.sweep.population:
            new = time.monotonic() < context.deadline
            claimed = claim_trial(study, config, context.space, context.target, new=new, check=context.check)
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
        with HeldClaims(claims, storage_of(study), config) as held_claims:
            try:
                for outcome in run_trials(context, claims, held_claims):
                    if progress is not None:
                        progress.update()
                    if outcome.state == "FAIL":
                        raise_if_too_many_failed(context)
            except ClaimLostError as error:
                say(str(error))
                assert held_claims.lost is not None
                mark_taken_over(held_claims.lost.folder)


def _supervise(context: SweepContext, progress: SweepProgress) -> None:
    """Keep `sweep.workers` processes running; a dead one is replaced, and its trial is resumed."""
    config, study = context.config, context.study
    finished, crashes = count_finished(study), 0
    gpus = visible_gpus()

    def start_worker(index: int) -> BaseProcess:
        seconds = context.deadline - time.monotonic()
        return start_process(
            _worker_main,
            (config, dict(context.space), context.identity, context.target, context.max_failed, seconds, index),
            name=f"worker-{index}",
            environment={CUDA_VISIBLE_DEVICES: gpus[index % len(gpus)]} if gpus else {},  # read before CUDA starts
        )

    workers = {index: start_worker(index) for index in range(config.sweep.workers)}
    try:
        while workers:
            context.check()
            time.sleep(POLL_SECONDS)
            progress.update()
            for index, process in list(workers.items()):
                if process.is_alive():
                    continue
                del workers[index]
                if process.exitcode == 0:
                    continue
                if process.exitcode == _EXIT_SWEEP_ERROR:
                    raise_if_too_many_failed(context)
                    raise SweepError(f"worker {index} gave up: see {_worker_log(config, index)}")
                crashes = 1 if count_finished(study) > finished else crashes + 1
                finished = count_finished(study)
                if crashes > MAX_CRASHES:
                    raise SweepError(f"workers keep dying: see {_worker_log(config, index)}")
                say(f"worker {index} died ({_death_text(process.exitcode)}); another one continues its trial")
                workers[index] = start_worker(index)
    finally:
        _stop_workers(list(workers.values()))


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
    guard_output()
    log = _worker_log(config, index).open("a", buffering=1)
    os.dup2(log.fileno(), sys.stdout.fileno())
    os.dup2(log.fileno(), sys.stderr.fileno())
    logging.basicConfig(level=logging.INFO)
    for number in (signal.SIGINT, signal.SIGUSR1):  # they reach all processes; the supervisor handles them
        signal.signal(number, signal.SIG_IGN)
    die_with_parent()
    if training_device(config).type == "cpu":
        _pin_to_cores(index, config.sweep.workers)
    prepare_process()
    interrupts = Interrupts([signal.SIGTERM])
    study = load_study(config, config.sweep.study_name, interrupts.raise_if_requested)
    study.pruner = make_pruner(config)
    deadline = time.monotonic() + seconds
    with interrupts:
        watches = [Watch(interrupts.raise_if_requested)]
        context = SweepContext(config, space, identity, study, target, max_failed, deadline, watches)
        try:
            _claim_and_run(context)
        except InterruptedRunError:
            return
        except SweepError:
            traceback.print_exc()
            sys.exit(_EXIT_SWEEP_ERROR)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES has for them: numbers or UUIDs."""
    count, named = torch.cuda.device_count(), os.environ.get(CUDA_VISIBLE_DEVICES)
    return [gpu.strip() for gpu in named.split(",")][:count] if named else [str(index) for index in range(count)]


def _pin_to_cores(index: int, workers: int) -> None:
    """Bind a CPU worker to its share of the cores: two workers on all cores slow each other down."""
    count = usable_cores()
    torch.set_num_threads(len(range(index % count, count, workers)))
    if hasattr(os, "sched_setaffinity"):  # macOS binds no process to cores
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[index % len(cores) :: workers] or [cores[index % len(cores)]])


def _stop_workers(workers: Sequence[BaseProcess]) -> None:
    """Ask the workers to stop, and kill late ones: checkpoints and run folders are always complete."""
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


def _death_text(exit_code: int | None) -> str:
    return f"signal {-exit_code}" if exit_code is not None and exit_code < 0 else f"exit code {exit_code}"
