"""Least-privilege IAM policies: for the user of the launcher, the role of jobs and endpoints, the role of the schedule.

A test compares them with the calls of the launcher; they have not been tried in a live account yet.
"""

from __future__ import annotations

from typing import Any

from sagemaker_launch.aws.logs import ENDPOINT_LOG_GROUP, LOG_GROUP
from sagemaker_launch.endpoints.requests import DIMENSION, alarm_names, schedule_name
from sagemaker_launch.settings.cloud import PROJECT_TAG, CloudSettings

Policy = dict[str, Any]
LOGS = (LOG_GROUP, ENDPOINT_LOG_GROUP.format("*"))
RULE_LOG_GROUP = "/aws/sagemaker/ProcessingJobs"
"""Where Debugger's rules, which SageMaker runs as processing jobs under the job's role, write their logs."""
CREATE_JOBS = ["CreateTrainingJob", "CreateHyperParameterTuningJob"]
CREATE_SERVED = ["CreateModel", "CreateEndpointConfig", "CreateEndpoint"]
_SCALING = {
    "application-autoscaling:service-namespace": "sagemaker",
    "application-autoscaling:scalable-dimension": DIMENSION,
}


def policies(settings: CloudSettings, region: str) -> dict[str, Policy]:
    """All of them, by what they are for.

    Raises:
        ValueError: if the role or the bucket is not set.
    """
    settings.require_for_jobs()
    return {
        "launcher": launcher_policy(settings, region),
        "role": role_policy(settings, region),
        "role_trust": trust_policy(settings, "sagemaker"),
        "schedule_role": _policy(_allow("sagemaker", ["DeleteEndpoint"], _endpoints(settings, region), _own(settings))),
        "schedule_role_trust": trust_policy(settings, "scheduler"),
    }


def launcher_policy(settings: CloudSettings, region: str) -> Policy:
    """What the commands need."""
    assert settings.role_arn is not None
    jobs = [_arn(settings, "sagemaker", region, f"{kind}/*") for kind in ("training-job", "hyper-parameter-tuning-job")]
    tag = {"StringEquals": {f"aws:RequestTag/{PROJECT_TAG}": settings.project}}
    own = _own(settings)
    served = [*_endpoints(settings, region), _arn(settings, "sagemaker", region, "endpoint-config/*")]
    served.append(_arn(settings, "sagemaker", region, "model/*"))
    return _policy(
        _allow("sagemaker", CREATE_JOBS, jobs, tag),
        _allow("sagemaker", ["AddTags"], jobs, _tag_on_creation(tag, CREATE_JOBS)),
        _allow("sagemaker", ["StopTrainingJob", "StopHyperParameterTuningJob"], jobs, own),
        # Without a condition: a job that does not exist has no tag, and must be told from one that may not be seen.
        _allow(
            "sagemaker",
            [
                "DescribeTrainingJob",
                "DescribeHyperParameterTuningJob",
                "ListTrainingJobsForHyperParameterTuningJob",
                "ListTags",
            ],
            jobs,
        ),
        _allow("sagemaker", ["ListTrainingJobs", "ListHyperParameterTuningJobs"], ["*"]),
        _allow("sagemaker", CREATE_SERVED, served, tag),
        _allow("sagemaker", ["AddTags"], served, _tag_on_creation(tag, CREATE_SERVED)),
        _allow(
            "sagemaker",
            ["UpdateEndpoint", "DeleteEndpoint", "DeleteEndpointConfig", "DeleteModel"],
            served,
            own,
        ),
        # A new lease. The request may leave the project's tag out, but not give the endpoint to another project.
        _allow(
            "sagemaker",
            ["AddTags"],
            _endpoints(settings, region),
            own | {"StringEqualsIfExists": {f"aws:RequestTag/{PROJECT_TAG}": settings.project}},
        ),
        # Application Auto Scaling asks for it before it registers an endpoint: it registers no foreign one.
        _allow("sagemaker", ["UpdateEndpointWeightsAndCapacities"], _endpoints(settings, region), own),
        _allow("sagemaker", ["InvokeEndpoint", "InvokeEndpointAsync"], _endpoints(settings, region), own),
        _allow("sagemaker", ["DescribeModel", "DescribeEndpointConfig", "DescribeEndpoint", "ListTags"], served),
        _allow("sagemaker", ["ListModels", "ListEndpointConfigs", "ListEndpoints"], ["*"]),
        *_around_endpoints(settings, region),
        _allow("iam", ["PassRole"], [settings.role_arn], _passed_to("sagemaker")),
        _allow("s3", ["GetObject", "PutObject", "AbortMultipartUpload"], [_objects(settings)]),
        _list_bucket(settings),
        _allow("logs", ["DescribeLogStreams", "GetLogEvents", "FilterLogEvents"], _log_groups(settings, region, *LOGS)),
        _allow("pricing", ["GetProducts"], ["*"]),
        _allow("tag", ["GetResources"], ["*"]),
        *_keys(settings),
    )


