"""Pure functions from settings and a model to the complete requests of an endpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from experiments.config import require
from sagemaker_launch.aws.image_uris import Version
from sagemaker_launch.aws.instances import GPU_CAPABILITIES, family, inference_ami
from sagemaker_launch.aws.resources import CONFIG, ENDPOINT, MODEL, Request
from sagemaker_launch.endpoints.lease import ENDPOINT_TAG, Lease
from sagemaker_launch.settings.cloud import PROJECT_TAG, CloudSettings
from sagemaker_launch.settings.endpoint import VARIANT, EndpointSettings
from sagemaker_launch.shipping.shipment import serving_cuda, serving_device

DIMENSION = "sagemaker:variant:DesiredInstanceCount"
MAX_NAME = 52
"""Characters of an endpoint's name: AWS takes 63, and models and configs have a hash at the end."""
_TOOLKIT_VARIABLES = {"SAGEMAKER_PROGRAM": "inference.py", "SAGEMAKER_SUBMIT_DIRECTORY": "/opt/ml/model/code"}
IMAGE_VARIABLES: Mapping[str, Mapping[str, str]] = {
    "own": _TOOLKIT_VARIABLES,
    "torchserve": _TOOLKIT_VARIABLES,
    # Ray reports its use to its maker unless it is told not to (docs.ray.io, Usage Stats Collection).
    "aws": {"RAY_USAGE_STATS_ENABLED": "0"},
}
"""Variables of a serving image's container. AWS's toolkit beside TorchServe reads the first two."""
RAY_SERVE_AMI = "al2-ami-sagemaker-inference-gpu-3-1"
"""Machine image with which AWS documents its Ray Serve image: its driver runs all of CUDA 12.

Source: github.com/aws/deep-learning-containers, docs/ray/deployment/sagemaker.md (2026-08).
"""
NEWEST_WITH_RAY_SERVE_AMI = (9, 0)
"""Newest compute capability that its driver (550) knows; GPUs of Blackwell have 10.0 and more and need 570."""
INVOCATIONS_PER_INSTANCE, BACKLOG_PER_INSTANCE = 300.0, 5.0
"""Default targets of scaling: requests per minute; for an async endpoint requests that wait."""


@dataclass(frozen=True)
class Deployment:
    """The requests that define one version of an endpoint."""

    model: Request
    config: Request

    @property
    def model_name(self) -> str:
        """Name of its model."""
        return str(self.model["ModelName"])

    @property
    def config_name(self) -> str:
        """Name of its endpoint config."""
        return str(self.config["EndpointConfigName"])


def deployment(settings: CloudSettings, name: str, image_uri: str, model_uri: str) -> Deployment:
    """The model and the endpoint config of an endpoint, named by the hash of their content.

    Args:
        name: of the endpoint.
        model_uri: of `model.tar.gz` in S3.
    """
    # CreateEndpoint, EndpointName: 63 characters of this pattern (API reference, read 2026-11).
    plain = all(part.isalnum() and part.isascii() for part in name.split("-"))
    require(plain and len(name) <= MAX_NAME, "NAME", f"be at most {MAX_NAME} letters, digits and single hyphens", name)
    settings.require_for_jobs()
    model = _model(settings, image_uri, model_uri)
    model_name = f"{name}-{_digest(model)}"
    config = _config(settings, name, model_name, serving_cuda(settings, image_uri))
    tags = _tags(settings, {ENDPOINT_TAG: name})
    return Deployment(
        {"ModelName": model_name, **model, "Tags": tags},
        {"EndpointConfigName": f"{name}-{_digest(config)}", **config, "Tags": tags},
    )


def planned_requests(
    settings: CloudSettings, name: str, version: Deployment, lease: Lease
) -> Iterator[tuple[str, str, Request]]:
    """What `deploy` may send to create or change something: service, operation and request.

    Left out are new tags, and the alarm that wakes an endpoint, which needs the ARN of its policy.
    """
    endpoint = settings.endpoint
    yield "sagemaker", MODEL.create_operation, version.model
    yield "sagemaker", CONFIG.create_operation, version.config
    yield "sagemaker", ENDPOINT.create_operation, create_endpoint(settings, name, version.config_name, lease)
    yield "sagemaker", "UpdateEndpoint", update_endpoint(settings, name, version.config_name)
    for alarm in update_alarms(settings, name):
        yield "cloudwatch", "PutMetricAlarm", alarm
    if lease.expires is not None and has_schedule(settings, lease):
        yield "scheduler", "CreateSchedule", schedule(settings, name, lease.expires)
    if endpoint.has_instances and not endpoint.scales:
        yield "sagemaker", "UpdateEndpointWeightsAndCapacities", fixed_instances(endpoint, name)
    if endpoint.scales:
        yield "application-autoscaling", "RegisterScalableTarget", scalable_target(endpoint, name)
        yield "application-autoscaling", "PutScalingPolicy", scaling_policy(endpoint, name)
        if endpoint.min_instances == 0:
            yield "application-autoscaling", "PutScalingPolicy", wake_policy(name)


