"""Cloud jobs in MLflow: under the names of local runs, at their real epochs, once."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from mlflow import MlflowClient
from mlflow.entities import Param, Run

from experiments.config import RunConfig, load_config, to_flat
from experiments.runs.folder import RunFolder
from experiments.study.search_space import load_search_space
from sagemaker_launch.container.hyperparameters import TUNING_OBJECTIVE, encode
from sagemaker_launch.container.metric_lines import environment_line, facts_line, metric_line
from sagemaker_launch.jobs.follow import Tails
from sagemaker_launch.jobs.found import find_job
from sagemaker_launch.jobs.requests import tuning_job
from sagemaker_launch.jobs.sync import Synchroniser
from sagemaker_launch.settings.cloud import load_cloud
from tests.conftest import REPOSITORY
from tests.unit.sagemaker_launch.jobs.test_requests import BASIC, INPUTS

NOW = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
PRICES = {"ml.g5.xlarge": 3.6}
EPOCHS = 3


class Account:
    """A tuning job and its training jobs as SageMaker and CloudWatch describe them."""

    class meta:
        endpoint_url = "https://api.sagemaker.us-east-1.amazonaws.com"

    def __init__(self, config: RunConfig, statuses: list[str]) -> None:
        space = load_search_space(REPOSITORY / "conf" / "search" / "quick.yaml")
        self.request = tuning_job(load_cloud(None, BASIC), config, space, INPUTS, "image", name="tuning")
        self.status, self.calls, self.created = "Completed", 0, NOW
        self.config, self.statuses = config, statuses
        self.logs = {self.name(number): self.lines(number) for number in range(len(statuses))}

    def name(self, number: int) -> str:
        return f"tuning-{number:03d}"

    def lines(self, number: int) -> list[str]:
        lines = ["noise", facts_line({"data.fingerprint": "abc"})]
        lines.append(environment_line({"package.torch": "2.14", "host": f"algo-{number}"}))
        for epoch in range(1, EPOCHS + 1):
            loss = (number + 1) / epoch
            values = {"val_loss": loss, "val_accuracy": 0.5, "best_val_loss": loss, "best_val_accuracy": 0.5}
            values["highest_val_accuracy"] = 0.6
            lines.append(metric_line("metrics", epoch, values))
        best = {"best_val_loss": (number + 1) / EPOCHS, "best_val_accuracy": 0.5, "highest_val_accuracy": 0.6}
        return [*lines, metric_line("outcome", EPOCHS, best)]

    def describe_hyper_parameter_tuning_job(self, HyperParameterTuningJobName: str) -> dict[str, Any]:
        if HyperParameterTuningJobName != "tuning":
            raise ClientError({"Error": {"Code": "ResourceNotFound"}}, "Describe")
        metric = {"MetricName": "best_val_loss", "Value": 1 / EPOCHS}
        return {
            **self.request,
            "HyperParameterTuningJobArn": "arn:tuning",
            "HyperParameterTuningJobStatus": self.status,
            "CreationTime": self.created,
            "LastModifiedTime": NOW + timedelta(minutes=9),
            "BestTrainingJob": {
                "TrainingJobName": self.name(0),
                "FinalHyperParameterTuningJobObjectiveMetric": metric,
            },
        }

    def summary(self, name: str) -> dict[str, Any]:
        return {"TrainingJobName": name, "TrainingJobArn": f"arn:{name}", "CreationTime": self.created}

    def describe_training_job(self, TrainingJobName: str) -> dict[str, Any]:
        self.calls += 1
        status = self.statuses[int(TrainingJobName[-3:])]
        times: dict[str, Any] = {"CreationTime": self.created, "LastModifiedTime": NOW + timedelta(minutes=5)}
        if status != "InProgress":
            times |= {"TrainingTimeInSeconds": 200, "BillableTimeInSeconds": 100}
        return {
            **self.request["TrainingJobDefinition"],
            **times,
            "TrainingJobName": TrainingJobName,
            "TrainingJobArn": f"arn:{TrainingJobName}",
            "TrainingJobStatus": status,
            "HyperParameters": {**encode(self.config), TUNING_OBJECTIVE: "best_val_loss"},
            **({"FailureReason": "AlgorithmError: it broke"} if status == "Failed" else {}),
        }

    def get_paginator(self, operation: str) -> Account:
        self.operation = operation
        return self

    def paginate(self, **given: Any) -> list[Mapping[str, Any]]:
        if self.operation == "list_training_jobs_for_hyper_parameter_tuning_job":
            return [{"TrainingJobSummaries": [self.summary(name) for name in self.logs]}]
        if self.operation == "filter_log_events":
            return [{"events": []}]
        stream = f"{given['logStreamNamePrefix']}algo-1-1"
        return [{"logStreams": [{"logStreamName": stream}]}]

    def get_log_events(self, logStreamName: str, **given: Any) -> dict[str, Any]:
        lines = self.logs[logStreamName.split("/")[0]]
        done = int(given.get("nextToken", 0))
        events = [{"timestamp": 1000 * number, "message": line} for number, line in enumerate(lines)][done:]
        return {"events": events, "nextForwardToken": str(len(lines))}


@pytest.fixture
def config(tmp_path: Path, mlflow_database: Path) -> RunConfig:
    (tmp_path / "runs").mkdir()
    shutil.copy(mlflow_database, tmp_path / "runs" / "mlflow.db")
    return load_config(None, {"output_dir": tmp_path / "runs", "tracking.experiment": "cloud"})


def sync(config: RunConfig, account: Account) -> list[Run]:
    """Bring MLflow up to date; all of its runs."""
    synchronise(config, account)
    return runs(config)


def synchronise(config: RunConfig, account: Account) -> None:
    Synchroniser(config, account, account, None, PRICES.__getitem__).sync(find_job(account, "tuning"))


def runs(config: RunConfig) -> list[Run]:
    client = MlflowClient(f"sqlite:///{config.output_dir / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("cloud")
    assert experiment is not None
    return sorted(client.search_runs([experiment.experiment_id], max_results=1000), key=lambda run: run.info.run_name)


def test_the_scores_of_a_job_s_model_count_and_the_objective_stays_that_of_its_epochs(config: RunConfig) -> None:
    account = Account(config, ["Completed"])
    best = {
        "best_val_loss": 1 / EPOCHS,
        "best_val_accuracy": 0.5,
        "val_loss": 0.31,
        "val_accuracy": 0.6,
        "test_loss": 0.4,
    }
    account.logs["tuning-000"][-1] = metric_line("outcome", EPOCHS, best)
    synchronise(config, account)
    outcome = RunFolder(config.output_dir / "cloud" / "tuning-000").outcome
    assert outcome is not None
    assert outcome.value == 1 / EPOCHS
    assert outcome.metrics["val_loss"] == 0.31
    assert outcome.metrics["val_accuracy"] == 0.6
    assert outcome.metrics["test_loss"] == 0.4


class Speechless(Account):
    """Jobs that fail without a message, as one whose image lacks AWS's toolkit."""

    def describe_training_job(self, TrainingJobName: str) -> dict[str, Any]:
        return super().describe_training_job(TrainingJobName) | {"FailureReason": "AlgorithmError: , exit code: 1"}

    def lines(self, number: int) -> list[str]:
        return ["starting", "No module named 'sagemaker_training'", ""]


