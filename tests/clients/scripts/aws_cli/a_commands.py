"""The AWS CLI on jobs and endpoints of its own: what a user types, and what the answer must say."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from typing import Any

from tests.clients.recording import not_rehearsed, works
from tests.clients.served import SERVER
from tests.clients.typed import answer, aws

BUCKET, ROLE = os.environ["BUCKET"], os.environ["ROLE"]
SCRIPT = """
from pathlib import Path
print("epoch=0 val_loss=0.5")
print("epoch=1 val_loss=0.25")
Path("/opt/ml/model/weights.txt").write_text(Path("/opt/ml/input/data/photos/a.txt").read_text())
"""


def channel(name: str) -> dict[str, Any]:
    source = {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/aws-cli/{name}"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}}


def job(name: str, **more: Any) -> str:
    """The request of a training job, as `--cli-input-json` takes it."""
    request = {
        "TrainingJobName": name,
        "RoleArn": ROLE,
        "AlgorithmSpecification": {
            "TrainingImage": "rehearsal.local/script",
            "TrainingInputMode": "File",
            "MetricDefinitions": [{"Name": "val_loss", "Regex": "val_loss=([0-9.]+)"}],
        },
        "InputDataConfig": [channel("code"), channel("photos")],
        "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/aws-cli/output"},
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 10},
        "StoppingCondition": {"MaxRuntimeInSeconds": 300},
        "Tags": [{"Key": "project", "Value": "aws-cli"}],
        **more,
    }
    return json.dumps(request)


with works("s3 mb, s3 ls, s3 rb"):
    aws("s3", "mb", "s3://aws-cli-own")
    assert "aws-cli-own" in aws("s3", "ls")
    aws("s3", "rb", "s3://aws-cli-own")
    assert "aws-cli-own" not in aws("s3", "ls")

with works("s3 cp, s3 sync, s3 rm"):
    Path("send/photos").mkdir(parents=True)
    Path("send/code").mkdir()
    Path("send/photos/a.txt").write_text("a photo")
    Path("send/code/train.py").write_text(SCRIPT)
    aws("s3", "sync", "send", f"s3://{BUCKET}/aws-cli/", "--only-show-errors")
    aws("s3", "cp", f"s3://{BUCKET}/aws-cli/photos/a.txt", "back.txt", "--only-show-errors")
    assert Path("back.txt").read_text() == "a photo"
    Path("large.bin").write_bytes(os.urandom(20_000_000))  # in several parts
    aws("s3", "cp", "large.bin", f"s3://{BUCKET}/aws-cli/large.bin", "--only-show-errors")
    aws("s3", "cp", f"s3://{BUCKET}/aws-cli/large.bin", "large-back.bin", "--only-show-errors")
    assert Path("large-back.bin").read_bytes() == Path("large.bin").read_bytes()
    aws("s3", "rm", f"s3://{BUCKET}/aws-cli/large.bin", "--only-show-errors")
    assert "large.bin" not in aws("s3", "ls", f"s3://{BUCKET}/aws-cli/")

with works("sts get-caller-identity"):
    assert answer("sts", "get-caller-identity", query="Account") == "123456789012"

with works("sagemaker create-training-job"):
    arn = answer("sagemaker", "create-training-job", "--cli-input-json", job("cli-a"), query="TrainingJobArn")
    assert arn.endswith(":training-job/cli-a")

with works("sagemaker wait training-job-completed-or-stopped"):
    aws("sagemaker", "wait", "training-job-completed-or-stopped", "--training-job-name", "cli-a")

with works("sagemaker describe-training-job"):
    described = answer("sagemaker", "describe-training-job", "--training-job-name", "cli-a")
    assert described["TrainingJobStatus"] == "Completed"
    assert [one["Value"] for one in described["FinalMetricDataList"] if one["MetricName"] == "val_loss"] == [0.25]

with works("sagemaker stop-training-job"):
    Path("send/code/train.py").write_text("import time\ntime.sleep(100)\n")
    aws("s3", "sync", "send/code", f"s3://{BUCKET}/aws-cli/code", "--only-show-errors")
    aws("sagemaker", "create-training-job", "--cli-input-json", job("cli-b"))
    aws("sagemaker", "stop-training-job", "--training-job-name", "cli-b")
    aws("sagemaker", "wait", "training-job-completed-or-stopped", "--training-job-name", "cli-b")
    status = answer("sagemaker", "describe-training-job", "--training-job-name", "cli-b", query="TrainingJobStatus")
    assert status == "Stopped"

with works("sagemaker list-training-jobs --name-contains --status-equals --sort-by --page-size"):
    names = "TrainingJobSummaries[].TrainingJobName"
    own: tuple[str, ...] = ("sagemaker", "list-training-jobs", "--name-contains", "cli-")
    assert answer(*own, "--sort-by", "Name", "--sort-order", "Descending", query=names) == ["cli-b", "cli-a"]
    assert answer(*own, "--status-equals", "Completed", query=names) == ["cli-a"]
    assert sorted(answer(*own, "--page-size", "1", query=names)) == ["cli-a", "cli-b"]  # the CLI reads each page
    assert answer(*own, "--creation-time-after", "2099-01-01", query=names) == []
    first = answer(*own, "--max-items", "1", "--page-size", "1")
    rest = answer(*own, "--page-size", "1", "--starting-token", first["NextToken"], query=names)
    assert len(first["TrainingJobSummaries"]) == len(rest) == 1

with works("sagemaker search --search-expression --sort-by"):
    expression = {
        "Filters": [{"Name": "Tags.project", "Operator": "Equals", "Value": "aws-cli"}],
        "SubExpressions": [
            {
                "Operator": "Or",
                "Filters": [
                    {"Name": "Metrics.val_loss", "Operator": "LessThan", "Value": "0.3"},
                    {"Name": "TrainingJobStatus", "Operator": "Equals", "Value": "Stopped"},
                ],
            }
        ],
    }
    found = answer(
        *("sagemaker", "search", "--resource", "TrainingJob", "--search-expression", json.dumps(expression)),
        *("--sort-by", "TrainingJobName", "--sort-order", "Ascending"),
        query="Results[].TrainingJob.TrainingJobName",
    )
    assert found == ["cli-a", "cli-b"]

with works("sagemaker add-tags, list-tags, delete-tags"):
    aws("sagemaker", "add-tags", "--resource-arn", arn, "--tags", "Key=owner,Value=me")
    aws("sagemaker", "delete-tags", "--resource-arn", arn, "--tag-keys", "project")
    assert answer("sagemaker", "list-tags", "--resource-arn", arn, query="Tags") == [{"Key": "owner", "Value": "me"}]

with works("logs describe-log-streams, get-log-events"):
    group = ("--log-group-name", "/aws/sagemaker/TrainingJobs")
    [stream] = answer(
        *("logs", "describe-log-streams", *group, "--log-stream-name-prefix", "cli-a/"),
        query="logStreams[].logStreamName",
    )
    messages = answer("logs", "get-log-events", *group, "--log-stream-name", stream, query="events[].message")
    assert [line for line in messages if "val_loss" in line] == ["epoch=0 val_loss=0.5", "epoch=1 val_loss=0.25"]

# `logs tail` of CLI version 2, which pip does not have, makes this call.
with works("logs filter-log-events"):
    own = ("--log-stream-name-prefix", "cli-a/", "--start-time", "0", "--filter-pattern", "val_loss")
    assert len(answer("logs", "filter-log-events", *group, *own, query="events[].message")) == 2

with works("cloudwatch put-metric-alarm, describe-alarms, delete-alarms"):
    aws(
        *("cloudwatch", "put-metric-alarm", "--alarm-name", "cli-alarm", "--namespace", "AWS/SageMaker"),
        *("--metric-name", "Invocation5XXErrors", "--statistic", "Sum", "--period", "60", "--evaluation-periods", "1"),
        *("--threshold", "1", "--comparison-operator", "GreaterThanOrEqualToThreshold"),
    )
    named: tuple[str, ...] = ("cloudwatch", "describe-alarms", "--alarm-names", "cli-alarm")
    assert answer(*named, query="MetricAlarms[].MetricName") == ["Invocation5XXErrors"]
    aws("cloudwatch", "delete-alarms", "--alarm-names", "cli-alarm")
    assert answer(*named, query="MetricAlarms") == []

with works("sagemaker create-hyper-parameter-tuning-job"):
    Path("send/code/train.py").write_text(SCRIPT)
    aws("s3", "sync", "send/code", f"s3://{BUCKET}/aws-cli/code", "--only-show-errors")
    definition = json.loads(job("x"))
    for name in ("TrainingJobName", "Tags"):
        del definition[name]
    ranges = {"ContinuousParameterRanges": [{"Name": "rate", "MinValue": "0.1", "MaxValue": "1"}]}
    tuning = {
        "Strategy": "Random",
        "HyperParameterTuningJobObjective": {"Type": "Minimize", "MetricName": "val_loss"},
        "ResourceLimits": {"MaxNumberOfTrainingJobs": 2, "MaxParallelTrainingJobs": 1},
        "ParameterRanges": ranges,
    }
    arn = answer(
        *("sagemaker", "create-hyper-parameter-tuning-job", "--hyper-parameter-tuning-job-name", "cli-tuning"),
        *("--hyper-parameter-tuning-job-config", json.dumps(tuning)),
        *("--training-job-definition", json.dumps(definition)),
        query="HyperParameterTuningJobArn",
    )
    assert arn.endswith(":hyper-parameter-tuning-job/cli-tuning")

with works("sagemaker create-model, create-endpoint-config, create-endpoint"):
    Path("served/code").mkdir(parents=True)
    Path("served/code/serve.py").write_text(SERVER)
    with tarfile.open("model.tar.gz", "w:gz") as archive:
        archive.add("served", ".")
    aws("s3", "cp", "model.tar.gz", f"s3://{BUCKET}/aws-cli/model.tar.gz", "--only-show-errors")
    container = f"Image=rehearsal.local/script,ModelDataUrl=s3://{BUCKET}/aws-cli/model.tar.gz"
    own = ("--execution-role-arn", ROLE, "--primary-container", container)
    aws("sagemaker", "create-model", "--model-name", "cli-model", *own)
    variant = "VariantName=main,ModelName=cli-model,InstanceType=ml.c5.large,InitialInstanceCount=1"
    config = ("--endpoint-config-name", "cli-config")
    aws("sagemaker", "create-endpoint-config", *config, "--production-variants", variant)
    aws("sagemaker", "create-endpoint", "--endpoint-name", "cli-endpoint", *config, "--tags", "Key=project,Value=cli")

with works("sagemaker wait endpoint-in-service"):
    aws("sagemaker", "wait", "endpoint-in-service", "--endpoint-name", "cli-endpoint")

with works("sagemaker describe-endpoint, list-endpoints, list-models, list-endpoint-configs"):
    named = ("sagemaker", "describe-endpoint", "--endpoint-name", "cli-endpoint")
    assert answer(*named, query="EndpointStatus") == "InService"
    for kind, name in (("Endpoint", "cli-endpoint"), ("Model", "cli-model"), ("EndpointConfig", "cli-config")):
        command = {"Endpoint": "list-endpoints", "Model": "list-models", "EndpointConfig": "list-endpoint-configs"}[
            kind
        ]
        query = f"{kind}s[].{kind}Name"
        assert answer("sagemaker", command, "--name-contains", "cli-", query=query) == [name]

with works("sagemaker search --resource Endpoint"):
    tag = "Filters=[{Name=Tags.project,Operator=Equals,Value=cli}]"
    query = "Results[].Endpoint.EndpointName"
    found = answer("sagemaker", "search", "--resource", "Endpoint", "--search-expression", tag, query=query)
    assert found == ["cli-endpoint"]

with works("sagemaker-runtime invoke-endpoint"):
    Path("photo.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(1000))
    asked = ("--endpoint-name", "cli-endpoint", "--content-type", "image/jpeg", "--body", "fileb://photo.jpg")
    aws("sagemaker-runtime", "invoke-endpoint", *asked, "answer.txt")
    assert Path("answer.txt").read_text() == "image/jpeg of 1004 bytes"

with works("sagemaker wait endpoint-deleted"):
    aws("sagemaker", "delete-endpoint", "--endpoint-name", "cli-endpoint")
    aws("sagemaker", "wait", "endpoint-deleted", "--endpoint-name", "cli-endpoint")
    aws("sagemaker", "delete-endpoint-config", "--endpoint-config-name", "cli-config")
    aws("sagemaker", "delete-model", "--model-name", "cli-model")
    assert answer("sagemaker", "list-models", "--name-contains", "cli-", query="Models") == []

with works("sagemaker describe-hyper-parameter-tuning-job, list-training-jobs-for-hyper-parameter-tuning-job"):
    named = ("--hyper-parameter-tuning-job-name", "cli-tuning")
    described = {"HyperParameterTuningJobStatus": "InProgress"}
    while described["HyperParameterTuningJobStatus"] == "InProgress":
        described = answer("sagemaker", "describe-hyper-parameter-tuning-job", *named)
    assert described["HyperParameterTuningJobStatus"] == "Completed"
    query = "TrainingJobSummaries[].TrainingJobStatus"
    sort = ("--sort-by", "FinalObjectiveMetricValue")
    command = "list-training-jobs-for-hyper-parameter-tuning-job"
    assert answer("sagemaker", command, *named, *sort, query=query) == ["Completed", "Completed"]
    query = "HyperParameterTuningJobSummaries[].HyperParameterTuningJobName"
    assert "cli-tuning" in answer("sagemaker", "list-hyper-parameter-tuning-jobs", query=query)

with not_rehearsed("sagemaker create-processing-job"):
    aws(
        *("sagemaker", "create-processing-job", "--processing-job-name", "cli", "--role-arn", ROLE),
        *("--app-specification", "ImageUri=x", "--processing-resources"),
        "ClusterConfig={InstanceCount=1,InstanceType=ml.m5.large,VolumeSizeInGB=10}",
    )

with not_rehearsed("sagemaker create-transform-job"):
    aws(
        *("sagemaker", "create-transform-job", "--transform-job-name", "cli", "--model-name", "cli-model"),
        "--transform-input",
        f"DataSource={{S3DataSource={{S3DataType=S3Prefix,S3Uri=s3://{BUCKET}/x}}}}",
        *("--transform-output", f"S3OutputPath=s3://{BUCKET}/y"),
        *("--transform-resources", "InstanceType=ml.m5.large,InstanceCount=1"),
    )

with not_rehearsed("sagemaker create-pipeline"):
    own = ("--pipeline-name", "cli", "--role-arn", ROLE, "--pipeline-definition", "{}")
    aws("sagemaker", "create-pipeline", *own, "--client-request-token", "x" * 32)

with not_rehearsed("sagemaker search --resource Pipeline"):
    aws("sagemaker", "search", "--resource", "Pipeline")

with not_rehearsed("sagemaker create-training-job --infra-check-config"):
    aws(
        "sagemaker",
        "create-training-job",
        "--cli-input-json",
        job("cli-c", InfraCheckConfig={"EnableInfraCheck": True}),
    )

with not_rehearsed("s3api put-bucket-lifecycle-configuration"):
    rules = "Rules=[{ID=x,Status=Enabled,Prefix=x,Expiration={Days=1}}]"
    aws("s3api", "put-bucket-lifecycle-configuration", "--bucket", BUCKET, "--lifecycle-configuration", rules)

with not_rehearsed("sts assume-role"):
    aws("sts", "assume-role", "--role-arn", ROLE, "--role-session-name", "me")

with not_rehearsed("ec2 describe-instances"):
    aws("ec2", "describe-instances")

with not_rehearsed("lambda list-functions"):
    aws("lambda", "list-functions")

with not_rehearsed("cloudfront list-distributions"):
    aws("cloudfront", "list-distributions")
