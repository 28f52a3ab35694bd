"""A trial of a study: claim it, draw its point, train it or resume it, tell Optuna how it ended.

Each step may be repeated after a kill. A trial without an outcome resumes from its last checkpoint, and a trial with an
outcome is told without training again.
"""

from __future__ import annotations

import functools
import gc
import math
import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import optuna
import torch
from optuna.trial import FrozenTrial, Trial, TrialState

from experiments.callbacks.checkpoints import CHECKPOINT_FOLDER
from experiments.callbacks.history import NotANumberError
from experiments.callbacks.progress import EpochProgress
from experiments.config import RunConfig, override, to_public
from experiments.console import say
from experiments.data.inputs import open_data_once
from experiments.errors import CommandError, InterruptedRunError, SweepError
from experiments.interrupts import Watch
from experiments.runs.folder import LOCAL, Outcome, RunFolder, environment_tags
from experiments.runs.logger import RunFolderLogger
from experiments.study.claims import Claim, HeldClaims, Holder, acquire_trial, is_abandoned
from experiments.study.epochs import resolve_config
from experiments.study.identity import StudyIdentity
from experiments.study.optuna_private import forget_params, id_of, storage_of
from experiments.study.population_training import PopulationRun, shared_config, train_population
from experiments.study.pruning import PruningCallback, stored_decision
from experiments.study.samplers import make_sampler
from experiments.study.search_space import ChoiceRange, FloatRange, Point, SearchSpace
from experiments.study.storage import study_patience
from experiments.study.study import (
    DURATION_MS,
    FAILURE_REASON,
    best_trial,
    grid_size,
    study_lock,
    trial_folder,
)
from experiments.task import HeadTask, task_of
from experiments.train import data_facts, train
from lightning_modules.metrics import VAL_ACCURACY
from lightning_modules.redaction import redact


@dataclass(frozen=True)
class NothingToClaim:
    """No trial to start now."""

    done: bool
    """All trials have finished; otherwise others still work on the last ones, and one of them may die."""
    waiting_for: tuple[str, ...] = ()
    """The trials that are still running, and their machines."""


@dataclass(frozen=True)
class SweepContext:
    """The study that a worker works on, and when the worker stops."""

    config: RunConfig
    space: SearchSpace
    identity: StudyIdentity
    study: optuna.Study
    target: int
    """Finished trials that the study ends with."""
    max_failed: int
    """Failed trials that the study may have."""
    deadline: float
    """When no new trial starts, by `time.monotonic()`."""
    watches: Sequence[Watch]
    """Checks that may stop training between two batches: Ctrl-C, or a failed process beside the workers."""

    def check(self) -> None:
        """Raise if a watch has found something."""
        for watch in self.watches:
            watch.check()


def claim_trial(
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
    with study_patience(config, check).lock(study_lock(config)):
        storage, trials = storage_of(study), study.get_trials(deepcopy=False)
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        for trial in running:
            folder = trial_folder(config, trial.number)
            if is_abandoned(trial, folder, storage, config):
                acquired = acquire_trial(trial, folder, storage, config)
                if acquired is not None:
                    return Claim(*draw_point(study, config, space, trial), folder, *acquired)
        counted = sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials) + len(running)
        # A grid has no point left for one that failed.
        exhausted = config.sweep.sampler == "grid" and len(trials) >= grid_size(space)
        if not new or counted >= target or exhausted:
            return NothingToClaim(
                not running, tuple(f"trial {trial.number} on {Holder.of(trial.user_attrs).host}" for trial in running)
            )
        new_trial = study.ask()
        folder = trial_folder(config, new_trial.number)
        acquired = acquire_trial(new_trial, folder, storage, config)
        assert acquired is not None, "a new trial can't belong to another process"
        return Claim(*draw_point(study, config, space, new_trial), folder, *acquired)


def draw_point(
    study: optuna.Study, config: RunConfig, space: SearchSpace, running: Trial | FrozenTrial
) -> tuple[Trial, Point]:
    """A running trial and its point: drawn now, or completed where a kill came before it was drawn."""
    study.sampler = make_sampler(study, config, space, running.number)
    trial = Trial(study, id_of(running))
    return trial, suggest(trial, space)


def suggest(trial: Trial, space: SearchSpace) -> Point:
    """The trial's point: drawn now, or read back where it was drawn before a kill."""
    if trial.params.keys() < space.keys():
        # A kill may have come between two values, and the sampler's random numbers come in order: draw all once more.
        forget_params(trial)
    point: Point = {}
    for name, search_range in space.items():
        if isinstance(search_range, ChoiceRange):
            drawn = trial.suggest_categorical(name, search_range.values)
            assert drawn is not None, "a search space holds no null"
            point[name] = drawn
        elif isinstance(search_range, FloatRange):
            point[name] = trial.suggest_float(name, search_range.low, search_range.high, log=search_range.log)
        else:
            point[name] = trial.suggest_int(name, search_range.low, search_range.high, log=search_range.log)
    return point


