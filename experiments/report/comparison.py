"""The comparison of a report: the best run of every origin, time and cost, and the errors of the best run."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from PIL import Image

from experiments.config import RunConfig, decides_result, is_own_in_job, to_flat
from experiments.console import duration
from experiments.data.datasets import photo_root
from experiments.figures.pictures import CONFUSION, ERRORS, PER_CLASS, thumbnail
from experiments.figures.run_figures import MAX_BARS, MAX_CLASSES_WITH_COUNTS
from experiments.figures.style import short
from experiments.report.compared_runs import ComparedRun, best_run, config_of, location_options, options_to_repeat
from experiments.report.page import (
    NOTHING,
    InteractivePlot,
    Photo,
    Table,
    figure_json,
    name_epochs,
    plotly_text,
    text,
    unflatten,
)
from experiments.runs.folder import ORIGINS
from experiments.runs.intervals import bracketed, interval_text, metric_interval, selection_text, wilson_interval
from experiments.study.epochs import EPOCHS, train_longer
from lightning_modules.metrics import (
    TEST_ACCURACY,
    TRAIN_ACCURACY,
    TRAIN_LOSS,
    VAL_ACCURACY,
    VAL_LOSS,
)
from lightning_modules.palette import BLUE, GREEN, SKY, VERMILLION

LOOKS: Mapping[str, tuple[str, str]] = {
    "local": (BLUE, "circle"),
    "rehearsal": (GREEN, "diamond"),
    "sagemaker": (VERMILLION, "square"),
}
"""Colour and marker of each origin: colour is never the only distinction."""
DATA_FACTS: Mapping[str, str] = {
    "Classes": "data.classes",
    "Training photos": "data.train_images",
    "Validation photos": "data.valid_images",
    "Test photos": "data.test_images",
    "Files left out": "data.bad_files",
    "Photos in two splits": "data.leaked_images",
}
"""Names on the page of a run's facts about its data."""
MAX_CLASS_NAMES = 40
MAX_CONFUSIONS = 200
"""Rows of a table of confusions or classes: more are left out, and the caption says so."""


@dataclass(frozen=True)
class Errors:
    """Wrong predictions of a run."""

    of: str
    note: str
    """A sentence about missing data and how to get it."""
    plots: tuple[InteractivePlot, ...]
    pictures: tuple[Photo, ...]
    table: Table


@dataclass(frozen=True)
class Comparison:
    """The comparison of runs of every origin on the same photos."""

    photos: str
    """The name of the data set."""
    summary: str
    facts: Mapping[str, str]
    data: Table
    """Facts about the photos."""
    best_of_each: Table
    plots: tuple[InteractivePlot, ...]
    findings: Table
    errors: Errors
    commands: Mapping[str, str]
    """The commands that repeat the best run, at home and in the cloud."""
    environment: Table


def compare(
    runs: Sequence[ComparedRun],
    at_home: RunConfig,
    *,
    class_names: Sequence[str] = (),
    metric: str = VAL_LOSS,
    maximize: bool = False,
) -> Comparison | None:
    """Compare runs.

    Args:
        runs: complete runs on the same photos.
        at_home: config with photos and weights of this machine.
        class_names: of the photos, as far as they are known.
        metric: the objective, which says which run is the best.

    Returns:
        None if none of them has the metric.
    """
    best = best_run(runs, metric, maximize=maximize)
    if best is None:
        return None
    origins = [origin for origin in LOOKS if any(run.origin == origin for run in runs)]
    best_of_each = [
        found
        for origin in origins
        if (found := best_run([run for run in runs if run.origin == origin], metric, maximize=maximize)) is not None
    ]
    root = photo_root(at_home.data)
    repeated, locations = config_of(best, at_home), location_options(to_flat(at_home))
    options = {command: f"{options_to_repeat(repeated, command)} {locations}" for command in ("train", "cloud train")}
    return Comparison(
        photos=root.name,
        summary=_summary(best, runs, metric),
        facts={
            "Best run": best.name,
            f"Best {metric}": _score(best, metric),
            "Its val_accuracy": _score(best, VAL_ACCURACY),
            "Its test_accuracy": _test_accuracy(best, runs),
            "Runs compared": str(len(runs)),
        },
        data=_data_table(best, root, class_names),
        best_of_each=_best_table(best_of_each, runs),
        plots=(*_trade_offs(runs, best), *_curves(best_of_each)),
        findings=_findings(runs, [(run, _train_longer(run, metric, maximize=maximize)) for run in best_of_each]),
        errors=_errors(best, runs, metric, at_home, maximize=maximize),
        commands={
            "at home": f"python -m experiments train {options['train']}",
            "in the cloud": f"python -m sagemaker_launch train {options['cloud train']} --cloud mine.yaml",
        },
        environment=Table(("What", "Value"), tuple(best.environment.items())),
    )