def create_endpoint(settings: CloudSettings, name: str, config_name: str, lease: Lease) -> Request:
    """The body of CreateEndpoint."""
    return {"EndpointName": name, "EndpointConfigName": config_name, "Tags": endpoint_tags(settings, name, lease)}


def endpoint_tags(settings: CloudSettings, name: str, lease: Lease) -> list[dict[str, str]]:
    """The tags of an endpoint; a new lease changes two of them."""
    return _tags(settings, {ENDPOINT_TAG: name, **lease.tags})


def update_endpoint(settings: CloudSettings, name: str, config_name: str) -> Request:
    """The body of UpdateEndpoint: a new fleet beside the old one, which answers until the new one is healthy."""
    endpoint = settings.endpoint
    request: Request = {"EndpointName": name, "EndpointConfigName": config_name}
    if endpoint.kind == "serverless":
        return request  # AWS moves its traffic at once, and refuses a DeploymentConfig for it
    routing: Request = {"Type": endpoint.rollout.upper(), "WaitIntervalInSeconds": endpoint.rollout_wait_seconds}
    if endpoint.rollout != "all_at_once":
        size = "CanarySize" if endpoint.rollout == "canary" else "LinearStepSize"
        routing[size] = {"Type": "CAPACITY_PERCENT", "Value": endpoint.rollout_percent}
    alarms = [alarm["AlarmName"] for alarm in update_alarms(settings, name)] + endpoint.alarms
    request["DeploymentConfig"] = {
        "BlueGreenUpdatePolicy": {
            "TrafficRoutingConfiguration": routing,
            "TerminationWaitInSeconds": 0,
            "MaximumExecutionTimeoutInSeconds": endpoint.update_timeout_seconds,
        },
        "AutoRollbackConfiguration": {"Alarms": [{"AlarmName": alarm} for alarm in alarms]},
    }
    if endpoint.scales:
        # Otherwise the new fleet would start with the fewest instances, under the load of more.
        request["RetainAllVariantProperties"] = True
        request["ExcludeRetainedVariantProperties"] = [{"VariantPropertyType": "DataCaptureConfig"}]
    return request


def update_alarms(settings: CloudSettings, name: str) -> list[Request]:
    """Bodies of PutMetricAlarm: the alarms that roll an update back."""
    alarms = [
        {
            **_alarm(settings, name, "5xx", "Invocation5XXErrors"),
            "AlarmDescription": f"{name} answers with server errors; an update is rolled back",
            "Statistic": "Sum",
            "Threshold": 1.0,
        }
    ]
    limit = settings.endpoint.max_latency_ms
    if limit is not None:
        alarms.append(
            {
                **_alarm(settings, name, "latency", "ModelLatency"),
                "AlarmDescription": f"{name} takes longer than {limit:g} ms; an update is rolled back",
                "ExtendedStatistic": "p99",
                "Threshold": limit * 1000,  # AWS measures microseconds
            }
        )
    return alarms


def fixed_instances(endpoint: EndpointSettings, name: str) -> Request:
    """The body of UpdateEndpointWeightsAndCapacities that runs the instances of an endpoint that does not scale."""
    desired = {"VariantName": VARIANT, "DesiredInstanceCount": endpoint.first_instances}
    return {"EndpointName": name, "DesiredWeightsAndCapacities": [desired]}


def scalable_target(endpoint: EndpointSettings, name: str) -> Request:
    """The body of RegisterScalableTarget."""
    limits = {"MinCapacity": endpoint.min_instances, "MaxCapacity": endpoint.max_instances}
    return {**variant_of(name), **limits}


