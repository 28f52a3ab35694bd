"""Whether a study is whole: nothing lost and nothing twice, in Optuna, on disk and in MLflow."""

from __future__ import annotations

from typing import Any

import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState

from experiments.config import RunConfig, tracking_uri
from experiments.study.study import load_study


def runs_of(config: RunConfig) -> list[Any]:
    client = MlflowClient(tracking_uri(config))
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], max_results=1000))


def check_whole(config: RunConfig, n_trials: int) -> None:
    """Nothing lost and nothing twice: in the study, on disk and in MLflow."""
    study = load_study(config, config.sweep.study_name)
    trials = study.get_trials()
    assert [trial.state.is_finished() for trial in trials] == [True] * n_trials
    client = MlflowClient(tracking_uri(config))
    runs = runs_of(config)
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    children = {run.data.tags["trial"]: run for run in runs if run not in parents}
    assert len(runs) == n_trials + 1
    assert sorted(children, key=int) == [str(number) for number in range(n_trials)]
    for trial in trials:
        run = children[str(trial.number)]
        assert run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
        assert run.data.tags["trial_state"] == trial.state.name
        assert run.info.status == ("FAILED" if trial.state == TrialState.FAIL else "FINISHED")
        points = client.get_metric_history(run.info.run_id, "val_loss")
        logged = {point.step: point.value for point in points}
        assert len(points) == len(logged), "an epoch was logged twice"
        assert logged == pytest.approx(trial.intermediate_values)