def _score(run: ComparedRun, metric: str) -> str:
    """A metric of a run, an accuracy with its interval."""
    value = run.metrics.get(metric)
    return text(value) + interval_text(metric, value, run.params)


def _test_accuracy(run: ComparedRun, runs: Sequence[ComparedRun]) -> str:
    """The test accuracy of a run. A trial has none: then that of the last `train --from-best` of the trial."""
    if TEST_ACCURACY in run.metrics or run.trial is None:
        return _score(run, TEST_ACCURACY)
    retrained = [other for other in runs if other.trial == run.trial and TEST_ACCURACY in other.metrics]
    return f"{_score(retrained[-1], TEST_ACCURACY)} (train --from-best)" if retrained else NOTHING


def _summary(best: ComparedRun, runs: Sequence[ComparedRun], metric: str) -> str:
    counts = {origin: sum(run.origin == origin for run in runs) for origin in LOOKS}
    origin_counts = [
        f"{count} {ORIGINS[origin]}{'s' if count > 1 and origin != 'local' else ''}"
        for origin, count in counts.items()
        if count
    ]
    of = f"Of {len(runs)} runs ({', '.join(origin_counts)}) the best is" if len(runs) > 1 else "The one run is"
    accuracy = best.metrics.get(VAL_ACCURACY)
    right = ""
    if accuracy is not None:
        interval = interval_text(VAL_ACCURACY, accuracy, best.params, ".1%")
        right = f"{accuracy:.1%}{interval} of the validation photos named right, "
    chosen = f" It is the {selection_text(len(runs), 'run', best.params)}." if len(runs) > 1 else ""
    took = "" if best.minutes is None else f" in {duration(60 * best.minutes, exact=True)}"
    cost = "" if best.usd is None else f" for ${_dollars(best)}"
    return (
        f"{of} {best.name} ({ORIGINS[best.origin]}): {right}{metric} {text(best.metrics[metric])}{took}{cost}.{chosen}"
    )


def _data_table(run: ComparedRun, root: Path, class_names: Sequence[str]) -> Table:
    """The photos of a run: their folder, classes and number, and files that are bad or in two splits."""
    shown = ", ".join(class_names[:MAX_CLASS_NAMES]) + (", …" if len(class_names) > MAX_CLASS_NAMES else "")
    facts = {"Folder": str(root)}
    for label, key in DATA_FACTS.items():
        if key in run.params:
            facts[label] = run.params[key]
    if shown and "Classes" in facts:
        facts["Classes"] += f": {shown}"
    if run.fingerprint is not None:
        facts["Fingerprint"] = run.fingerprint[:12]
    return Table(("What", "Value"), tuple(facts.items()))


def _best_table(best: Sequence[ComparedRun], runs: Sequence[ComparedRun]) -> Table:
    fields = [
        name
        for name in to_flat(RunConfig())
        if decides_result(name) and not is_own_in_job(name) and len({run.params.get(name) for run in best}) > 1
    ]
    numbers = (VAL_LOSS, VAL_ACCURACY)
    rows = tuple(
        (
            ORIGINS[run.origin],
            run.name,
            *(_score(run, name) for name in numbers),
            _test_accuracy(run, runs),
            NOTHING if run.minutes is None else _minutes(run.minutes),
            _dollars(run),
            run.machine or NOTHING,
            *(run.params.get(name, NOTHING) for name in fields),
        )
        for run in best
    )
    return Table(("Origin", "Run", *numbers, TEST_ACCURACY, "Minutes", "Dollars", "Machine", *fields), rows)