def role_policy(settings: CloudSettings, region: str) -> Policy:
    """What a job needs: its inputs, its outputs, its log and its image."""
    statements = [
        _allow("s3", ["GetObject"], [_objects(settings)]),
        _allow(
            "s3",
            ["PutObject", "AbortMultipartUpload"],
            [_objects(settings, folder) for folder in ("jobs/", "checkpoints/", "debug/", "async/", "capture/")],
        ),
        # What a job deletes of its checkpoints, the service deletes in S3.
        _allow("s3", ["DeleteObject"], [_objects(settings, "checkpoints/")]),
        _list_bucket(settings),
        _allow(
            "logs",
            ["CreateLogGroup", "CreateLogStream", "DescribeLogStreams", "PutLogEvents"],
            _log_groups(settings, region, *LOGS, RULE_LOG_GROUP),
        ),
        _allow(
            "cloudwatch",
            ["PutMetricData"],
            ["*"],
            {"StringEquals": {"cloudwatch:namespace": LOG_GROUP}},
        ),
        _allow("ecr", ["GetAuthorizationToken"], ["*"]),
        # AWS's images are in accounts of AWS.
        _allow("ecr", ["BatchCheckLayerAvailability", "BatchGetImage", "GetDownloadUrlForLayer"], ["*"]),
        *_keys(settings),
    ]
    if settings.subnets:
        statements += _network(settings, region)
    return _policy(*statements)


def _network(settings: CloudSettings, region: str) -> list[Policy]:
    """Network interfaces of jobs and endpoints, in their own subnets.

    Source of the keys: docs.aws.amazon.com/service-authorization/latest/reference/list_amazonec2.html, 2026.
    """
    subnets = [_arn(settings, "ec2", region, f"subnet/{name}") for name in settings.subnets]
    groups = [_arn(settings, "ec2", region, f"security-group/{name}") for name in settings.security_group_ids]
    interfaces = [_arn(settings, "ec2", region, "network-interface/*")]
    changes = ["CreateNetworkInterfacePermission", "DeleteNetworkInterface", "DeleteNetworkInterfacePermission"]
    reads = ["DescribeDhcpOptions", "DescribeNetworkInterfaces", "DescribeSecurityGroups", "DescribeSubnets"]
    in_subnets = {"ArnEquals": {"ec2:Subnet": subnets}}
    return [
        _allow("ec2", ["CreateNetworkInterface"], [*subnets, *groups, *interfaces]),
        _allow("ec2", changes, interfaces, in_subnets),
        _allow("ec2", [*reads, "DescribeVpcs"], ["*"]),
    ]


def trust_policy(settings: CloudSettings, service: str) -> Policy:
    """Who may take a role: a service of AWS, for this account."""
    return _policy(
        {
            "Effect": "Allow",
            "Principal": {"Service": f"{service}.amazonaws.com"},
            "Action": "sts:AssumeRole",
            "Condition": {"StringEquals": {"aws:SourceAccount": _account(settings)}},
        }
    )


def _policy(*statements: Policy) -> Policy:
    return {"Version": "2012-10-17", "Statement": list(statements)}


def _allow(service: str, actions: list[str], resources: list[str], condition: Policy | None = None) -> Policy:
    statement: Policy = {
        "Effect": "Allow",
        "Action": [f"{service}:{action}" for action in actions],
        "Resource": resources,
    }
    return statement | ({"Condition": condition} if condition else {})


