"""Progress of a study: a line per trial that ends, and a bar on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial
from tqdm import tqdm

from experiments.console import duration, say
from experiments.runs.intervals import metric_text
from experiments.study.study import FAILURE_REASON, best_trial, has_diverged, photo_facts

ENDED_WORDS = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}


class SweepProgress:
    """Shows how far a study is, and each trial that ends, here or in another process.

    Args:
        target: finished trials that the study ends with.
        deadline: when no new trial starts, by `time.monotonic()`.
        shows_epochs: whether each epoch gets a line here, because the trials run in processes with logs of their own.
    """

    def __init__(self, study: Study, target: int, deadline: float, *, shows_epochs: bool = False) -> None:
        self._study, self._target, self._deadline, self._shows_epochs = study, target, deadline, shows_epochs
        trials = study.get_trials(deepcopy=False)
        self._ended = {trial.number for trial in trials if trial.state.is_finished()}
        self._epochs = {trial.number: len(trial.intermediate_values) for trial in trials}
        self._first = self._finished = _count(trials)
        self._started = time.monotonic()
        self._bar: tqdm[Any] | None = None
        if sys.stderr.isatty():
            form = "{desc}: {n_fmt}/{total_fmt} trials |{bar}| {elapsed}{postfix}"
            self._bar = tqdm(total=target, initial=self._first, desc="sweep", position=0, bar_format=form)

    def start_clock(self) -> None:
        """Start the clock of the ETA: the time before was spent once for all trials."""
        self._started = time.monotonic()

    def update(self) -> None:
        """Print what has changed since the last call."""
        trials, metric = self._study.get_trials(deepcopy=False), self._study.user_attrs["metric"]
        facts = photo_facts(self._study)
        for trial in trials:
            if self._shows_epochs:
                self._say_epochs(trial, metric, facts)
            if trial.state.is_finished() and trial.number not in self._ended:
                self._ended.add(trial.number)
                say(ended_text(trial, metric, facts))
        finished = _count(trials)
        if finished == self._finished:
            return
        best = best_trial(self._study)
        best_text = (
            f"best {metric_text(metric, best.value or 0.0, facts)} (trial {best.number})"
            if best
            else f"no {metric} yet"
        )
        text = f"{best_text}, {self._to_go(finished)} to go"
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(finished - self._finished)
        else:
            say(f"sweep: {finished}/{self._target} trials, {text}")
        self._finished = finished

    def _say_epochs(self, trial: FrozenTrial, metric: str, facts: Mapping[str, str]) -> None:
        known = self._epochs.get(trial.number, 0)
        for epoch, value in sorted(trial.intermediate_values.items())[known:]:
            say(f"trial {trial.number}: epoch {epoch} {metric_text(metric, value, facts)}")
        self._epochs[trial.number] = len(trial.intermediate_values)

    def _to_go(self, finished: int) -> str:
        now = time.monotonic()
        seconds = (now - self._started) / (finished - self._first) * (self._target - finished)
        seconds_left = max(0.0, self._deadline - now)
        return duration(seconds) if seconds <= seconds_left else f"{duration(seconds_left)} of sweep.timeout_seconds"

    def close(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()


def ended_text(trial: FrozenTrial, metric: str, facts: Mapping[str, str]) -> str:
    """How a trial ended, and with which parameters."""
    value = "" if trial.value is None else f", {metric_text(metric, trial.value, facts)}"
    reason = trial.user_attrs.get(FAILURE_REASON, "")
    params = ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in trial.params.items()
    )
    if has_diverged(trial):
        return f"trial {trial.number} {reason}: {params}"
    word = ENDED_WORDS[trial.state.name]
    return f"trial {trial.number} {word}{value}: {params}{f' ({reason})' if reason else ''}"


def _count(trials: Sequence[FrozenTrial]) -> int:
    """The number of trials that count towards a study's target."""
    return sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in trials)
