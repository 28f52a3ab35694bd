"""The plots of a study: Optuna's own, drawn by plotly, with the colours and axes of our pages."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType

import optuna
import plotly.graph_objects as go
from optuna import Study, visualization
from optuna.trial import FrozenTrial, TrialState
from plotly.colors import sample_colorscale

from experiments.report.page import (
    NOTHING,
    InteractivePlot,
    Table,
    figure_json,
    name_epochs,
    text,
    unflatten,
    whole_ticks,
)
from experiments.study.study import completed_trials, has_diverged, metric_name, objective_value, trial_seconds
from lightning_modules.palette import BLUE, GREEN, GREY, SKY, VERMILLION

STATE_WORDS: Mapping[TrialState, str] = MappingProxyType(
    {
        TrialState.COMPLETE: "finished",
        TrialState.PRUNED: "pruned",
        TrialState.FAIL: "failed",
        TrialState.RUNNING: "running",
        TrialState.WAITING: "waiting",
    }
)
STATE_COLORS: Mapping[str, str] = MappingProxyType(
    {"COMPLETE": BLUE, "PRUNED": SKY, "FAIL": VERMILLION, "RUNNING": GREEN, "WAITING": GREY}
)
MAX_WHOLE_TICKS = 8
"""Largest number of integer ticks that fit below one panel."""
# From worst to best, with 3:1 contrast against the light and the dark page alike.
_QUALITY_SCALE = [VERMILLION, GREY, BLUE]


def study_plots(
    study: Study, trials: Sequence[FrozenTrial], best: FrozenTrial | None, interrupted: Collection[int]
) -> list[InteractivePlot]:
    """Draw the plots for which there is enough data.

    Args:
        trials: all of the study.
        interrupted: numbers of unfinished trials that no process trains.
    """
    completed = completed_trials(study)
    varying, ranked = varying_parameters(completed), rankable_parameters(study)
    plots = []
    if completed:
        plots.append(_history_plot(study, completed))
    if any(trial.intermediate_values for trial in trials):
        plots.append(_curves_plot(metric_name(study), trials, best, interrupted))
    if ranked:
        plots.append(_importance_plot(study, ranked))
    if varying:
        points = _points(metric_name(study), completed, varying)
        plots.append(_slice_plot(study, completed, varying, points))
        plots.append(_parallel_plot(study, varying, points))
    if any(trial.datetime_start is not None for trial in trials):
        plots.append(_timeline_plot(study, trials, interrupted))
    return plots


def _history_plot(study: Study, completed: Sequence[FrozenTrial]) -> InteractivePlot:
    metric, choose = metric_name(study), max if study.direction.name == "MAXIMIZE" else min
    history = visualization.plot_optimization_history(study, target_name=metric)
    history.update_traces(marker_size=9, selector={"mode": "markers"})
    history.update_traces(name="best so far", selector={"mode": "lines"})
    history.update_layout(xaxis={"title": "trial", **whole_ticks(completed[-1].number)})
    values = list(map(objective_value, completed))
    unflatten(history, metric, values)
    best_so_far = [choose(values[: i + 1]) for i in range(len(values))]
    return InteractivePlot(
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


def _curves_plot(
    metric: str, trials: Sequence[FrozenTrial], best: FrozenTrial | None, interrupted: Collection[int]
) -> InteractivePlot:
    return InteractivePlot(
        "Learning curves",
        f"Each line is the {metric} of one trial by epoch, the thick one is the best "
        "trial's, and a dotted line ends where the trial was pruned or failed.",
        figure_json(_learning_curves(metric, trials, best, interrupted)),
        _learning_curve_table(trials),
    )


def _importance_plot(study: Study, ranked: list[str]) -> InteractivePlot:
    metric = metric_name(study)
    importances = optuna.importance.get_param_importances(study, params=ranked)
    figure = visualization.plot_param_importances(study, params=ranked, target_name=metric)
    # Room for the number beside the longest bar.
    figure.update_xaxes(title="share of importance", range=[0, 1.2 * max(importances.values())])
    figure.update_yaxes(title=None)
    return InteractivePlot(
        "Parameter importance",
        "The longer a bar, the more that parameter sets the best tenth of the trials apart "
        "from the rest; with fewer than 50 finished trials take it as a hint.",
        figure_json(figure),
        Table(
            ("Parameter", "Importance"),
            tuple((name, f"{share:.3f}") for name, share in importances.items()),
        ),
    )


def _points(metric: str, completed: Sequence[FrozenTrial], varying: Sequence[str]) -> Table:
    """The finished trials with the parameters that vary."""
    return Table(
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


def _slice_plot(study: Study, completed: Sequence[FrozenTrial], varying: list[str], points: Table) -> InteractivePlot:
    metric = metric_name(study)
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
    return InteractivePlot(
        "Slices",
        f"Each panel shows the {metric} of the finished trials against one parameter: look "
        "for the range where the good values gather, and widen the space if that is at its "
        "edge. The darker a dot, the later its trial.",
        figure_json(figure),
        points,
        min_width_px=50 + 150 * len(varying),
    )


def _parallel_plot(study: Study, varying: list[str], points: Table) -> InteractivePlot:
    metric = metric_name(study)
    figure = visualization.plot_parallel_coordinate(study, params=varying, target_name=metric)
    _color_by_quality(figure, maximize=study.direction.name == "MAXIMIZE")
    return InteractivePlot(
        "Parallel coordinates",
        f"Each line is a finished trial, from its {metric} on the left through its "
        "parameters: see which settings the blue lines, the best trials, share.",
        figure_json(figure),
        points,
        min_width_px=100 + 130 * (len(varying) + 1),
    )


def _timeline_plot(study: Study, trials: Sequence[FrozenTrial], interrupted: Collection[int]) -> InteractivePlot:
    started = [trial for trial in trials if trial.datetime_start is not None]
    timeline = visualization.plot_timeline(study)
    for bars in timeline.data:
        of_state = {state_word(trial, interrupted) for trial in trials if trial.state.name == bars.name}
        bars.update(marker_color=STATE_COLORS[bars.name], name=" or ".join(sorted(of_state)))
    timeline.update_layout(xaxis_title="time", yaxis={"title": "trial", **whole_ticks(trials[-1].number)})
    return InteractivePlot(
        "Timeline",
        "Each bar is a trial from start to end, coloured by how it ended: bars one over "
        "another ran at the same time, and gaps are time in which nothing ran.",
        figure_json(timeline),
        Table(
            ("Trial", "State", "Start", "End", "Seconds"),
            tuple(
                (
                    str(trial.number),
                    state_word(trial, interrupted),
                    f"{trial.datetime_start:%Y-%m-%d %H:%M:%S}",
                    f"{trial.datetime_complete:%Y-%m-%d %H:%M:%S}" if trial.datetime_complete else NOTHING,
                    seconds_text(trial),
                )
                for trial in started
            ),
        ),
    )


def state_word(trial: FrozenTrial, interrupted: Collection[int]) -> str:
    """The state of a trial; a running trial that no process trains is interrupted."""
    if trial.number in interrupted:
        return "interrupted"
    return "diverged" if has_diverged(trial) else STATE_WORDS[trial.state]


def seconds_text(trial: FrozenTrial) -> str:
    """How long a trial took, for a column of seconds."""
    return f"{seconds:.1f}" if (seconds := trial_seconds(trial)) is not None else NOTHING


def _learning_curves(
    metric: str, trials: Sequence[FrozenTrial], best: FrozenTrial | None, interrupted: Collection[int]
) -> go.Figure:
    figure = go.Figure()
    # One trace for all trials that look alike, with gaps between them: a thousand traces take plotly and a browser
    # seconds. The best trial is drawn last, over the others.
    alike: dict[tuple[str, bool], list[FrozenTrial]] = {}
    for trial in sorted(trials, key=lambda trial: trial is best):
        group = f"best: trial {trial.number}" if trial is best else state_word(trial, interrupted)
        alike.setdefault((group, trial.state in (TrialState.PRUNED, TrialState.FAIL)), []).append(trial)
    for (group, is_dotted), members in alike.items():
        is_best = members == [best]
        points: list[tuple[int | None, float | None, int | None]] = []
        for trial in members:
            points += [(None, None, None)] if points else []
            points += [(step, value, trial.number) for step, value in sorted(trial.intermediate_values.items())]
        figure.add_scatter(
            x=[step for step, _, _ in points],
            y=[value for _, value, _ in points],
            customdata=[number for _, _, number in points],
            mode="lines+markers",
            line={
                "width": 4 if is_best else 1.5,
                "color": VERMILLION if is_best else BLUE,
                "dash": "dot" if is_dotted else "solid",
            },
            marker={"size": 7 if is_best else 4},
            opacity=1 if is_best else 0.8,
            name=group,
            hovertemplate="trial %{customdata}, epoch %{x}: %{y:.4g}<extra></extra>",
        )
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
    """Give the lines of a parallel coordinate plot colours that are visible on light and dark pages."""
    for trace in figure.data:
        if trace.mode == "lines":
            # The first axis is the objective, scaled to 0..1.
            quality = trace.y[0] if maximize else 1 - trace.y[0]
            (trace.line.color,) = sample_colorscale(_QUALITY_SCALE, [quality])
        else:
            trace.marker.colorscale = _QUALITY_SCALE
            trace.marker.reversescale = not maximize
    figure.update_traces(opacity=0.8)


def varying_parameters(trials: Iterable[FrozenTrial]) -> list[str]:
    """Name the parameters that took more than one value; the others span no axis."""
    values: dict[str, set[object]] = {}
    for trial in trials:
        for name, value in trial.params.items():
            values.setdefault(name, set()).add(value)
    return sorted(name for name, distinct in values.items() if len(distinct) > 1)


def rankable_parameters(study: Study) -> list[str]:
    """Name the parameters whose importance the completed trials can tell.

    Optuna's estimate compares the best tenth of the trials with all of them, so that tenth must
    differ from them; and each range that a parameter was drawn from, absence included, needs two trials.

    Source: `optuna.importance.PedAnovaImportanceEvaluator`, Optuna 5.0.
    """
    trials = completed_trials(study)
    best_first = sorted(map(objective_value, trials), reverse=study.direction.name == "MAXIMIZE")
    if not best_first or best_first[math.ceil(len(trials) / 10) - 1] == best_first[-1]:
        return []
    return [
        name
        for name in varying_parameters(trials)
        if min(Counter(trial.distributions.get(name) for trial in trials).values()) >= 2
    ]
