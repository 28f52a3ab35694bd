"""Calls of each principal, and what IAM is asked about them: calls that must pass, and calls that must not.

The requests of the launcher are those that its own functions build.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from experiments.config import RunConfig, load_config
from sagemaker_launch.account.permissions import Caller
from sagemaker_launch.account.policy import policies
from sagemaker_launch.endpoints import requests
from sagemaker_launch.endpoints.lease import Lease
from sagemaker_launch.rehearsal.authorization import Check, checks
from sagemaker_launch.rehearsal.calls import Call
from sagemaker_launch.settings.cloud import load_cloud
from tests.unit.sagemaker_launch.jobs.test_requests import EVERYTHING, train, tune

ACCOUNT, REGION = "123456789012", "us-east-1"
SCHEDULE_ROLE = f"arn:aws:iam::{ACCOUNT}:role/schedules"
PHOTOS = "s3://other-team/photos"
SETTINGS = load_cloud(
    None,
    EVERYTHING
    | {
        "project": "dogs",
        "endpoint.schedule_role_arn": SCHEDULE_ROLE,
        "endpoint.max_instances": 2,
        "endpoint.max_latency_ms": 100,
    },
)
POLICIES = policies(SETTINGS, REGION, load_config(None, {"data.name": "folder", "data.root": PHOTOS}))
KEY, VOLUME_KEY = str(SETTINGS.output_kms_key), str(SETTINGS.volume_kms_key)
OWN_BUCKET = {"Bucket": "my-bucket"}
OBJECT = OWN_BUCKET | {"Key": "experiments/weights/x/model.pth"}
OUTPUT = OWN_BUCKET | {"Key": "experiments/jobs/job/output/model.tar.gz"}
SSE = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": KEY}


def arn(service: str, resource: str, region: str = REGION) -> str:
    return f"arn:aws:{service}:{region}:{ACCOUNT}:{resource}"


class Account:
    """An account in which the endpoint `dogs` is scaled.

    What has `theirs` in its name belongs to others, and what is called `new` does not exist.
    """

    account = ACCOUNT

    def tags(self, region: str, arn: str) -> Mapping[str, str]:
        if arn.endswith("/new"):
            return {}
        return {"project": "cats" if "theirs" in arn else "dogs", "team": "vision"}

    def scaled(self, region: str, endpoint: str) -> list[str]:
        return [f"endpoint/{endpoint}/variant/AllTraffic"]

    def tracking_alarms(self, region: str, resource_id: str) -> list[str]:
        return [f"TargetTracking-{resource_id}-{end}-1" for end in ("AlarmHigh", "AlarmLow")]

    def object_key(self, bucket: str, key: str) -> str | None:
        return KEY

    def volume_key(self, region: str, config: str) -> str | None:
        return VOLUME_KEY


def call(service: str, operation: str, parameters: Mapping[str, Any] | None = None, region: str = REGION) -> Call:
    return Call(service, operation, region, parameters or {})


def _of_launcher() -> Iterator[Call]:
    version = requests.deployment(SETTINGS, "dogs", "image", "s3://my-bucket/experiments/models/x/model.tar.gz")
    lease = Lease("me", datetime(2026, 12, 1, tzinfo=UTC))
    sagemaker: dict[str, Mapping[str, Any]] = {
        "CreateTrainingJob": train(SETTINGS, RunConfig(seed=7)) | {"TrainingJobName": "new"},
        "CreateHyperParameterTuningJob": tune(SETTINGS) | {"HyperParameterTuningJobName": "new"},
        "StopTrainingJob": {"TrainingJobName": "job"},
        "StopHyperParameterTuningJob": {"HyperParameterTuningJobName": "job"},
        "DescribeTrainingJob": {"TrainingJobName": "job"},
        "DescribeHyperParameterTuningJob": {"HyperParameterTuningJobName": "job"},
        "ListTrainingJobsForHyperParameterTuningJob": {"HyperParameterTuningJobName": "job"},
        "ListTrainingJobs": {},
        "ListHyperParameterTuningJobs": {},
        "CreateModel": version.model | {"ModelName": "new"},
        "CreateEndpointConfig": version.config | {"EndpointConfigName": "new"},
        "CreateEndpoint": requests.create_endpoint(SETTINGS, "new", version.config_name, lease),
        "UpdateEndpoint": requests.update_endpoint(SETTINGS, "dogs", version.config_name),
        "UpdateEndpointWeightsAndCapacities": requests.fixed_instances(SETTINGS.endpoint, "dogs"),
        "DeleteEndpoint": {"EndpointName": "dogs"},
        "DeleteEndpointConfig": {"EndpointConfigName": "dogs-1"},
        "DeleteModel": {"ModelName": "dogs-1"},
        "AddTags": {
            "ResourceArn": arn("sagemaker", "endpoint/dogs"),
            "Tags": requests.endpoint_tags(SETTINGS, "dogs", lease),
        },
        "DescribeModel": {"ModelName": "dogs-1"},
        "DescribeEndpointConfig": {"EndpointConfigName": "dogs-1"},
        "DescribeEndpoint": {"EndpointName": "dogs"},
        "ListModels": {},
        "ListEndpointConfigs": {},
        "ListEndpoints": {},
    }
    yield from (call("sagemaker", operation, parameters) for operation, parameters in sagemaker.items())
    for kind in ("training-job", "hyper-parameter-tuning-job", "model", "endpoint-config", "endpoint"):
        yield call("sagemaker", "ListTags", {"ResourceArn": arn("sagemaker", f"{kind}/dogs")})
    for operation in ("InvokeEndpoint", "InvokeEndpointAsync"):
        yield call("sagemaker-runtime", operation, {"EndpointName": "dogs"})
    endpoint, variant = SETTINGS.endpoint, requests.variant_of("dogs")
    yield call("application-autoscaling", "RegisterScalableTarget", requests.scalable_target(endpoint, "dogs"))
    for policy in (requests.scaling_policy(endpoint, "dogs"), requests.wake_policy("dogs")):
        yield call("application-autoscaling", "PutScalingPolicy", policy)
    yield call("application-autoscaling", "DeregisterScalableTarget", variant)
    yield call("application-autoscaling", "DescribeScalableTargets", {"ServiceNamespace": "sagemaker"})
    alarms = [*requests.update_alarms(SETTINGS, "dogs"), requests.wake_alarm(SETTINGS, "dogs", "arn:policy")]
    yield from (call("cloudwatch", "PutMetricAlarm", alarm) for alarm in alarms)
    yield call("cloudwatch", "DeleteAlarms", {"AlarmNames": [alarm["AlarmName"] for alarm in alarms]})
    yield call("cloudwatch", "DescribeAlarms", {"AlarmNames": ["any"]})
    planned = requests.schedule(SETTINGS, "dogs", datetime(2026, 12, 1, tzinfo=UTC))
    yield from (call("scheduler", operation, planned) for operation in ("CreateSchedule", "UpdateSchedule"))
    yield call("scheduler", "DeleteSchedule", {"Name": planned["Name"]})
    yield call("s3", "HeadBucket", OWN_BUCKET)
    yield call("s3", "ListObjectsV2", OWN_BUCKET | {"Prefix": "experiments/data/objects/"})
    for operation in ("GetObject", "HeadObject"):
        yield call("s3", operation, OBJECT)
    for operation in ("PutObject", "CreateMultipartUpload"):
        yield call("s3", operation, OBJECT | SSE)
    for operation in ("UploadPart", "CompleteMultipartUpload", "AbortMultipartUpload"):
        yield call("s3", operation, OBJECT | {"UploadId": "u"})
    yield from _of_logs("/aws/sagemaker/TrainingJobs", "DescribeLogStreams", "GetLogEvents", "FilterLogEvents")
    yield from _of_logs("/aws/sagemaker/Endpoints/dogs", "DescribeLogStreams", "GetLogEvents", "FilterLogEvents")
    yield call("pricing", "GetProducts")
    yield call("resourcegroupstaggingapi", "GetResources")


def _of_logs(group: str, *operations: str) -> Iterator[Call]:
    for operation in operations:
        stream = {} if operation in ("DescribeLogStreams", "FilterLogEvents") else {"logStreamName": "job/algo-1"}
        yield call("logs", operation, {"logGroupName": group, **stream})


def _of_role() -> Iterator[Call]:
    yield call("s3", "ListObjectsV2", OWN_BUCKET | {"Prefix": "experiments/data/sets/x/"})
    yield call("s3", "ListObjectsV2", {"Bucket": "other-team", "Prefix": "photos/"})
    for operation in ("GetObject", "HeadObject"):
        yield call("s3", operation, OBJECT)
        yield call("s3", operation, {"Bucket": "other-team", "Key": "photos/train/a/1.jpg"})
    for folder in ("jobs", "checkpoints", "debug", "async", "capture"):
        place = OWN_BUCKET | {"Key": f"experiments/{folder}/job/x"}
        for operation in ("PutObject", "CreateMultipartUpload"):
            yield call("s3", operation, place | SSE)
        for operation in ("UploadPart", "CompleteMultipartUpload", "AbortMultipartUpload"):
            yield call("s3", operation, place | {"UploadId": "u"})
    yield call("s3", "DeleteObject", OWN_BUCKET | {"Key": "experiments/checkpoints/job/last.ckpt"})
    for group in ("TrainingJobs", "ProcessingJobs", "Endpoints/dogs"):
        yield from _of_logs(f"/aws/sagemaker/{group}", "CreateLogStream", "PutLogEvents", "DescribeLogStreams")
        yield call("logs", "CreateLogGroup", {"logGroupName": f"/aws/sagemaker/{group}"})
    yield call("cloudwatch", "PutMetricData", {"Namespace": "/aws/sagemaker/TrainingJobs"})
    yield call("cloudwatch", "DescribeAlarms", {"AlarmNames": ["any"]})


def _of_role_elsewhere() -> Iterator[Check]:
    """Calls to services that are not rehearsed."""
    for action in ("GetAuthorizationToken", "BatchCheckLayerAvailability", "BatchGetImage", "GetDownloadUrlForLayer"):
        aws = "arn:aws:ecr:us-east-1:763104351884:repository/pytorch-training"
        yield Check(f"ecr:{action}", "*" if action == "GetAuthorizationToken" else aws)
    yield Check("kms:CreateGrant", VOLUME_KEY, {"kms:GrantIsForAWSResource": "true"})
    yield Check("kms:DescribeKey", VOLUME_KEY)
    yield Check("kms:Encrypt", KEY)
    interface = arn("ec2", "network-interface/eni-1")
    for name in ("subnet/subnet-1", "subnet/subnet-2", "security-group/sg-1", "network-interface/eni-1"):
        yield Check("ec2:CreateNetworkInterface", arn("ec2", name))
    for action in ("CreateNetworkInterfacePermission", "DeleteNetworkInterface", "DeleteNetworkInterfacePermission"):
        for subnet in ("subnet-1", "subnet-2"):
            yield Check(f"ec2:{action}", interface, {"ec2:Subnet": arn("ec2", f"subnet/{subnet}")})
    for kind in ("DhcpOptions", "NetworkInterfaces", "SecurityGroups", "Subnets", "Vpcs"):
        yield Check(f"ec2:Describe{kind}", "*")


def _of_image() -> Iterator[Check]:
    repository = arn("ecr", "repository/dogs-serving")
    yield Check("ecr:GetAuthorizationToken", "*")
    for action in (
        *("DescribeRepositories", "CreateRepository", "BatchCheckLayerAvailability", "BatchGetImage"),
        *("InitiateLayerUpload", "UploadLayerPart", "CompleteLayerUpload", "PutImage"),
    ):
        yield Check(f"ecr:{action}", repository)
    yield Check("ecr:TagResource", repository, {"aws:RequestTag/project": "dogs"})


ALLOWED_CALLS: dict[Caller, list[Call]] = {
    "launcher": list(_of_launcher()),
    "role": list(_of_role()),
    "schedule_role": [call("sagemaker", "DeleteEndpoint", {"EndpointName": "dogs"})],
    "image": [],
}
ALLOWED: dict[Caller, list[Check]] = {
    caller: [check for each in calls for check in checks(each, Account())] for caller, calls in ALLOWED_CALLS.items()
}
ALLOWED["role"] += _of_role_elsewhere()
ALLOWED["image"] += _of_image()
"""What IAM is asked about the calls that the commands, the jobs and the schedule make."""


def _with(operation: str, **changes: Any) -> Call:
    """A call of the launcher with other parameters."""
    (own,) = [one for one in ALLOWED_CALLS["launcher"] if one.operation == operation][:1]
    return call(own.service, operation, {**own.parameters, **changes})


FOREIGN_TAGS = [{"Key": "project", "Value": "cats"}]
DENIED_CALLS: dict[Caller, list[Call]] = {
    "launcher": [
        _with("StopTrainingJob", TrainingJobName="theirs"),
        _with("StopHyperParameterTuningJob", HyperParameterTuningJobName="theirs"),
        _with("UpdateEndpoint", EndpointName="theirs"),
        _with("UpdateEndpoint", EndpointConfigName="theirs"),
        _with("UpdateEndpointWeightsAndCapacities", EndpointName="theirs"),
        _with("DeleteEndpoint", EndpointName="theirs"),
        _with("DeleteModel", ModelName="theirs"),
        _with("DeleteEndpointConfig", EndpointConfigName="theirs"),
        _with("InvokeEndpoint", EndpointName="theirs"),
        _with("AddTags", ResourceArn=arn("sagemaker", "endpoint/theirs")),
        _with("AddTags", ResourceArn=arn("sagemaker", "training-job/dogs")),
        _with("AddTags", Tags=FOREIGN_TAGS),
        _with("RegisterScalableTarget", ResourceId="endpoint/theirs/variant/AllTraffic"),
        _with("RegisterScalableTarget", ServiceNamespace="ecs"),
        _with("PutScalingPolicy", ServiceNamespace="dynamodb"),
        *(_with(operation, Tags=[]) for operation in ("CreateTrainingJob", "CreateModel", "CreateEndpoint")),
        *(_with(operation, Tags=FOREIGN_TAGS) for operation in ("CreateHyperParameterTuningJob", "CreateEndpoint")),
        _with("CreateTrainingJob", RoleArn=f"arn:aws:iam::{ACCOUNT}:role/admin"),
        _with("CreateModel", ExecutionRoleArn=SCHEDULE_ROLE),
        _with("CreateSchedule", Target={"RoleArn": str(SETTINGS.role_arn)}),
        _with("CreateSchedule", Name="nightly"),
        _with("DeleteSchedule", GroupName="theirs"),
        _with("PutMetricAlarm", AlarmName="checkout-5xx"),
        _with("PutMetricAlarm", AlarmName="dogs-2~x-5xx"),
        _with("DeleteAlarms", AlarmNames=["TargetTracking-table/theirs-AlarmHigh"]),
        _with("PutObject", Bucket="my-bucket-2"),
        _with("PutObject", Key="experiments-2/x"),
        _with("PutObject", SSEKMSKeyId=arn("kms", "key/9")),
        _with("GetObject", Bucket="other-team", Key="photos/train/a/1.jpg"),
        _with("ListObjectsV2", Prefix="experiments-2/"),
        call("s3", "ListObjectsV2", OWN_BUCKET),
        call("s3", "DeleteObject", OBJECT),
        call("s3", "DeleteObjects", OWN_BUCKET | {"Delete": {"Objects": [{"Key": "experiments/x"}]}}),
        call("s3", "CopyObject", OBJECT | {"CopySource": "other-team/photos/1.jpg"}),
        call("s3", "ListBuckets"),
        _with("GetLogEvents", logGroupName="/aws/lambda/x"),
        call("sagemaker", "DeleteTags", {"ResourceArn": arn("sagemaker", "endpoint/dogs")}),
        call("sagemaker", "CreateProcessingJob"),
        call("iam", "GetRole", {"RoleName": "x"}),
        *(
            call(one.service, one.operation, one.parameters, "eu-central-1")
            for one in ALLOWED_CALLS["launcher"]
            if one.operation
            in ("CreateTrainingJob", "DeleteEndpoint", "DescribeModel", "PutMetricAlarm", "GetLogEvents")
        ),
    ],
    "role": [
        call("s3", "PutObject", OWN_BUCKET | {"Key": "experiments/code/x/sourcedir.tar.gz"}),
        call("s3", "PutObject", {"Bucket": "other-team", "Key": "photos/train/a/1.jpg"}),
        call("s3", "DeleteObject", OUTPUT),
        call("s3", "GetObject", {"Bucket": "other-team", "Key": "salaries.csv"}),
        call("s3", "ListObjectsV2", {"Bucket": "other-team", "Prefix": "salaries/"}),
        call("cloudwatch", "PutMetricData", {"Namespace": "AWS/EC2"}),
        call("sagemaker", "CreateTrainingJob", train(SETTINGS)),
        call("logs", "PutLogEvents", {"logGroupName": "/aws/lambda/x", "logStreamName": "y"}),
    ],
    "schedule_role": [
        call("sagemaker", "DeleteEndpoint", {"EndpointName": "theirs"}),
        call("sagemaker", "UpdateEndpoint", {"EndpointName": "dogs", "EndpointConfigName": "dogs-1"}),
        call("application-autoscaling", "RegisterScalableTarget", requests.scalable_target(SETTINGS.endpoint, "dogs")),
    ],
    "image": [],
}
"""Calls of which IAM must refuse at least one action."""
