"""The views with which MLflow's UI is opened; tests/e2e/test_browser.py opens them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from experiments.tracking.views import CHARTS, TABLE, tuned_names, view_link, view_tags

TUNED = ["data.batch_size", "optimizer.learning_rate"]


def test_what_any_search_has_tuned_is_named_once() -> None:
    home = {"search.optimizer.learning_rate": "...", "search": "conf/search/head.yaml", "seed": "0"}
    cloud = {"search.optimizer.learning_rate": "...", "search.data.batch_size": "..."}
    assert tuned_names([home, {"optimizer.learning_rate": "0.1"}, cloud]) == TUNED
    assert tuned_names([]) == []


def test_the_table_has_origin_outcome_scores_cost_and_what_was_tuned_as_columns() -> None:
    state = state_of(TABLE)
    assert state["selectedColumns"] == [
        "tags.`origin`",
        "tags.`trial_state`",
        "metrics.`best_val_loss`",
        "metrics.`best_val_accuracy`",
        "metrics.`highest_val_accuracy`",
        "metrics.`test_accuracy`",
        "metrics.`usd`",
        "params.`data.batch_size`",
        "params.`optimizer.learning_rate`",
    ]
    assert "searchFilter" not in state  # or there would be no tree


def test_the_charts_are_of_the_tuned_settings_and_of_the_course_of_every_objective() -> None:
    state = state_of(CHARTS)
    parallel, *lines = state["compareRunCharts"]
    assert parallel["selectedParams"] == TUNED
    assert parallel["selectedMetrics"] == ["best_val_loss", "best_val_accuracy"]
    assert [line["metricKey"] for line in lines] == ["val_loss", "val_accuracy"]
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == sections


@pytest.mark.parametrize(("metric", "rises"), [("val_loss", True), ("val_accuracy", False)])
def test_the_runs_are_ordered_by_the_objective(metric: str, rises: bool) -> None:
    state = state_of(CHARTS, metric)
    assert (state["orderByKey"], state["orderByAsc"]) == (f"metrics.`best_{metric}`", rises)


def test_a_link_names_the_view_that_the_tag_holds() -> None:
    link = view_link("http://127.0.0.1:5000", "3", TABLE)
    assert link.startswith("http://127.0.0.1:5000/#/experiments/3/runs?viewStateShareKey=table&")
    assert "compareRunsMode" not in link
    assert "compareRunsMode=CHART" in view_link("http://127.0.0.1:5000", "3", CHARTS)
    assert set(view_tags(TUNED, "val_loss", now_ms=7)) == {
        "mlflow.sharedViewState.table",
        "mlflow.sharedViewState.charts",
    }


def state_of(view: str, metric: str = "val_loss") -> dict[str, Any]:
    saved = json.loads(view_tags(TUNED, metric, now_ms=7)[f"mlflow.sharedViewState.{view}"])
    assert saved["name"] == f"Comparison: {view}"
    assert saved["createdAt"] == 7
    return json.loads(saved["state"])
