"""The section of one study: its best trial, what the search has learned, all its trials."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from experiments.console import duration
from experiments.report.compared_runs import location_options
from experiments.report.page import (
    NOTHING,
    InteractivePlot,
    Table,
    text,
)
from experiments.report.study_plots import STATE_WORDS, seconds_text, state_word, study_plots
from experiments.runs.intervals import interval_text, selection_text
from experiments.study.narrowing import MIN_TRIALS, narrow_by_study, range_text
from experiments.study.search_space import build_search_space
from experiments.study.study import (
    DURATION_MS,
    FAILURE_REASON,
    INPUTS_SECONDS,
    completed_trials,
    covered_seconds,
    metric_name,
    objective_value,
    photo_facts,
    trial_seconds,
)
from experiments.yaml_files import parse_yaml

ALWAYS_COUNTED = ("finished", "pruned", "failed")


@dataclass(frozen=True)
class Section:
    """The section of one study."""

    name: str
    has_result: bool
    facts: Mapping[str, str]
    best_parameters: Table
    commands: Mapping[str, str]
    """The commands that repeat the best trial, at home and in the cloud."""
    region: Table
    """The range of the best quarter of the trials in the search space."""
    plots: tuple[InteractivePlot, ...]
    trials: Table


def study_section(study: Study, interrupted: Collection[int] = ()) -> Section:
    """Read and draw a study; see `write_report` for what it may hold.

    Args:
        interrupted: numbers of unfinished trials that no process trains.
    """
    trials = study.get_trials(deepcopy=False)
    completed = completed_trials(study)
    choose = max if study.direction.name == "MAXIMIZE" else min
    best = choose(completed, key=objective_value, default=None)
    parameters = best.params if best else {}
    return Section(
        name=study.study_name,
        has_result=best is not None,
        facts=_facts(study, trials, best, interrupted),
        best_parameters=Table(
            ("Parameter", "Value"),
            tuple((name, text(value)) for name, value in parameters.items()),
        ),
        commands=_commands(study) if best else {},
        region=_good_region(study, completed),
        plots=tuple(study_plots(study, trials, best, interrupted)),
        trials=_trial_table(study, trials, best, interrupted),
    )


def _commands(study: Study) -> Mapping[str, str]:
    locations = location_options(study.user_attrs.get("config", {}))
    more = f"{shlex.quote(study.study_name)}{' ' if locations else ''}{locations}"
    return {
        "at home": f"python -m experiments train --from-best {more}",
        "in the cloud": f"python -m sagemaker_launch train --from-study {more} --cloud mine.yaml",
    }


def _good_region(study: Study, completed: Sequence[FrozenTrial]) -> Table:
    """The searched ranges beside what `tune --from-study` would make of them; no row while too little is known."""
    columns = ("Parameter", "Searched", "Best quarter is in")
    if "search_space" not in study.user_attrs or len(completed) < MIN_TRIALS:
        return Table(columns, ())
    space = build_search_space(parse_yaml(study.user_attrs["search_space"]), study.study_name)
    region = narrow_by_study(space, study)
    return Table(columns, tuple((name, range_text(space[name]), range_text(region[name])) for name in space))


def _facts(
    study: Study, trials: Sequence[FrozenTrial], best: FrozenTrial | None, interrupted: Collection[int]
) -> Mapping[str, str]:
    words = Counter(state_word(trial, interrupted) for trial in trials)
    seconds = [found for trial in trials if (found := trial_seconds(trial)) is not None]
    better = "higher" if study.direction.name == "MAXIMIZE" else "lower"
    facts = {
        "Metric": metric_name(study),
        "Direction": f"{study.direction.name.lower()}: {better} is better",
        "Best value": NOTHING,
        "Best trial": NOTHING,
    }
    if best is not None:
        known, value = photo_facts(study), objective_value(best)
        finished = sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)
        shown = text(value) + interval_text(metric_name(study), value, known)
        facts["Best value"] = f"{shown}, {selection_text(finished, 'trial', known)}"
        facts["Best trial"] = str(best.number)
    for word in (*STATE_WORDS.values(), "diverged", "interrupted"):
        if words[word] or word in ALWAYS_COUNTED:
            facts[f"{word.capitalize()} trials"] = str(words[word])
    opening = float(study.user_attrs.get(INPUTS_SECONDS, 0.0))
    facts["Time in all"] = duration(covered_seconds(trials) + opening, exact=True)
    if opening >= 1:
        facts["Of it features and photos"] = duration(opening, exact=True)
    facts["Mean time of a trial"] = duration(sum(seconds) / len(seconds), exact=True) if seconds else NOTHING
    return facts


def _trial_table(
    study: Study, trials: Sequence[FrozenTrial], best: FrozenTrial | None, interrupted: Collection[int]
) -> Table:
    metric, known = metric_name(study), photo_facts(study)

    def score(name: str, value: float | None) -> str:
        return text(value) + interval_text(name, value, known)

    parameters = sorted({name for trial in trials for name in trial.params})
    attributes = sorted(
        {
            name
            for trial in trials
            for name, value in trial.user_attrs.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        - {DURATION_MS}  # which is the column of seconds
    )
    reasons = ["Failure reason"] if any(FAILURE_REASON in trial.user_attrs for trial in trials) else []
    rows = tuple(
        (
            str(trial.number),
            state_word(trial, interrupted) + (", best" if trial is best else ""),
            score(metric, trial.value),
            str(len(trial.intermediate_values)),
            seconds_text(trial),
            *(text(trial.params.get(name)) for name in parameters),
            *(score(name, trial.user_attrs.get(name)) for name in attributes),
            *(text(trial.user_attrs.get(FAILURE_REASON)) for _ in reasons),
        )
        for trial in trials
    )
    columns = ("Trial", "State", metric, "Epochs", "Seconds", *parameters, *attributes, *reasons)
    return Table(columns, rows, best_row=best.number if best else None)
