"""Least-privilege IAM policies: for whoever launches, for the role that jobs run as, and for who may take the role.

A test holds them against the calls that the launcher makes; no live account has judged them yet.
"""

from __future__ import annotations

from typing import Any

from sagemaker_launch.logs import LOG_GROUP
from sagemaker_launch.settings import PROJECT_TAG, CloudSettings

Policy = dict[str, Any]


def policies(settings: CloudSettings, region: str) -> dict[str, Policy]:
    """All three, by what they are for.

    Raises:
        ValueError: if the role or the bucket is not set.
    """
    settings.require_for_jobs()
    return {
        "launcher": launcher_policy(settings, region),
        "role": role_policy(settings, region),
        "role_trust": trust_policy(settings),
    }


def launcher_policy(settings: CloudSettings, region: str) -> Policy:
    """What tune, train, sync, status, stop and cost need."""
    assert settings.role_arn is not None
    jobs = [_arn(settings, "sagemaker", region, f"{kind}/*") for kind in ("training-job", "hyper-parameter-tuning-job")]
    tag = {"StringEquals": {f"aws:RequestTag/{PROJECT_TAG}": settings.project}}
    own = {"StringEquals": {f"aws:ResourceTag/{PROJECT_TAG}": settings.project}}
    return _policy(
        _allow("sagemaker", ["CreateTrainingJob", "CreateHyperParameterTuningJob", "AddTags"], jobs, tag),
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
        _allow("iam", ["PassRole"], [settings.role_arn], _passed_to_sagemaker()),
        _allow("s3", ["GetObject", "PutObject", "AbortMultipartUpload"], [_objects(settings)]),
        _list_bucket(settings),
        _allow("logs", ["DescribeLogStreams", "GetLogEvents"], _log_group(settings, region)),
        _allow("pricing", ["GetProducts"], ["*"]),
        *_keys(settings),
    )


def role_policy(settings: CloudSettings, region: str) -> Policy:
    """What a job needs: its inputs, its outputs, its log and its image."""
    statements = [
        _allow("s3", ["GetObject"], [_objects(settings)]),
        _allow(
            "s3",
            ["PutObject", "AbortMultipartUpload"],
            [_objects(settings, folder) for folder in ("jobs/", "checkpoints/")],
        ),
        _list_bucket(settings),
        _allow(
            "logs",
            ["CreateLogGroup", "CreateLogStream", "DescribeLogStreams", "PutLogEvents"],
            _log_group(settings, region),
        ),
        _allow(
            "cloudwatch",
            ["PutMetricData"],
            ["*"],
            {"StringEquals": {"cloudwatch:namespace": LOG_GROUP}},
        ),
        _allow("ecr", ["GetAuthorizationToken"], ["*"]),
        # AWS's images stand in accounts of AWS.
        _allow("ecr", ["BatchCheckLayerAvailability", "BatchGetImage", "GetDownloadUrlForLayer"], ["*"]),
        *_keys(settings),
    ]
    if settings.subnets:
        actions = ["CreateNetworkInterface", "CreateNetworkInterfacePermission", "DeleteNetworkInterface"]
        actions += ["DeleteNetworkInterfacePermission", "DescribeDhcpOptions", "DescribeNetworkInterfaces"]
        actions += ["DescribeSecurityGroups", "DescribeSubnets", "DescribeVpcs"]
        statements.append(_allow("ec2", actions, ["*"]))
    return _policy(*statements)


def trust_policy(settings: CloudSettings) -> Policy:
    """Who may take the role: SageMaker, for jobs of this account."""
    return _policy(
        {
            "Effect": "Allow",
            "Principal": {"Service": "sagemaker.amazonaws.com"},
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


def _log_group(settings: CloudSettings, region: str) -> list[str]:
    group = _arn(settings, "logs", region, f"log-group:{LOG_GROUP}")
    return [group, f"{group}:*"]


def _keys(settings: CloudSettings) -> list[Policy]:
    keys = [key for key in (settings.volume_kms_key, settings.output_kms_key) if key]
    actions = ["Encrypt", "Decrypt", "GenerateDataKey", "DescribeKey", "CreateGrant"]
    return [_allow("kms", actions, sorted(set(keys)))] if keys else []


def _passed_to_sagemaker() -> Policy:
    return {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}}


def _arn(settings: CloudSettings, service: str, region: str, resource: str) -> str:
    return f"arn:{_partition(settings)}:{service}:{region}:{_account(settings)}:{resource}"


def _partition(settings: CloudSettings) -> str:
    return str(settings.role_arn).split(":")[1]


def _account(settings: CloudSettings) -> str:
    return str(settings.role_arn).split(":")[4]
