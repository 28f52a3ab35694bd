"""Asks IAM, before a request reaches its service, for each action that the call needs.

The table of calls and needs is `account/permissions.py`, from which the policies are built, too. A test compares it
with AWS's service authorization reference.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from moto.applicationautoscaling.models import applicationautoscaling_backends
from moto.s3.exceptions import MissingBucket
from moto.s3.models import s3_backends
from moto.sagemaker.exceptions import SagemakerClientError
from moto.utilities.utils import get_partition

from sagemaker_launch.account.permissions import CALLS, TYPES, Kind, Need
from sagemaker_launch.endpoints.requests import DIMENSION
from sagemaker_launch.rehearsal.api import Regions
from sagemaker_launch.rehearsal.calls import CALL, Call
from sagemaker_launch.rehearsal.endpoints.autoscaling import registered
from sagemaker_launch.rehearsal.faults import Application
from sagemaker_launch.rehearsal.gate import PRINCIPAL, answer_refused
from sagemaker_launch.rehearsal.iam import Access
from sagemaker_launch.rehearsal.signatures import Environ, RefusedRequestError

FREE = {("sts", "GetCallerIdentity")}
"""Needs no permission (docs.aws.amazon.com/STS/latest/APIReference/API_GetCallerIdentity.html, 2026)."""
PREFIXES = {"sagemaker-runtime": "sagemaker", "resourcegroupstaggingapi": "tag"}
"""IAM's name of a service, where it is not botocore's."""
S3_ACTIONS = {
    "ListBuckets": "ListAllMyBuckets",
    "ListObjects": "ListBucket",
    "ListObjectVersions": "ListBucketVersions",
    "ListMultipartUploads": "ListBucketMultipartUploads",
    "ListParts": "ListMultipartUploadParts",
    "DeleteObjects": "DeleteObject",
    "CopyObject": "PutObject",
    "UploadPartCopy": "PutObject",
}
"""Actions of S3's operations that have another name, and are no calls of ours (the page of `permissions.S3`)."""
S3_CONTEXT = {
    "Prefix": "s3:prefix",
    "ServerSideEncryption": "s3:x-amz-server-side-encryption",
    "SSEKMSKeyId": "s3:x-amz-server-side-encryption-aws-kms-key-id",
}
"""Condition keys by the parameter that they are about."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Check:
    """What IAM is asked."""

    action: str
    resource: str
    context: Mapping[str, str] = field(default_factory=dict)


class State(Protocol):
    """What exists in the account, as far as it decides what a call needs."""

    account: str

    def tags(self, region: str, arn: str) -> Mapping[str, str]:
        """Tags of a resource of SageMaker."""

    def scaled(self, region: str, endpoint: str) -> list[str]:
        """Resource ids of the endpoint's variants that Application Auto Scaling knows."""

    def tracking_alarms(self, region: str, resource_id: str) -> list[str]:
        """Names of the alarms of a variant's target tracking."""

    def object_key(self, bucket: str, key: str) -> str | None:
        """KMS key of an object."""

    def volume_key(self, region: str, config: str) -> str | None:
        """KMS key of an endpoint config."""


def checks(call: Call, state: State) -> list[Check]:
    """All that IAM is asked about a call, the action of its own name first."""
    name = (call.service, call.operation)
    if name in FREE or NEEDS.get(name) == ():  # a refusal would answer the question, too
        return []
    found = list(_Asked(call, state).checks(NEEDS.get(name, ())))
    return found or list(_of_others(call))


def _needs() -> dict[tuple[str, str], tuple[Need, ...]]:
    united: dict[tuple[str, str], dict[Need, None]] = {}
    for call in CALLS:
        united.setdefault((call.service, call.operation), {}).update(dict.fromkeys(call.needs))
    return {name: tuple(needs) for name, needs in united.items()}


NEEDS = _needs()
"""By service and operation; what a call needs does not depend on its caller."""


def _of_others(call: Call) -> Iterator[Check]:
    """A call that none of our commands makes: the action of its name, on the bucket or object of S3, or on all."""
    prefix = PREFIXES.get(call.service, call.service)
    if call.service != "s3":
        yield Check(f"{prefix}:{call.operation}", "*")
        return
    action, given = f"s3:{S3_ACTIONS.get(call.operation, call.operation)}", call.parameters
    keys = [one["Key"] for one in given.get("Delete", {}).get("Objects", ())] or [given.get("Key")]
    for key in keys:
        yield Check(action, _s3(call.region, given.get("Bucket"), key), _s3_context(given))
    if "CopySource" in given:
        bucket, _, key = str(given["CopySource"]).lstrip("/").partition("/")
        yield Check("s3:GetObject", _s3(call.region, bucket, key.partition("?versionId=")[0]))


