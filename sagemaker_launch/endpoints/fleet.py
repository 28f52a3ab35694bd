"""All resources of an endpoint in AWS: found by name and tags, and deleted together."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from botocore.exceptions import ClientError

from experiments.console import say
from experiments.errors import UserError
from sagemaker_launch.aws import client as aws
from sagemaker_launch.aws.resources import CONFIG, ENDPOINT, MODEL, ResourceType, tags_of
from sagemaker_launch.aws.retries import AT_START_SECONDS
from sagemaker_launch.aws.tag_index import TAGGING, ProjectTags
from sagemaker_launch.endpoints.lease import ENDPOINT_TAG, Lease
from sagemaker_launch.endpoints.requests import alarm_names, schedule_name, variant_of
from sagemaker_launch.settings.cloud import PROJECT_TAG, CloudSettings

POLL_SECONDS = 10.0
MOVING = ("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting")
"""States of an endpoint in which AWS refuses changes."""
ORPHAN_AGE = timedelta(hours=1)
"""Age from which a model without an endpoint is abandoned; a younger one may belong to a deployment in progress."""


@dataclass(frozen=True)
class Services:
    """Clients of the AWS services that an endpoint uses."""

    sagemaker: Any
    autoscaling: Any
    cloudwatch: Any
    scheduler: Any
    tagging: Any

    @classmethod
    def open(cls, settings: CloudSettings, *, patience_seconds: float = AT_START_SECONDS) -> Services:
        """Create the clients.

        Args:
            patience_seconds: time in which a call is repeated that AWS does not answer.
        """
        names = ("sagemaker", "application-autoscaling", "cloudwatch", "scheduler", TAGGING)
        return cls(*(aws.client(name, settings, patience_seconds=patience_seconds) for name in names))

    @property
    def poll_seconds(self) -> float:
        """Seconds between two checks of a state."""
        return 0.5 if aws.is_rehearsal(self.sagemaker) else POLL_SECONDS


@dataclass(frozen=True)
class FoundEndpoint:
    """An endpoint of this project."""

    name: str
    described: Mapping[str, Any]
    lease: Lease

    @property
    def status(self) -> str:
        """InService, Creating, Updating, ..."""
        return str(self.described[ENDPOINT.status])

    @property
    def config_name(self) -> str:
        """Endpoint config that it runs."""
        return str(self.described[CONFIG.name])


def find_endpoint(services: Services, settings: CloudSettings, name: str) -> FoundEndpoint | None:
    """The endpoint with a name; None if there is none.

    Raises:
        UserError: if it belongs to another project.
    """
    described = ENDPOINT.find(services.sagemaker, name)
    if described is None:
        return None
    tags = _tags_of_endpoint(services, name, described)
    if tags is None:
        return None
    if tags.get(PROJECT_TAG) != settings.project:
        raise UserError(
            f"endpoint {name} must carry the tag {PROJECT_TAG}={settings.project} to be changed from here, got "
            f"{tags.get(PROJECT_TAG)!r}: choose another name, or set cloud.project"
        )
    return FoundEndpoint(name, described, Lease.read(tags))


def project_endpoints(services: Services, settings: CloudSettings) -> Iterator[FoundEndpoint]:
    """All endpoints of this project, newest first."""
    own = ProjectTags(services.sagemaker, services.tagging, settings, ENDPOINT)
    pages = services.sagemaker.get_paginator("list_endpoints").paginate(SortBy="CreationTime", SortOrder="Descending")
    for summary in (summary for page in pages for summary in page["Endpoints"]):
        tags = own.of(summary[ENDPOINT.arn], summary["CreationTime"])
        if tags is None:
            continue
        described = ENDPOINT.find(services.sagemaker, summary[ENDPOINT.name])
        if described is not None:  # None: it has just been deleted
            yield FoundEndpoint(summary[ENDPOINT.name], described, Lease.read(tags))


def _tags_of_endpoint(services: Services, name: str, described: Mapping[str, Any]) -> Mapping[str, str] | None:
    """The tags of an endpoint; None if it has just been deleted."""
    try:
        return tags_of(services.sagemaker, described[ENDPOINT.arn], described["CreationTime"])
    except ClientError:
        if ENDPOINT.find(services.sagemaker, name) is not None:
            raise
        return None


def expired_endpoints(services: Services, settings: CloudSettings) -> list[str]:
    """Names of this project's endpoints whose lease has expired, then of others that left models or configs.

    They come from AWS's index of tags, which may be a minute late: `delete_expired` looks again.
    """
    own = ProjectTags(services.sagemaker, services.tagging, settings, ENDPOINT, CONFIG, MODEL)
    endpoints = {tags[ENDPOINT_TAG]: Lease.read(tags) for tags in own.tags(ENDPOINT) if ENDPOINT_TAG in tags}
    owners = {tags[ENDPOINT_TAG] for tags in own.tags(CONFIG, MODEL) if ENDPOINT_TAG in tags}
    expired = [name for name, lease in endpoints.items() if lease.has_expired()]
    return [*expired, *sorted(owners - endpoints.keys())]


def delete_expired(services: Services, settings: CloudSettings, name: str) -> list[str]:
    """`delete_endpoint`, unless the endpoint has a new lease or may belong to a deployment in progress.

    Returns:
        What was deleted.
    """
    found = find_endpoint(services, settings, name)
    if found is not None and not found.lease.has_expired():
        return []
    before = datetime.now(UTC) - ORPHAN_AGE
    if found is None and any(made["CreationTime"] > before for _, made in versions(services, settings, name)):
        return []
    return delete_endpoint(services, settings, name)


def kind_of(config: Mapping[str, Any]) -> str:
    """The `cloud.endpoint.kind` of a described endpoint config."""
    (variant,) = config["ProductionVariants"]
    if "ServerlessConfig" in variant:
        return "serverless"
    return "async" if "AsyncInferenceConfig" in config else "realtime"


def wait_settled(services: Services, name: str) -> Mapping[str, Any] | None:
    """Wait until AWS accepts changes; return the endpoint then, or None if it was deleted."""
    reported_status = ""
    while True:
        described = ENDPOINT.find(services.sagemaker, name)
        if described is None or described[ENDPOINT.status] not in MOVING:
            return described
        if described[ENDPOINT.status] != reported_status:
            reported_status = described[ENDPOINT.status]
            say(f"endpoint {name}: {reported_status}")
        time.sleep(services.poll_seconds)


def delete_endpoint(services: Services, settings: CloudSettings, name: str) -> list[str]:
    """Delete an endpoint and everything that belongs to it. After a kill the next call continues.

    Returns:
        What was deleted.

    Raises:
        UserError: if it belongs to another project.
    """
    deleted: list[str] = []
    # The resources that cost money first; models and configs last, as their tags identify leftovers.
    if find_endpoint(services, settings, name) is not None:
        if wait_settled(services, name) is not None:
            ENDPOINT.delete(services.sagemaker, name)
            wait_settled(services, name)
        deleted.append(f"endpoint {name}")
    if stop_scaling(services, name):
        deleted.append(f"autoscaling of {name}")
    deleted += [f"alarm {alarm}" for alarm in delete_alarms(services, alarm_names(settings, name))]
    if delete_schedule(services, settings, name):
        deleted.append(f"schedule {schedule_name(settings, name)}")
    return deleted + delete_versions(services, settings, name)


def delete_versions(services: Services, settings: CloudSettings, name: str, *, keep: tuple[str, ...] = ()) -> list[str]:
    """Delete the endpoint configs and models of an endpoint, except some; return what was deleted."""
    deleted: list[str] = []
    for resource_type, summary in versions(services, settings, name):
        version = summary[resource_type.name]
        if version not in keep:
            resource_type.delete(services.sagemaker, version)
            deleted.append(f"{resource_type.word} {version}")
    return deleted


def versions(services: Services, settings: CloudSettings, name: str) -> list[tuple[ResourceType, dict[str, Any]]]:
    """Summaries of the endpoint configs and models of an endpoint, in the order of their deletion."""
    found = []
    for resource_type, key in ((CONFIG, "EndpointConfigs"), (MODEL, "Models")):
        pages = services.sagemaker.get_paginator(f"list_{resource_type.operation}s").paginate(NameContains=f"{name}-")
        for summary in [summary for page in pages for summary in page[key]]:
            tags = tags_of(services.sagemaker, summary[resource_type.arn], summary["CreationTime"])
            if tags.get(PROJECT_TAG) == settings.project and tags.get(ENDPOINT_TAG) == name:
                found.append((resource_type, summary))
    return found


def stop_scaling(services: Services, name: str) -> bool:
    """Remove the endpoint and its policies from Application Auto Scaling; return whether it was registered."""
    variant = variant_of(name)
    found = services.autoscaling.describe_scalable_targets(
        ServiceNamespace=variant["ServiceNamespace"], ResourceIds=[variant["ResourceId"]]
    )["ScalableTargets"]
    if found:
        services.autoscaling.deregister_scalable_target(**variant)
    return bool(found)


def delete_alarms(services: Services, names: list[str]) -> list[str]:
    """Delete those of the alarms that exist."""
    found = services.cloudwatch.describe_alarms(AlarmNames=names)["MetricAlarms"]
    names_in_aws = [alarm["AlarmName"] for alarm in found]
    if names_in_aws:
        services.cloudwatch.delete_alarms(AlarmNames=names_in_aws)
    return names_in_aws


def delete_schedule(services: Services, settings: CloudSettings, name: str) -> bool:
    """Delete the schedule that deletes the endpoint; return whether there was one."""
    try:
        services.scheduler.delete_schedule(Name=schedule_name(settings, name))
    except ClientError as error:
        if aws.error_code(error) == "ResourceNotFoundException":
            return False
        raise
    return True
