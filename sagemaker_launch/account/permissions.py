"""What each call needs of IAM: actions, resources, and the page of AWS's documentation.

`policy.py` builds the policies from this table. The rehearsal evaluates each request by it, and a test holds it
against AWS's service authorization reference.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from sagemaker_launch.aws.resources import CONFIG, ENDPOINT, MODEL, TRAINING, TUNING, ResourceType

Caller = Literal["launcher", "role", "schedule_role", "image"]
"""The user of the launcher; the role of jobs and endpoints; the role of the schedule that ends a lease; the person who
pushes the serving image."""
Guard = Literal[
    "",
    "tagged",
    "tags a new job",
    "tags a new endpoint",
    "own",
    "renews a lease",
    "passed to sagemaker",
    "passed to scheduler",
    "scaling",
    "below the prefix",
    "below the photos",
    "namespace",
    "used by AWS",
    "own subnets",
]
"""How a policy limits a need beyond its resources; `policy.py` has the conditions."""
Kind = Literal[
    "any",
    "training-job",
    "hyper-parameter-tuning-job",
    "model",
    "endpoint-config",
    "endpoint",
    "scalable-target",
    "alarm",
    "tracking-alarm",
    "schedule",
    "role",
    "schedule-role",
    "linked-role",
    "bucket",
    "object",
    "photos-bucket",
    "photo",
    "output",
    "checkpoint",
    "log-group",
    "volume-key",
    "object-key",
    "repository",
    "subnet",
    "security-group",
    "network-interface",
    "network",
]
"""What an action is done to. `any` is for actions that AWS does not limit to a resource, `network` for those of them
that only jobs in a VPC need, `photo` for an object of a data set that is in S3."""
TYPES: dict[str, ResourceType] = {one.kind: one for one in (TRAINING, TUNING, MODEL, CONFIG, ENDPOINT)}
"""SageMaker's resources by their kind."""
JOBS: tuple[Kind, ...] = ("training-job", "hyper-parameter-tuning-job")
SERVED: tuple[Kind, ...] = ("model", "endpoint-config", "endpoint")
DOCS = "docs.aws.amazon.com/"
"""All pages were read in 2026."""
SAGEMAKER = DOCS + "sagemaker/latest/dg/api-permissions-reference.html"
SAGEMAKER_TAGS = DOCS + "sagemaker/latest/dg/security_iam_id-based-policy-examples.html"
"""'Provide permissions for tagging SageMaker AI resources'."""
SAGEMAKER_ROLES = DOCS + "sagemaker/latest/dg/sagemaker-roles.html"
SAGEMAKER_SCALING = DOCS + "sagemaker/latest/dg/endpoint-auto-scaling-prerequisites.html"
SCALED_DELETION = DOCS + "sagemaker/latest/dg/endpoint-auto-scaling-delete.html"
ROLLBACK_ALARMS = DOCS + "sagemaker/latest/dg/deployment-guardrails-configuration.html"
CLOUDWATCH = DOCS + "AmazonCloudWatch/latest/monitoring/permissions-reference-cw.html"
LOGS = DOCS + "AmazonCloudWatch/latest/logs/permissions-reference-cwl.html"
SCHEDULER = DOCS + "scheduler/latest/UserGuide/security_iam_id-based-policies.html"
S3 = DOCS + "AmazonS3/latest/userguide/using-with-s3-policy-actions.html"
S3_KMS = DOCS + "AmazonS3/latest/userguide/UsingKMSEncryption.html"
ECR_PUSH = DOCS + "AmazonECR/latest/userguide/image-push-iam.html"
EC2 = DOCS + "service-authorization/latest/reference/list_amazonec2.html"
TAG_INDEX = DOCS + "ARG/latest/userguide/security_iam_id-based-policies.html"
PRICING = DOCS + "awsaccountbilling/latest/aboutv2/billing-permissions-ref.html"


@dataclass(frozen=True)
class Need:
    """An action that IAM must allow on a resource."""

    action: str
    kind: Kind
    guard: Guard = ""


@dataclass(frozen=True)
class Call:
    """An operation of a service, as botocore calls both, and what its caller needs."""

    service: str
    operation: str
    callers: tuple[Caller, ...]
    needs: tuple[Need, ...]
    page: str


