"""SageMaker Debugger against the rehearsal, by the commands that a person types."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest

from sagemaker_launch.cli import main
from sagemaker_launch.rehearse import run_rehearsal
from sagemaker_launch.settings.cloud import load_cloud
from sagemaker_launch.settings.debugger import RULES
from tests.conftest import IMAGE_OPTIONS, REPOSITORY, own_flags, tiny
from tests.integration.test_cloud_commands import without_smdebug

CLOUD = REPOSITORY / "conf" / "cloud" / "rehearsal.yaml"


@pytest.fixture
def fields(photos: Path, tmp_path: Path) -> Callable[[str], list[str]]:
    """The flags of a command."""
    flags = [f"--{name}={value}" for name, value in tiny(photos, tmp_path).items()]
    return lambda command: [f"--cloud={CLOUD}", *own_flags(f"cloud {command}", flags)]


@pytest.mark.slow
def test_an_account_without_debugger_is_offered_the_recorder(
    fields: Callable[[str], list[str]],
    job_images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    without_smdebug(monkeypatch)
    options = [*IMAGE_OPTIONS, "--without-debugger"]
    with run_rehearsal(load_cloud(CLOUD), tmp_path / "rehearsal", options) as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        assert main(["train", "--debug", *fields("train")]) == 1
        assert boto3.client("sagemaker").list_training_jobs()["TrainingJobSummaries"] == []
    printed = capsys.readouterr().err
    assert "Amazon SageMaker Debugger is not available to this account" in printed
    assert "closed to new customers since 2026-07-30" in printed
    assert "--recorder" in printed


# Needs the job's side of Debugger: smdebug in the job, and an environment in which its rules are evaluated.
@pytest.mark.slow
def test_a_watched_job_is_judged_and_its_run_says_what_was_found(
    fields: Callable[[str], list[str]],
    job_images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from mlflow import MlflowClient

    settings = load_cloud(CLOUD)
    often = ["--cloud.debugger.weights_every=2", "--cloud.debugger.gradients_every=2", "--cloud.debugger.relu_every=2"]
    with run_rehearsal(settings, tmp_path / "rehearsal", [*IMAGE_OPTIONS, "--grace", "2"]) as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        assert main(["train", "--debug", *often, *fields("train")]) == 0
        name = capsys.readouterr().out.split()[-1].rpartition("/")[2]
        found = statuses(boto3.client("sagemaker"), name)
        stored = boto3.client("s3").list_objects_v2(
            Bucket=settings.bucket, Prefix=f"{settings.prefix}/debug/{name}/debug-output/events/"
        )
        assert main(["sync", name, *fields("sync")]) == 0
        assert main(["debug-report", name, *fields("debug-report"), f"--data.cache_dir={job_images}"]) == 0
        page = Path(capsys.readouterr().out.split()[-1])
    assert stored["KeyCount"] > 0
    assert found.keys() == {*RULES, "ProfilerReport"}
    assert found.pop("ProfilerReport") == "Stopped"
    assert set(found.values()) <= {"NoIssuesFound", "IssuesFound"}
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    for rule, status in found.items():
        assert run.data.tags[f"debugger.{rule}"] == status
        assert rule in page.read_text()
    artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert {"debug-report.html", "debug.json", "debug_losses.png"} <= artifacts


def statuses(client: Any, name: str) -> dict[str, str]:
    """What the rules of a job have found, once all are evaluated."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        described = client.describe_training_job(TrainingJobName=name)
        rules = [*described["DebugRuleEvaluationStatuses"], *described["ProfilerRuleEvaluationStatuses"]]
        found = {rule["RuleConfigurationName"]: rule["RuleEvaluationStatus"] for rule in rules}
        if "InProgress" not in found.values():
            return found
        time.sleep(0.5)
    raise TimeoutError(f"{found}")
