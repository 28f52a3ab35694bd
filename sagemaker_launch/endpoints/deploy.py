"""Deploy a model as an endpoint whose scores are the trainer's, step by step; each step may be repeated."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from experiments.console import say
from experiments.errors import CommandError, UserError
from lightning_modules.inference import GOLDEN_TOLERANCE
from sagemaker_launch.aws.client import error_code
from sagemaker_launch.aws.logs import Log, failure_reason
from sagemaker_launch.aws.readback import ProtectionError, read_back
from sagemaker_launch.aws.resources import (
    CONFIG,
    ENDPOINT,
    MODEL,
    VISIBLE_PAUSES,
    LaunchError,
    Request,
    UnansweredError,
    create,
    may_pass,
    validate,
)
from sagemaker_launch.aws.running import Running
from sagemaker_launch.endpoints.fleet import (
    FoundEndpoint,
    Services,
    delete_alarms,
    delete_endpoint,
    delete_schedule,
    delete_versions,
    find_endpoint,
    kind_of,
    stop_scaling,
    wait_settled,
)
from sagemaker_launch.endpoints.lease import Lease
from sagemaker_launch.endpoints.query import BusyError, NoAnswerError, QueryError, Target
from sagemaker_launch.endpoints.requests import (
    Deployment,
    alarm_names,
    create_endpoint,
    endpoint_tags,
    fixed_instances,
    scalable_target,
    scaling_policy,
    schedule,
    schedule_name,
    update_alarms,
    update_endpoint,
    wake_alarm,
    wake_policy,
)
from sagemaker_launch.serving.engine import golden_tolerance
from sagemaker_launch.settings.cloud import CloudSettings
from sagemaker_launch.settings.endpoint import Precision

LEAST_TIME = timedelta(minutes=5)
"""Least time from the end of an update to the end of the lease, which the update may have outlasted."""


class DeployError(CommandError):
    """The endpoint does not answer correctly; the message describes its state."""


@dataclass(frozen=True)
class Golden:
    """The golden photo of an export, the trainer's scores, and how far an answer may be from them."""

    photo: bytes
    logits: tuple[float, ...]
    tolerance: float = GOLDEN_TOLERANCE

    @classmethod
    def read(cls, export: Path, precision: Precision) -> Golden:
        """Read them from an export folder that is served in a precision.

        Raises:
            DeployError: if they are not whole.
        """
        try:
            scores = json.loads((export / "golden" / "scores.json").read_text())
            logits = tuple(float(logit) for logit in scores["logits"])
            photo = (export / "golden" / "image.jpg").read_bytes()
            return cls(photo, logits, golden_tolerance(export, precision))
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise DeployError(f"{export} has no whole golden photo and scores: {error}") from error

    def check(self, target: Target) -> tuple[float, float]:
        """Send the photo and compare the answer.

        Returns:
            The largest difference of a logit, and the latency in milliseconds.

        Raises:
            DeployError: if the best class is another one, or a logit off by more than the tolerance.
        """
        answer = target.ask(self.photo, "image/jpeg")
        (logits,) = answer.content
        same = len(logits) == len(self.logits)
        differences = [abs(logit - golden) for logit, golden in zip(logits, self.logits, strict=same)]
        difference = max(differences) if same else math.inf
        # One by one: NaN is not within any tolerance, and max() may pass over it.
        close = same and all(difference <= self.tolerance for difference in differences)
        if not close or logits.index(max(logits)) != self.logits.index(max(self.logits)):
            raise DeployError(f"the golden photo's logits are off by {difference:.2g}, allowed are {self.tolerance:g}")
        return difference, answer.latency_ms


@dataclass(frozen=True)
class Deployed:
    """A running endpoint."""

    arn: str
    golden_difference: float
    first_latency_ms: float
    guards: str
    """A sentence about when and how it will be deleted."""