class _Asked:
    """Resources and condition keys of one call."""

    def __init__(self, call: Call, state: State) -> None:
        self._call, self._state, self._given = call, state, call.parameters

    def checks(self, needs: Iterable[Need]) -> Iterator[Check]:
        """Each need, for each resource that the call names."""
        seen = set()
        for need in needs:
            for resource in self._resources(need):
                if (need.action, resource) not in seen:
                    seen.add((need.action, resource))
                    yield Check(need.action, resource, self._context(need, resource))

    def _resources(self, need: Need) -> list[str]:
        kind, given = need.kind, self._given
        if kind in TYPES:
            return self._of_sagemaker(need)
        if kind in ("bucket", "photos-bucket"):
            return [_s3(self._call.region, given["Bucket"], None)]
        if kind in ("object", "output", "checkpoint", "photo"):
            return [_s3(self._call.region, given["Bucket"], given["Key"])]
        if kind == "alarm":
            names = given.get("AlarmNames") or [given.get("AlarmName", "")]
            return [self._arn("cloudwatch", f"alarm:{name}") for name in names]
        if kind == "log-group":
            group = given.get("logGroupName") or str(given.get("logGroupIdentifier", "")).rpartition("log-group:")[2]
            return [self._arn("logs", f"log-group:{group}:log-stream:{given.get('logStreamName', '')}")]
        if kind == "schedule":
            return [self._arn("scheduler", f"schedule/{given.get('GroupName') or 'default'}/{given.get('Name')}")]
        if kind in ("scalable-target", "tracking-alarm"):
            return self._of_scaling(need)
        if kind in ("object-key", "volume-key"):
            return self._keys(kind)
        roles: dict[Kind, list[Any]] = {
            "role": [
                given.get("RoleArn") or given.get("ExecutionRoleArn"),
                given.get("TrainingJobDefinition", {}).get("RoleArn"),
            ],
            "schedule-role": [given.get("Target", {}).get("RoleArn")],
            "linked-role": [self._arn("iam", LINKED_ROLE, region="")],
            "any": ["*"],
            "network": ["*"],
        }
        return [role for role in roles.get(kind, ()) if role]

    def _of_sagemaker(self, need: Need) -> list[str]:
        given, kind = self._given, need.kind
        if need.action == "sagemaker:AddTags" and self._call.operation != "AddTags" and not given.get("Tags"):
            return []
        if "ResourceArn" in given:
            arn = str(given["ResourceArn"])
            return [arn] if need.kind == arn.rpartition(":")[2].partition("/")[0] else []
        name = given.get(TYPES[kind].name)
        if name is None and str(given.get("ResourceId", "")).startswith("endpoint/"):
            name = given["ResourceId"].split("/")[1]
        return [] if name is None else [self._arn("sagemaker", f"{kind}/{name}")]

    def _of_scaling(self, need: Need) -> list[str]:
        """Targets of Application Auto Scaling, and the alarms of their target tracking."""
        region, given = self._call.region, self._given
        own = "ResourceId" in given
        variants = [given["ResourceId"]] if own else self._state.scaled(region, given.get("EndpointName", ""))
        if need.kind == "scalable-target":
            ids = (hashlib.sha256(variant.encode()).hexdigest()[:32] for variant in variants)
            return [self._arn("application-autoscaling", f"scalable-target/{one}") for one in ids]
        names = [name for variant in variants for name in self._state.tracking_alarms(region, variant)]
        if need.action == "cloudwatch:PutMetricAlarm":
            tracks = given.get("PolicyType") == "TargetTrackingScaling"
            names = [f"TargetTracking-{variants[0]}-{end}" for end in ("AlarmHigh", "AlarmLow") if tracks]
        return [self._arn("cloudwatch", f"alarm:{name}") for name in names]

    def _keys(self, kind: Kind) -> list[str]:
        """The KMS key of an object or of an endpoint's disks."""
        given, region = self._given, self._call.region
        if kind == "volume-key":
            config = given.get("EndpointConfigName")
            key = None if config is None else self._state.volume_key(region, config)
        elif self._call.operation in ("GetObject", "HeadObject"):
            key = self._state.object_key(given["Bucket"], given["Key"])
        else:
            key = given.get("SSEKMSKeyId")
        if not key:
            return []
        return [key if key.startswith("arn:") else self._arn("kms", f"key/{key}")]

    def _context(self, need: Need, resource: str) -> dict[str, str]:
        given = self._given
        context: dict[str, str] = {}
        tags = given.get("Tags", ())
        if isinstance(tags, list):
            context |= {f"aws:RequestTag/{tag['Key']}": tag["Value"] for tag in tags if tag.keys() >= {"Key", "Value"}}
        if need.kind in TYPES:
            held = self._state.tags(self._call.region, resource)
            context |= {f"aws:ResourceTag/{key}": value for key, value in held.items()}
        if need.action == "sagemaker:AddTags" and self._call.operation != "AddTags":
            context["sagemaker:TaggingAction"] = self._call.operation
        if need.action == "iam:PassRole":
            service = "scheduler" if need.kind == "schedule-role" else "sagemaker"
            context["iam:PassedToService"] = f"{service}.amazonaws.com"
        if need.kind == "scalable-target":
            context["application-autoscaling:service-namespace"] = given.get("ServiceNamespace", "sagemaker")
            context["application-autoscaling:scalable-dimension"] = given.get("ScalableDimension", DIMENSION)
        if need.kind == "linked-role":
            context["iam:AWSServiceName"] = "sagemaker.application-autoscaling.amazonaws.com"
        if need.action == "kms:CreateGrant":
            context["kms:GrantIsForAWSResource"] = "true"
        if self._call.service == "s3":
            context |= _s3_context(given)
        if "Namespace" in given:
            context["cloudwatch:namespace"] = given["Namespace"]
        return context

    def _arn(self, service: str, resource: str, *, region: str | None = None) -> str:
        partition, place = get_partition(self._call.region), self._call.region if region is None else region
        return f"arn:{partition}:{service}:{place}:{self._state.account}:{resource}"


