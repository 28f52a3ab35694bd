"""Jobs on days on which AWS answers late, incompletely or not at all (`f04`, `f06`, `f08`, `f22`)."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from typing import Any

import boto3
import pytest

from sagemaker_launch.jobs import sync
from tests.bad_days import DENIED, EXPIRED, Fault, on_a_bad_day
from tests.cloud import Cloud, account
from tests.e2e.conftest import cloud, service_environment  # noqa: F401  # fixtures

pytestmark = pytest.mark.slow

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
ENDED = ("Completed", "Failed", "Stopped")


def client(home: Cloud, service: str) -> Any:
    return boto3.client(
        service,
        endpoint_url=home.environment["AWS_ENDPOINT_URL"],
        region_name="us-east-1",
        aws_access_key_id=home.environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=home.secret,
    )


def job_of(home: Cloud, out: str) -> tuple[str, Mapping[str, Any]]:
    """The training job that a command started, once it has ended."""
    name = out.split()[-1].rpartition("/")[2]
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        described: Mapping[str, Any] = client(home, "sagemaker").describe_training_job(TrainingJobName=name)
        if described["TrainingJobStatus"] in ENDED:
            return name, described
        time.sleep(0.5)
    raise TimeoutError(f"{name} is {described['TrainingJobStatus']}")


def test_a_job_whose_log_is_gone_has_the_metrics_of_aws(
    cloud: Cloud,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with cloud.in_reach():
        assert cloud.run("train", "--seed=4001", "--no-wait") == 0
        name, described = job_of(cloud, capsys.readouterr().out)
        assert described["TrainingJobStatus"] == "Completed"
        logs = client(cloud, "logs")
        streams = logs.describe_log_streams(logGroupName=LOG_GROUP, logStreamNamePrefix=f"{name}/")["logStreams"]
        assert streams
        for stream in streams:
            account("logs").delete_log_stream(logGroupName=LOG_GROUP, logStreamName=stream["logStreamName"])
        monkeypatch.setattr(sync, "LOG_DELAY_SECONDS", 0.0)  # ten minutes later
        assert cloud.run("sync", name) == 0
    said = capsys.readouterr().err
    assert f"the log of {name} is gone" in said
    outcome = json.loads((cloud.home / "cloud" / name / "run.json").read_text())["outcome"]
    final = {entry["MetricName"]: entry["Value"] for entry in described["FinalMetricDataList"]}
    assert final["val_loss"] in outcome["metrics"].values()


WATCHED = {
    "expired token": Fault("SageMaker.DescribeTrainingJob", first=6, **EXPIRED),
    "no right to the log": Fault("Logs_20140328.DescribeLogStreams", **DENIED),
    "no right to the log's events": Fault("Logs_20140328.(GetLogEvents|FilterLogEvents)", **DENIED),
}


@pytest.mark.parametrize("fault", WATCHED.values(), ids=WATCHED)
def test_what_runs_is_named_with_its_commands(
    cloud: Cloud,  # noqa: F811
    fault: Fault,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with cloud.in_reach(), on_a_bad_day(fault) as day:
        code = cloud.run("train", f"--seed={4100 + list(WATCHED).index(_name(fault))}")
    err = capsys.readouterr().err
    assert day.hits >= 1
    assert code == 1, err
    keeps, reconnect, end = err.splitlines()[-3:]
    assert re.search(r"keeps running, for up to \$[\d.]+ an hour$", keeps)
    assert " sync " in reconnect and " stop " in end


def _name(fault: Fault) -> str:
    return next(name for name, one in WATCHED.items() if one is fault)


STARTED = {
    "tags not found": Fault(
        "SageMaker.ListTags", last=1, code="ValidationException", message="Could not find resource"
    ),
    "tags late": Fault("SageMaker.ListTags", last=1, body=b'{"Tags": []}'),
}


@pytest.mark.parametrize("name", STARTED)
def test_a_job_whose_tags_are_late_is_not_stopped(
    cloud: Cloud,  # noqa: F811
    name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with cloud.in_reach(), on_a_bad_day(STARTED[name]) as day:
        code = cloud.run("train", f"--seed={4200 + list(STARTED).index(name)}", "--no-wait")
        printed = capsys.readouterr()
    assert (code, day.hits) == (0, 1), printed.err
    assert job_of(cloud, printed.out)[1]["TrainingJobStatus"] == "Completed"


def _more_metrics(_operation: str, _request: bytes, answer: bytes) -> bytes:
    described = json.loads(answer)
    algorithm = described["TrainingJobDefinition"]["AlgorithmSpecification"]
    algorithm["MetricDefinitions"].append({"Name": "ObjectiveMetric", "Regex": "x=([0-9.]+)"})
    return json.dumps(described).encode()


def _changed_case(_operation: str, _request: bytes, answer: bytes) -> bytes:
    described = json.loads(answer)
    definition = described["TrainingJobDefinition"]
    definition["AlgorithmSpecification"]["MetricDefinitions"].reverse()
    definition["InputDataConfig"].reverse()
    definition["AlgorithmSpecification"]["TrainingInputMode"] = "FILE"
    return json.dumps(described).encode()


@pytest.mark.parametrize("rewrite", [_more_metrics, _changed_case])
def test_a_tuning_job_that_aws_describes_otherwise_runs(
    cloud: Cloud,  # noqa: F811
    rewrite: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fault = Fault("SageMaker.DescribeHyperParameterTuningJob", rewrite=rewrite)
    with cloud.in_reach(), on_a_bad_day(fault) as day:
        seed = 4300 + [_more_metrics, _changed_case].index(rewrite)
        code = cloud.run("tune", f"--seed={seed}", "--sweep.n_trials=2", "--no-wait")
        printed = capsys.readouterr()
    assert code == 0 and day.hits >= 1, printed.err
    name = printed.out.split()[-1].rpartition("/")[2]
    described = client(cloud, "sagemaker").describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    assert described["HyperParameterTuningJobStatus"] in ("InProgress", "Completed")
    client(cloud, "sagemaker").stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