def deploy(
    services: Services,
    settings: CloudSettings,
    name: str,
    version: Deployment,
    lease: Lease,
    golden: Golden,
    target: Target,
    log: Log,
    *,
    running: Running,
) -> Deployed:
    """Create an endpoint, or update it unless it has this version.

    A new endpoint that fails is deleted with everything created for it. An existing endpoint keeps its version,
    and what was created for the new version is deleted; its lease changes only after the golden photo. After a kill
    the same call continues. Nothing is deleted because a call was refused or not answered.

    Args:
        running: is told what is made.

    Raises:
        DeployError: if AWS refuses the version, or it fails, or its scores differ from the trainer's.
        UserError: if an endpoint of that name belongs to another project or has another `cloud.endpoint.kind`.
    """
    wait_settled(services, name)  # a killed call may have started a change
    before = find_endpoint(services, settings, name)
    if before is not None and before.status == "Failed":
        say(f"endpoint {name} failed before: it is removed first")
        delete_endpoint(services, settings, name)
        before = None
    if before is not None and before.status != "InService":
        # It may still answer, so it is not deleted without a command.
        raise DeployError(
            f"endpoint {name} is {before.status} and takes no update "
            f"({failure_reason(before.described)}): delete it, then deploy again"
        )
    if before is not None:
        _check_kind(services, settings, before)
        running.exists(name, f"endpoint {name}")
    try:
        if before is None:  # a killed call leaves no endpoint without an end
            guards = set_lease(services, settings, name, lease, None, running)
        else:
            _keep_alive(services, settings, before, running)
        _bring_up(services, settings, name, version, lease, before, log, running)
        difference, latency_ms = golden.check(target)
    except Exception as error:
        if not _has_failed(error):
            raise
        try:
            outcome = _roll_back(services, settings, name, version, before, running)
        except (ClientError, BotoCoreError) as refusal:
            raise DeployError(f"endpoint {name}: {error}\nwhat was made could not be removed: {refusal}") from error
        if before is None:
            running.has_ended()
        else:
            running.made.clear()
        raise DeployError(f"endpoint {name}: {error}\n{outcome}") from error
    if before is not None:
        guards = set_lease(services, settings, name, lease.lasting(LEAST_TIME), before, running)
    if settings.endpoint.scales:
        running.missing = _unscaled(name)
        _start_scaling(services, settings, name)
    else:
        stop_scaling(services, name)
        if settings.endpoint.has_instances:
            running.missing = f"endpoint {name} may run more instances until the same command has succeeded"
            _fix_instances(services, settings, name)
    running.missing = ""
    delete_versions(services, settings, name, keep=(version.config_name, version.model_name))
    described = ENDPOINT.describe(services.sagemaker, name)
    return Deployed(described[ENDPOINT.arn], difference, latency_ms, guards)


def _has_failed(error: Exception) -> bool:
    """Whether AWS or the version's own answer says that it is bad; other errors are of calls that did not work."""
    if isinstance(error, NoAnswerError | BusyError | UnansweredError):
        return False
    return isinstance(error, DeployError | LaunchError | ProtectionError | QueryError)


def _check_kind(services: Services, settings: CloudSettings, before: FoundEndpoint) -> None:
    config = CONFIG.describe(services.sagemaker, before.config_name)
    deployed_kind = kind_of(config)
    if deployed_kind != settings.endpoint.kind:
        raise UserError(
            f"cloud.endpoint.kind must stay {deployed_kind} for endpoint {before.name}, got {settings.endpoint.kind}: "
            "AWS can't change it; delete the endpoint first, or choose another name"
        )


def _bring_up(
    services: Services,
    settings: CloudSettings,
    name: str,
    version: Deployment,
    lease: Lease,
    before: FoundEndpoint | None,
    log: Log,
    running: Running,
) -> None:
    """Create the missing resources of a version, and wait until the endpoint is in service."""
    for resource_type, request in ((MODEL, version.model), (CONFIG, version.config)):
        running.made.append(f"{resource_type.word} {request[resource_type.name]}")
        described = resource_type.find(services.sagemaker, request[resource_type.name])
        if described is None:
            described = create(services.sagemaker, resource_type, request)
        for difference in read_back(services.sagemaker, resource_type, request, described):
            say(f"warning: {difference}")
    alarms = update_alarms(settings, name)
    for alarm in alarms:
        running.made.append(f"alarm {alarm['AlarmName']}")
        services.cloudwatch.put_metric_alarm(**alarm)
    delete_alarms(services, sorted({*alarm_names(settings, name)} - {alarm["AlarmName"] for alarm in alarms}))
    if before is None:
        running.starts(name, f"endpoint {name}")
        create(services.sagemaker, ENDPOINT, create_endpoint(settings, name, version.config_name, lease))
        running.exists(name, f"endpoint {name}")
    elif before.config_name != version.config_name:
        # AWS refuses to change the instance type of a scaled variant.
        running.missing = _unscaled(name)
        if not stop_scaling(services, name) and not settings.endpoint.scales:
            running.missing = ""  # it neither scaled nor will
        _update(services, update_endpoint(settings, name, version.config_name))
    for pause in (0.0, *VISIBLE_PAUSES):
        time.sleep(pause)
        if (settled := wait_settled(services, name)) is not None:
            break
    state = settled or {}
    if state.get(ENDPOINT.status) == "InService" and state[CONFIG.name] == version.config_name:
        return
    try:
        lines = [line.text for line in log.read()[-5:]]
    except (ClientError, BotoCoreError) as error:
        lines = [f"its log can't be read: {error}"]
    raise DeployError("\n".join([f"{version.config_name} did not come up: {failure_reason(state)}", *lines]))


def _update(services: Services, request: Request) -> None:
    """Send an update, whose answer may be lost."""
    validate("UpdateEndpoint", request)
    try:
        services.sagemaker.update_endpoint(**request)
    except (ClientError, BotoCoreError) as error:
        described = ENDPOINT.describe(services.sagemaker, request[ENDPOINT.name])
        if described[ENDPOINT.status] != "Updating" and described[CONFIG.name] != request[CONFIG.name]:
            refused = isinstance(error, ClientError) and not may_pass(error)
            failed_call = f"the update of endpoint {request[ENDPOINT.name]}: {error}"
            if refused:
                raise LaunchError(f"AWS refuses {failed_call}") from error
            raise UnansweredError(f"AWS gives no answer to {failed_call}") from error


