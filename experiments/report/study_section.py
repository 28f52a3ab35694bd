"""What a report says about one study: its best trial, what the search has learned, all its trials.

The plots are Optuna's own, drawn by plotly.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import optuna
import plotly.graph_objects as go
from optuna import Study, visualization
from optuna.trial import FrozenTrial, TrialState
from plotly.colors import sample_colorscale

from experiments.figures.figures import (
    BLUE,
    GREY,
    SKY,
    STATE_COLORS,
    VERMILLION,
    completed_trials,
    metric_name,
    objective_value,
    rankable_parameters,
    varying_parameters,
)
from experiments.report.compared_runs import keeping_fields
from experiments.report.page import (
    NOTHING,
    InteractivePlot,
    Table,
    duration,
    figure_json,
    name_epochs,
    text,
    unflatten,
    whole_ticks,
)
from experiments.runs.intervals import interval_text, selection_text
from experiments.study.narrowing import MIN_TRIALS, narrow_by_study, range_text
from experiments.study.search_space import build_search_space
from experiments.study.study import (
    DURATION_MS,
    FAILURE_REASON,
    INPUTS_SECONDS,
    covered_seconds,
    has_diverged,
    photo_facts,
    trial_seconds,
)
from experiments.yaml_files import parse_yaml

STATE_WORDS: Mapping[TrialState, str] = MappingProxyType(
    {
        TrialState.COMPLETE: "finished",
        TrialState.PRUNED: "pruned",
        TrialState.FAIL: "failed",
        TrialState.RUNNING: "running",
        TrialState.WAITING: "waiting",
    }
)
ALWAYS_COUNTED = ("finished", "pruned", "failed")
MAX_WHOLE_TICKS = 8
"""Whole numbers that fit below one panel."""
# From worst to best, with 3:1 contrast against the light and the dark page alike.
_QUALITY_SCALE = [VERMILLION, GREY, BLUE]


@dataclass(frozen=True)
class Section:
    """What the page says about one study."""

    name: str
    has_result: bool
    facts: Mapping[str, str]
    best_parameters: Table
    commands: Mapping[str, str]
    """What runs the best trial again, by where it runs."""
    region: Table
    """Where the best quarter of the trials lies in the search space."""
    plots: tuple[InteractivePlot, ...]
    trials: Table


def study_section(study: Study, interrupted: Collection[int] = ()) -> Section:
    """Read and draw a study; see `write_report` for what it may hold.

    Args:
        interrupted: numbers of trials that have not ended and that nobody trains now.
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
        plots=tuple(_plots(study, trials, completed, best, interrupted)),
        trials=_trial_table(study, trials, best, interrupted),
    )


def _commands(study: Study) -> Mapping[str, str]:
    kept = keeping_fields(study.user_attrs.get("config", {}))
    more = f"{shlex.quote(study.study_name)}{' ' if kept else ''}{kept}"
    return {
        "at home": f"python -m experiments train --from-best {more}",
        "in the cloud": f"python -m sagemaker_launch train --from-study {more} --cloud mine.yaml",
    }


def _word(trial: FrozenTrial, interrupted: Collection[int]) -> str:
    """How far a trial is; one that nobody trains is not running, whatever its state."""
    if trial.number in interrupted:
        return "interrupted"
    return "diverged" if has_diverged(trial) else STATE_WORDS[trial.state]


def _good_region(study: Study, completed: Sequence[FrozenTrial]) -> Table:
    """The searched ranges beside what `tune --from-study` would make of them; no row while too little is known."""
    columns = ("Parameter", "Searched", "Best quarter lies in")
    if "search_space" not in study.user_attrs or len(completed) < MIN_TRIALS:
        return Table(columns, ())
    space = build_search_space(parse_yaml(study.user_attrs["search_space"]), study.study_name)
    region = narrow_by_study(space, study)
    return Table(columns, tuple((name, range_text(space[name]), range_text(region[name])) for name in space))


def _facts(
    study: Study, trials: Sequence[FrozenTrial], best: FrozenTrial | None, interrupted: Collection[int]
) -> Mapping[str, str]:
    words = Counter(_word(trial, interrupted) for trial in trials)
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
    facts["Time in all"] = duration(covered_seconds(trials) + opening)
    if opening >= 1:
        facts["Of it features and photos"] = duration(opening)
    facts["Mean time of a trial"] = duration(sum(seconds) / len(seconds)) if seconds else NOTHING
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
            _word(trial, interrupted) + (", best" if trial is best else ""),
            score(metric, trial.value),
            str(len(trial.intermediate_values)),
            _seconds(trial),
            *(text(trial.params.get(name)) for name in parameters),
            *(score(name, trial.user_attrs.get(name)) for name in attributes),
            *(text(trial.user_attrs.get(FAILURE_REASON)) for _ in reasons),
        )
        for trial in trials
    )
    columns = ("Trial", "State", metric, "Epochs", "Seconds", *parameters, *attributes, *reasons)
    return Table(columns, rows, best_row=best.number if best else None)


