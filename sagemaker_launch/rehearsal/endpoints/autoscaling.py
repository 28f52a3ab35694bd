"""Application Auto Scaling of endpoint variants: moto's answers, checked against the existing endpoints.

Targets, policies and their alarms are kept, and capacity is booked. Nothing measures traffic, so nothing scales.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import ClassVar
from uuid import uuid4

from moto.applicationautoscaling.exceptions import AWSValidationException
from moto.applicationautoscaling.models import (
    ApplicationAutoscalingBackend,
    FakeApplicationAutoscalingPolicy,
    applicationautoscaling_backends,
)
from moto.applicationautoscaling.responses import ApplicationAutoScalingResponse
from moto.cloudwatch.models import cloudwatch_backends
from moto.core.exceptions import JsonRESTError

from sagemaker_launch.rehearsal import moto_urls
from sagemaker_launch.rehearsal.endpoints.endpoints import Endpoint, Variant

NAMESPACE, DIMENSION = "sagemaker", "sagemaker:variant:DesiredInstanceCount"
Find = Callable[[str, str], Endpoint | None]


class EndpointScalingResponse(ApplicationAutoScalingResponse):
    """Answers requests about endpoint variants; the allow-list refuses all others."""

    find: ClassVar[Find]
    """Gives the endpoint of a region and a name."""

    def register_scalable_target(self) -> str:
        """RegisterScalableTarget."""
        endpoint, variant = self._variant()
        # A change of a target may give one end of its range only.
        known = self._backend.targets.get(DIMENSION, {}).get(self._resource)
        low, high = self._get_int_param("MinCapacity"), self._get_int_param("MaxCapacity")
        low = known.min_capacity if low is None and known is not None else low
        high = known.max_capacity if high is None and known is not None else high
        if low is None or high is None or not 0 <= low <= high:
            raise AWSValidationException(f"MinCapacity and MaxCapacity must be 0 <= min <= max, got {low} and {high}")
        # Source: AWS developer guide, "Register a model" and "Autoscale an asynchronous endpoint", 2025.
        if low == 0 and "AsyncInferenceConfig" not in endpoint.config.request:
            raise AWSValidationException("MinCapacity must be at least 1 for the variant of a real-time endpoint")
        answer = super().register_scalable_target()
        with endpoint.lock:
            variant.instances = min(max(variant.instances, low), high)
        return answer

    def deregister_scalable_target(self) -> str:
        """DeregisterScalableTarget: its policies go with it, as AWS documents it."""
        self._check_registered()
        _forget_policies(self._backend, self._resource)
        return super().deregister_scalable_target()

    def put_scaling_policy(self) -> str:
        """PutScalingPolicy: one that tracks a target comes with two alarms."""
        self._check_registered()
        key = FakeApplicationAutoscalingPolicy.formulate_key(
            NAMESPACE, self._resource, DIMENSION, self._get_param("PolicyName")
        )
        if key in self._backend.policies:
            self._backend.policies[key].delete_alarms(self.current_account, self.region)
        super().put_scaling_policy()
        policy = self._backend.policies[key]
        if policy.policy_type == "TargetTrackingScaling":
            _make_alarms(policy)
        alarms = [{"AlarmName": alarm.name, "AlarmARN": alarm.alarm_arn} for alarm in policy.alarms]
        return json.dumps({"PolicyARN": policy.policy_arn, "Alarms": alarms})

    @property
    def _backend(self) -> ApplicationAutoscalingBackend:
        return self.applicationautoscaling_backend

    @property
    def _resource(self) -> str:
        return str(self._get_param("ResourceId"))

    def _variant(self) -> tuple[Endpoint, Variant]:
        parts = self._resource.split("/")
        if len(parts) == 4 and (parts[0], parts[2]) == ("endpoint", "variant"):
            endpoint = type(self).find(self.region, parts[1])
            fleet = None if endpoint is None else endpoint.blue
            for variant in [] if fleet is None else fleet.variants:
                if variant.name == parts[3] and variant.serverless is None:
                    assert endpoint is not None
                    return endpoint, variant
        raise AWSValidationException(f"there is no endpoint variant with instances in service at {self._resource}")

    def _check_registered(self) -> None:
        if self._resource not in self._backend.targets.get(DIMENSION, {}):
            raise JsonRESTError(
                "ObjectNotFoundException",
                f"No scalable target registered for service namespace: {NAMESPACE}, resource ID: {self._resource}, "
                f"scalable dimension: {DIMENSION}",
            )


def install_scaling(find: Find) -> None:
    """Replace moto's answers, in this process."""
    EndpointScalingResponse.find = staticmethod(find)
    moto_urls.answer("applicationautoscaling", EndpointScalingResponse.dispatch)


def registered(account: str, region: str, endpoint: str) -> set[str]:
    """Names of the variants of an endpoint that are scalable targets."""
    prefix = f"endpoint/{endpoint}/variant/"
    targets: Mapping[str, object] = applicationautoscaling_backends[account][region].targets.get(DIMENSION, {})
    return {resource.removeprefix(prefix) for resource in targets if resource.startswith(prefix)}


def deregister(account: str, region: str, endpoint: str) -> None:
    """Remove the targets and policies of a deleted endpoint.

    Source: AWS developer guide, "Delete endpoints configured for auto scaling", 2025: it does so without notice.
    """
    backend = applicationautoscaling_backends[account][region]
    for variant in registered(account, region, endpoint):
        resource = f"endpoint/{endpoint}/variant/{variant}"
        _forget_policies(backend, resource)
        backend.deregister_scalable_target(NAMESPACE, resource, DIMENSION)


def _forget_policies(backend: ApplicationAutoscalingBackend, resource: str) -> None:
    names = [policy.policy_name for policy in backend.policies.values() if policy.resource_id == resource]
    for name in names:
        backend.delete_scaling_policy(name, NAMESPACE, resource, DIMENSION)


def _make_alarms(policy: FakeApplicationAutoscalingPolicy) -> None:
    cloudwatch = cloudwatch_backends[policy.account_id][policy.region_name]
    _, endpoint, _, variant = policy.resource_id.split("/")
    target = policy.target_tracking_scaling_policy_configuration
    assert target is not None
    for end, operator, periods in (("High", "GreaterThanThreshold", 3), ("Low", "LessThanThreshold", 15)):
        alarm = cloudwatch.put_metric_alarm(
            name=f"TargetTracking-{policy.resource_id}-Alarm{end}-{uuid4()}",
            namespace="AWS/SageMaker",
            metric_name="InvocationsPerInstance",
            comparison_operator=operator,
            evaluation_periods=periods,
            period=60,
            threshold=target["TargetValue"] * (1.0 if end == "High" else 0.9),
            statistic="Sum",
            description=f"DO NOT EDIT OR DELETE. For TargetTrackingScaling policy {policy.policy_arn}.",
            dimensions=[{"Name": "EndpointName", "Value": endpoint}, {"Name": "VariantName", "Value": variant}],
            alarm_actions=[policy.policy_arn],
        )
        policy.alarms.append(alarm)
