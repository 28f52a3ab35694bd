"""A job that AWS stops at its time limit: exit 3, what it has reached, and the next step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from experiments.errors import EXIT_TIME_LIMIT
from sagemaker_launch.aws.resources import TRAINING
from sagemaker_launch.jobs.follow import TimeLimitError, follow
from sagemaker_launch.jobs.found import best_training_job
from sagemaker_launch.jobs.launch import Launched

EPOCH = "[metrics] epoch=5 val_loss=0.7 best_val_loss=0.62 best_val_accuracy=0.81 highest_val_accuracy=0.84 end"
LIMITS = {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 7200}


def stopped(secondary: str, *lines: str, **more: Any) -> Any:
    """AWS with a job that was stopped, and its log."""
    described = {
        "TrainingJobName": "dogs-1",
        "TrainingJobStatus": "Stopped",
        "SecondaryStatus": secondary,
        "StoppingCondition": LIMITS,
        "HyperParameters": {"trainer__max_epochs": "10"},
        "CheckpointConfig": {"S3Uri": "s3://bucket/checkpoints/dogs/"},
        **more,
    }
    events = [{"timestamp": 0, "message": line} for line in ("Invoking script", *lines)]
    pages = SimpleNamespace(paginate=lambda **_: [{"logStreams": [{"logStreamName": "dogs-1/algo-1"}]}])
    return SimpleNamespace(
        describe_training_job=lambda **_: described,
        get_paginator=lambda _: pages,
        get_log_events=lambda nextToken="", **_: {"events": [] if nextToken else events, "nextForwardToken": "f"},
    )


@pytest.mark.parametrize(
    ("aws", "text"),
    [
        (
            stopped("MaxRuntimeExceeded", EPOCH),
            r"dogs-1 was stopped at cloud\.max_runtime_seconds \(3600 s\) after epoch 5 of 10 \(best_val_loss 0\.6200, "
            r".*\): the same command continues after its last checkpoint, as another attempt",
        ),
        (stopped("MaxWaitTimeExceeded", EPOCH), r"was stopped at cloud\.max_wait_seconds \(7200 s\) after epoch 5"),
        (stopped("MaxRuntimeExceeded"), r"before its first epoch was finished: raise cloud\.max_runtime_seconds"),
    ],
)
def test_a_time_limit_ends_with_a_code_of_its_own_and_what_was_reached(aws: Any, text: str) -> None:
    with pytest.raises(TimeLimitError, match=text) as raised:
        follow(aws, aws, Launched(TRAINING, "dogs-1", "arn", found=False), 1.0, poll_seconds=0)
    assert raised.value.exit_code == EXIT_TIME_LIMIT == 3


def test_a_job_that_a_person_stopped_is_no_error() -> None:
    aws = stopped("Stopped", EPOCH)
    assert follow(aws, aws, Launched(TRAINING, "dogs-1", "arn", found=False), 1.0, poll_seconds=0) == "Stopped"


def test_the_best_job_of_a_search_that_was_stopped_is_named_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    aws = stopped("MaxRuntimeExceeded", EPOCH)
    tuning = {"HyperParameterTuningJobStatus": "Completed", "BestTrainingJob": {"TrainingJobName": "dogs-1"}}
    aws.describe_hyper_parameter_tuning_job = lambda **_: tuning
    assert best_training_job(aws, "dogs")["TrainingJobName"] == "dogs-1"
    said = capsys.readouterr().err
    assert said == "dogs-1, the best of dogs, was stopped (MaxRuntimeExceeded): it has left no model\n"
