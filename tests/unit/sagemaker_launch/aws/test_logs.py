"""Why a job failed: AWS's reason, or the end of the log where AWS's reason is empty."""

from __future__ import annotations

import time

import boto3
import pytest
from moto import mock_aws

from sagemaker_launch.aws.logs import endpoint_log, failure_reason

LINES = ["starting", "No module named 'sagemaker_training'"]


@pytest.mark.parametrize(
    "reason", ["AlgorithmError: it broke, exit code: 1", "ClientError: no data", "exit code 137: memory"]
)
def test_a_reason_of_aws_stays_as_it_is(reason: str) -> None:
    assert failure_reason({"FailureReason": reason}, LINES) == reason


@pytest.mark.parametrize(
    "reason",
    [
        "AlgorithmError: , exit code: 1",
        "AlgorithmError: ",
        ", exit code: -9",
        'AlgorithmError: InstallRequirementsError:\nExitCode 1\nErrorMessage ""\nCommand "pip", exit code: 1',
    ],
)
def test_an_empty_reason_is_followed_by_the_end_of_the_log(reason: str) -> None:
    reason_and_log = failure_reason({"FailureReason": reason}, LINES)
    assert reason_and_log.startswith(reason.strip())
    assert reason_and_log.endswith("the log ends with:\n  starting\n  No module named 'sagemaker_training'")


@pytest.mark.parametrize("described", [{}, {"FailureReason": ""}, {"FailureReason": None}, {"FailureReason": " "}])
def test_no_reason_at_all_is_said_and_never_empty(described: dict[str, object]) -> None:
    assert failure_reason(described) == "AWS gives no reason"
    assert failure_reason(described, LINES).startswith("AWS gives no reason; the log ends with:\n  starting")


def test_the_log_of_an_endpoint_begins_with_this_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    """CloudWatch keeps the lines of an endpoint that had the same name last week."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with mock_aws():
        client, group = boto3.client("logs", region_name="us-east-1"), "/aws/sagemaker/Endpoints/dogs"
        client.create_log_group(logGroupName=group)
        now = round(time.time() * 1000)
        for stream, times in {"old": [now - 7 * 86_400_000], "new": [now - 3_600_000, now]}.items():
            client.create_log_stream(logGroupName=group, logStreamName=stream)
            events = [{"timestamp": at, "message": f"{stream} {at}"} for at in times]
            client.put_log_events(logGroupName=group, logStreamName=stream, logEvents=events)
        log = endpoint_log(client, "dogs", now)
        assert [line.text for line in log.read()] == [f"new {now}"]
        assert log.read() == []
        later = [{"timestamp": now + 1, "message": "later"}]
        client.put_log_events(logGroupName=group, logStreamName="new", logEvents=later)
        assert [line.text for line in log.read()] == ["later"]