def run_trials(context: SweepContext, claims: Sequence[Claim], held_claims: HeldClaims) -> Iterator[Outcome]:
    """Train new trials, resume interrupted ones, and report each result."""
    context = replace(context, watches=[*context.watches, Watch(held_claims.check)])
    fresh: dict[RunConfig, list[PopulationRun]] = {}
    by_folder = {claimed.folder.path: claimed for claimed in claims}
    for claimed in claims:
        config, folder = trial_config(context.config, claimed.point), claimed.folder
        if folder.has_started:
            context.identity.check_trial(folder, config)
            if folder.outcome is not None and folder.outcome.state == "STOPPED":
                folder.reopen()  # another machine took it over, and stopped too
        else:
            tags = {"study": context.config.sweep.study_name, "trial": str(claimed.trial.number)}
            tags |= {**LOCAL, **environment_tags()}
            study = context.identity.for_trial()
            folder.start(f"trial {claimed.trial.number:04d}", to_public(config), tags, study=study)
        if folder.outcome is None and (pruned := _pruned(claimed)):
            folder.finish(pruned)
        task = task_of(config)
        if len(claims) > 1 and folder.outcome is None and isinstance(task, HeadTask):
            run = PopulationRun(task, folder, _pruning(context, claimed, held_claims).report)
            fresh.setdefault(shared_config(config), []).append(run)
        else:
            if folder.outcome is None:
                _finish(claimed, held_claims, _attempt(context, claimed, held_claims))
            yield _tell(context, claimed, held_claims)
    for runs in fresh.values():
        try:
            for run, ended in train_population(runs, check=context.check):
                claimed = by_folder[run.folder.path]
                _finish(
                    claimed, held_claims, _diverged(context, ended) if isinstance(ended, NotANumberError) else ended
                )
                yield _tell(context, claimed, held_claims)
        except (InterruptedRunError, CommandError):
            raise
        except Exception as error:  # alone, each trial has its own attempts and its own error
            remaining = [by_folder[run.folder.path] for run in runs if run.folder.outcome is None]
            say(f"{len(remaining)} trials that trained together are trained one by one after {_error_text(error)}")
            for claimed in remaining:
                _finish(claimed, held_claims, _attempt(context, claimed, held_claims))
                yield _tell(context, claimed, held_claims)


def trial_config(config: RunConfig, point: Mapping[str, object]) -> RunConfig:
    """The config of a trial: the config of its study with the values of its point."""
    return resolve_config(override(config, point))


def mark_taken_over(folder: RunFolder) -> None:
    """Record that a trial ended on another machine: this folder has no result."""
    if folder.has_started and folder.outcome is None:
        folder.finish(Outcome("STOPPED", reason="another machine took this trial over"))


def raise_if_too_many_failed(context: SweepContext) -> None:
    """End a sweep whose trials keep failing."""
    failed = context.study.get_trials(deepcopy=False, states=[TrialState.FAIL])
    if len(failed) > context.max_failed:
        allowed, last = context.config.sweep.max_failures, failed[-1]
        raise SweepError(
            f"trials keep failing: {allowed + 1}, and sweep.max_failures is {allowed}; the last one, trial "
            f"{last.number}: {last.user_attrs.get(FAILURE_REASON, 'no reason was noted')}. Finished trials are kept: "
            "remove the cause, then the same command continues"
        )


def _pruning(context: SweepContext, claimed: Claim, held_claims: HeldClaims) -> PruningCallback:
    confirm = functools.partial(held_claims.confirm, claimed.trial.number)
    return PruningCallback(claimed.trial, context.config.sweep.metric, confirm)


def _tell(context: SweepContext, claimed: Claim, held_claims: HeldClaims) -> Outcome:
    """Tell Optuna how a trial ended. After a kill on the way, the next claim finds the outcome and tells it."""
    trial, outcome = claimed.trial, claimed.folder.outcome
    assert outcome is not None
    held_claims.confirm(trial.number)
    trial.set_user_attr(DURATION_MS, claimed.folder.read().duration_ms)
    held_claims.give_back(trial.number)
    tell(context.study, trial, outcome)
    keep_best_checkpoints(context.config, context.study)
    return outcome


