from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from experiments.figures.style import needs_log_axis
from experiments.report.report import write_report
from experiments.runs.folder import Outcome
from experiments.study.narrowing import MIN_TRIALS
from experiments.study.search_space import ChoiceRange, FloatRange, dump_search_space
from experiments.study.study import DURATION_MS, INPUTS_SECONDS
from experiments.study.trials import tell

VOID = {"meta", "img"}
DISTRIBUTIONS = {
    "optimizer.learning_rate": FloatDistribution(1e-5, 1e-1, log=True),
    "optimizer.name": CategoricalDistribution(("sgd", "adamw")),
}
EVIL = "<script>alert('study')</script>"


def sweep(name: str = "dogs", direction: str = "minimize") -> optuna.Study:
    """Build a study of 4 finished trials, trial 4 pruned and trial 5 failed; trial 1 has 0.25."""
    study = optuna.create_study(study_name=name, direction=direction)
    for number, value in enumerate((0.75, 0.25, 0.5, 0.625, None, None)):
        state = TrialState.COMPLETE if value is not None else TrialState.PRUNED
        attributes: dict[str, object] = {"val_accuracy": 0.9 - number / 10, "run_id": "abc123"}
        if number == 5:
            state = TrialState.FAIL
            attributes = {"failure_reason": "out of memory: <b>halve</b> data.batch_size"}
        trial = optuna.trial.create_trial(
            state=state,
            value=value,
            params={
                "optimizer.learning_rate": 10.0 ** -(number % 4 + 1),
                "optimizer.name": ("sgd", "adamw")[number % 2],
            },
            distributions=DISTRIBUTIONS,
            intermediate_values={1: 0.9, 2: 0.8} if value is None else {1: 0.9, 2: 0.8, 3: value},
            user_attrs=attributes,
        )
        trial.datetime_start = datetime(2026, 11, 23, 9) + timedelta(minutes=number)
        trial.datetime_complete = trial.datetime_start + timedelta(seconds=30)
        study.add_trial(trial)
    return study


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def all(self, tag: str) -> list[Element]:
        below = [found for child in self.children for found in child.all(tag)]
        return [self, *below] if self.tag == tag else below

    def full_text(self) -> str:
        return " ".join([self.text, *(child.full_text() for child in self.children)]).strip()