def scaling_policy(endpoint: EndpointSettings, name: str) -> Request:
    """The body of PutScalingPolicy that keeps a metric at its target."""
    tracking: Request
    if endpoint.kind == "async":
        tracking = {
            "TargetValue": endpoint.scale_target or BACKLOG_PER_INSTANCE,
            "CustomizedMetricSpecification": {
                "MetricName": "ApproximateBacklogSizePerInstance",
                "Namespace": "AWS/SageMaker",
                "Dimensions": [{"Name": "EndpointName", "Value": name}],
                "Statistic": "Average",
            },
        }
    else:
        tracking = {
            "TargetValue": endpoint.scale_target or INVOCATIONS_PER_INSTANCE,
            "PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"},
        }
    return {
        **variant_of(name),
        "PolicyName": f"{name}-track",
        "PolicyType": "TargetTrackingScaling",
        "TargetTrackingScalingPolicyConfiguration": {**tracking, "ScaleInCooldown": 300, "ScaleOutCooldown": 60},
    }


def wake_policy(name: str) -> Request:
    """The body of PutScalingPolicy that starts the first instance of an async endpoint when a request waits.

    The other policy can't: without an instance it has no metric.
    """
    return {
        **variant_of(name),
        "PolicyName": f"{name}-wake",
        "PolicyType": "StepScaling",
        "StepScalingPolicyConfiguration": {
            "AdjustmentType": "ChangeInCapacity",
            "MetricAggregationType": "Average",
            "Cooldown": 300,
            "StepAdjustments": [{"MetricIntervalLowerBound": 0, "ScalingAdjustment": 1}],
        },
    }


def wake_alarm(settings: CloudSettings, name: str, policy_arn: str) -> Request:
    """The body of PutMetricAlarm that triggers `wake_policy`."""
    return {
        **_alarm(settings, name, "wake", "HasBacklogWithoutCapacity"),
        "Dimensions": [{"Name": "EndpointName", "Value": name}],
        "AlarmDescription": f"something waits for {name}, which has no machine",
        "Statistic": "Average",
        "Threshold": 1.0,
        "AlarmActions": [policy_arn],
    }


def alarm_names(settings: CloudSettings, name: str) -> list[str]:
    """Names of all alarms that this project may create for an endpoint."""
    return [_alarm_name(settings, name, suffix) for suffix in ("5xx", "latency", "wake")]


def has_schedule(settings: CloudSettings, lease: Lease) -> bool:
    """Whether AWS itself deletes the endpoint at the end of its lease."""
    return lease.expires is not None and settings.endpoint.schedule_role_arn is not None


def schedule(settings: CloudSettings, name: str, expires: datetime) -> Request:
    """The body of CreateSchedule: AWS deletes the endpoint when it expires, independent of this machine."""
    return {
        "Name": schedule_name(settings, name),
        "Description": f"end of the lease of endpoint {name}",
        "ScheduleExpression": f"at({expires:%Y-%m-%dT%H:%M:%S})",
        "ScheduleExpressionTimezone": "UTC",
        "FlexibleTimeWindow": {"Mode": "OFF"},
        "ActionAfterCompletion": "DELETE",
        "Target": {
            "Arn": f"arn:{settings.partition}:scheduler:::aws-sdk:sagemaker:deleteEndpoint",
            "RoleArn": settings.endpoint.schedule_role_arn,
            "Input": json.dumps({"EndpointName": name}),
        },
    }


def schedule_name(settings: CloudSettings, name: str) -> str:
    """Name of the schedule that deletes an endpoint.

    It contains a hash of the project, by which the policy tells its schedules from those of others: 64 characters of
    few kinds leave no room for the project itself (CreateSchedule, Name; API reference, 2026-11).
    """
    return f"{hashlib.sha256(settings.project.encode()).hexdigest()[:8]}-{name}"


def variant_of(name: str) -> Request:
    """Resource id of an endpoint's variant in Application Auto Scaling."""
    return {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{name}/variant/{VARIANT}",
        "ScalableDimension": DIMENSION,
    }


