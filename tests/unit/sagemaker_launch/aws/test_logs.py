"""Why a job failed: AWS's reason, or the end of the log where AWS's reason is empty."""

from __future__ import annotations

import pytest

from sagemaker_launch.aws.logs import failure_reason

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