class Page(HTMLParser):
    """The tree of a page, which fails on a tag that is closed out of turn."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.root = Element("root", {})
        self.open = [self.root]
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == [self.root], f"left open: {[element.tag for element in self.open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].text += data

    def all(self, tag: str) -> list[Element]:
        return self.root.all(tag)

    def table(self, caption: str) -> list[list[str]]:
        """Read the rows, heading first, of the one table whose caption starts so."""
        (table,) = [table for table in self.all("table") if table.all("caption")[0].full_text().startswith(caption)]
        return [[cell.full_text() for cell in row.children] for row in table.all("tr")]

    def facts(self) -> dict[str, str]:
        terms, values = self.all("dt"), self.all("dd")
        return {t.full_text(): v.full_text() for t, v in zip(terms, values, strict=True)}

    def plots(self) -> dict[str, dict[str, Any]]:
        """Read the figures by title; JSON without NaN is what a browser can parse."""
        figures = [
            json.loads(script.text, parse_constant=pytest.fail)
            for script in self.all("script")
            if script.attributes.get("type") == "application/json"
        ]
        labels = [div.attributes["aria-label"] for div in self.all("div") if div.attributes.get("role") == "img"]
        return {label.split(": ")[0]: f for label, f in zip(labels, figures, strict=True)}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    path = tmp_path_factory.mktemp("report") / "new" / "report.html"
    write_report([sweep()], path)
    return Page(path)


def test_header_names_the_best_trial_the_counts_and_the_times(page: Page) -> None:
    assert page.facts() == {
        "Metric": "val_loss",
        "Direction": "minimize: lower is better",
        "Best value": "0.25, best of 5 trials: optimistic",
        "Best trial": "1",
        "Finished trials": "4",
        "Pruned trials": "1",
        "Failed trials": "1",
        "Time in all": "3 min 0 s",
        "Mean time of a trial": "30.0 s",
    }
    assert page.table("Parameters of the best trial")[1:] == [
        ["optimizer.learning_rate", "0.01"],
        ["optimizer.name", "adamw"],
    ]


@pytest.mark.parametrize(
    ("metric", "first", "kind"),
    [("val_loss", 466.0, "log"), ("val_loss", 1.5, None), ("val_accuracy", 0.05, None)],
)
def test_a_first_epoch_that_would_flatten_the_rest_gets_a_log_axis(
    metric: str, first: float, kind: str | None, tmp_path: Path
) -> None:
    study = optuna.create_study(study_name="flat")
    study.set_user_attr("metric", metric)
    for value in (0.5, 0.4, 0.3):
        curve = {1: first, 2: 0.6, 3: value}
        study.add_trial(optuna.trial.create_trial(value=value, intermediate_values=curve))
    write_report([study], tmp_path / "report.html")
    assert Page(tmp_path / "report.html").plots()["Learning curves"]["layout"]["yaxis"].get("type") == kind
    assert needs_log_axis(metric, [first, 0.6, 0.5]) == (kind == "log")


def test_what_a_trial_took_is_one_column(tmp_path: Path) -> None:
    study = optuna.create_study(study_name="timed")
    study.add_trial(optuna.trial.create_trial(value=0.5, user_attrs={DURATION_MS: 1500, "val_accuracy": 0.5}))
    write_report([study], tmp_path / "report.html")
    heading, row = Page(tmp_path / "report.html").table("A row for each trial")
    assert dict(zip(heading, row, strict=True))["Seconds"] == "1.5"
    assert DURATION_MS not in heading and "val_accuracy" in heading


def test_axes_of_trials_have_whole_numbers(page: Page) -> None:
    plots = page.plots()
    for axis in (plots["Optimization history"]["layout"]["xaxis"], plots["Timeline"]["layout"]["yaxis"]):
        assert (axis["tick0"], axis["dtick"]) == (0, 1)


def test_times_include_what_was_opened_once_for_all_trials(tmp_path: Path) -> None:
    study = sweep()
    study.set_user_attr(INPUTS_SECONDS, 125.0)
    write_report([study], tmp_path / "report.html")
    facts = Page(tmp_path / "report.html").facts()
    assert (facts["Time in all"], facts["Of it features and photos"]) == ("5 min 5 s", "2 min 5 s")


def test_trials_that_train_together_count_once(tmp_path: Path) -> None:
    study, start = optuna.create_study(study_name="population"), datetime(2026, 11, 23, 9)
    for first, last in ((0, 60), (0, 20), (30, 90), (200, 210)):
        trial = optuna.trial.create_trial(value=0.5)
        trial.datetime_start, trial.datetime_complete = (start + timedelta(seconds=at) for at in (first, last))
        study.add_trial(trial)
    write_report([study], tmp_path / "report.html")
    facts = Page(tmp_path / "report.html").facts()
    assert (facts["Time in all"], facts["Mean time of a trial"]) == ("1 min 40 s", "37.5 s")


def test_the_commands_name_the_experiment_and_the_output_folder(tmp_path: Path) -> None:
    study = sweep()
    study.set_user_attr("config", {"tracking.experiment": "my dogs", "output_dir": "elsewhere"})
    write_report([study], tmp_path / "report.html")
    home, cloud = (code.text for code in Page(tmp_path / "report.html").all("code") if "train --from" in code.text)
    assert home == (
        "python -m experiments train --from-best dogs --tracking.experiment 'my dogs' --output_dir elsewhere"
    )
    assert cloud.endswith("--from-study dogs --tracking.experiment 'my dogs' --output_dir elsewhere --cloud mine.yaml")


def test_every_trial_has_a_row_with_its_attributes_and_reason(page: Page) -> None:
    heading, *rows = page.table("A row for each trial")
    assert heading == [
        *("Trial", "State", "val_loss", "Epochs", "Seconds"),
        *("optimizer.learning_rate", "optimizer.name", "val_accuracy", "Failure reason"),
    ]
    assert [row[0] for row in rows] == ["0", "1", "2", "3", "4", "5"]
    assert rows[1] == ["1", "finished, best", "0.25", "3", "30.0", "0.01", "adamw", "0.8", "—"]
    assert rows[4][1:4] == ["pruned", "—", "2"]
    assert rows[5][-2:] == ["—", "out of memory: <b>halve</b> data.batch_size"]


def test_a_trial_that_diverged_is_counted_apart(tmp_path: Path) -> None:
    study = sweep()
    tell(study, study.ask(), Outcome("PRUNED", 2.5, reason="diverged at epoch 1: val_loss is nan"))
    write_report([study], tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert (page.facts()["Pruned trials"], page.facts()["Diverged trials"]) == ("1", "1")
    _, *rows = page.table("A row for each trial")
    assert (rows[6][1], rows[6][-1]) == ("diverged", "diverged at epoch 1: val_loss is nan")


def test_maximize_takes_the_highest_value_of_the_named_metric(tmp_path: Path) -> None:
    study = sweep(direction="maximize")
    study.set_user_attr("metric", "val_accuracy")
    write_report([study], tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    facts = page.facts()
    assert facts["Direction"] == "maximize: higher is better"
    assert (facts["Metric"], facts["Best value"], facts["Best trial"]) == (
        "val_accuracy",
        "0.75, best of 5 trials: optimistic",
        "0",
    )
    assert [row[2] for row in page.table("Optimization history")[1:]] == ["0.75"] * 4


def test_each_plot_has_data_a_label_a_caption_and_its_numbers(page: Page) -> None:
    plots = page.plots()
    assert list(plots) == [
        *("Optimization history", "Learning curves", "Parameter importance"),
        *("Slices", "Parallel coordinates", "Timeline"),
    ]
    assert all(figure["data"] for figure in plots.values())
    captions = [figure.all("figcaption")[0].full_text() for figure in page.all("figure")]
    assert all(caption.endswith(".") for caption in captions[: len(plots)])
    for title in plots:
        assert len(page.table(f"{title}: the numbers")) > 2
    assert page.table("Optimization history")[2:4] == [["1", "0.25", "0.25"], ["2", "0.5", "0.25"]]
    assert page.table("Learning curves")[1] == ["0", "0.9", "0.8", "0.75"]
    assert page.table("Learning curves")[6] == ["5", "0.9", "0.8", "—"]


def test_learning_curves_highlight_the_best_trial(page: Page) -> None:
    *others, best = page.plots()["Learning curves"]["data"]
    assert (best["name"], best["y"]) == ("best: trial 1", [0.9, 0.8, 0.25])
    curves = sum(1 + curve["y"].count(None) for curve in others)
    assert curves == 5, "with gaps between trials that look alike"
    assert len({curve["name"] for curve in others}) == len(others), "each once in the legend"
    assert {number for curve in others for number in curve["customdata"]} == {0, 2, 3, 4, 5, None}
    assert all(curve["line"]["width"] < best["line"]["width"] for curve in others)


def test_axes_have_numbers_that_can_be_read(page: Page) -> None:
    plots = page.plots()
    assert plots["Learning curves"]["layout"]["xaxis"]["dtick"] == 1, "no epoch 1.5"
    (tried,) = (
        axis
        for name, axis in plots["Slices"]["layout"].items()
        if name.startswith("xaxis") and axis.get("type") == "log"
    )
    assert (tried["title"]["text"], tried["dtick"]) == ("learning_rate", 1), "from 1e-4 to 1e-1"


def test_parallel_coordinates_color_the_best_trial_blue(page: Page) -> None:
    figure = page.plots()["Parallel coordinates"]
    lines = {line["y"][0]: line["line"]["color"] for line in figure["data"] if line["mode"] == "lines"}
    assert lines[0] == "rgb(0, 114, 178)"
    assert lines[1] == "rgb(213, 94, 0)"


def test_the_page_loads_nothing(page: Page) -> None:
    every = [element for tag in ("script", "link", "img", "a", "iframe") for element in page.all(tag)]
    for element in every:
        for name in ("src", "href"):
            address = element.attributes.get(name) or ""
            assert address == "" or address.startswith(("data:image/jpeg;base64,", "#")), address
    assert not page.all("link")
    assert not re.search(r"@import|url\(", "".join(style.text for style in page.all("style")))
    policy = [m.attributes["content"] for m in page.all("meta") if "http-equiv" in m.attributes]
    assert policy[0].startswith("default-src 'none';")
    plotly_scripts = [s for s in page.all("script") if "plotly.js v" in s.text[:2000]]
    assert len(plotly_scripts) == 1


def test_the_page_is_made_for_phones_and_screen_readers(page: Page) -> None:
    (html,) = page.all("html")
    assert html.attributes["lang"] == "en"
    metas = {meta.attributes.get("name"): meta.attributes.get("content") for meta in page.all("meta")}
    assert metas["viewport"] == "width=device-width, initial-scale=1"
    assert "prefers-color-scheme: dark" in page.all("style")[0].text
    assert all(image.attributes.get("alt") for image in page.all("img"))
    identifiers = [e.attributes["id"] for e in page.all("section") if "id" in e.attributes]
    assert max(Counter(identifiers).values()) == 1
    for table in page.all("table"):
        columns = table.all("thead")[0].all("th")
        assert all(column.attributes["scope"] == "col" for column in columns)
        for row in table.all("tbody")[0].all("tr"):
            assert [cell.tag for cell in row.children] == ["th", *["td"] * (len(columns) - 1)]


def test_the_best_trial_is_run_again_by_the_name_of_its_study(tmp_path: Path) -> None:
    write_report([sweep("big dogs")], tmp_path / "report.html")
    commands = [code.text for code in Page(tmp_path / "report.html").all("code")]
    assert commands == [
        "python -m experiments train --from-best 'big dogs'",
        "python -m sagemaker_launch train --from-study 'big dogs' --cloud mine.yaml",
    ]


def test_the_good_region_is_where_the_best_quarter_lies(tmp_path: Path) -> None:
    study = optuna.create_study(study_name="dogs")
    space = {
        "optimizer.learning_rate": FloatRange(1e-5, 1e-1, log=True),
        "optimizer.name": ChoiceRange(("sgd", "adamw")),
    }
    study.set_user_attr("search_space", dump_search_space(space))
    for number in range(MIN_TRIALS):
        params = {"optimizer.learning_rate": 10.0 ** -(1 + number / 2), "optimizer.name": ("adamw", "sgd")[number % 2]}
        trial = optuna.trial.create_trial(value=abs(number - 4.1), params=params, distributions=DISTRIBUTIONS)
        if number == MIN_TRIALS - 1:
            write_report([study], tmp_path / "early.html")
        study.add_trial(trial)
    caption = "Ranges of the best quarter"
    write_report([study], tmp_path / "report.html")
    _, learning_rate, name = Page(tmp_path / "report.html").table(caption)
    assert learning_rate == ["optimizer.learning_rate", "1e-05..0.1 (log)", "0.0001259..0.002512 (log)"]
    assert name == ["optimizer.name", "sgd, adamw", "sgd, adamw"]
    assert caption not in (tmp_path / "early.html").read_text()


def test_what_comes_from_outside_is_escaped(tmp_path: Path) -> None:
    study = sweep(EVIL)
    study.set_user_attr("metric", EVIL)
    study.add_trial(
        optuna.trial.create_trial(
            value=1.0,
            params={EVIL: EVIL},
            distributions={EVIL: CategoricalDistribution((EVIL, "b"))},
            user_attrs={"failure_reason": EVIL, EVIL: 1.0},
        )
    )
    path = tmp_path / "report.html"
    write_report([study], path)
    assert EVIL not in path.read_text()
    page = Page(path)
    # The plots, plotly.js and the page's own.
    assert len(page.all("script")) == len(page.plots()) + 2
    assert page.all("h2")[0].text == EVIL
    assert page.table("A row for each trial")[-1].count(EVIL) == 2


@pytest.mark.parametrize("states", [[], [TrialState.FAIL], [TrialState.PRUNED, TrialState.RUNNING, TrialState.WAITING]])
def test_a_study_without_a_finished_trial_says_so(tmp_path: Path, states: list[TrialState]) -> None:
    study = optuna.create_study(study_name="young")
    for state in states:
        study.add_trial(optuna.trial.create_trial(state=state))
    write_report([study], tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert "No trial has finished yet" in page.all("main")[0].full_text()
    assert page.facts()["Best value"] == "—"
    assert page.facts()["Finished trials"] == "0"
    assert list(page.plots()) == (["Timeline"] if states else [])


def test_values_that_json_cannot_hold_still_give_a_page(tmp_path: Path) -> None:
    study = sweep()
    for value in (float("inf"), 0.3):
        study.add_trial(optuna.trial.create_trial(value=value, intermediate_values={1: float("nan"), 2: value}))
    write_report([study], tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert page.plots()
    assert page.facts()["Best value"] == "0.25, best of 7 trials: optimistic"
    assert page.table("A row for each trial")[7][2] == "inf"


def test_several_studies_are_compared_side_by_side(tmp_path: Path) -> None:
    studies = [sweep("dogs"), sweep("cats", "maximize"), optuna.create_study(study_name="young")]
    write_report(studies, tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    heading, *rows = page.table("The studies side by side")
    column = heading.index("Best value")
    assert [(row[0], row[column]) for row in rows] == [
        ("dogs", "0.25, best of 5 trials: optimistic"),
        ("cats", "0.75, best of 5 trials: optimistic"),
        ("young", "—"),
    ]
    links = [link.attributes["href"] for link in page.all("a")]
    assert links == [f"#{section.attributes['id']}" for section in page.all("section")]


def test_a_report_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one study"):
        write_report([], tmp_path / "report.html")


def test_an_old_page_survives_a_failure_and_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    study = optuna.create_study(study_name="young")

    def refuse(source: Path, target: Path) -> None:
        assert source.parent == target.parent, "a rename between folders may not be atomic"
        assert source.read_text(encoding="utf-8").endswith("</html>"), "renamed before it was whole"
        raise OSError("disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        with pytest.raises(OSError, match="disk is full"):
            write_report([study], path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]

    write_report([study], path)
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert list(tmp_path.iterdir()) == [path]