def _roll_back(
    services: Services,
    settings: CloudSettings,
    name: str,
    version: Deployment,
    before: FoundEndpoint | None,
    running: Running,
) -> str:
    """Restore the state before a failed deployment: delete all new resources."""
    if before is None:
        deleted = delete_endpoint(services, settings, name)
        return f"all that was made is removed again: {', '.join(deleted) or 'nothing'}"
    old = before.config_name
    if old == version.config_name:
        return f"{name} had this version before; it is left as it is"
    described = wait_settled(services, name) or {}
    if described.get(CONFIG.name) != old:
        _update(services, {"EndpointName": name, "EndpointConfigName": old})
        wait_settled(services, name)
    CONFIG.delete(services.sagemaker, version.config_name)
    model = CONFIG.describe(services.sagemaker, old)["ProductionVariants"][0]["ModelName"]
    if model != version.model_name:
        MODEL.delete(services.sagemaker, version.model_name)
    if settings.endpoint.scales:
        _start_scaling(services, settings, name)
        running.missing = ""
    elif running.missing:
        running.missing = f"endpoint {name} may not scale any more: deploy it with the settings that it had before"
    return f"{name} answers with {old} as before; what the update brought is removed"


def _keep_alive(services: Services, settings: CloudSettings, before: FoundEndpoint, running: Running) -> None:
    """Extend a lease that would expire during the update, so that nothing deletes the endpoint meanwhile."""
    lease = before.lease.lasting(timedelta(seconds=settings.endpoint.update_timeout_seconds))
    if lease != before.lease:
        guards = set_lease(services, settings, before.name, lease, before, running)
        say(f"endpoint {before.name} would expire during the update, so it gets more time: {guards}")


def set_lease(
    services: Services,
    settings: CloudSettings,
    name: str,
    lease: Lease,
    before: FoundEndpoint | None,
    running: Running,
) -> str:
    """Write owner and expiry of the endpoint into its tags, and schedule its deletion in AWS.

    Args:
        running: is told of the schedule.

    Returns:
        A sentence about when and how it will be deleted.
    """
    if before is not None:
        tags = endpoint_tags(settings, name, lease)
        services.sagemaker.add_tags(ResourceArn=before.described[ENDPOINT.arn], Tags=tags)
    if lease.expires is None:
        delete_schedule(services, settings, name)
        return "nothing ends it (--ttl none): delete it when it is no longer needed"
    cron = "`python -m sagemaker_launch delete --expired` (run it by cron)"
    at = f"{lease.expires:%Y-%m-%d %H:%M} UTC"
    if settings.endpoint.schedule_role_arn is None:
        delete_schedule(services, settings, name)
        return f"its time is over at {at}; only {cron} deletes it then: cloud.endpoint.schedule_role_arn is not set"
    running.made.append(f"schedule {schedule_name(settings, name)}")
    request = schedule(settings, name, lease.expires)
    try:
        try:
            services.scheduler.create_schedule(**request)
        except ClientError as error:
            if error_code(error) != "ConflictException":
                raise
            services.scheduler.update_schedule(**request)
    except ClientError as error:
        # The lease also works without a schedule, so a role without this right does not stop a deployment.
        return f"its time is over at {at}; only {cron} deletes it then: AWS takes no schedule ({error})"
    return f"AWS deletes it at {at} (schedule {schedule_name(settings, name)}), and {cron} removes what is left"


def _unscaled(name: str) -> str:
    return f"endpoint {name} may not scale until the same command has succeeded"


def _fix_instances(services: Services, settings: CloudSettings, name: str) -> None:
    """Bring a version that scaled before to the number of instances of the settings: AWS keeps those that run."""
    wait_settled(services, name)  # the scaling may have started a change
    (variant,) = ENDPOINT.describe(services.sagemaker, name)["ProductionVariants"]
    if variant["DesiredInstanceCount"] != settings.endpoint.first_instances:
        request = fixed_instances(settings.endpoint, name)
        validate("UpdateEndpointWeightsAndCapacities", request)
        services.sagemaker.update_endpoint_weights_and_capacities(**request)
        wait_settled(services, name)


def _start_scaling(services: Services, settings: CloudSettings, name: str) -> None:
    services.autoscaling.register_scalable_target(**scalable_target(settings.endpoint, name))
    services.autoscaling.put_scaling_policy(**scaling_policy(settings.endpoint, name))
    if settings.endpoint.min_instances == 0:
        policy = services.autoscaling.put_scaling_policy(**wake_policy(name))
        services.cloudwatch.put_metric_alarm(**wake_alarm(settings, name, policy["PolicyARN"]))
