"""Least-privilege IAM policies, built from the table of what each call needs (`permissions.py`).

They have not been tried in a live account yet.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, get_args

from experiments.config import RunConfig, require
from sagemaker_launch.account.permissions import CALLS, JOBS, SERVED, TYPES, Caller, Guard, Kind
from sagemaker_launch.aws.logs import ENDPOINT_LOG_GROUP, LOG_GROUP
from sagemaker_launch.endpoints.requests import DIMENSION, alarm_names, schedule_name
from sagemaker_launch.settings.cloud import PROJECT_TAG, CloudSettings
from sagemaker_launch.shipping.shipment import own_serving_image, s3_root

Policy = dict[str, Any]
EVERY_ENDPOINT = ENDPOINT_LOG_GROUP.format("*")
RULE_LOG_GROUP = "/aws/sagemaker/ProcessingJobs"
"""Where Debugger's rules, which SageMaker runs as processing jobs under the job's role, write their logs."""
OUTPUT_FOLDERS = ("jobs/", "checkpoints/", "debug/", "async/", "capture/")
"""Where SageMaker writes below the prefix."""
MAX_CHARACTERS = 6144
"""Of a managed policy without white space (IAM user guide, "IAM and STS quotas", 2026)."""


def policies(settings: CloudSettings, region: str, config: RunConfig | None = None) -> dict[str, Policy]:
    """All of them, by what they are for.

    Args:
        config: its photos may be in another bucket, which the role then may read.

    Raises:
        UserError: if the role or the bucket is not set, or a key is named by an alias.
    """
    settings.require_for_jobs()
    scope = _Scope(settings, region, None if config is None else s3_root(config))
    found: dict[str, Policy] = {caller: _policy(caller, scope) for caller in get_args(Caller)}
    found["role_trust"] = trust_policy(settings, "sagemaker")
    found["schedule_role_trust"] = trust_policy(settings, "scheduler")
    return found


def characters_beyond(policy: Policy) -> int:
    """How many characters a policy has beyond what IAM takes in a managed policy."""
    return len("".join(json.dumps(policy).split())) - MAX_CHARACTERS


def trust_policy(settings: CloudSettings, service: str) -> Policy:
    """Who may take a role: a service of AWS, for this account."""
    statement = {
        "Effect": "Allow",
        "Principal": {"Service": f"{service}.amazonaws.com"},
        "Action": "sts:AssumeRole",
        "Condition": {"StringEquals": {"aws:SourceAccount": settings.account}},
    }
    return _document([statement])


@dataclass
class _Statement:
    """Actions of one guard, whose resources may be united."""

    guard: Guard
    actions: dict[str, set[str]] = field(default_factory=dict)
    """Each action, and its resources."""

    def takes(self, action: str, resources: set[str]) -> bool:
        """Whether no action would be allowed on more than before, if this one came in.

        Types of resources tell: an action of endpoints gains nothing from the ARN of a model.
        """
        services = {name.partition(":")[0] for name in (*self.actions, action)}
        if resources == {"*"} or {"*"} in self.actions.values():
            return all(one == resources for one in self.actions.values())
        united = set().union(resources, *self.actions.values())
        needs = [*self.actions.values(), resources]
        return len(services) == 1 and all(
            arn in own or _type_of(arn) not in map(_type_of, own) for own in needs for arn in united
        )

    def document(self, condition: Policy) -> Policy:
        """As IAM takes it."""
        resources = sorted(set().union(*self.actions.values()))
        statement = {"Effect": "Allow", "Action": list(self.actions), "Resource": resources}
        return statement | ({"Condition": condition} if condition else {})


def _policy(caller: Caller, scope: _Scope) -> Policy:
    """What the calls of a caller need, in few statements."""
    granted: dict[tuple[Guard, str], set[str]] = {}
    for need in (need for call in CALLS if caller in call.callers for need in call.needs):
        granted.setdefault((need.guard, need.action), set()).update(scope.resources(need.kind, caller))
    statements: list[_Statement] = []
    for (guard, action), resources in granted.items():
        if not resources:  # what the settings do without
            continue
        fitting = (one for one in statements if one.guard == guard and one.takes(action, resources))
        statement = next(fitting, None)
        if statement is None:
            statements.append(statement := _Statement(guard))
        statement.actions[action] = resources
    return _document([one.document(scope.condition(one.guard)) for one in statements])


def _type_of(arn: str) -> str:
    """The type of a resource by its ARN, such as `sagemaker:endpoint`."""
    service, _, _, resource = arn.split(":", 5)[2:]
    if service == "s3":
        return "s3:object" if "/" in resource else "s3:bucket"
    return f"{service}:{re.split('[:/]', resource)[0]}"


@dataclass(frozen=True)
class _Scope:
    """The resources of a project in an account and a region."""

    settings: CloudSettings
    region: str
    photos: str | None
    """The s3:// URI of a data set in S3."""

    def resources(self, kind: Kind, caller: Caller) -> list[str]:
        """ARNs of a kind, as patterns; none if the settings do without it."""
        if kind in TYPES:
            return [self._arn("sagemaker", f"{kind}/*")]
        if kind == "log-group":  # with its streams
            groups = (f"{LOG_GROUP}*", EVERY_ENDPOINT, *([f"{RULE_LOG_GROUP}*"] if caller == "role" else []))
            return [self._arn("logs", f"log-group:{group}") for group in groups]
        return self._named[kind]

    @functools.cached_property
    def _named(self) -> dict[Kind, list[str]]:
        settings, schedule_role = self.settings, self.settings.endpoint.schedule_role_arn
        linked = "role/aws-service-role/sagemaker.application-autoscaling.amazonaws.com/*"
        repository = own_serving_image(settings, self.region, "cpu").partition("/")[2].rpartition(":")[0]
        s3 = f"arn:{self.settings.partition}:s3:::"
        own, (other, below) = f"{s3}{settings.bucket}", self._photos
        return {
            "any": ["*"],
            # It has an id that AWS draws, so none can be named before.
            "scalable-target": [self._arn("application-autoscaling", "scalable-target/*")],
            "alarm": [self._arn("cloudwatch", f"alarm:{name}") for name in alarm_names(settings, "*")],
            # Application Auto Scaling names them, without the project.
            "tracking-alarm": [self._arn("cloudwatch", "alarm:TargetTracking-endpoint/*")],
            "schedule": [self._arn("scheduler", f"schedule/default/{schedule_name(settings, '*')}")],
            "role": [str(settings.role_arn)],
            "schedule-role": [schedule_role] if schedule_role else [],
            "linked-role": [self._arn("iam", linked, region="")],
            "bucket": [own],
            "object": [f"{own}/{settings.prefix}/*"],
            "output": [f"{own}/{settings.prefix}/{folder}*" for folder in OUTPUT_FOLDERS],
            "checkpoint": [f"{own}/{settings.prefix}/checkpoints/*"],
            "photos-bucket": [f"{s3}{other}"] if other else [],
            "photo": [f"{s3}{other}/{below}*"] if other else [],
            "volume-key": self._keys("volume_kms_key"),
            "object-key": self._keys("output_kms_key"),
            "repository": [self._arn("ecr", f"repository/{repository}")],
            "subnet": [self._arn("ec2", f"subnet/{name}") for name in settings.subnets],
            "security-group": [self._arn("ec2", f"security-group/{name}") for name in settings.security_group_ids],
            "network-interface": [self._arn("ec2", "network-interface/*")] if settings.subnets else [],
            "network": ["*"] if settings.subnets else [],
        }

    def condition(self, guard: Guard) -> Policy:
        """The condition of a statement."""
        project = self.settings.project
        tag = {f"aws:RequestTag/{PROJECT_TAG}": project}
        own = {"StringEquals": {f"aws:ResourceTag/{PROJECT_TAG}": project}}
        conditions: dict[Guard, Policy] = {
            "": {},
            "tagged": {"StringEquals": tag},
            # Alone, AddTags with the project's tag would make a foreign resource one of this project.
            "tags a new job": {"StringEquals": {**tag, "sagemaker:TaggingAction": _creators(JOBS)}},
            "tags a new endpoint": {"StringEquals": {**tag, "sagemaker:TaggingAction": _creators(SERVED)}},
            "own": own,
            # The request may leave the project's tag out, but not give the endpoint to another project.
            "renews a lease": own | {"StringEqualsIfExists": tag},
            "passed to sagemaker": {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}},
            "passed to scheduler": {"StringEquals": {"iam:PassedToService": "scheduler.amazonaws.com"}},
            "scaling": {
                "StringEquals": {
                    "application-autoscaling:service-namespace": "sagemaker",
                    "application-autoscaling:scalable-dimension": DIMENSION,
                }
            },
            "below the prefix": {"StringLike": {"s3:prefix": f"{self.settings.prefix}/*"}},
            "below the photos": {"StringLike": {"s3:prefix": f"{self._photos[1]}*"}},
            "namespace": {"StringEquals": {"cloudwatch:namespace": LOG_GROUP}},
            # A grant lets somebody else use the key: only services of AWS, which need it for volumes.
            "used by AWS": {"Bool": {"kms:GrantIsForAWSResource": "true"}},
            "own subnets": {"ArnEquals": {"ec2:Subnet": self.resources("subnet", "role")}},
        }
        return conditions[guard]

    @property
    def _photos(self) -> tuple[str, str]:
        """Bucket of a data set in S3, and the prefix in it."""
        bucket, _, prefix = (self.photos or "").removeprefix("s3://").partition("/")
        return bucket, prefix

    def _keys(self, name: str) -> list[str]:
        """The ARN of a key of the settings.

        Raises:
            UserError: for an alias, which IAM does not take as a resource.
        """
        key: str | None = getattr(self.settings, name)
        if key is None:
            return []
        require("alias/" not in key, f"cloud.{name}", "be the id or the ARN of a key in a policy, not an alias", key)
        return [key if key.startswith("arn:") else self._arn("kms", f"key/{key}")]

    def _arn(self, service: str, resource: str, *, region: str | None = None) -> str:
        owner = f"{self.region if region is None else region}:{self.settings.account}"
        return f"arn:{self.settings.partition}:{service}:{owner}:{resource}"


def _creators(kinds: Iterable[Kind]) -> list[str]:
    """The operations that make resources of some kinds."""
    return [TYPES[kind].create_operation for kind in kinds]


def _document(statements: list[Policy]) -> Policy:
    return {"Version": "2012-10-17", "Statement": statements}