def _plots(
    study: Study,
    trials: Sequence[FrozenTrial],
    completed: Sequence[FrozenTrial],
    best: FrozenTrial | None,
    interrupted: Collection[int],
) -> list[InteractivePlot]:
    """Draw the plots for which there is enough data."""
    metric = metric_name(study)
    maximize = study.direction.name == "MAXIMIZE"
    varying = varying_parameters(completed)
    ranked = rankable_parameters(study)
    plots = []
    if completed:
        history = visualization.plot_optimization_history(study, target_name=metric)
        history.update_traces(marker_size=9, selector={"mode": "markers"})
        history.update_traces(name="best so far", selector={"mode": "lines"})
        history.update_layout(xaxis={"title": "trial", **whole_ticks(completed[-1].number)})
        values = list(map(objective_value, completed))
        unflatten(history, metric, values)
        best_so_far = [(max if maximize else min)(values[: i + 1]) for i in range(len(values))]
        plots.append(
            InteractivePlot(
                "Optimization history",
                "Each dot is a finished trial and the line is the best value so far: once it has "
                "been flat for long, more trials of this search space bring little.",
                figure_json(history),
                Table(
                    ("Trial", metric, "Best so far"),
                    tuple(
                        (str(trial.number), text(value), text(so_far))
                        for trial, value, so_far in zip(completed, values, best_so_far, strict=True)
                    ),
                ),
            )
        )
    if any(trial.intermediate_values for trial in trials):
        plots.append(
            InteractivePlot(
                "Learning curves",
                f"Each line is the {metric} of one trial by epoch, the thick one is the best "
                "trial's, and a dotted line ends where the trial was pruned or failed.",
                figure_json(_learning_curves(metric, trials, best, interrupted)),
                _learning_curve_table(trials),
            )
        )
    if ranked:
        importances = optuna.importance.get_param_importances(study, params=ranked)
        figure = visualization.plot_param_importances(study, params=ranked, target_name=metric)
        # Room for the number beside the longest bar.
        figure.update_xaxes(title="share of importance", range=[0, 1.2 * max(importances.values())])
        figure.update_yaxes(title=None)
        plots.append(
            InteractivePlot(
                "Parameter importance",
                "The longer a bar, the more that parameter sets the best tenth of the trials apart "
                "from the rest; with fewer than 50 finished trials take it as a hint.",
                figure_json(figure),
                Table(
                    ("Parameter", "Importance"),
                    tuple((name, f"{share:.3f}") for name, share in importances.items()),
                ),
            )
        )
    if varying:
        points = Table(
            ("Trial", metric, *varying),
            tuple(
                (
                    str(trial.number),
                    text(trial.value),
                    *(text(trial.params.get(name)) for name in varying),
                )
                for trial in completed
            ),
        )
        figure = visualization.plot_slice(study, params=varying, target_name=metric)
        # On a telephone there is room for the panels only; the caption says what the colours are.
        figure.update_traces(marker={"size": 9, "colorscale": [[0, SKY], [1, BLUE]], "showscale": False})
        for axis in figure.select_xaxes(lambda axis: axis.type == "log"):
            tried = [trial.params[axis.title.text] for trial in completed if axis.title.text in trial.params]
            if max(tried) >= 100 * min(tried):
                axis.dtick = 1  # a number at each power of ten alone: there is no room for 2 and 5 between them
        unflatten(figure, metric, map(objective_value, completed))
        for axis in figure.select_xaxes(lambda axis: axis.type != "log"):
            values_of = {trial.params.get(axis.title.text) for trial in completed}
            if all(isinstance(value, int) for value in values_of) and len(values_of) <= MAX_WHOLE_TICKS:
                axis.tickvals = sorted(values_of)
        short = {name: name.rpartition(".")[2] for name in varying}
        if len(set(short.values())) == len(varying):
            figure.for_each_xaxis(lambda axis: axis.update(title=short[axis.title.text]))
        # Optuna gives many panels a fixed width; here they share what the page has.
        figure.update_layout(width=None)
        plots.append(
            InteractivePlot(
                "Slices",
                f"Each panel shows the {metric} of the finished trials against one parameter: look "
                "for the range where the good values gather, and widen the space if that is at its "
                "edge. The darker a dot, the later its trial.",
                figure_json(figure),
                points,
                min_width_px=50 + 150 * len(varying),
            )
        )
        figure = visualization.plot_parallel_coordinate(study, params=varying, target_name=metric)
        _color_by_quality(figure, maximize=maximize)
        plots.append(
            InteractivePlot(
                "Parallel coordinates",
                f"Each line is a finished trial, from its {metric} on the left through its "
                "parameters: see which settings the blue lines, the best trials, share.",
                figure_json(figure),
                points,
                min_width_px=100 + 130 * (len(varying) + 1),
            )
        )
    started = [trial for trial in trials if trial.datetime_start is not None]
    if started:
        timeline = visualization.plot_timeline(study)
        for bars in timeline.data:
            of_state = {_word(trial, interrupted) for trial in trials if trial.state.name == bars.name}
            bars.update(marker_color=STATE_COLORS[bars.name], name=" or ".join(sorted(of_state)))
        timeline.update_layout(xaxis_title="time", yaxis={"title": "trial", **whole_ticks(trials[-1].number)})
        plots.append(
            InteractivePlot(
                "Timeline",
                "Each bar is a trial from start to end, coloured by how it ended: bars one over "
                "another ran at the same time, and gaps are time in which nothing ran.",
                figure_json(timeline),
                Table(
                    ("Trial", "State", "Start", "End", "Seconds"),
                    tuple(
                        (
                            str(trial.number),
                            _word(trial, interrupted),
                            f"{trial.datetime_start:%Y-%m-%d %H:%M:%S}",
                            f"{trial.datetime_complete:%Y-%m-%d %H:%M:%S}" if trial.datetime_complete else NOTHING,
                            _seconds(trial),
                        )
                        for trial in started
                    ),
                ),
            )
        )
    return plots


