"""The AWS CLI on jobs and an endpoint that this project's launcher made."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.clients.recording import works

TUNING_JOB, TRAINING_JOB, ENDPOINT = (os.environ[name] for name in ("TUNING_JOB", "TRAINING_JOB", "ENDPOINT"))


def aws(*arguments: str) -> str:
    """Type a command, and read what it prints."""
    done = subprocess.run(["aws", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def answer(*arguments: str, query: str = "@") -> Any:
    """The answer of an operation of SageMaker, or what a JMESPath expression takes from it."""
    return json.loads(aws("sagemaker", *arguments, "--output", "json", "--query", query))


with works("launched: wait training-job-completed-or-stopped, describe-training-job"):
    named = ("--training-job-name", TRAINING_JOB)
    aws("sagemaker", "wait", "training-job-completed-or-stopped", *named)
    described = answer("describe-training-job", *named)
    assert described["TrainingJobStatus"] == "Completed"
    assert described["TrainingStartTime"] < described["TrainingEndTime"]

with works("launched: describe-hyper-parameter-tuning-job"):
    tuning = answer("describe-hyper-parameter-tuning-job", "--hyper-parameter-tuning-job-name", TUNING_JOB)
    assert tuning["HyperParameterTuningJobStatus"] == "Completed"
    best = tuning["BestTrainingJob"]["TrainingJobName"]
    objective = tuning["HyperParameterTuningJobConfig"]["HyperParameterTuningJobObjective"]["MetricName"]

with works("launched: list-training-jobs-for-hyper-parameter-tuning-job"):
    order = (
        "Descending"
        if tuning["HyperParameterTuningJobConfig"]["HyperParameterTuningJobObjective"]["Type"] == "Maximize"
        else "Ascending"
    )
    names = answer(
        *("list-training-jobs-for-hyper-parameter-tuning-job", "--hyper-parameter-tuning-job-name", TUNING_JOB),
        *("--sort-by", "FinalObjectiveMetricValue", "--sort-order", order),
        query="TrainingJobSummaries[].TrainingJobName",
    )
    assert names[0] == best and len(names) == 2

with works("launched: list-tags"):
    tags = answer("list-tags", "--resource-arn", described["TrainingJobArn"], query="Tags")
    project = {tag["Key"]: tag["Value"] for tag in tags}["project"]

with works("launched: search by a tag, by a metric and by a channel"):
    expression = {
        "Filters": [
            {"Name": "Tags.project", "Operator": "Equals", "Value": project},
            {"Name": f"Metrics.{objective}", "Operator": "Exists"},
        ],
        "NestedFilters": [
            {
                "NestedPropertyName": "InputDataConfig",
                "Filters": [{"Name": "InputDataConfig.ChannelName", "Operator": "Equals", "Value": "code"}],
            }
        ],
    }
    found = answer(
        *("search", "--resource", "TrainingJob", "--search-expression", json.dumps(expression)),
        *("--sort-by", f"Metrics.{objective}", "--sort-order", order),
        query="Results[].TrainingJob.TrainingJobName",
    )
    assert set(found) >= {TRAINING_JOB, *names}

with works("launched: search of tuning jobs"):
    expression = {"Filters": [{"Name": "HyperParameterTuningJobName", "Operator": "Equals", "Value": TUNING_JOB}]}
    own = ("search", "--resource", "HyperParameterTuningJob", "--search-expression", json.dumps(expression))
    [job] = answer(*own, query="Results[].HyperParameterTuningJob")
    assert job["BestTrainingJob"]["TrainingJobName"] == best

with works("launched: s3 sync of a job's output"):
    archive = described["ModelArtifacts"]["S3ModelArtifacts"]
    aws("s3", "sync", archive.rpartition("/")[0], "output", "--only-show-errors")
    assert (Path("output") / "model.tar.gz").stat().st_size > 1000

with works("launched: logs get-log-events"):
    group = ("--log-group-name", "/aws/sagemaker/TrainingJobs")
    own = ("describe-log-streams", *group, "--log-stream-name-prefix", f"{TRAINING_JOB}/")
    [stream] = json.loads(aws("logs", *own, "--query", "logStreams[].logStreamName"))
    events = aws("logs", "get-log-events", *group, "--log-stream-name", stream, "--output", "text")
    assert objective in events

with works("launched: wait endpoint-in-service, describe-endpoint"):
    aws("sagemaker", "wait", "endpoint-in-service", "--endpoint-name", ENDPOINT)
    assert answer("describe-endpoint", "--endpoint-name", ENDPOINT, query="EndpointStatus") == "InService"

with works("launched: invoke-endpoint with a photo"):
    [photo, *_] = sorted(Path(os.environ["PHOTOS"]).rglob("*.jp*g")) or sorted(
        Path(os.environ["PHOTOS"]).rglob("*.png")
    )
    kind = "image/png" if photo.suffix == ".png" else "image/jpeg"
    asked = ("--endpoint-name", ENDPOINT, "--content-type", kind, "--accept", "application/json")
    aws("sagemaker-runtime", "invoke-endpoint", *asked, "--body", f"fileb://{photo}", "answer.json")
    assert json.loads(Path("answer.json").read_text())