def _trade_offs(runs: Sequence[ComparedRun], best: ComparedRun) -> list[InteractivePlot]:
    """Accuracy against minutes, and against dollars if there are any."""
    timed = [run for run in runs if VAL_ACCURACY in run.metrics and run.minutes is not None]
    plots = []
    if timed:
        minutes = {run.name: run.minutes or 0.0 for run in timed}
        caption = (
            "Each mark is a run, its form and colour its origin, the largest one the best: the higher and the further "
            "left, the more accuracy for the time from start to end, waiting included. The bars are 95 % intervals."
        )
        plots.append(_scatter("Accuracy against minutes", caption, timed, best, minutes, "minutes"))
    if any(run.usd for run in timed):
        dollars = {run.name: run.usd or 0.0 for run in timed}
        caption = "The same runs by what they cost at AWS's list price; a run at home has 0, because it is not billed."
        plots.append(_scatter("Accuracy against dollars", caption, timed, best, dollars, "US dollars"))
    return plots


def _scatter(
    title: str, caption: str, runs: Sequence[ComparedRun], best: ComparedRun, costs: Mapping[str, float], unit: str
) -> InteractivePlot:
    figure = go.Figure()
    for origin, (color, symbol) in LOOKS.items():
        word = ORIGINS[origin]
        of_origin = [run for run in runs if run.origin == origin]
        if of_origin:
            figure.add_scatter(
                x=[costs[run.name] for run in of_origin],
                y=[run.metrics[VAL_ACCURACY] for run in of_origin],
                mode="markers",
                name=word,
                marker={"color": color, "symbol": symbol, "size": [18 if run is best else 10 for run in of_origin]},
                error_y=_error_bars(of_origin),
                text=[run.name for run in of_origin],
                hovertemplate=f"%{{text}}: %{{y:.3f}} for %{{x:.3g}} {unit}<extra>{word}</extra>",
            )
    figure.update_layout(
        xaxis={"title": unit, "rangemode": "tozero"}, yaxis={"title": VAL_ACCURACY, "tickformat": ".1~%"}
    )
    in_order = sorted(runs, key=lambda run: costs[run.name])
    rows = tuple(
        (run.name, ORIGINS[run.origin], _score(run, VAL_ACCURACY), _minutes(run.minutes or 0), _dollars(run))
        for run in in_order
    )
    return InteractivePlot(
        title,
        caption,
        figure_json(figure),
        Table(("Run", "Origin", VAL_ACCURACY, "Minutes", "Dollars"), rows, best_row=_index(in_order, best)),
    )


def _error_bars(runs: Sequence[ComparedRun]) -> Mapping[str, object]:
    """The intervals of the accuracies as plotly's error bars, of length 0 where there is no interval."""
    values = [run.metrics[VAL_ACCURACY] for run in runs]
    known = [metric_interval(VAL_ACCURACY, run.metrics[VAL_ACCURACY], run.params) for run in runs]
    bounds = [interval or (value, value) for interval, value in zip(known, values, strict=True)]
    return {
        "array": [high - value for (_, high), value in zip(bounds, values, strict=True)],
        "arrayminus": [value - low for (low, _), value in zip(bounds, values, strict=True)],
        "thickness": 1,
    }


def _index(runs: Sequence[ComparedRun], searched_run: ComparedRun) -> int | None:
    return next((index for index, run in enumerate(runs) if run is searched_run), None)


def _curves(best: Sequence[ComparedRun]) -> list[InteractivePlot]:
    """Loss and accuracy by epoch of the best run of each origin."""
    plots = []
    for title, trained, validated in (
        ("Loss by epoch", TRAIN_LOSS, VAL_LOSS),
        ("Accuracy by epoch", TRAIN_ACCURACY, VAL_ACCURACY),
    ):
        figure, rows = go.Figure(), []
        epochs = sorted({epoch for run in best for name in (trained, validated) for epoch in run.curves.get(name, {})})
        for index, run in enumerate(best):
            word, (color, symbol) = ORIGINS[run.origin], LOOKS[run.origin]
            for name, dash in ((validated, "solid"), (trained, "dash")):
                course = run.curves.get(name, {})
                if course:
                    steps = sorted(course)
                    figure.add_scatter(
                        x=steps,
                        y=[course[step] for step in steps],
                        mode="lines+markers",
                        name=f"{name}, {word}",
                        # Runs of two origins may have equal curves.
                        line={"color": color, "dash": dash, "width": 2 + 4 * (len(best) - 1 - index)},
                        marker={"symbol": symbol, "size": 7},
                        hovertemplate=f"{run.name}, epoch %{{x}}: %{{y:.4g}}<extra>{name}</extra>",
                    )
                    rows.append((run.name, name, *(text(course.get(epoch)) for epoch in epochs)))
        if rows:
            figure.update_layout(yaxis_title="share of the photos" if "acc" in trained else "nats")
            name_epochs(figure, epochs[-1])
            caption = (
                "The best run of each origin: solid on the validation photos, dashed on the training photos. Where the "
                "two part, the network learns its photos by heart; where both still fall or rise, more epochs help."
            )
            drawn = (
                value for run in best for name in (trained, validated) for value in run.curves.get(name, {}).values()
            )
            unflatten(figure, validated, drawn)
            columns = ("Run", "Metric", *(f"Epoch {epoch}" for epoch in epochs))
            plots.append(InteractivePlot(title, caption, figure_json(figure), Table(columns, tuple(rows))))
    return plots