def _learning_curves(
    metric: str, trials: Sequence[FrozenTrial], best: FrozenTrial | None, interrupted: Collection[int]
) -> go.Figure:
    figure = go.Figure()
    named: set[str] = set()
    # The best trial is drawn last, over the others.
    for trial in sorted(trials, key=lambda trial: trial is best):
        group = f"best: trial {trial.number}" if trial is best else _word(trial, interrupted)
        steps = sorted(trial.intermediate_values)
        figure.add_scatter(
            x=steps,
            y=[trial.intermediate_values[step] for step in steps],
            mode="lines+markers",
            line={
                "width": 4 if trial is best else 1.5,
                "color": VERMILLION if trial is best else BLUE,
                "dash": "dot" if trial.state in (TrialState.PRUNED, TrialState.FAIL) else "solid",
            },
            marker={"size": 7 if trial is best else 4},
            opacity=1 if trial is best else 0.8,
            name=group,
            legendgroup=group,
            showlegend=group not in named,
            hovertemplate=f"trial {trial.number}, epoch %{{x}}: %{{y:.4g}}<extra></extra>",
        )
        named.add(group)
    figure.update_layout(yaxis_title=metric)
    unflatten(figure, metric, (value for trial in trials for value in trial.intermediate_values.values()))
    name_epochs(figure, max(step for trial in trials for step in trial.intermediate_values))
    return figure


def _learning_curve_table(trials: Sequence[FrozenTrial]) -> Table:
    epochs = sorted({step for trial in trials for step in trial.intermediate_values})
    return Table(
        ("Trial", *(f"Epoch {epoch}" for epoch in epochs)),
        tuple(
            (str(trial.number), *(text(trial.intermediate_values.get(epoch)) for epoch in epochs))
            for trial in trials
            if trial.intermediate_values
        ),
    )


def _color_by_quality(figure: go.Figure, *, maximize: bool) -> None:
    """Give the lines of a parallel coordinate plot colours that stand out on light and on dark."""
    for trace in figure.data:
        if trace.mode == "lines":
            # The first axis is the objective, scaled to 0..1.
            quality = trace.y[0] if maximize else 1 - trace.y[0]
            (trace.line.color,) = sample_colorscale(_QUALITY_SCALE, [quality])
        else:
            trace.marker.colorscale = _QUALITY_SCALE
            trace.marker.reversescale = not maximize
    figure.update_traces(opacity=0.8)


def _seconds(trial: FrozenTrial) -> str:
    return f"{seconds:.1f}" if (seconds := trial_seconds(trial)) is not None else NOTHING
