"""Compare two runs of one experiment: are their metrics equal in each epoch, and if not, what else differs?

`compare` reads the two run folders; `write_parity` writes its result as a page and a JSON file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.config import decides_result, field_names
from experiments.report.page import NOTHING, Plot, Table, render_page, to_png
from experiments.runs.folder import FINGERPRINT, ORIGINS, PACKAGE_TAG, RunFolder, RunRecord
from lightning_modules.metrics import EPOCH_SECONDS, IMAGES_PER_SECOND, OBJECTIVES
from lightning_modules.palette import BLUE, VERMILLION

PAGE, DATA = "parity.html", "parity.json"
BY_CLOCK = ("system/", EPOCH_SECONDS, IMAGES_PER_SECOND, "training_seconds", "billable_seconds", "spot_saving", "usd")
"""Metrics, or prefixes of their names, that differ in every run."""
ENVIRONMENT = (PACKAGE_TAG, "hardware.", "cloud.", "python", "host", "origin", "mlflow.source.git.commit")
"""Tags and params, or prefixes of their names, that say where a run was made."""


@dataclass(frozen=True)
class Pair:
    """The values of a metric in both runs, at an epoch or at the end."""

    metric: str
    epoch: int | None
    first: float | None
    second: float | None

    @property
    def is_whole(self) -> bool:
        """Whether both runs have the metric."""
        return self.first is not None and self.second is not None

    @property
    def difference(self) -> float:
        """The second value minus the first: 0 if they are equal to the last digit, NaN if one is missing or NaN."""
        if self.first is None or self.second is None:
            return math.nan
        alike = self.first == self.second or (math.isnan(self.first) and math.isnan(self.second))
        return 0.0 if alike else self.second - self.first

    @property
    def distance(self) -> float:
        """How far apart the two are; what is no number is farthest."""
        return math.inf if math.isnan(self.difference) else abs(self.difference)

    @property
    def position(self) -> str:
        """When the values were recorded: after an epoch or at the end of the run."""
        return "at the end" if self.epoch is None else f"epoch {self.epoch}"


@dataclass(frozen=True)
class Setting:
    """The values of two runs under one name."""

    name: str
    first: str | None
    second: str | None
    decisive: bool = False
    """Whether runs that differ in it are different experiments."""

    @property
    def is_equal(self) -> bool:
        """Whether both runs have the same value. Jobs of older versions noted `false` for `False`."""
        return None not in (self.first, self.second) and str(self.first).lower() == str(self.second).lower()

    @property
    def contradicts(self) -> bool:
        """Whether it makes the runs different experiments. A value that one run did not note is no contradiction."""
        return self.decisive and None not in (self.first, self.second) and not self.is_equal


@dataclass(frozen=True)
class Parity:
    """The comparison of two runs."""

    labels: tuple[str, str]
    names: tuple[str, str]
    epochs: tuple[int, int]
    """Number of epochs of each run."""
    pairs: tuple[Pair, ...]
    """Metrics that must be equal."""
    by_clock: tuple[Pair, ...]
    """Metrics that depend on the clock, as means over the run."""
    settings: tuple[Setting, ...]
    environment: tuple[Setting, ...]

    @property
    def contradictions(self) -> list[Setting]:
        """Settings that make them different experiments."""
        return [setting for setting in self.settings if setting.contradicts]

    @property
    def unlike_packages(self) -> list[Setting]:
        """Packages of which the runs had other versions."""
        return [found for found in self.environment if found.name.startswith(PACKAGE_TAG) and not found.is_equal]

    @property
    def packages(self) -> str:
        """The versions that differ, in one line."""
        differing = (
            f"{found.name.removeprefix(PACKAGE_TAG)} {found.first or 'missing'} and {found.second or 'missing'}"
            for found in self.unlike_packages
        )
        return f"versions of packages: {', '.join(differing) or 'equal'}"

    @property
    def common(self) -> list[Pair]:
        """The pairs that both runs have, which decide the verdict."""
        return [pair for pair in self.pairs if pair.is_whole]

    @property
    def is_equal(self) -> bool:
        """Whether all common values are equal to the last digit, over equally many epochs."""
        return bool(self.common) and self.epochs[0] == self.epochs[1] and not any(pair.distance for pair in self.common)

    @property
    def result(self) -> str:
        """The verdict about the metrics."""
        if not self.common:
            return "nothing to compare: the runs have no metric in common"
        metrics = {pair.metric for pair in self.common}
        differing = [pair for pair in self.common if pair.distance]
        differing_metrics = list(dict.fromkeys(pair.metric for pair in differing))
        statements = [] if self.epochs[0] == self.epochs[1] else [f"{self.epochs[0]} and {self.epochs[1]} epochs"]
        if differing:
            # The objective if there is one, else the first metric.
            named = next((name for name in OBJECTIVES if name in differing_metrics), differing_metrics[0])
            worst = max((pair for pair in differing if pair.metric == named), key=lambda pair: pair.distance)
            others = (
                f", and {len(differing_metrics) - 1} more of {len(metrics)} metrics"
                if len(differing_metrics) > 1
                else ""
            )
            statements.append(f"{named} by up to {worst.distance:.2g} ({worst.position}){others}")
        else:
            statements.append(f"equal to the last digit: {len(metrics)} metrics, {min(self.epochs)} epochs")
        return "; ".join(statements) if self.is_equal else f"differs: {'; '.join(statements)}"

    @property
    def verdict(self) -> str:
        """The verdict in one line."""
        if not self.contradictions:
            return self.result
        contradictions = (f"{setting.name} is {setting.first} and {setting.second}" for setting in self.contradictions)
        return f"not the same experiment ({', '.join(contradictions)}): {self.result}"


def compare(first: RunFolder, second: RunFolder) -> Parity:
    """Compare two runs that have ended."""
    records = first.read(), second.read()
    settings, environment = [], []
    of_first, of_second = ({**record.params, **record.tags} for record in records)
    for name in sorted({*of_first, *of_second}):
        values = of_first.get(name), of_second.get(name)
        if name.startswith(ENVIRONMENT):
            environment.append(Setting(name, *values))
        elif name in field_names() or name.startswith("data."):
            settings.append(Setting(name, *values, decisive=_is_decisive(name, *values)))
    courses = _course(first), _course(second)
    pairs = [*_pairs(*courses), *_pairs(_end(first), _end(second))]
    return Parity(
        labels=_labels(*records),
        names=(records[0].name, records[1].name),
        epochs=(_epochs(courses[0]), _epochs(courses[1])),
        pairs=tuple(pair for pair in pairs if not pair.metric.startswith(BY_CLOCK)),
        by_clock=tuple(pair for pair in _pairs(_means(first), _means(second)) if pair.metric.startswith(BY_CLOCK)),
        settings=tuple(settings),
        environment=tuple(environment),
    )


_Numbers = Mapping[tuple[str, int | None], float]
"""Metric and epoch, or None for the end, to value."""


def _course(folder: RunFolder) -> _Numbers:
    return {(name, line.step): value for line in folder.metric_lines() for name, value in line.metrics.items()}


def _end(folder: RunFolder) -> _Numbers:
    return {(name, None): value for name, value in folder.final_metrics().items()}


def _means(folder: RunFolder) -> _Numbers:
    """Means over epochs and samples, and values of the whole run."""
    values: dict[str, list[float]] = {}
    for line in [*folder.metric_lines(), *folder.system_lines()]:
        for name, value in line.metrics.items():
            values.setdefault(name, []).append(value)
    means: _Numbers = {(name, None): math.fsum(of_name) / len(of_name) for name, of_name in values.items()}
    return {**means, **_end(folder)}


def _pairs(first: _Numbers, second: _Numbers) -> list[Pair]:
    keys = sorted({*first, *second}, key=lambda key: (key[1] or 0, key[0]))
    return [Pair(*key, first.get(key), second.get(key)) for key in keys]


def _epochs(course: _Numbers) -> int:
    return len({epoch for _, epoch in course})


def _is_decisive(name: str, first: str | None, second: str | None) -> bool:
    if name == "model.weights":  # a job has the file, without its folder at home
        return Path(str(first)).name != Path(str(second)).name
    return name not in field_names() or decides_result(name)  # all other names are facts about the photos


def _labels(first: RunRecord, second: RunRecord) -> tuple[str, str]:
    """Names of the runs: by origin, or by their own names if the origins are equal."""
    first_label, second_label = (ORIGINS.get(record.tags.get("origin", ""), record.name) for record in (first, second))
    if first_label == second_label:
        first_label, second_label = first.name, second.name
    return (
        (first_label, second_label)
        if first_label != second_label
        else (f"{first_label}, first", f"{second_label}, second")
    )


def write_parity(parity: Parity, folders: Sequence[RunFolder]) -> list[Path]:
    """Write the page and its numbers into the artifacts of runs.

    Returns:
        The pages.
    """
    page, data = parity_page(parity), parity_json(parity)
    for folder in folders:
        folder.artifacts.mkdir(parents=True, exist_ok=True)
        (folder.artifacts / PAGE).write_text(page, encoding="utf-8")
        (folder.artifacts / DATA).write_text(data, encoding="utf-8")
    return [folder.artifacts / PAGE for folder in folders]


def parity_json(parity: Parity) -> str:
    """The compared values and the verdict."""
    same = not parity.contradictions
    found = {"verdict": parity.verdict, "equal": parity.is_equal, "same_experiment": same, **asdict(parity)}
    return json.dumps(found, indent=1)


def parity_page(parity: Parity) -> str:
    """The page, which needs no network and no scripts."""
    courses: dict[str, list[Pair]] = {}
    for pair in parity.pairs:
        if pair.epoch is not None:
            courses.setdefault(pair.metric, []).append(pair)
    differing = [setting for setting in parity.environment if not setting.is_equal]
    metrics = {pair.metric for pair in parity.common}
    differing_metrics = {pair.metric for pair in parity.common if pair.distance}
    photos = next((setting for setting in parity.settings if setting.name == FINGERPRINT), None)
    return render_page(
        "experiments.report",
        "parity.html.j2",
        title=f"Parity: {parity.names[1]}",
        parity=parity,
        facts={
            "Equal metrics": f"{len(metrics - differing_metrics)} of {len(metrics)}",
            "Epochs": " and ".join(str(number) for number in dict.fromkeys(parity.epochs)),
            "Photos": _photos(photos),
            "Environment": f"{len(differing)} of {len(parity.environment)} differ",
        },
        plots=[_course_plot(name, pairs, parity.labels) for name, pairs in courses.items()],
        summary=_summary(parity.pairs),
        by_epoch=_pair_table(parity.pairs, parity.labels),
        by_clock=Table(
            ("Metric", *parity.labels),
            tuple((pair.metric, _short(pair.first), _short(pair.second)) for pair in parity.by_clock),
        ),
        unlike_settings=_setting_table(
            [setting for setting in parity.settings if setting.decisive and not setting.is_equal], parity
        ),
        storage_settings=_setting_table(
            [setting for setting in parity.settings if not setting.decisive and not setting.is_equal], parity
        ),
        equal_settings=_setting_table([setting for setting in parity.settings if setting.is_equal], parity),
        unlike_environment=_setting_table(differing, parity),
        equal_environment=_setting_table([setting for setting in parity.environment if setting.is_equal], parity),
    )


def _photos(fingerprint: Setting | None) -> str:
    if fingerprint is None or None in (fingerprint.first, fingerprint.second):
        return "not noted by both"
    return f"the same, {str(fingerprint.first)[:12]}" if fingerprint.is_equal else "not the same"


def _summary(pairs: Iterable[Pair]) -> Table:
    """A row per metric: the largest difference of its two curves."""
    by_metric: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_metric.setdefault(pair.metric, []).append(pair)
    rows = []
    for name, metric_pairs in by_metric.items():
        in_both = [pair for pair in metric_pairs if pair.is_whole]
        worst = max(in_both, key=lambda pair: pair.distance, default=None)
        if worst is None:
            rows.append((name, "in one run only", NOTHING, NOTHING))
        elif worst.distance:
            rows.append((name, "differs", _difference(worst), worst.position))
        else:
            rows.append((name, "equal", "0", NOTHING))
    return Table(("Metric", "Verdict", "Largest difference", "Where"), tuple(rows))


def _pair_table(pairs: Iterable[Pair], labels: tuple[str, str]) -> Table:
    return Table(
        ("Epoch", "Metric", *labels, "Difference"),
        tuple(
            (str(pair.epoch or "end"), pair.metric, _exact(pair.first), _exact(pair.second), _difference(pair))
            for pair in pairs
        ),
    )


def _setting_table(settings: Iterable[Setting], parity: Parity) -> Table:
    return Table(
        ("Name", *parity.labels),
        tuple(
            (
                setting.name,
                NOTHING if setting.first is None else setting.first,
                NOTHING if setting.second is None else setting.second,
            )
            for setting in settings
        ),
    )


def _course_plot(name: str, pairs: Sequence[Pair], labels: tuple[str, str]) -> Plot:
    """Draw a metric of both runs over the epochs: a wide line below a thin one, so that equal ones are both seen."""
    figure = Figure(figsize=(5.0, 3.0), dpi=110, layout="constrained")
    axes = figure.subplots()
    lines = (
        [(pair.epoch or 0, pair.first) for pair in pairs if pair.first is not None],
        [(pair.epoch or 0, pair.second) for pair in pairs if pair.second is not None],
    )
    styles: tuple[dict[str, Any], ...] = (
        {"color": BLUE, "linewidth": 6, "alpha": 0.45, "marker": "o", "markersize": 9},
        {"color": VERMILLION, "linewidth": 1.5, "linestyle": "--", "marker": "o", "markersize": 4},
    )
    for line, style, label in zip(lines, styles, labels, strict=True):
        axes.plot([epoch for epoch, _ in line], [value for _, value in line], label=_shortened(label), **style)
    axes.set(xlabel="epoch", ylabel=name)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    worst = max((pair for pair in pairs if pair.is_whole), key=lambda pair: pair.distance, default=None)
    if worst is None:
        found = "only one of the runs has it"
    elif worst.distance:
        found = f"they differ by up to {worst.distance:.2g}, at {worst.position}"
    else:
        found = "the two lie on one another"
    words = (
        f"{label} as a {line_style} line"
        for label, line_style in zip(labels, ("wide blue", "dashed orange"), strict=True)
    )
    table = _pair_table(pairs, labels)
    table = Table(
        tuple(column for column in table.columns if column != "Metric"), tuple((row[0], *row[2:]) for row in table.rows)
    )
    return Plot(name, name, f"By epoch, {' and '.join(words)}: {found}.", to_png(figure), table)


def _shortened(label: str) -> str:
    return label if len(label) <= 30 else f"{label[:29]}…"


def _exact(value: float | None) -> str:
    """A number with all its digits."""
    return NOTHING if value is None else repr(value)


def _short(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.6g}"


def _difference(pair: Pair) -> str:
    if not pair.is_whole:
        return NOTHING
    return f"{pair.difference:+.3g}" if pair.distance else "0"