def _findings(runs: Sequence[ComparedRun], advice: Sequence[tuple[ComparedRun, str]]) -> Table:
    """Findings of rules and profilers, one row each, also of rules that found nothing.

    Args:
        advice: the best run of each origin, and what to do about it.
    """
    rows = [(run.name, EPOCHS, found) for run, found in advice if found]
    rows += [(run.name, name, found) for run in runs for name, found in run.findings.items()]
    return Table(("Run", "Who says it", "What was found"), tuple(rows))


def _train_longer(run: ComparedRun, metric: str, *, maximize: bool) -> str:
    """The advice to train longer; nothing where it does not apply, or the longest training is not known."""
    course, max_epochs = run.curves.get(metric, {}), run.params.get(EPOCHS, "None")
    if not course or max_epochs == "None":
        return ""
    choose = max if maximize else min
    return train_longer(choose(course, key=course.__getitem__), int(max_epochs))


def _errors(
    best: ComparedRun, runs: Sequence[ComparedRun], metric: str, at_home: RunConfig, *, maximize: bool
) -> Errors:
    """Errors of the best run, or of the best one whose scores are on this machine."""
    scored = [run for run in runs if run.folder and (run.folder.artifacts / CONFUSION).is_file()]
    shown = best_run(scored, metric, maximize=maximize)
    note = ""
    if shown is not best:
        way = "train it here" if best.origin == "local" else "python -m sagemaker_launch sync --models JOB fetches them"
        note = f"The scores of {best.name} are not on this machine: {way}."
        note += f" What follows is of {shown.name}." if shown else ""
    if shown is None or shown.folder is None:
        return Errors(best.name, note, (), (), Table(("Photo",), ()))
    artifacts = shown.folder.artifacts
    split = "test" if TEST_ACCURACY in shown.metrics else "validation"
    errors, root = _read_csv(artifacts / ERRORS), photo_root(config_of(shown, at_home).data)
    return Errors(
        of=shown.name,
        note=note,
        plots=(
            _confusion_plot(_read_csv(artifacts / CONFUSION), split),
            _class_plot(_read_csv(artifacts / PER_CLASS), split),
        ),
        pictures=tuple(picture for row in errors[1:] if (picture := _error_photo(row, root)) is not None),
        table=Table(tuple(name.capitalize() for name in errors[0]), tuple(map(tuple, errors[1:]))),
    )


