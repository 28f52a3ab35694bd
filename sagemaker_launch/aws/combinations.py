"""Combinations of values that AWS's documentation forbids, and botocore's model of the API does not.

The launcher refuses them before an upload, and the rehearsal as AWS does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sagemaker_launch.aws.image_uris import read_image_uri
from sagemaker_launch.aws.instances import local_disk_gb
from sagemaker_launch.aws.partitions import dns_suffix, partition

Request = Mapping[str, Any]
MAX_RUNTIME_SECONDS = 28 * 86_400
"""Longest time limit of a training job (API_StoppingCondition, read 2026-11)."""
DEFAULT_RUNTIME_SECONDS = 86_400
"""Time limit of a training job that names none (the same page)."""
MAX_TAGS = 50
"""Tags of a resource (AWS's tagging reference, read 2026-11)."""
SERVERLESS_MEMORY_MB = (1024, 2048, 3072, 4096, 5120, 6144)
"""Allowed values of MemorySizeInMB (API_ProductionVariantServerlessConfig, read 2026-11)."""
MAX_TUNED = 30
"""Hyperparameters that one tuning job may search (automatic-model-tuning-limits, read 2026-11)."""
MAX_JOBS, MAX_RANDOM_JOBS = 750, 10_000
"""Training jobs of a tuning job, and those of strategy Random where AWS has raised the quota (the same page)."""
JOBS = ("CreateTrainingJob", "CreateHyperParameterTuningJob")
SETTINGS = {
    "TrainingImage": "cloud.image_uri",
    "Image": "cloud.endpoint.image_uri",
    "RuleEvaluatorImage": "cloud.debugger.rule_image_uri",
    "RoleArn": "cloud.role_arn",
    "ExecutionRoleArn": "cloud.role_arn",
    "Target.RoleArn": "cloud.endpoint.schedule_role_arn",
    "KmsKeyId": "cloud.volume_kms_key",  # of an endpoint config
    "VolumeKmsKeyId": "cloud.volume_kms_key",
    "OutputDataConfig.KmsKeyId": "cloud.output_kms_key",
    "OutputConfig.KmsKeyId": "cloud.output_kms_key",
    "DataCaptureConfig.KmsKeyId": "cloud.output_kms_key",
}
"""Fields with names of a region, and the setting of the launcher that each is taken from; the longer path counts."""


def broken_rules(operation: str, request: Request, region: str | None = None) -> list[str]:
    """What AWS would refuse of a request by its documentation, as sentences with their page.

    Args:
        operation: as AWS's model calls it.
        region: to which the request is sent; None leaves out the rules about names of other regions.
    """
    found = [
        f"{broken} ({row.page})"
        for row in RULES
        if operation in row.operations
        for broken in row.check(_job_of(request) if row.about_the_job else request)
    ]
    if region is not None:
        found += [f"{broken} ({page})" for page, check in REGION_RULES.items() for broken in check(request, region)]
    return found


def _job_of(request: Request) -> Request:
    """The training job that a request describes; a tuning job has a definition of all of its jobs."""
    return request.get("TrainingJobDefinition", request) if "HyperParameterTuningJobConfig" in request else request


def _manifest_is_streamed(job: Request) -> Iterator[str]:
    for channel in job.get("InputDataConfig", ()):
        mode = channel.get("InputMode", job["AlgorithmSpecification"]["TrainingInputMode"])
        if mode == "FastFile" and channel["DataSource"].get("S3DataSource", {}).get("S3DataType") == "ManifestFile":
            yield (
                f"channel {channel['ChannelName']}: FastFile streams a prefix of S3, and no manifest: set "
                "cloud.input_mode File, or data.root to the photos in S3"
            )


def _local_disk_has_a_key(job: Request) -> Iterator[str]:
    resources = job.get("ResourceConfig", {})
    instance_type = resources.get("InstanceType", "")
    if resources.get("VolumeKmsKeyId") and local_disk_gb(instance_type) is not None:
        yield f"{instance_type} encrypts its own NVMe disk and takes no VolumeKmsKeyId: leave cloud.volume_kms_key out"


def _larger_than_local_disk(job: Request) -> Iterator[str]:
    for resources in (job.get("ResourceConfig", {}), *job.get("DebugRuleConfigurations", ())):
        instance_type, size = resources.get("InstanceType", ""), resources.get("VolumeSizeInGB") or 0
        own = local_disk_gb(instance_type)
        if own is not None and size > own:
            setting = (
                "cloud.debugger.rule_volume_size_gb" if "RuleEvaluatorImage" in resources else "cloud.volume_size_gb"
            )
            yield (
                f"VolumeSizeInGB {size} is more than the {own} GB of {instance_type}'s own NVMe disk, which takes the "
                f"place of a volume: lower {setting}, or choose a larger instance"
            )


def _runs_too_long(job: Request) -> Iterator[str]:
    seconds = job.get("StoppingCondition", {}).get("MaxRuntimeInSeconds", 0)
    if seconds > MAX_RUNTIME_SECONDS:
        yield (
            f"MaxRuntimeInSeconds must be at most {MAX_RUNTIME_SECONDS} (28 days), got {seconds}: lower "
            "cloud.max_runtime_seconds"
        )


def _spot(job: Request) -> Iterator[str]:
    condition = job.get("StoppingCondition", {})
    longest, wait = condition.get("MaxRuntimeInSeconds", DEFAULT_RUNTIME_SECONDS), condition.get("MaxWaitTimeInSeconds")
    if not job.get("EnableManagedSpotTraining"):
        if wait is not None:
            yield "MaxWaitTimeInSeconds must not be set when EnableManagedSpotTraining is false."
    elif wait is None or wait < longest:
        yield "Invalid MaxWaitTimeInSeconds. It must be present and be greater than or equal to MaxRuntimeInSeconds"


def _spot_keeps_warm(job: Request) -> Iterator[str]:
    if job.get("EnableManagedSpotTraining") and job.get("ResourceConfig", {}).get("KeepAlivePeriodInSeconds"):
        yield "KeepAlivePeriodInSeconds is not supported with EnableManagedSpotTraining."


def _too_much_to_search(tuning: Request) -> Iterator[str]:
    config = tuning["HyperParameterTuningJobConfig"]
    tuned = sum(len(ranges) for ranges in config.get("ParameterRanges", {}).values())
    if tuned > MAX_TUNED:
        yield f"The number of tuned hyperparameters must be at most {MAX_TUNED}, got {tuned}."
    most = MAX_RANDOM_JOBS if config["Strategy"] == "Random" else MAX_JOBS
    jobs = config["ResourceLimits"].get("MaxNumberOfTrainingJobs", 0)
    if jobs > most:
        yield (
            f"MaxNumberOfTrainingJobs must be at most {most} with strategy {config['Strategy']}, got {jobs}: lower "
            "sweep.n_trials"
        )


def _strategy(tuning: Request) -> Iterator[str]:
    config = tuning["HyperParameterTuningJobConfig"]
    strategy, jobs = config["Strategy"], config["ResourceLimits"].get("MaxNumberOfTrainingJobs")
    if strategy != "Grid" and jobs is None:
        yield f"ResourceLimits.MaxNumberOfTrainingJobs must be provided for strategy {strategy}."
    if strategy != "Hyperband" and "StrategyConfig" in config:
        yield f"StrategyConfig must not be provided for strategy {strategy}."


def _hyperband(tuning: Request) -> Iterator[str]:
    config = tuning["HyperParameterTuningJobConfig"]
    if config["Strategy"] != "Hyperband":
        return
    if config.get("TrainingJobEarlyStoppingType", "Off") != "Off":
        yield "TrainingJobEarlyStoppingType must be Off for strategy Hyperband."
    bounds = config.get("StrategyConfig", {}).get("HyperbandStrategyConfig", {})
    if bounds.get("MinResource", 1) >= bounds.get("MaxResource", math.inf):
        yield "HyperbandStrategyConfig.MinResource must be less than MaxResource: raise trainer.max_epochs"


def _grid(tuning: Request) -> Iterator[str]:
    config = tuning["HyperParameterTuningJobConfig"]
    if config["Strategy"] != "Grid":
        return
    ranges = config.get("ParameterRanges", {})
    for kind in ("IntegerParameterRanges", "ContinuousParameterRanges"):
        if ranges.get(kind):
            yield f"Strategy Grid takes only CategoricalParameterRanges, got {kind}."
    points = math.prod(len(each["Values"]) for each in ranges.get("CategoricalParameterRanges", ()))
    jobs = config["ResourceLimits"].get("MaxNumberOfTrainingJobs", points)
    if jobs != points:
        yield (
            f"MaxNumberOfTrainingJobs must be {points}, the number of combinations, or absent for strategy Grid, got "
            f"{jobs}."
        )


def _too_few_points(tuning: Request) -> Iterator[str]:
    config = tuning["HyperParameterTuningJobConfig"]
    ranges, limits = config.get("ParameterRanges", {}), config["ResourceLimits"]
    if ranges.get("ContinuousParameterRanges"):
        return
    points = math.prod(len(choice["Values"]) for choice in ranges.get("CategoricalParameterRanges", ()))
    for integers in ranges.get("IntegerParameterRanges", ()):
        points *= int(integers["MaxValue"]) - int(integers["MinValue"]) + 1
    jobs = limits.get("MaxNumberOfTrainingJobs", points)
    if jobs > points:
        yield f"the search space has {points} points, fewer than {jobs} training jobs: lower sweep.n_trials"


def _too_many_at_once(tuning: Request) -> Iterator[str]:
    limits = tuning["HyperParameterTuningJobConfig"]["ResourceLimits"]
    jobs, parallel = limits.get("MaxNumberOfTrainingJobs", math.inf), limits["MaxParallelTrainingJobs"]
    if parallel > jobs:
        yield f"{parallel} training jobs at once are more than {jobs} in all: lower cloud.max_parallel_jobs"


def _serverless(config: Request) -> Iterator[str]:
    variants = config["ProductionVariants"]
    if not any("ServerlessConfig" in variant for variant in variants):
        return
    if len(variants) > 1:
        yield "A serverless endpoint can have one production variant only."
    for field in ("DataCaptureConfig", "AsyncInferenceConfig", "KmsKeyId"):
        if field in config:
            hint = ": leave cloud.volume_kms_key out" if field == "KmsKeyId" else ""
            yield f"{field} is not supported for serverless endpoints{hint}"
    ignored = ("VolumeSizeInGB", "ModelDataDownloadTimeoutInSeconds", "ContainerStartupHealthCheckTimeoutInSeconds")
    for variant in variants:
        for field in ignored:
            if field in variant:
                yield f"{field} is not supported for serverless endpoints"


def _serverless_sizes(config: Request) -> Iterator[str]:
    for serverless in (variant.get("ServerlessConfig") for variant in config["ProductionVariants"]):
        if serverless is None:
            continue
        if serverless["MemorySizeInMB"] not in SERVERLESS_MEMORY_MB:
            sizes = ", ".join(map(str, SERVERLESS_MEMORY_MB))
            yield (
                f"ServerlessConfig.MemorySizeInMB must be one of {sizes}, got {serverless['MemorySizeInMB']}: set "
                "cloud.endpoint.memory_mb"
            )
        if serverless.get("ProvisionedConcurrency", 0) > serverless["MaxConcurrency"]:
            yield "ServerlessConfig.ProvisionedConcurrency must be less than or equal to MaxConcurrency."


def _instances_or_serverless(config: Request) -> Iterator[str]:
    for variant in config["ProductionVariants"]:
        if any(
            (field in variant) == ("ServerlessConfig" in variant) for field in ("InstanceType", "InitialInstanceCount")
        ):
            yield (
                f"production variant {variant['VariantName']}: InstanceType and InitialInstanceCount, or "
                "ServerlessConfig, must be provided, and not both."
            )


def _async_of_several(config: Request) -> Iterator[str]:
    if "AsyncInferenceConfig" in config and len(config["ProductionVariants"]) > 1:
        yield "An asynchronous endpoint can have one production variant only."


def _broken_tags(request: Request) -> Iterator[str]:
    """What AWS would refuse of the tags of a request."""
    keys = [tag["Key"] for tag in request.get("Tags") or ()]
    for key in keys:
        if key.lower().startswith("aws:"):
            yield "aws: prefixed tag key names are not allowed for external use."
        if keys.count(key) > 1:
            yield f"Duplicate tag key: {key}"
    if len(keys) > MAX_TAGS:
        yield f"a resource has at most {MAX_TAGS} tags, got {len(keys)}"


def _foreign_image(request: Request, region: str) -> Iterator[str]:
    for path, uri in _fields(request):
        field = path.rpartition(".")[2]
        image = read_image_uri(uri) if field in SETTINGS else None
        if image is None:
            continue
        if image.region != region:
            yield (
                f"{field} must be in the region {region} of the request, got {uri}: push it there, or set "
                f"{_setting(path)} or cloud.region"
            )
        elif image.suffix not in (dns_suffix(region), _dual_stack_suffix(region)):
            yield f"{field} must end its host with {dns_suffix(region)} in {region}, got {uri}: set {_setting(path)}"


def _dual_stack_suffix(region: str) -> str:
    """The end of ECR's host names that have IPv6 (docs.aws.amazon.com/AmazonECR/latest/userguide/ecr-requests.html)."""
    return "on.amazonwebservices.com.cn" if partition(region) == "aws-cn" else "on.aws"


def _foreign_arn(request: Request, region: str) -> Iterator[str]:
    for path, arn in _fields(request):
        field, parts = path.rpartition(".")[2], arn.split(":")
        if parts[0] != "arn" or not field.endswith(("Arn", "KmsKeyId")) or len(parts) < 6:
            continue
        if parts[1] != partition(region):
            yield (
                f"{field} must be an ARN of {partition(region)}, the partition of {region}, got {arn}: set "
                f"{_setting(path)} to one of your account there, or change cloud.region"
            )
        elif parts[2] == "kms" and parts[3] != region:
            yield (
                f"{field} must be a key in {region}, the region of the request, got {arn}: set {_setting(path)} to a "
                "key there"
            )


def _setting(path: str) -> str:
    """The setting that a field of a request is taken from; the field itself, if it is of none."""
    *_, inner = names = path.split(".")
    return SETTINGS.get(".".join(names[-2:])) or SETTINGS.get(inner) or inner


def _fields(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """All texts in a request, each with the dotted path to it."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _fields(item, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _fields(item, path)


@dataclass(frozen=True)
class Rule:
    """A row of the table."""

    check: Callable[[Request], Iterator[str]]
    """Yields a sentence for each violation."""
    operations: tuple[str, ...]
    page: str
    """Of AWS's documentation, read in 2026-11."""
    about_the_job: bool = False
    """Whether it is about the training job, which is a part of the request of a tuning job."""


_GUIDE = "docs.aws.amazon.com/sagemaker/latest/dg"
_API = "docs.aws.amazon.com/sagemaker/latest/APIReference"
_TUNING, _CONFIG = ("CreateHyperParameterTuningJob",), ("CreateEndpointConfig",)
RULES = (
    Rule(_manifest_is_streamed, JOBS, f"{_GUIDE}/model-access-training-data.html", about_the_job=True),
    Rule(_local_disk_has_a_key, JOBS, f"{_API}/API_ResourceConfig.html", about_the_job=True),
    Rule(_larger_than_local_disk, JOBS, f"{_API}/API_HyperParameterTuningResourceConfig.html", about_the_job=True),
    Rule(_runs_too_long, JOBS, f"{_API}/API_StoppingCondition.html", about_the_job=True),
    Rule(_spot, JOBS, f"{_API}/API_StoppingCondition.html", about_the_job=True),
    Rule(_spot_keeps_warm, JOBS, f"{_GUIDE}/train-warm-pools.html", about_the_job=True),
    Rule(_strategy, _TUNING, f"{_API}/API_HyperParameterTuningJobConfig.html"),
    Rule(_hyperband, _TUNING, f"{_API}/API_HyperbandStrategyConfig.html"),
    Rule(_grid, _TUNING, f"{_GUIDE}/automatic-model-tuning-how-it-works.html"),
    Rule(_too_much_to_search, _TUNING, f"{_GUIDE}/automatic-model-tuning-limits.html"),
    Rule(_too_few_points, _TUNING, f"{_GUIDE}/automatic-model-tuning-limits.html"),
    Rule(_too_many_at_once, _TUNING, f"{_API}/API_ResourceLimits.html"),
    Rule(_instances_or_serverless, _CONFIG, f"{_API}/API_ProductionVariant.html"),
    Rule(_serverless, _CONFIG, f"{_GUIDE}/serverless-endpoints.html"),
    Rule(_serverless_sizes, _CONFIG, f"{_API}/API_ProductionVariantServerlessConfig.html"),
    Rule(_async_of_several, _CONFIG, f"{_GUIDE}/async-inference-create-endpoint-create-endpoint-config.html"),
    Rule(
        _broken_tags,
        (*JOBS, "CreateModel", "CreateEndpointConfig", "CreateEndpoint"),
        "docs.aws.amazon.com/tag-editor/latest/userguide/reference.html",
    ),
)
REGION_RULES: Mapping[str, Callable[[Request, str], Iterator[str]]] = {
    f"{_API}/API_ContainerDefinition.html": _foreign_image,
    "docs.aws.amazon.com/IAM/latest/UserGuide/reference-arns.html": _foreign_arn,
}
"""Rules about names of another region or partition, by the page of AWS's documentation."""