def _model(settings: CloudSettings, image_uri: str, model_uri: str) -> Request:
    # Without a driver that fits, PyTorch would compute on the CPU of a GPU instance, and say nothing.
    needs_gpu = {"SERVING_DEVICE": "cuda"} if serving_device(settings) == "cuda" else {}
    precision = settings.endpoint.precision
    lower = {"SERVING_PRECISION": precision} if precision != "float32" else {}
    model: Request = {
        "PrimaryContainer": {
            "Image": image_uri,
            "ModelDataUrl": model_uri,
            "Environment": {
                **IMAGE_VARIABLES[settings.endpoint.image],
                **needs_gpu,
                **lower,
                **settings.endpoint.environment,
            },
        },
        "ExecutionRoleArn": settings.role_arn,
        "EnableNetworkIsolation": settings.network_isolation,
    }
    if settings.subnets:
        model["VpcConfig"] = {"Subnets": settings.subnets, "SecurityGroupIds": settings.security_group_ids}
    return model


def _config(settings: CloudSettings, name: str, model_name: str, cuda: Version | None) -> Request:
    endpoint = settings.endpoint
    variant: Request = {"VariantName": VARIANT, "ModelName": model_name}
    if endpoint.kind == "serverless":
        variant["ServerlessConfig"] = {
            "MemorySizeInMB": endpoint.memory_mb,
            "MaxConcurrency": endpoint.max_concurrency,
        }
    else:
        variant |= {
            "InstanceType": endpoint.instance_type,
            "InitialInstanceCount": endpoint.first_instances,
            "InitialVariantWeight": 1.0,
            "ContainerStartupHealthCheckTimeoutInSeconds": endpoint.startup_timeout_seconds,
        }
        ami = endpoint.inference_ami or (_ami(endpoint, cuda) if serving_device(settings) == "cuda" else None)
        if ami is not None:
            variant["InferenceAmiVersion"] = ami
    config: Request = {"ProductionVariants": [variant]}
    if settings.volume_kms_key:
        config["KmsKeyId"] = settings.volume_kms_key
    key = {"KmsKeyId": settings.output_kms_key} if settings.output_kms_key else {}
    if endpoint.kind == "async":
        paths = {"S3OutputPath": "out", "S3FailurePath": "failed"}
        output = {field: async_uri(settings, name, folder) for field, folder in paths.items()}
        config["AsyncInferenceConfig"] = {
            "OutputConfig": {**output, **key},
            "ClientConfig": {"MaxConcurrentInvocationsPerInstance": 4},
        }
    if endpoint.data_capture_percent:
        config["DataCaptureConfig"] = {
            "EnableCapture": True,
            "InitialSamplingPercentage": endpoint.data_capture_percent,
            "DestinationS3Uri": f"{settings.uri}/capture",
            "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
            **key,
        }
    return config


def _ami(endpoint: EndpointSettings, cuda: Version | None) -> str | None:
    """The machine image of an endpoint with GPUs; None for AWS's default, where the image's CUDA is not known."""
    capability = GPU_CAPABILITIES.get(family(endpoint.instance_type), NEWEST_WITH_RAY_SERVE_AMI)
    if endpoint.image == "aws" and capability <= NEWEST_WITH_RAY_SERVE_AMI:
        return RAY_SERVE_AMI
    return inference_ami(cuda) if cuda else None


def async_uri(settings: CloudSettings, name: str, folder: str) -> str:
    """S3 prefixes of photos (`in`), answers (`out`) and errors (`failed`) of an async endpoint."""
    return f"{settings.uri}/async/{name}/{folder}"


def _alarm_name(settings: CloudSettings, name: str, suffix: str) -> str:
    # By the project, the policy tells its alarms from those of others. A project has no `~`: where one project's name
    # begins with another's, their alarms differ, too.
    return f"{settings.project}~{name}-{suffix}"


def _alarm(settings: CloudSettings, name: str, suffix: str, metric: str) -> Request:
    return {
        "AlarmName": _alarm_name(settings, name, suffix),
        "Namespace": "AWS/SageMaker",
        "MetricName": metric,
        "Dimensions": [{"Name": "EndpointName", "Value": name}, {"Name": "VariantName", "Value": VARIANT}],
        "Period": 60,
        "EvaluationPeriods": 1,
        "ComparisonOperator": "GreaterThanOrEqualToThreshold",
        "TreatMissingData": "notBreaching",
    }


def _tags(settings: CloudSettings, own: Mapping[str, str]) -> list[dict[str, str]]:
    # The user's own tag `owner` wins; the other names are refused in cloud.tags.
    tags = {**own, PROJECT_TAG: settings.project, **settings.tags}
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def _digest(request: Request) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:10]
