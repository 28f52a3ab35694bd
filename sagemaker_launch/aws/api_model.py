"""What SageMaker's API takes, offline: botocore's model of it, and combinations that only the documentation forbids."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import botocore.session
import regex
from botocore.model import ServiceModel, Shape

LOCAL_STORAGE = re.compile(r"ml\.([cmr]\d\w*d\w*|g4dn|g5|g6e?|gr6|p3dn|p4de?|p5\w*|p6\S*|trn\d\w*)\.")
"""Instance types with NVMe disks of their own."""
TYPES: Mapping[str, tuple[type, ...]] = {
    "structure": (Mapping,),
    "map": (Mapping,),
    "list": (list, tuple),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "long": (int,),
    "float": (int, float),
    "double": (int, float),
}
"""Python's types of the model's; those of time and content may be several."""
MAX_TAGS = 50
"""Tags of a resource (AWS's tagging reference, read 2026-11)."""


@functools.cache
def service_model() -> ServiceModel:
    """The service as botocore describes it."""
    return botocore.session.get_session().get_service_model("sagemaker")


def violations(operation: str, request: Mapping[str, Any]) -> list[str]:
    """What AWS would refuse of a request by its model: types, lengths, limits, enumerations and patterns."""
    shape = service_model().operation_model(operation).input_shape
    assert shape is not None
    return list(_violations(shape, request, ""))


def broken_rules(request: Mapping[str, Any]) -> list[str]:
    """What AWS would refuse of the request of a job by its documentation: combinations, each with its page."""
    tuning = request.get("HyperParameterTuningJobConfig")
    job = request["TrainingJobDefinition"] if tuning else request
    found = [f"{broken} ({page})" for page, rule in _JOB_RULES.items() if (broken := rule(job))]
    if tuning:
        found += [f"{broken} ({page})" for page, rule in _TUNING_RULES.items() if (broken := rule(tuning))]
    if len(request.get("Tags", ())) > MAX_TAGS:
        found.append(f"a resource has at most {MAX_TAGS} tags, got {len(request['Tags'])}")
    return found


def _manifest_is_streamed(job: Mapping[str, Any]) -> str:
    for channel in job.get("InputDataConfig", ()):
        mode = channel.get("InputMode", job["AlgorithmSpecification"]["TrainingInputMode"])
        if mode == "FastFile" and channel["DataSource"]["S3DataSource"]["S3DataType"] == "ManifestFile":
            return (
                f"channel {channel['ChannelName']}: FastFile streams a prefix of S3, and no manifest: set "
                "cloud.input_mode File, or data.root to the photos in S3"
            )
    return ""


def _local_disk_has_a_key(job: Mapping[str, Any]) -> str:
    resources = job.get("ResourceConfig", {})
    instance_type = resources.get("InstanceType", "")
    if resources.get("VolumeKmsKeyId") and LOCAL_STORAGE.match(instance_type):
        return f"{instance_type} encrypts its own NVMe disk and takes no VolumeKmsKeyId: leave cloud.volume_kms_key out"
    return ""


def _too_few_points(tuning: Mapping[str, Any]) -> str:
    ranges, limits = tuning.get("ParameterRanges", {}), tuning["ResourceLimits"]
    if ranges.get("ContinuousParameterRanges"):
        return ""
    points = math.prod(len(choice["Values"]) for choice in ranges.get("CategoricalParameterRanges", ()))
    for integers in ranges.get("IntegerParameterRanges", ()):
        points *= int(integers["MaxValue"]) - int(integers["MinValue"]) + 1
    jobs = limits.get("MaxNumberOfTrainingJobs", points)
    if jobs > points:
        return f"the search space has {points} points, fewer than {jobs} training jobs: lower sweep.n_trials"
    return ""


def _too_many_at_once(tuning: Mapping[str, Any]) -> str:
    limits = tuning["ResourceLimits"]
    jobs, parallel = limits.get("MaxNumberOfTrainingJobs", math.inf), limits["MaxParallelTrainingJobs"]
    if parallel > jobs:
        return f"{parallel} training jobs at once are more than {jobs} in all: lower cloud.max_parallel_jobs"
    return ""


_JOB_RULES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "docs.aws.amazon.com/sagemaker/latest/dg/model-access-training-data.html": _manifest_is_streamed,
    "docs.aws.amazon.com/sagemaker/latest/APIReference/API_ResourceConfig.html": _local_disk_has_a_key,
}
_TUNING_RULES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "docs.aws.amazon.com/sagemaker/latest/dg/automatic-model-tuning-limits.html": _too_few_points,
    "docs.aws.amazon.com/sagemaker/latest/APIReference/API_ResourceLimits.html": _too_many_at_once,
}
"""Each combination by the page that forbids it (read 2026-11)."""


def _violations(shape: Shape, value: Any, path: str) -> Iterator[str]:
    type_name, limits = shape.type_name, shape.metadata
    if type_name in TYPES and (
        not isinstance(value, TYPES[type_name]) or (isinstance(value, bool) and type_name != "boolean")
    ):
        yield f"Value '{value}' at '{path}' failed to satisfy constraint: Member must be a {type_name}"
        return
    if type_name == "structure":
        for name in shape.required_members:
            if value.get(name) is None:
                yield f"Value at '{_join(path, name)}' failed to satisfy constraint: Member must not be null"
        for name, item in value.items():
            if name not in shape.members:
                yield f"{_join(path, name)} is not a field that botocore here knows: update botocore"
            elif item is not None:
                yield from _violations(shape.members[name], item, _join(path, name))
        return
    if type_name == "list":
        for number, item in enumerate(value, start=1):
            yield from _violations(shape.member, item, f"{path}.{number}.member")
    elif type_name == "map":
        for key, item in value.items():
            yield from _violations(shape.key, key, f"{path}.{key}.key")
            yield from _violations(shape.value, item, f"{path}.{key}.member")
    if type_name in ("string", "list", "map"):
        size, measure = len(value), "length"
    elif type_name in ("integer", "long", "float", "double"):
        size, measure = value, "value"
    else:
        return
    shown = f"Value '{value}' at '{path}' failed to satisfy constraint: Member must"
    if size > limits.get("max", math.inf):
        yield f"{shown} have {measure} less than or equal to {limits['max']}"
    if size < limits.get("min", -math.inf):
        yield f"{shown} have {measure} greater than or equal to {limits['min']}"
    if "enum" in limits and value not in limits["enum"]:
        yield f"{shown} satisfy enum value set: [{', '.join(limits['enum'])}]"
    if "pattern" in limits and regex.fullmatch(limits["pattern"], value) is None:
        yield f"{shown} satisfy regular expression pattern: {limits['pattern']}"


def _join(path: str, name: str) -> str:
    name = name[0].lower() + name[1:]
    return f"{path}.{name}" if path else name