def _list_bucket(settings: CloudSettings) -> Policy:
    condition = {"StringLike": {"s3:prefix": f"{settings.prefix}/*"}}
    return _allow("s3", ["ListBucket"], [f"arn:{_partition(settings)}:s3:::{settings.bucket}"], condition)


def _objects(settings: CloudSettings, folder: str = "") -> str:
    return f"arn:{_partition(settings)}:s3:::{settings.bucket}/{settings.prefix}/{folder}*"


def _log_groups(settings: CloudSettings, region: str, *groups: str) -> list[str]:
    arns = [_arn(settings, "logs", region, f"log-group:{group}") for group in groups]
    return [arn for group in arns for arn in (group, f"{group}:*")]


def _keys(settings: CloudSettings) -> list[Policy]:
    keys = [key for key in (settings.volume_kms_key, settings.output_kms_key) if key]
    if not keys:
        return []
    resources = sorted(set(keys))
    return [
        _allow("kms", ["Encrypt", "Decrypt", "GenerateDataKey", "DescribeKey"], resources),
        # A grant lets somebody else use the key: only services of AWS, which need it for volumes.
        _allow("kms", ["CreateGrant"], resources, {"Bool": {"kms:GrantIsForAWSResource": "true"}}),
    ]


def _around_endpoints(settings: CloudSettings, region: str) -> list[Policy]:
    """Autoscaling, alarms and the schedule that ends a lease."""
    role = "aws-service-role/sagemaker.application-autoscaling.amazonaws.com/*"
    linked = f"arn:{_partition(settings)}:iam::{_account(settings)}:role/{role}"
    alarms = [_arn(settings, "cloudwatch", region, f"alarm:{name}") for name in alarm_names(settings, "*")]
    # Application Auto Scaling has no resource that a policy could name before there is one.
    scaling = ["RegisterScalableTarget", "DeregisterScalableTarget", "PutScalingPolicy"]
    statements = [
        _allow("application-autoscaling", scaling, ["*"], {"StringEquals": _SCALING}),
        _allow("application-autoscaling", ["DescribeScalableTargets"], ["*"]),
        _allow("iam", ["CreateServiceLinkedRole"], [linked]),
        _allow("cloudwatch", ["PutMetricAlarm", "DeleteAlarms"], alarms),
        _allow("cloudwatch", ["DescribeAlarms"], ["*"]),
    ]
    schedules = [_arn(settings, "scheduler", region, f"schedule/default/{schedule_name(settings, '*')}")]
    statements.append(_allow("scheduler", ["CreateSchedule", "UpdateSchedule", "DeleteSchedule"], schedules))
    if settings.endpoint.schedule_role_arn is not None:
        statements.append(_allow("iam", ["PassRole"], [settings.endpoint.schedule_role_arn], _passed_to("scheduler")))
    return statements


def _endpoints(settings: CloudSettings, region: str) -> list[str]:
    return [_arn(settings, "sagemaker", region, "endpoint/*")]


def _own(settings: CloudSettings) -> Policy:
    return {"StringEquals": {f"aws:ResourceTag/{PROJECT_TAG}": settings.project}}


def _tag_on_creation(tag: Policy, operations: list[str]) -> Policy:
    """AddTags as a part of a call that creates something.

    Alone, AddTags with the project's tag would make a foreign resource one of this project.
    Source: docs.aws.amazon.com/sagemaker/latest/dg/security_iam_id-based-policy-examples.html, "Provide permissions for
    tagging SageMaker AI resources", 2026.
    """
    return {"StringEquals": {**tag["StringEquals"], "sagemaker:TaggingAction": operations}}


def _passed_to(service: str) -> Policy:
    return {"StringEquals": {"iam:PassedToService": f"{service}.amazonaws.com"}}


def _arn(settings: CloudSettings, service: str, region: str, resource: str) -> str:
    return f"arn:{_partition(settings)}:{service}:{region}:{_account(settings)}:{resource}"


def _partition(settings: CloudSettings) -> str:
    return str(settings.role_arn).split(":")[1]


def _account(settings: CloudSettings) -> str:
    return str(settings.role_arn).split(":")[4]
