"""MLflow's UI in a real browser: a local sweep and jobs of the cloud, looked at together."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.config import load_config
from experiments.sweep import run_sweep
from tests.cloud import Cloud
from tests.conftest import tiny
from tests.mlflow_ui import Links, browsing, chromium, serving_ui

TRIALS = ["trial 0000", "trial 0001"]
TUNED = ["optimizer.learning_rate", "optimizer.weight_decay"]
EPOCHS = [1, 2, 3]


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("browser")]


@pytest.fixture(scope="session")
def browser() -> str:
    """Chromium, before anything is run for it."""
    return chromium()


@pytest.fixture(scope="module")
def links(flow: Cloud, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Links]:
    """The UI on a store that has the cloud's runs, to which a local sweep has added its own."""
    home = tmp_path_factory.mktemp("browser")
    assert flow.database is not None
    shutil.copy(flow.database, home / "mlflow.db")
    values = {"sweep.n_trials": len(TRIALS), "tracking.experiment": flow.config.tracking.experiment}
    run_sweep(load_config(None, tiny(photos, home) | values))
    with serving_ui(home, flow.config.tracking.experiment, home / "ui.log") as found:
        yield found


def test_local_and_cloud_runs_stand_in_one_table_as_trees(links: Links, flow: Cloud, tmp_path: Path) -> None:
    jobs = jobs_of(flow)
    trained = flow.sent("CreateTrainingJob")["TrainingJobName"]
    with browsing(2000, 1000, tmp_path) as ui:
        ui.open(links.runs)
        assert set(ui.table()) == {"tiny", flow.tuning_job, trained}
        ui.unfold("tiny")
        assert set(ui.table()) == {"tiny", *TRIALS, flow.tuning_job, trained}
        ui.unfold(flow.tuning_job)
        table = ui.table()
        assert set(table) == {"tiny", *TRIALS, flow.tuning_job, *jobs, trained}
        for name, cells in table.items():
            assert cells["tags.`origin`"] == ("local" if name in ("tiny", *TRIALS) else "rehearsal")
            assert cells["tags.`trial_state`"] == "COMPLETE"
            assert re.fullmatch(r"[\d.]+(ms|s|min)", cells["duration"])
            assert float(cells["metrics.`best_val_loss`"]) > 0
        for name in [*TRIALS, *jobs]:
            assert all(float(table[name][f"params.`{tuned}`"]) > 0 for tuned in TUNED)
            assert float(table[name]["metrics.`best_val_accuracy`"]) >= 0
        for name in jobs:
            run = flow.runs()[name]
            assert float(table[name]["metrics.`usd`"]) == pytest.approx(run.data.metrics["usd"])
            assert float(table[name]["metrics.`best_val_loss`"]) == run.data.metrics["best_val_loss"]
        assert {table[name]["metrics.`usd`"] for name in TRIALS} == {"-"}
        ui.search("tags.origin = 'local'", gone=flow.tuning_job)
        assert set(ui.table()) == {"tiny", *TRIALS}
        ui.search("tags.origin = 'rehearsal'", gone="tiny")
        assert set(ui.table()) == {flow.tuning_job, *jobs, trained}


def test_a_local_and_a_cloud_run_are_compared_side_by_side(links: Links, flow: Cloud, tmp_path: Path) -> None:
    pair = [TRIALS[1], jobs_of(flow)[0]]
    with browsing(1400, 900, tmp_path) as ui:
        ui.open(links.runs)
        ui.unfold("tiny")
        ui.unfold(flow.tuning_job)
        ui.compare(pair, TUNED, ["best_val_loss"])
        (plot,) = ui.plots()
        assert plot[0]["type"] == "parcoords"
        assert plot[0]["axes"] == [*TUNED, "best_val_loss"]
        assert plot[0]["drawn"] == 3
        assert set(ui.cells("Run Name:")) == set(pair)
        for name in (*TUNED, "data.batch_size", "model.backbone", "trainer.max_epochs"):
            assert all(ui.cells(name)), name
        ui.open_metric("learning_rate")  # the list shows some 17 metrics at once
        (plot,) = ui.plots()
        assert {line["name"] for line in plot} == set(pair)
        assert all(line["x"] == EPOCHS and len(line["y"]) == len(EPOCHS) for line in plot)


def test_the_charts_lay_all_trained_runs_over_each_other_by_epoch(links: Links, flow: Cloud, tmp_path: Path) -> None:
    trained = {*TRIALS, *jobs_of(flow), flow.sent("CreateTrainingJob")["TrainingJobName"]}
    with browsing(1400, 1400, tmp_path) as ui:
        ui.open(links.charts)
        ui.see_lines(plots=2, runs=len(trained))
        for plot in ui.plots()[:2]:
            assert {line["name"] for line in plot} == trained
            assert all(line["x"] == EPOCHS for line in plot)
        ui.see_axes([*TUNED, "best_val_loss", "best_val_accuracy"])


def jobs_of(flow: Cloud) -> list[str]:
    """The training jobs of the tuning job; other tests may have started more tuning jobs."""
    runs = flow.runs()
    tuning_run = runs[flow.tuning_job].info.run_id
    return sorted(name for name, run in runs.items() if run.data.tags.get("mlflow.parentRunId") == tuning_run)
