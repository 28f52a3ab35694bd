"""What the service refuses when a job is created, in its words where they are known.

botocore's client checks types and required fields only. The service also checks patterns, lengths and enumerations of
its own model, and rules that only the documentation has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import regex
from moto.sagemaker.exceptions import SagemakerClientError

from sagemaker_launch.aws.api_model import violations
from sagemaker_launch.aws.combinations import broken_rules
from sagemaker_launch.aws.image_uris import read_image_uri
from sagemaker_launch.rehearsal.jobs.strategies import ranges_of
from sagemaker_launch.rehearsal.machine.objects import DataError, Uri


def invalid(message: str) -> SagemakerClientError:
    """The error for an invalid request."""
    return SagemakerClientError("ValidationException", message)


def parse_uri(text: str) -> Uri:
    """Bucket and key of an s3:// address in a request.

    Raises:
        SagemakerClientError: if it is not one; AWS's model of the API lets https:// addresses pass.
    """
    try:
        return Uri.parse(text)
    except DataError as error:
        raise invalid(str(error)) from error


def check_shape(operation: str, request: Mapping[str, Any]) -> None:
    """Check a request against the service's model.

    Raises:
        SagemakerClientError: naming each field, its value and the constraint.
    """
    if errors := violations(operation, request):
        count = f"{len(errors)} validation error{'s' if len(errors) > 1 else ''} detected: "
        raise invalid(count + "; ".join(errors))


def check_rules(operation: str, request: Mapping[str, Any], region: str | None = None) -> None:
    """Refuse combinations that AWS's documentation forbids.

    Args:
        region: of the service, to look for images, keys and roles of other regions and partitions.

    Raises:
        SagemakerClientError: with the first broken rule.
    """
    for broken in broken_rules(operation, request, region):
        raise invalid(broken)


def check_training_job(request: Mapping[str, Any], region: str | None = None) -> None:
    """Refuse what CreateTrainingJob refuses.

    Raises:
        SagemakerClientError: with the first broken rule.
    """
    for field in ("AlgorithmSpecification", "ResourceConfig", "StoppingCondition"):
        if field not in request:
            raise invalid(f"{field} is required")
    _check_definition(request)
    check_rules("CreateTrainingJob", request, region)


def check_tuning_job(request: Mapping[str, Any], region: str | None = None) -> None:
    """Refuse what CreateHyperParameterTuningJob refuses.

    Raises:
        SagemakerClientError: with the first broken rule.
    """
    config = request["HyperParameterTuningJobConfig"]
    if "TrainingJobDefinition" not in request:
        raise invalid("TrainingJobDefinition or TrainingJobDefinitions must be provided.")
    definition = with_resource_config(request["TrainingJobDefinition"])
    _check_definition(definition)
    _check_objective(config, definition)
    _check_ranges(config, definition)
    check_rules("CreateHyperParameterTuningJob", {**request, "TrainingJobDefinition": definition}, region)


def with_resource_config(definition: Mapping[str, Any]) -> Mapping[str, Any]:
    """The TrainingJobDefinition of a tuning job with a ResourceConfig, whichever of two fields has the resources.

    SDK v2 sends HyperParameterTuningResourceConfig, and reads ResourceConfig back. Of several instance types the first
    is used here, as on AWS while it has capacity.

    Raises:
        SagemakerClientError: if neither field or both are there, or the instances are given twice.
    """
    flexible = definition.get("HyperParameterTuningResourceConfig")
    if (flexible is None) == ("ResourceConfig" not in definition):
        raise invalid(
            "Exactly one of ResourceConfig and HyperParameterTuningResourceConfig must be provided in "
            "TrainingJobDefinition."
        )
    if flexible is None:
        return definition
    fields = ("InstanceType", "InstanceCount", "VolumeSizeInGB")
    configs = flexible.get("InstanceConfigs")
    if configs is not None and any(field in flexible for field in fields):
        raise invalid("HyperParameterTuningResourceConfig takes InstanceConfigs or InstanceType, and not both.")
    source = {**flexible, **(configs[0] if configs else {})}
    resources = {field: source[field] for field in (*fields, "VolumeKmsKeyId") if field in source}
    return {**definition, "ResourceConfig": resources}


def check_image(image: str, account: str, repositories: Sequence[str]) -> None:
    """Refuse an image of AWS, or of somebody else, that the rehearsal does not replace.

    Args:
        account: whose own images count as this project's.
        repositories: names of AWS's images that are rehearsed.

    Raises:
        SagemakerClientError: naming the image.
    """
    found = read_image_uri(image)
    if found is not None and not image.startswith(f"{account}.") and found.repository not in repositories:
        raise invalid(
            f"Image {image} works on AWS, but is not rehearsed: take {' or '.join(repositories)} of AWS, or an image "
            f"of account {account}"
        )


def check_warm_start(request: Mapping[str, Any], parents: Sequence[Mapping[str, Any]]) -> None:
    """Refuse parents that a tuning job can't learn from.

    Raises:
        SagemakerClientError: with the first broken rule.

    Source: AWS documentation, "Run a Warm Start Hyperparameter Tuning Job", 2025.
    """
    if not parents:
        return
    identical = request["WarmStartConfig"]["WarmStartType"] == "IdenticalDataAndAlgorithm"
    for parent in parents:
        name = parent["HyperParameterTuningJobName"]
        if _objective(parent) != _objective(request):
            raise invalid(f"The objective metric must be that of parent hyperparameter tuning job {name}.")
        if _names(parent) != _names(request):
            differing = ", ".join(sorted(_names(parent) ^ _names(request)))
            raise invalid(f"Static and tuned hyperparameters together must be those of parent {name}: {differing}")
        for field in ("AlgorithmSpecification", "InputDataConfig"):
            if identical and parent["TrainingJobDefinition"].get(field) != request["TrainingJobDefinition"].get(field):
                raise invalid(f"{field} must be that of parent {name} for IdenticalDataAndAlgorithm.")


def _objective(request: Mapping[str, Any]) -> Any:
    return request["HyperParameterTuningJobConfig"]["HyperParameterTuningJobObjective"]


def _names(request: Mapping[str, Any]) -> set[str]:
    ranges = ranges_of(request["HyperParameterTuningJobConfig"]["ParameterRanges"])
    return {each.name for each in ranges} | set(request["TrainingJobDefinition"].get("StaticHyperParameters", {}))


def _check_definition(request: Mapping[str, Any]) -> None:
    """Rules that training jobs and the definition in a tuning job share."""
    algorithm = request["AlgorithmSpecification"]
    if "TrainingImage" not in algorithm:
        raise invalid("You must specify either TrainingImage or AlgorithmName, and not both.")
    for metric in algorithm.get("MetricDefinitions", ()):
        _check_regex(metric)
    channels = request.get("InputDataConfig", ())
    names = [channel["ChannelName"] for channel in channels]
    for channel in channels:
        if names.count(channel["ChannelName"]) > 1:
            raise invalid(f"Channel names must be unique, {channel['ChannelName']} is a duplicate.")
    path = request.get("CheckpointConfig", {}).get("LocalPath", "/opt/ml/checkpoints")
    if not path.startswith("/opt/ml/") or ".." in path or path.startswith("/opt/ml/input"):
        raise invalid(
            f"CheckpointConfig.LocalPath must lie below /opt/ml and outside input to be rehearsed, got {path}"
        )
    for field in ("InstanceType", "InstanceCount"):
        if field not in request["ResourceConfig"]:
            raise invalid(f"ResourceConfig.{field} must be provided.")
    if request["ResourceConfig"]["InstanceCount"] < 1:
        raise invalid("ResourceConfig.InstanceCount must be at least 1.")


def _check_regex(metric: Mapping[str, str]) -> None:
    try:
        groups = regex.compile(metric["Regex"]).groups
    except regex.error as error:
        raise invalid(f"Invalid regular expression for metric {metric['Name']}: {metric['Regex']} ({error})") from error
    if groups < 1:
        raise invalid(
            f"Metric definition {metric['Name']} needs a capture group around the value in its Regex {metric['Regex']}"
        )


def _check_objective(config: Mapping[str, Any], definition: Mapping[str, Any]) -> None:
    objective = config.get("HyperParameterTuningJobObjective")
    metrics = [metric["Name"] for metric in definition["AlgorithmSpecification"].get("MetricDefinitions", ())]
    if objective is None:
        raise invalid("HyperParameterTuningJobObjective must be provided.")
    if objective["MetricName"] not in metrics:
        raise invalid(
            "A metric is required for this hyperparameter tuning job objective. Provide a metric in the metric "
            "definitions."
        )


def _check_ranges(config: Mapping[str, Any], definition: Mapping[str, Any]) -> None:
    try:
        ranges = ranges_of(config.get("ParameterRanges", {}))
    except ValueError as error:
        raise invalid(str(error)) from error
    names = [each.name for each in ranges]
    static = definition.get("StaticHyperParameters", {})
    if not names:
        raise invalid("At least one hyperparameter range must be provided in ParameterRanges.")
    for name in names:
        if names.count(name) > 1:
            raise invalid(f"Hyperparameter names must be unique, {name} is tuned twice.")
        if name in static:
            raise invalid(f"Hyperparameter {name} is both static and tuned: StaticHyperParameters and ParameterRanges.")
    # The service adds one to the static ones: _tuning_objective_metric.
    if len(names) + len(static) + 1 > 100:
        raise invalid("Static and tuned hyperparameters must be at most 100 together.")