def test_a_job_that_failed_without_a_message_is_explained_by_the_end_of_its_log(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    account = Speechless(config, ["Failed"])
    _, failed = sync(config, account)
    explained = "No module named 'sagemaker_training'"
    assert failed.data.tags["failure_reason"].startswith("AlgorithmError: , exit code: 1")
    assert explained in failed.data.tags["failure_reason"]
    printed = capsys.readouterr().err
    assert "tuning-000 failed: AlgorithmError" in printed and explained in printed
    sync(config, account)
    assert "failed" not in capsys.readouterr().err, "said once"


def test_following_a_search_says_why_each_of_its_jobs_failed(config: RunConfig) -> None:
    account = Speechless(config, ["Failed", "Failed"])
    tails = Tails(account, "tuning")
    running = [account.describe_training_job(name) | {"TrainingJobStatus": "InProgress"} for name in account.logs]
    assert list(tails.lines(running)) == []
    failed = [account.describe_training_job(name) for name in account.logs]
    lines = list(tails.lines(failed))
    assert [text.split(":")[0] for text in lines] == ["tuning-000 failed", "tuning-001 failed"]
    assert all(text.endswith("No module named 'sagemaker_training'") for text in lines)
    assert list(tails.lines(failed)) == []


def history(config: RunConfig, run: Run, metric: str) -> dict[int, float]:
    client = MlflowClient(f"sqlite:///{config.output_dir / 'mlflow.db'}")
    return {point.step: point.value for point in client.get_metric_history(run.info.run_id, metric)}


def test_jobs_become_a_parent_and_its_children_with_the_names_of_local_runs(config: RunConfig) -> None:
    parent, complete, failed, stopped = sync(config, Account(config, ["Completed", "Failed", "Stopped"]))
    assert [run.info.status for run in (parent, complete, failed, stopped)] == [
        "FINISHED",
        "FINISHED",
        "FAILED",
        "KILLED",
    ]
    # The names of a search at home, and what all its jobs cost.
    found = {"best_val_loss": 1 / 3, "best_val_accuracy": 0.5, "highest_val_accuracy": 0.6}
    assert parent.data.metrics == found | {"usd": pytest.approx(0.3)}
    for child in (complete, failed, stopped):
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.tags["origin"] == "sagemaker"
    assert failed.data.tags["failure_reason"] == "AlgorithmError: it broke"
    assert complete.data.tags["arn"] == "arn:tuning-000"
    assert history(config, complete, "val_loss") == {1: 1.0, 2: 0.5, 3: 1 / 3}
    assert complete.data.metrics["best_val_loss"] == 1 / 3
    assert complete.data.metrics["usd"] == pytest.approx(100 / 3600 * 3.6)
    assert complete.data.metrics["spot_saving"] == 0.5
    assert complete.data.params["data.fingerprint"] == "abc"
    assert complete.data.params["optimizer.learning_rate"] == str(config.optimizer.learning_rate)
    assert complete.data.params["trainer.profile"] == "False", "in the words of runs at home"
    assert (complete.data.tags["package.torch"], complete.data.tags["host"]) == ("2.14", "algo-0")
    assert not {"package.torch", "host"} & complete.data.params.keys()
    assert {name for name in complete.data.params if name.startswith("optimizer.")} == {
        name for name in to_flat(config) if name.startswith("optimizer.")
    }
    client = MlflowClient(f"sqlite:///{config.output_dir / 'mlflow.db'}")
    assert [artifact.path for artifact in client.list_artifacts(complete.info.run_id)] == ["log.txt"]


def everything(config: RunConfig) -> list[tuple[Any, ...]]:
    def all_of(run: Run) -> tuple[Any, ...]:
        histories = [sorted(history(config, run, metric).items()) for metric in sorted(run.data.metrics)]
        return run.info.run_id, run.info.status, run.info.end_time, run.data.params, run.data.tags, histories

    return [all_of(run) for run in runs(config)]


def test_a_second_time_changes_nothing_and_asks_for_no_job_again(config: RunConfig) -> None:
    account = Account(config, ["Completed", "Failed"])
    sync(config, account)
    before, asked = everything(config), account.calls
    sync(config, account)
    assert everything(config) == before
    assert account.calls == asked


def test_where_the_run_folders_are_gone_runs_are_found_by_their_arn(config: RunConfig) -> None:
    account = Account(config, ["Completed", "Failed"])
    sync(config, account)
    before = everything(config)
    shutil.rmtree(config.output_dir / "cloud")
    sync(config, account)
    assert everything(config) == before


def test_another_rehearsal_that_gives_the_same_names_makes_runs_of_its_own(config: RunConfig) -> None:
    account = Account(config, ["Failed"])
    sync(config, account)
    account.created, account.statuses = NOW + timedelta(minutes=1), ["Completed"]
    found = sync(config, account)
    assert sorted(run.info.status for run in found) == ["FAILED", "FINISHED", "FINISHED", "FINISHED"]


def test_a_running_job_is_synchronised_again(config: RunConfig) -> None:
    account = Account(config, ["InProgress"])
    account.status = "InProgress"
    whole = account.logs["tuning-000"]
    account.logs["tuning-000"] = whole[:4]
    _, child = sync(config, account)
    assert child.info.status == "RUNNING"
    assert history(config, child, "val_loss") == {1: 1.0}
    account.logs["tuning-000"], account.statuses, account.status = whole, ["Completed"], "Completed"
    parent, child = sync(config, account)
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")
    assert history(config, child, "val_loss") == {1: 1.0, 2: 0.5, 3: 1 / 3}


def test_a_restart_that_repeats_an_epoch_counts_it_once(config: RunConfig) -> None:
    account = Account(config, ["Completed"])
    lines = account.logs["tuning-000"]
    account.logs["tuning-000"] = [*lines[:5], *lines[4:]]
    _, child = sync(config, account)
    assert history(config, child, "val_loss") == {1: 1.0, 2: 0.5, 3: 1 / 3}


FINAL = {"best_val_loss": 0.25, "best_val_accuracy": 0.75, "val_loss": 0.3, "train_loss": 0.1, "ObjectiveMetric": 0.25}


class Forgetful(Account):
    """An account whose logs are gone, and that keeps the last value of each metric."""

    def __init__(self, config: RunConfig, statuses: list[str]) -> None:
        super().__init__(config, statuses)
        self.kept, self.logs = self.logs, {name: [] for name in self.logs}

    def describe_training_job(self, TrainingJobName: str) -> dict[str, Any]:
        final = [{"MetricName": name, "Value": value} for name, value in FINAL.items()]
        return super().describe_training_job(TrainingJobName) | {"FinalMetricDataList": final}


def test_a_job_whose_log_is_gone_has_the_final_values_of_aws_until_the_log_comes(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    account = Forgetful(config, ["Completed"])
    _, child = sync(config, account)
    said = capsys.readouterr().err
    assert "the log of tuning-000 is gone: its epochs are missing" in said
    assert "AWS does not have highest_val_accuracy of it" in said
    assert child.info.status == "FINISHED"
    assert {name: child.data.metrics[name] for name in ("best_val_loss", "best_val_accuracy")} == {
        "best_val_loss": 0.3,  # of the exported network
        "best_val_accuracy": 0.75,
    }
    assert "train_loss" not in child.data.metrics, "the last one, not that of the best epoch"
    assert (child.data.tags["log"], child.data.metrics["usd"]) == ("missing", pytest.approx(0.1))
    account.logs = account.kept
    _, child = sync(config, account)
    assert (child.info.status, child.data.tags["log"]) == ("FINISHED", "complete")
    assert history(config, child, "val_loss") == {1: 1.0, 2: 0.5, 3: 1 / 3}
    assert child.data.metrics["best_val_loss"] == 1 / 3


def test_a_metric_that_is_no_number_costs_itself_and_not_its_epoch(config: RunConfig) -> None:
    account = Account(config, ["Completed"])
    lines = account.logs["tuning-000"]
    lines[4] = lines[4].replace("val_accuracy=0.5", "val_accuracy=nan", 1)
    _, child = sync(config, account)
    assert history(config, child, "val_loss") == {1: 1.0, 2: 0.5, 3: 1 / 3}
    assert history(config, child, "val_accuracy") == {1: 0.5, 3: 0.5}


def test_a_model_that_is_missing_is_named_and_the_others_are_fetched(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    account = Account(config, ["Completed", "Completed"])
    synchroniser = Synchroniser(config, account, account, None, PRICES.__getitem__)
    folders = synchroniser.sync(find_job(account, "tuning"), models=True)
    assert all(folder.outcome is not None for folder in folders)
    assert synchroniser.missing_models == ["tuning-000"]
    assert "the model of tuning-000 could not be fetched: AWS names no archive" in capsys.readouterr().err


def test_a_log_that_lags_behind_is_waited_for(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    account = Account(config, ["Completed"])
    whole = account.logs["tuning-000"]
    account.logs["tuning-000"] = whole[:4]
    described = account.describe_training_job
    just_now = {"TrainingEndTime": datetime.now(UTC)}
    account.describe_training_job = lambda TrainingJobName: described(TrainingJobName) | just_now
    parent, child = sync(config, account)
    assert (parent.info.status, child.info.status) == ("RUNNING", "RUNNING")
    assert "its log is not yet" in capsys.readouterr().err
    account.logs["tuning-000"] = whole
    parent, child = sync(config, account)
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")


def test_a_job_that_has_ended_is_synchronised_until_all_of_it_is_here(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sagemaker_launch.jobs.sync.POLL_SECONDS", 0.01)
    account = Account(config, ["Completed"])
    whole = account.logs["tuning-000"]
    account.logs["tuning-000"] = whole[:3]
    described = account.describe_training_job

    def describe(TrainingJobName: str) -> dict[str, Any]:
        if account.calls == 2:
            account.logs["tuning-000"] = whole
        return described(TrainingJobName) | {"TrainingEndTime": datetime.now(UTC)}

    account.describe_training_job = describe
    folders = Synchroniser(config, account, account, None, PRICES.__getitem__).sync_ended("tuning")
    assert [folder.outcome.state for folder in folders if folder.outcome] == ["COMPLETE", "COMPLETE"]
    assert account.calls == 3
    assert capsys.readouterr().err.count("its log is not yet") == 1


def judged(account: Account, status: str) -> None:
    """Let the training job say what Debugger's rules have found, just after it has ended."""
    described = account.describe_training_job
    rules = {
        "TrainingEndTime": datetime.now(UTC),
        "DebugRuleEvaluationStatuses": [
            {"RuleConfigurationName": "Overfit", "RuleEvaluationStatus": status, "StatusDetails": "at step 3"},
            {"RuleConfigurationName": "VanishingGradient", "RuleEvaluationStatus": "NoIssuesFound"},
        ],
        "ProfilerRuleEvaluationStatuses": [
            {"RuleConfigurationName": "ProfilerReport", "RuleEvaluationStatus": "Stopped"}
        ],
    }
    account.describe_training_job = lambda TrainingJobName: described(TrainingJobName) | rules


@pytest.mark.parametrize("seen_before", [False, True])
def test_what_debuggers_rules_found_becomes_tags(
    config: RunConfig, capsys: pytest.CaptureFixture[str], seen_before: bool
) -> None:
    account = Account(config, ["Completed"])
    if seen_before:
        judged(account, "InProgress")
        _, child = sync(config, account)
        assert child.info.status == "RUNNING"
        assert "Debugger's rules are still evaluated" in capsys.readouterr().err
    judged(account, "IssuesFound")
    _, child = sync(config, account)
    assert child.info.status == "FINISHED"
    assert {name: tag for name, tag in child.data.tags.items() if name.startswith("debugger.")} == {
        "debugger.Overfit": "IssuesFound",
        "debugger.VanishingGradient": "NoIssuesFound",
        "debugger.ProfilerReport": "Stopped",
    }
    assert "tuning-000: Overfit: IssuesFound at step 3" in capsys.readouterr().err


@pytest.mark.slow
def test_five_hundred_jobs_take_little_longer_than_mlflow_takes_to_write_them(config: RunConfig) -> None:
    account = Account(config, ["Completed"] * 500)
    started = time.monotonic()
    synchronise(config, account)
    took = time.monotonic() - started
    found = runs(config)
    assert len(found) == 501
    plain = 10 * write_plainly(config, found[:50])
    started = time.monotonic()
    synchronise(config, account)
    again = time.monotonic() - started
    print(f"sync of 500 jobs: {took:.1f} s, again {again:.1f} s; MLflow alone {plain:.1f} s")
    assert took < 3 * plain
    assert again < plain / 5


def write_plainly(config: RunConfig, found: list[Run]) -> float:
    """Seconds that MLflow's client takes to write such runs again."""
    client = MlflowClient(f"sqlite:///{config.output_dir / 'mlflow.db'}")
    histories = [
        [metric for name in run.data.metrics for metric in client.get_metric_history(run.info.run_id, name)]
        for run in found
    ]
    experiment = client.create_experiment("plain")
    started = time.monotonic()
    for run, history in zip(found, histories, strict=True):
        copy = client.create_run(experiment, tags=run.data.tags)
        client.log_batch(copy.info.run_id, history, [Param(*item) for item in run.data.params.items()])
        client.set_terminated(copy.info.run_id)
    return time.monotonic() - started