def _confusion_plot(rows: Sequence[Sequence[str]], split: str) -> InteractivePlot:
    names = rows[0][1:]
    counts = np.array([[int(cell) for cell in row[1:]] for row in rows[1:]])
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    few = len(names) <= MAX_CLASSES_WITH_COUNTS
    # Positions, not names, on the axes: two classes of one name would share a row.
    positions = list(range(len(names)))
    figure = go.Figure(
        go.Heatmap(
            z=share.tolist(),
            x=positions,
            y=positions,
            text=counts.tolist(),
            customdata=[[plotly_text(f"{true} taken for {predicted}") for predicted in names] for true in names],
            texttemplate="%{text}" if few else None,
            colorscale=[[0, "#FFFFFF"], [0.5, SKY], [1, "#00436B"]],
            zmin=0,
            zmax=100,
            colorbar={"title": "% of the class", "thickness": 12},
            showscale=not few,  # the counts say it
            hovertemplate="%{customdata}: %{text} photos, %{z:.0f} % of the class<extra></extra>",
        )
    )
    ticks = (
        {"tickvals": positions, "ticktext": [plotly_text(short(name)) for name in names]}
        if len(names) <= 45
        else {"showticklabels": False}
    )
    figure.update_layout(
        xaxis={"title": "predicted class", **ticks}, yaxis={"title": "true class", "autorange": "reversed", **ticks}
    )
    caption = f"A row is a true class of the {split} photos, its cells what they were taken for: the diagonal is right."
    if left_out := rows[0][0].partition("(")[2]:
        caption += f" It has {left_out.removesuffix(')')}."
    if few:
        return InteractivePlot(
            "Confusion matrix",
            caption,
            figure_json(figure),
            Table(("True class", *names), tuple(tuple(row) for row in rows[1:])),
            min_width_px=min(160 + 28 * len(names), 900),
            height_px=min(240 + 36 * len(names), 760),
        )
    wrong = [(int(counts[i, j]), names[i], names[j]) for i, j in np.argwhere(counts) if i != j]
    listed = sorted(wrong, key=lambda confusion: (-confusion[0], confusion[1:]))[:MAX_CONFUSIONS]
    caption += f" The table lists the {len(listed)} most frequent of {len(wrong)} confusions."
    table = Table(
        ("True class", "Taken for", "Photos"), tuple((true, predicted, str(count)) for count, true, predicted in listed)
    )
    return InteractivePlot("Confusion matrix", caption, figure_json(figure), table, min_width_px=640, height_px=680)


def _class_plot(rows: Sequence[Sequence[str]], split: str) -> InteractivePlot:
    worst_first = sorted((row for row in rows[1:] if row[2] != "nan"), key=lambda row: float(row[2]))
    half = MAX_BARS // 2
    shown = worst_first if len(worst_first) <= MAX_BARS else [*worst_first[:half], *worst_first[-half:]]
    positions = list(range(len(shown)))
    figure = go.Figure(
        go.Bar(
            x=[float(row[2]) for row in shown],
            y=positions,
            orientation="h",
            marker_color=BLUE,
            text=[f"{float(row[2]):.0%}" for row in shown],
            textposition="outside",
            cliponaxis=False,
            hovertext=[plotly_text(f"{row[0]}: {row[1]} photos") for row in shown],
        )
    )
    figure.update_layout(
        xaxis={"title": f"accuracy on {split} photos", "range": [0, 1.2], "tickformat": ".0%", "dtick": 0.25},
        yaxis={
            "autorange": "reversed",
            "tickvals": positions,
            "ticktext": [plotly_text(short(row[0])) for row in shown],
        },
    )
    few = "" if len(shown) == len(worst_first) else f" Of {len(worst_first)}, the {half} worst and the {half} best."
    if len(worst_first) > MAX_CONFUSIONS:
        few += f" The table lists the {MAX_CONFUSIONS} worst."
    return InteractivePlot(
        "Accuracy of each class",
        f"Worst first: more photos, or better ones, of the first classes help most.{few}",
        figure_json(figure),
        Table(
            ("Class", "Photos", "Accuracy", "95 % interval"),
            tuple(
                (row[0], row[1], text(float(row[2])), bracketed(wilson_interval(float(row[2]), int(row[1]))))
                for row in worst_first[:MAX_CONFUSIONS]
            ),
        ),
        height_px=140 + 24 * len(shown),
    )


def _error_photo(row: Sequence[str], root: Path) -> Photo | None:
    """A misclassified photo; None if this machine does not have it. The table lists it in either case."""
    photo, true, predicted, probability, of_true = row
    try:
        shown = thumbnail(root / photo)
    except (OSError, ValueError):
        return None
    content = io.BytesIO()
    Image.fromarray(shown).save(content, "JPEG", quality=85)
    # The probability by which the photos are sorted comes first.
    caption = f"{true} ({float(of_true):.2g}), taken for {predicted} ({float(probability):.2g})"
    return Photo(caption, f"Photo {photo}: {caption}", content.getvalue())


def _read_csv(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def _minutes(minutes: float) -> str:
    return f"{minutes:.2g}" if minutes < 10 else f"{minutes:.0f}"


def _dollars(run: ComparedRun) -> str:
    if run.usd is None:
        return NOTHING
    return f"{run.usd:.2f}" if run.usd >= 0.01 or run.usd == 0 else f"{run.usd:.4f}"
