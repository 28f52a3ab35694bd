"""What the service refuses about models, endpoint configs and endpoints, in its words where they are known."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from sagemaker_launch.rehearsal.rules import check_rules, invalid

Request = Mapping[str, Any]


def check_model(request: Request, region: str | None = None) -> None:
    """Refuse what CreateModel refuses.

    Raises:
        SagemakerClientError: with the first broken rule.
    """
    if "ExecutionRoleArn" not in request:
        raise invalid("ExecutionRoleArn must be provided.")
    if "PrimaryContainer" not in request:
        raise invalid("PrimaryContainer must be provided.")
    container = request["PrimaryContainer"]
    if "Image" not in container:
        raise invalid("PrimaryContainer.Image must be provided.")
    check_rules("CreateModel", request, region)
    url = container.get("ModelDataUrl")
    if url is not None and not url.endswith(".tar.gz"):
        raise invalid(f"ModelDataUrl must be the S3 address of a .tar.gz archive, got {url}")


def check_config(request: Request, region: str | None = None) -> None:
    """Refuse what CreateEndpointConfig refuses.

    Raises:
        SagemakerClientError: with the first broken rule.
    """
    variants = request["ProductionVariants"]
    names = [variant["VariantName"] for variant in variants]
    for variant in variants:
        if names.count(variant["VariantName"]) > 1:
            raise invalid(f"Variant names must be unique, {variant['VariantName']} is a duplicate.")
        _check_variant(variant)
    if sum(variant.get("InitialVariantWeight", 1.0) for variant in variants) <= 0:
        raise invalid("At least one production variant must have a weight above 0.")
    check_rules("CreateEndpointConfig", request, region)
    if "AsyncInferenceConfig" in request:
        _check_async(request)
    capture = request.get("DataCaptureConfig")
    if capture is not None:
        modes = [option["CaptureMode"] for option in capture["CaptureOptions"]]
        if any(modes.count(mode) > 1 or mode not in ("Input", "Output") for mode in modes):
            raise invalid(f"DataCaptureConfig.CaptureOptions must be Input, Output or both, each once, got {modes}")


def _check_variant(variant: Request) -> None:
    name = variant["VariantName"]
    if "ModelName" not in variant:
        raise invalid(f"production variant {name}: ModelName must be provided (inference components are not rehearsed)")


def _check_async(request: Request) -> None:
    output = request["AsyncInferenceConfig"]["OutputConfig"]
    if "S3OutputPath" not in output:
        raise invalid("AsyncInferenceConfig.OutputConfig.S3OutputPath must be provided.")


def check_serverless_model(model: Request) -> None:
    """Refuse a model that can't be served without instances.

    Raises:
        SagemakerClientError: naming the field.
    """
    for field in ("VpcConfig", "EnableNetworkIsolation"):
        if model.get(field):
            raise invalid(f"{field} of model {model['ModelName']} is not supported for serverless endpoints.")


def excluded_properties(request: Mapping[str, Any]) -> set[str]:
    """Properties of variants that an update takes from the new config although it retains the others."""
    return {each["VariantPropertyType"] for each in request.get("ExcludeRetainedVariantProperties", ())}


def check_deployment(request: Request, old: Request, new: Request) -> None:
    """Refuse an update that can't be rolled out as asked.

    Args:
        request: of UpdateEndpoint.
        old: request of the endpoint config that is in service.
        new: request of the endpoint config of the update.

    Raises:
        SagemakerClientError: with the first broken rule.
    """
    if request.get("RetainAllVariantProperties") and "DataCaptureConfig" not in excluded_properties(request):
        raise invalid("retaining DataCaptureConfig works on AWS, but is not rehearsed: exclude it")
    if ("AsyncInferenceConfig" in old) != ("AsyncInferenceConfig" in new):
        raise invalid("An update between real-time and asynchronous endpoints is not rehearsed: make a new endpoint")
    if is_serverless(old) != is_serverless(new):
        raise invalid("An update between serverless and instances is not rehearsed: make a new endpoint")
    deployment = request.get("DeploymentConfig")
    if deployment is None:
        return
    if is_serverless(new):
        # Source: AWS developer guide, "Deployment guardrails", note, 2025.
        raise invalid("DeploymentConfig is not supported for serverless endpoints.")
    if _names(old) != _names(new):
        # Source: AWS developer guide, "Deployment guardrails: exclusions", 2025.
        raise invalid("The new endpoint configuration must have the same variant names as the old one.")
    if "BlueGreenUpdatePolicy" in deployment:
        _check_policy(deployment["BlueGreenUpdatePolicy"], sum(_counts(new)))


def check_scaled(scaled: Set[str], old: Request, new: Request) -> None:
    """Refuse an update that removes a scaled variant or changes its instance type.

    Args:
        scaled: names of variants that are scalable targets.

    Raises:
        SagemakerClientError: naming the variants.

    Source: AWS developer guide, "Update endpoints that use auto scaling", 2025.
    """
    types = [
        {one["VariantName"]: one.get("InstanceType") for one in config["ProductionVariants"]} for config in (old, new)
    ]
    changed = sorted(name for name in scaled if types[0].get(name) != types[1].get(name))
    if changed:
        raise invalid(
            f'The variant(s) "{", ".join(changed)}" must be deregistered as scalable targets with AWS Auto Scaling '
            "before they can be removed or have their instance type updated."
        )


def _check_policy(policy: Request, instances: int) -> None:
    routing = policy["TrafficRoutingConfiguration"]
    fields = {"CANARY": "CanarySize", "LINEAR": "LinearStepSize"}
    for kind, field in fields.items():
        if (field in routing) != (routing["Type"] == kind):
            raise invalid(f"{field} must be provided for traffic routing {kind}, and for no other.")
    if routing["Type"] in fields:
        field = fields[routing["Type"]]
        share = _share_of(routing[field], instances)
        # Source: AWS API reference, TrafficRoutingConfig, 2025.
        low = 0.1 if field == "LinearStepSize" else 0.0
        if not low <= share <= 0.5:
            raise invalid(f"{field} must be {low:.0%} to 50% of the variant's instances, got {share:.0%}.")
    waits = len(shares(routing, instances)) * routing["WaitIntervalInSeconds"] + policy.get(
        "TerminationWaitInSeconds", 0
    )
    if policy.get("MaximumExecutionTimeoutInSeconds", waits + 1) <= waits:
        raise invalid(f"MaximumExecutionTimeoutInSeconds must be larger than all waits together, {waits} seconds.")


def shares(routing: Request, instances: int) -> list[float]:
    """The shares of traffic of the new fleet, one after the other; the last is all traffic."""
    kind = routing.get("Type", "ALL_AT_ONCE")
    if kind == "CANARY":
        return [_share_of(routing["CanarySize"], instances), 1.0]
    if kind == "LINEAR":
        step = _share_of(routing["LinearStepSize"], instances)
        count = int(1 / step + 1e-9)
        steps = [number * step for number in range(1, count + 1)]
        return [*steps[:-1], 1.0] if steps[-1] > 1 - 1e-9 else [*steps, 1.0]
    return [1.0]


def _share_of(size: Request, instances: int) -> float:
    """A CapacitySize as a share of all traffic."""
    return float(size["Value"] / (instances if size["Type"] == "INSTANCE_COUNT" else 100))


def is_serverless(config: Request) -> bool:
    """Whether an endpoint config is of a serverless endpoint."""
    return any("ServerlessConfig" in variant for variant in config["ProductionVariants"])


def _names(config: Request) -> set[str]:
    return {variant["VariantName"] for variant in config["ProductionVariants"]}


def _counts(config: Request) -> list[int]:
    return [variant.get("InitialInstanceCount", 0) for variant in config["ProductionVariants"]]
