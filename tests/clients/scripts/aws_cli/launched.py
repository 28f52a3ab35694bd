"""The AWS CLI on a search, a job and an endpoint that the launcher of this project made."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

from tests.clients.made import BEST, MADE, TRAINING_JOB, TUNING_JOB, close
from tests.clients.recording import works
from tests.clients.typed import answer, aws

with works("sagemaker describe-hyper-parameter-tuning-job; the launcher's search"):
    tuning = answer(
        *("sagemaker", "describe-hyper-parameter-tuning-job", "--hyper-parameter-tuning-job-name", TUNING_JOB)
    )
    assert tuning["HyperParameterTuningJobStatus"] == "Completed"
    assert tuning["BestTrainingJob"]["TrainingJobName"] == BEST
    value = tuning["BestTrainingJob"]["FinalHyperParameterTuningJobObjectiveMetric"]["Value"]
    assert close(value, MADE["objectives"][BEST])

with works("sagemaker list-training-jobs-for-hyper-parameter-tuning-job; the launcher's search"):
    listed = answer(
        *("sagemaker", "list-training-jobs-for-hyper-parameter-tuning-job"),
        *("--hyper-parameter-tuning-job-name", TUNING_JOB, "--sort-by", "FinalObjectiveMetricValue"),
        *("--sort-order", "Ascending"),
        query="TrainingJobSummaries[].TrainingJobName",
    )
    assert listed == sorted(MADE["objectives"], key=lambda name: MADE["objectives"][name])

with works("sagemaker wait training-job-completed-or-stopped, describe-training-job; the launcher's job"):
    named = ("--training-job-name", TRAINING_JOB)
    aws("sagemaker", "wait", "training-job-completed-or-stopped", *named)
    described = answer("sagemaker", "describe-training-job", *named)
    assert described["TrainingJobStatus"] == "Completed"
    assert described["ModelArtifacts"]["S3ModelArtifacts"] == MADE["models"][TRAINING_JOB]
    final = {one["MetricName"]: one["Value"] for one in described["FinalMetricDataList"]}
    assert close(final[MADE["objective"]], min(MADE["epochs"][TRAINING_JOB]))

with works(
    "sagemaker list-hyper-parameter-tuning-jobs, list-training-jobs, list-endpoints --name-contains; the launcher's"
):
    for command, kind, name, expected in (
        ("list-hyper-parameter-tuning-jobs", "HyperParameterTuningJob", TUNING_JOB, [TUNING_JOB]),
        ("list-training-jobs", "TrainingJob", TUNING_JOB, sorted(MADE["objectives"])),
        ("list-training-jobs", "TrainingJob", TRAINING_JOB, [TRAINING_JOB]),
        ("list-endpoints", "Endpoint", MADE["endpoint"], [MADE["endpoint"]]),
    ):
        listing = "Endpoints" if kind == "Endpoint" else f"{kind}Summaries"
        found = answer("sagemaker", command, "--name-contains", name, query=f"{listing}[].{kind}Name")
        assert sorted(found) == expected, (command, found)

with works("sagemaker search; the launcher's search, jobs and endpoint by their tag"):
    tagged = {"Name": "Tags.project", "Operator": "Equals", "Value": MADE["project"]}
    for resource, names in (
        ("TrainingJob", {TRAINING_JOB, *MADE["objectives"]}),
        ("HyperParameterTuningJob", {TUNING_JOB}),
        ("Endpoint", {MADE["endpoint"]}),
    ):
        found = answer(
            *("sagemaker", "search", "--resource", resource, "--search-expression", json.dumps({"Filters": [tagged]})),
            query=f"Results[].{resource}.{resource}Name",
        )
        assert set(found) == names, (resource, found)
    better = {"Name": f"Metrics.{MADE['objective']}", "Operator": "LessThanOrEqualTo"}
    better["Value"] = repr(MADE["objectives"][BEST] + 1e-6)
    found = answer(
        *("sagemaker", "search", "--resource", "TrainingJob"),
        *("--search-expression", json.dumps({"Filters": [tagged, better]})),
        query="Results[].TrainingJob.TrainingJobName",
    )
    assert set(found) >= {BEST, TRAINING_JOB}, found

with works("sagemaker list-tags; of the launcher's search, job and endpoint"):
    arns = (tuning["HyperParameterTuningJobArn"], described["TrainingJobArn"], MADE["endpoint_arn"])
    for arn in arns:
        tags = {
            tag["Key"]: tag["Value"] for tag in answer("sagemaker", "list-tags", "--resource-arn", arn, query="Tags")
        }
        assert tags["project"] == MADE["project"], (arn, tags)

with works("s3 ls, s3 cp; model.tar.gz of the launcher's job"):
    assert "model.tar.gz" in aws("s3", "ls", MADE["models"][TRAINING_JOB])
    aws("s3", "cp", MADE["models"][TRAINING_JOB], "model.tar.gz", "--only-show-errors")
    with tarfile.open("model.tar.gz") as archive:
        names = {name.removeprefix("./") for name in archive.getnames()}
        assert {"model.json", "model.safetensors", "golden/image.jpg", "code/inference.py"} <= names
        golden = archive.extractfile(next(one for one in archive if one.name.endswith("golden/scores.json")))
        assert golden is not None
        assert json.load(golden)["logits"] == MADE["scores"]

with works("logs describe-log-streams, get-log-events, filter-log-events; of the launcher's job"):
    group = ("--log-group-name", "/aws/sagemaker/TrainingJobs")
    [stream] = answer(
        *("logs", "describe-log-streams", *group, "--log-stream-name-prefix", f"{TRAINING_JOB}/"),
        query="logStreams[].logStreamName",
    )
    read = ("logs", "get-log-events", *group, "--log-stream-name", stream, "--start-from-head")
    messages = answer(*read, query="events[].message")
    epochs = [line for line in messages if line.startswith("[metrics]")]
    assert len(epochs) == len(MADE["epochs"][TRAINING_JOB])
    assert all(
        f" val_loss={value!r} " in line for line, value in zip(epochs, MADE["epochs"][TRAINING_JOB], strict=True)
    )
    filtered = ("logs", "filter-log-events", *group, "--log-stream-name-prefix", f"{TRAINING_JOB}/")
    assert answer(*filtered, "--filter-pattern", '"[metrics]"', query="events[].message") == epochs

with works("cloudwatch list-metrics, get-metric-statistics; of the launcher's job"):
    own = ("--namespace", "/aws/sagemaker/TrainingJobs", "--dimensions", f"Name=TrainingJobName,Value={TRAINING_JOB}")
    assert MADE["objective"] in answer("cloudwatch", "list-metrics", *own, query="Metrics[].MetricName")
    points = answer(
        *("cloudwatch", "get-metric-statistics", *own, "--metric-name", MADE["objective"]),
        *("--start-time", str(described["TrainingStartTime"]), "--end-time", str(described["LastModifiedTime"])),
        *("--period", "3600", "--statistics", "Minimum"),
        query="Datapoints[].Minimum",
    )
    assert close(min(points), min(MADE["epochs"][TRAINING_JOB]))

with works("sagemaker wait endpoint-in-service, describe-endpoint; the launcher's endpoint"):
    aws("sagemaker", "wait", "endpoint-in-service", "--endpoint-name", MADE["endpoint"])
    arn = answer("sagemaker", "describe-endpoint", "--endpoint-name", MADE["endpoint"], query="EndpointArn")
    assert arn == MADE["endpoint_arn"]

with works("sagemaker-runtime invoke-endpoint; the launcher's endpoint"):
    asked = ("--endpoint-name", MADE["endpoint"], "--content-type", "image/jpeg", "--body", f"fileb://{MADE['photo']}")
    aws("sagemaker-runtime", "invoke-endpoint", *asked, "answer.json")
    [scores] = json.loads(Path("answer.json").read_text())
    assert len(scores) == len(MADE["scores"]) and all(map(close, scores, MADE["scores"]))