def _creates(operation: str, kind: Kind, *more: Need) -> Call:
    """A call of the launcher that makes a resource with the project's tag."""
    action = f"sagemaker:{operation}"
    tags = Need("sagemaker:AddTags", kind, "tags a new job" if kind in JOBS else "tags a new endpoint")
    return Call("sagemaker", operation, ("launcher",), (Need(action, kind, "tagged"), tags, *more), SAGEMAKER_TAGS)


def _sagemaker(operation: str, *kinds: Kind, guard: Guard = "", service: str = "sagemaker") -> Call:
    """A call of the launcher that needs its own name only, on each of some resources."""
    needs = tuple(Need(f"sagemaker:{operation}", kind, guard) for kind in kinds)
    return Call(service, operation, ("launcher",), needs, SAGEMAKER)


def _s3(operations: Iterable[str], caller: Caller, *needs: Need) -> Iterable[Call]:
    return (Call("s3", operation, (caller,), needs, S3) for operation in operations)


PASS_ROLE = Need("iam:PassRole", "role", "passed to sagemaker")
PASS_SCHEDULE_ROLE = Need("iam:PassRole", "schedule-role", "passed to scheduler")
GRANTS_VOLUMES = (
    Need("kms:CreateGrant", "volume-key", "used by AWS"),
    Need("kms:DescribeKey", "volume-key"),
)
"""For the disks of an endpoint's instances."""
DEREGISTERS = Need("application-autoscaling:DeregisterScalableTarget", "scalable-target", "scaling")
FORGETS_ALARMS = Need("cloudwatch:DeleteAlarms", "tracking-alarm")
"""With a scaling policy go the alarms that Application Auto Scaling made for it."""
READS_KEY, WRITES_KEY = Need("kms:Decrypt", "object-key"), Need("kms:GenerateDataKey", "object-key")
DOWNLOADS, UPLOADS = ("GetObject", "HeadObject"), ("UploadPart", "CompleteMultipartUpload")

