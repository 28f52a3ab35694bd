"""Saved views of MLflow's UI: a table of runs of all origins with the columns that compare them, and charts.

MLflow 3.17 shows none of these columns by itself. It keeps a saved view in a tag of the experiment: everybody finds it
in the menu `Views`, and a link that names the tag opens it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from experiments.study.search_space import SEARCHED
from lightning_modules import metrics

TABLE, CHARTS = "table", "charts"
"""The two views: searches with their runs below them, and all runs that trained side by side, the best first."""
VIEW_TAG = "mlflow.sharedViewState."


def tuned_names(runs: Iterable[Mapping[str, str]]) -> list[str]:
    """The fields that any search among the runs has tuned.

    Args:
        runs: the params of each run.
    """
    return sorted({name.removeprefix(SEARCHED) for params in runs for name in params if name.startswith(SEARCHED)})


def view_tags(tuned: Sequence[str], metric: str, *, now_ms: int) -> dict[str, str]:
    """The tags of an experiment that hold its two views.

    Args:
        tuned: as `tuned_names` has them.
        metric: the objective, by which the runs are ordered.
    """
    states = {TABLE: _table(tuned), CHARTS: _table(tuned) | _charts(tuned, metric)}
    return {
        f"{VIEW_TAG}{view}": json.dumps(
            {"name": f"Comparison: {view}", "createdAt": now_ms, "updatedAt": now_ms, "state": json.dumps(state)}
        )
        for view, state in states.items()
    }


def view_link(address: str, experiment_id: str, view: str) -> str:
    """The URL of a view in the UI at `address`."""
    mode = "&compareRunsMode=CHART" if view == CHARTS else ""
    return f"{address}/#/experiments/{experiment_id}/runs?viewStateShareKey={view}{mode}&workflowType=machine_learning"


def _table(tuned: Sequence[str]) -> dict[str, object]:
    scores = [f"metrics.`{name}`" for name in (*metrics.SUMMARY, metrics.TEST_ACCURACY)]
    columns = ["tags.`origin`", "tags.`trial_state`", *scores, "metrics.`usd`", *(f"params.`{name}`" for name in tuned)]
    order = ["attributes.`Run Name`", "runDateAndNestInfo", *columns[:2], "duration", *columns[2:]]
    widths = {column: max(85, 7 * len(column.partition(".")[2]) + 10) for column in order}  # names must be readable
    widths |= {order[0]: 290, order[1]: 140}
    return {"selectedColumns": columns, "columnOrder": order, "columnWidths": widths}


def _charts(tuned: Sequence[str], metric: str) -> dict[str, object]:
    scores = [f"{metrics.BEST}{name}" for name in metrics.OBJECTIVES]
    parallel = {"type": "PARALLEL", "selectedParams": list(tuned), "selectedMetrics": scores, "showAllRuns": False}
    lines: list[dict[str, object]] = [
        {
            "type": "LINE",
            "metricKey": name,
            "selectedMetricKeys": [name],
            "xAxisKey": "step",
            "lineSmoothness": 0,  # without it MLflow smooths
            "useGlobalXaxisKey": True,
            "useGlobalLineSmoothing": True,
        }
        for name in metrics.OBJECTIVES
    ]
    sections = {"Settings and scores": [parallel], "By epoch": lines}
    return {
        # In a tree MLflow draws the runs that are unfolded; sorted by a metric they are a list. Searches don't train.
        "searchFilter": f"metrics.{metrics.TRAIN_LOSS} >= 0",
        "orderByKey": f"metrics.`{metrics.BEST}{metric}`",
        "orderByAsc": metrics.DIRECTIONS[metric] == "minimize",
        "runsHiddenMode": "SHOW_ALL",  # MLflow draws the first ten
        "compareRunSections": [
            {"uuid": name, "name": name, "display": True, "isReordered": True, "columns": len(charts)}
            for name, charts in sections.items()
        ],
        "compareRunCharts": [
            {"uuid": f"{name} {index}", "metricSectionId": name, **chart}
            for name, charts in sections.items()
            for index, chart in enumerate(charts)
        ],
        "isAccordionReordered": True,  # above the charts that MLflow makes of every metric
    }