def _attempt(context: SweepContext, claimed: Claim, held_claims: HeldClaims) -> Outcome:
    """Train a trial, and once more from its last checkpoint after an error that may have gone by then."""
    folder, name = claimed.folder, f"trial {claimed.trial.number}"
    for may_retry in (True, False):
        try:
            return _train_trial(context, claimed, held_claims)
        except (InterruptedRunError, CommandError):
            raise  # not an error of the trial: it is resumed later
        except NotANumberError as error:
            return _diverged(context, error)
        except Exception as error:
            reason = _error_text(error)
            if not (may_retry and _may_pass(error)):
                folder.artifacts.mkdir(exist_ok=True)
                text = redact(traceback.format_exc())
                (folder.artifacts / "error.txt").write_text(text, encoding="utf-8", errors="backslashreplace")
                return Outcome("FAIL", reason=reason)
            say(f"{name} is tried once more after {reason}")
        gc.collect()
        torch.cuda.empty_cache()
    raise AssertionError("the last attempt returns")


def _error_text(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _may_pass(error: Exception) -> bool:
    """Whether a retry can cure an error: memory or a file system that another process used up or that was away."""
    return isinstance(error, MemoryError | OSError) or "out of memory" in str(error)


def _train_trial(context: SweepContext, claimed: Claim, held_claims: HeldClaims) -> Outcome:
    """Train a trial once."""
    folder, name = claimed.folder, f"trial {claimed.trial.number}"
    config = trial_config(context.config, claimed.point)
    facts = data_facts(open_data_once(config))
    try:
        result = train(
            config,
            output_dir=folder.path,
            logger=RunFolderLogger(folder),
            # Progress comes first: the pruner may end the trial with this epoch.
            callbacks=[
                EpochProgress(name, facts, position=1),
                _pruning(context, claimed, held_claims),
                *context.watches,
            ],
        )
    except optuna.TrialPruned:
        pruned = _pruned(claimed)
        assert pruned is not None, "the decision is stored before the trial is stopped"
        return pruned
    result.validation.save(folder.scores)
    return Outcome("COMPLETE", result.metrics[context.config.sweep.metric], result.scored)


def _finish(claimed: Claim, held_claims: HeldClaims, outcome: Outcome) -> None:
    """Write the outcome of a trial."""
    held_claims.confirm(claimed.trial.number)
    claimed.folder.finish(outcome)


def _diverged(context: SweepContext, error: NotANumberError) -> Outcome:
    photos = context.identity.photos
    assert photos is not None
    return diverged_outcome(context.study, context.config.sweep.metric, len(photos.class_names), str(error))


def _pruned(claimed: Claim) -> Outcome | None:
    """The outcome of a trial that the pruner has decided to stop, maybe before a kill."""
    decision = stored_decision(claimed.trial)
    if decision is None or not decision.stop:
        return None
    value = claimed.trial.storage.get_trial(id_of(claimed.trial)).intermediate_values[decision.epoch]
    return Outcome("PRUNED", value, reason=f"pruned after epoch {decision.epoch}")


def keep_best_checkpoints(config: RunConfig, study: optuna.Study) -> None:
    """Delete the checkpoints of all finished trials but the best one, which the sweep exports."""
    best = best_trial(study)
    for trial in study.get_trials(deepcopy=False):
        checkpoints = trial_folder(config, trial.number).path / CHECKPOINT_FOLDER
        if trial.state.is_finished() and (best is None or trial.number != best.number) and checkpoints.is_dir():
            shutil.rmtree(checkpoints, ignore_errors=True)  # another worker may delete it at the same time


def diverged_outcome(study: optuna.Study, metric: str, num_classes: int, reason: str) -> Outcome:
    """The outcome of a trial whose loss is not a number: pruned, with a value that keeps the sampler away.

    The value is finite, as a huge one would spoil a model of the objective: accuracy 0, or the worst loss that a trial
    of the study has reported, and at least that of guessing.
    """
    if metric == VAL_ACCURACY:
        return Outcome("PRUNED", 0.0, reason=reason)
    reported = (value for trial in study.get_trials(deepcopy=False) for value in trial.intermediate_values.values())
    return Outcome("PRUNED", max([math.log(num_classes), *filter(math.isfinite, reported)]), reason=reason)


def tell(study: optuna.Study, trial: Trial, outcome: Outcome) -> None:
    """Tell Optuna how a trial ended. After a kill on the way it may be told again."""
    for name, value in outcome.metrics.items():
        trial.set_user_attr(name, value)
    if outcome.reason:
        trial.set_user_attr(FAILURE_REASON, outcome.reason)
    seen = trial.storage.get_trial(id_of(trial)).intermediate_values
    if outcome.state == "PRUNED" and seen.get(max(seen, default=0)) != outcome.value:
        assert outcome.value is not None
        trial.report(outcome.value, max(seen, default=0) + 1)  # Optuna takes the last one for the trial's value
    study.tell(trial, outcome.value if outcome.state == "COMPLETE" else None, state=TrialState[outcome.state])