CALLS: tuple[Call, ...] = (
    # Jobs
    _creates("CreateTrainingJob", "training-job", PASS_ROLE),
    _creates("CreateHyperParameterTuningJob", "hyper-parameter-tuning-job", PASS_ROLE),
    _sagemaker("StopTrainingJob", "training-job", guard="own"),
    _sagemaker("StopHyperParameterTuningJob", "hyper-parameter-tuning-job", guard="own"),
    # Without a condition: what does not exist has no tag, and must be told from what may not be seen.
    _sagemaker("DescribeTrainingJob", "training-job"),
    _sagemaker("DescribeHyperParameterTuningJob", "hyper-parameter-tuning-job"),
    _sagemaker("ListTrainingJobsForHyperParameterTuningJob", "hyper-parameter-tuning-job"),
    _sagemaker("ListTrainingJobs", "any"),
    _sagemaker("ListHyperParameterTuningJobs", "any"),
    _sagemaker("ListTags", *JOBS, *SERVED),
    # Endpoints
    _creates("CreateModel", "model", PASS_ROLE),
    _creates("CreateEndpointConfig", "endpoint-config"),
    _creates(
        "CreateEndpoint", "endpoint", Need("sagemaker:CreateEndpoint", "endpoint-config", "tagged"), *GRANTS_VOLUMES
    ),
    Call(
        "sagemaker",
        "UpdateEndpoint",
        ("launcher",),
        (
            Need("sagemaker:UpdateEndpoint", "endpoint", "own"),
            Need("sagemaker:UpdateEndpoint", "endpoint-config", "own"),
            *GRANTS_VOLUMES,
        ),
        SAGEMAKER,
    ),
    _sagemaker("UpdateEndpointWeightsAndCapacities", "endpoint", guard="own"),
    Call(
        "sagemaker",
        "DeleteEndpoint",
        ("launcher", "schedule_role"),
        (Need("sagemaker:DeleteEndpoint", "endpoint", "own"), DEREGISTERS, FORGETS_ALARMS),
        SCALED_DELETION,
    ),
    _sagemaker("DeleteEndpointConfig", "endpoint-config", guard="own"),
    _sagemaker("DeleteModel", "model", guard="own"),
    _sagemaker("AddTags", "endpoint", guard="renews a lease"),
    _sagemaker("DescribeModel", "model"),
    _sagemaker("DescribeEndpointConfig", "endpoint-config"),
    _sagemaker("DescribeEndpoint", "endpoint"),
    _sagemaker("ListModels", "any"),
    _sagemaker("ListEndpointConfigs", "any"),
    _sagemaker("ListEndpoints", "any"),
    _sagemaker("InvokeEndpoint", "endpoint", guard="own", service="sagemaker-runtime"),
    _sagemaker("InvokeEndpointAsync", "endpoint", guard="own", service="sagemaker-runtime"),
    Call(
        "application-autoscaling",
        "RegisterScalableTarget",
        ("launcher",),
        (
            Need("application-autoscaling:RegisterScalableTarget", "scalable-target", "scaling"),
            # Application Auto Scaling asks SageMaker in the caller's name, so that it registers no foreign endpoint.
            Need("sagemaker:DescribeEndpoint", "endpoint"),
            Need("sagemaker:UpdateEndpointWeightsAndCapacities", "endpoint", "own"),
            Need("iam:CreateServiceLinkedRole", "linked-role"),
        ),
        SAGEMAKER_SCALING,
    ),
    Call(
        "application-autoscaling",
        "PutScalingPolicy",
        ("launcher",),
        (
            Need("application-autoscaling:PutScalingPolicy", "scalable-target", "scaling"),
            Need("cloudwatch:PutMetricAlarm", "tracking-alarm"),
            Need("cloudwatch:DescribeAlarms", "any"),
            FORGETS_ALARMS,
        ),
        SAGEMAKER_SCALING,
    ),
    Call(
        "application-autoscaling",
        "DeregisterScalableTarget",
        ("launcher",),
        (DEREGISTERS, FORGETS_ALARMS),
        SAGEMAKER_SCALING,
    ),
    Call(
        "application-autoscaling",
        "DescribeScalableTargets",
        ("launcher",),
        (Need("application-autoscaling:DescribeScalableTargets", "any"),),
        SAGEMAKER_SCALING,
    ),
    Call("cloudwatch", "PutMetricAlarm", ("launcher",), (Need("cloudwatch:PutMetricAlarm", "alarm"),), CLOUDWATCH),
    Call("cloudwatch", "DeleteAlarms", ("launcher",), (Need("cloudwatch:DeleteAlarms", "alarm"),), CLOUDWATCH),
    # SageMaker reads the alarms of a rollback as the endpoint's role.
    Call(
        "cloudwatch",
        "DescribeAlarms",
        ("launcher", "role"),
        (Need("cloudwatch:DescribeAlarms", "any"),),
        ROLLBACK_ALARMS,
    ),
    *(
        Call(
            "scheduler",
            operation,
            ("launcher",),
            (Need(f"scheduler:{operation}", "schedule"), PASS_SCHEDULE_ROLE),
            SCHEDULER,
        )
        for operation in ("CreateSchedule", "UpdateSchedule")
    ),
    Call("scheduler", "DeleteSchedule", ("launcher",), (Need("scheduler:DeleteSchedule", "schedule"),), SCHEDULER),
    # Files and logs of the launcher
    Call("s3", "ListObjectsV2", ("launcher",), (Need("s3:ListBucket", "bucket", "below the prefix"),), S3),
    # S3 names the region of a bucket whatever the rights of the caller, and nothing else is asked.
    Call("s3", "HeadBucket", ("launcher",), (), DOCS + "AmazonS3/latest/API/API_HeadBucket.html"),
    *_s3(DOWNLOADS, "launcher", Need("s3:GetObject", "object"), READS_KEY),
    *_s3(("PutObject",), "launcher", Need("s3:PutObject", "object"), WRITES_KEY),
    # The parts of an upload are decrypted when it is completed.
    *_s3(("CreateMultipartUpload",), "launcher", Need("s3:PutObject", "object"), WRITES_KEY, READS_KEY),
    *_s3(UPLOADS, "launcher", Need("s3:PutObject", "object")),
    *_s3(("AbortMultipartUpload",), "launcher", Need("s3:AbortMultipartUpload", "object")),
    Call("logs", "DescribeLogStreams", ("launcher", "role"), (Need("logs:DescribeLogStreams", "log-group"),), LOGS),
    Call("logs", "GetLogEvents", ("launcher",), (Need("logs:GetLogEvents", "log-group"),), LOGS),
    Call("logs", "FilterLogEvents", ("launcher",), (Need("logs:FilterLogEvents", "log-group"),), LOGS),
    Call("resourcegroupstaggingapi", "GetResources", ("launcher",), (Need("tag:GetResources", "any"),), TAG_INDEX),
    Call("pricing", "GetProducts", ("launcher",), (Need("pricing:GetProducts", "any"),), PRICING),
    # What SageMaker does as the role of a job or an endpoint
    Call(
        "s3",
        "ListObjectsV2",
        ("role",),
        (
            Need("s3:ListBucket", "bucket", "below the prefix"),
            Need("s3:ListBucket", "photos-bucket", "below the photos"),
        ),
        S3,
    ),
    *_s3(DOWNLOADS, "role", Need("s3:GetObject", "object"), Need("s3:GetObject", "photo"), READS_KEY),
    *_s3(("PutObject",), "role", Need("s3:PutObject", "output"), WRITES_KEY),
    *_s3(("CreateMultipartUpload",), "role", Need("s3:PutObject", "output"), WRITES_KEY, READS_KEY),
    *_s3(UPLOADS, "role", Need("s3:PutObject", "output")),
    *_s3(("AbortMultipartUpload",), "role", Need("s3:AbortMultipartUpload", "output")),
    # What a job deletes of its checkpoints, the service deletes in S3.
    *_s3(("DeleteObject",), "role", Need("s3:DeleteObject", "checkpoint")),
    *(
        Call("logs", operation, ("role",), (Need(f"logs:{operation}", "log-group"),), SAGEMAKER_ROLES)
        for operation in ("CreateLogGroup", "CreateLogStream", "PutLogEvents")
    ),
    Call(
        "cloudwatch",
        "PutMetricData",
        ("role",),
        (Need("cloudwatch:PutMetricData", "any", "namespace"),),
        SAGEMAKER_ROLES,
    ),
    Call("ecr", "GetAuthorizationToken", ("role", "image"), (Need("ecr:GetAuthorizationToken", "any"),), ECR_PUSH),
    *(
        # AWS's images are in accounts of AWS.
        Call("ecr", operation, ("role",), (Need(f"ecr:{operation}", "any"),), SAGEMAKER_ROLES)
        for operation in ("BatchCheckLayerAvailability", "BatchGetImage", "GetDownloadUrlForLayer")
    ),
    Call("kms", "CreateGrant", ("role",), (Need("kms:CreateGrant", "volume-key", "used by AWS"),), SAGEMAKER_ROLES),
    Call("kms", "DescribeKey", ("role",), (Need("kms:DescribeKey", "volume-key"),), SAGEMAKER_ROLES),
    Call("kms", "Encrypt", ("role",), (Need("kms:Encrypt", "object-key"),), SAGEMAKER_ROLES),
    Call(
        "ec2",
        "CreateNetworkInterface",
        ("role",),
        (
            Need("ec2:CreateNetworkInterface", "subnet"),
            Need("ec2:CreateNetworkInterface", "security-group"),
            Need("ec2:CreateNetworkInterface", "network-interface"),
        ),
        SAGEMAKER_ROLES,
    ),
    *(
        Call("ec2", operation, ("role",), (Need(f"ec2:{operation}", "network-interface", "own subnets"),), EC2)
        for operation in (
            *("CreateNetworkInterfacePermission", "DeleteNetworkInterface"),
            "DeleteNetworkInterfacePermission",
        )
    ),
    *(
        Call("ec2", operation, ("role",), (Need(f"ec2:{operation}", "network"),), SAGEMAKER_ROLES)
        for operation in (
            *("DescribeDhcpOptions", "DescribeNetworkInterfaces", "DescribeSecurityGroups"),
            *("DescribeSubnets", "DescribeVpcs"),
        )
    ),
    # The push of the serving image
    Call("ecr", "DescribeRepositories", ("image",), (Need("ecr:DescribeRepositories", "repository"),), ECR_PUSH),
    Call(
        "ecr",
        "CreateRepository",
        ("image",),
        (
            Need("ecr:CreateRepository", "repository"),
            Need("ecr:TagResource", "repository", "tagged"),
        ),
        ECR_PUSH,
    ),
    *(
        Call("ecr", operation, ("image",), (Need(f"ecr:{operation}", "repository"),), ECR_PUSH)
        for operation in (
            *("BatchCheckLayerAvailability", "BatchGetImage", "InitiateLayerUpload", "UploadLayerPart"),
            *("CompleteLayerUpload", "PutImage"),
        )
    ),
)