LINKED_ROLE = (
    "role/aws-service-role/sagemaker.application-autoscaling.amazonaws.com/"
    "AWSServiceRoleForApplicationAutoScaling_SageMakerEndpoint"
)


def _s3_context(given: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(given[name]) for name, key in S3_CONTEXT.items() if name in given}


def _s3(region: str, bucket: str | None, key: str | None) -> str:
    """ARN of an object, of a bucket, or of none in particular."""
    path = bucket if key is None else f"{bucket}/{key}"
    return "*" if bucket is None else f"arn:{get_partition(region)}:s3:::{path}"


class Account:
    """The state of the rehearsal's account."""

    def __init__(self, account: str, regions: Regions) -> None:
        self.account, self._regions = account, regions

    def tags(self, region: str, arn: str) -> Mapping[str, str]:
        """Tags of a resource of SageMaker; none if there is no such one."""
        tags = self._regions[region].tags(arn)
        return {tag["Key"]: tag["Value"] for tag in tags or ()}

    def scaled(self, region: str, endpoint: str) -> list[str]:
        """Resource ids of the endpoint's variants that Application Auto Scaling knows."""
        return [f"endpoint/{endpoint}/variant/{name}" for name in registered(self.account, region, endpoint)]

    def tracking_alarms(self, region: str, resource_id: str) -> list[str]:
        """Names of the alarms of a variant's target tracking."""
        policies = list(applicationautoscaling_backends[self.account][region].policies.values())
        return [
            alarm.name
            for policy in policies
            if policy.resource_id == resource_id and policy.policy_type == "TargetTrackingScaling"
            for alarm in policy.alarms
        ]

    def object_key(self, bucket: str, key: str) -> str | None:
        """KMS key of an object; None if it has none, or is not there."""
        try:
            found = s3_backends[self.account][get_partition("us-east-1")].get_object(bucket, key)
        except MissingBucket:
            return None
        return None if found is None else found.kms_key_id

    def volume_key(self, region: str, config: str) -> str | None:
        """KMS key of an endpoint config; None if it has none, or is not there."""
        try:
            described = self._regions[region].hosting.describe_endpoint_config({"EndpointConfigName": config})
        except SagemakerClientError:
            return None
        key: str | None = described.get("KmsKeyId")
        return key


class Authorized:
    """In front of all services: a call passes if IAM allows its principal each action that it needs."""

    def __init__(self, application: Application, access: Access, state: State) -> None:
        self._application, self._access, self._state = application, access, state

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        """Pass a request on, or refuse it in AWS's words."""
        principal: str = environ[PRINCIPAL]
        if self._access.policies_of(principal):
            for check in checks(environ[CALL], self._state):
                denial = self._access.denial(principal, check.action, check.resource, check.context)
                if denial is not None:
                    log.info("%s", denial)
                    return answer_refused(environ, start_response, RefusedRequestError("forbidden", denial))
        return self._application(environ, start_response)
