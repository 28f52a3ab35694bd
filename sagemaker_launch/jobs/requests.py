"""Pure functions from config, search space and settings to complete requests of jobs."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from experiments.config import RunConfig, require
from experiments.study.epochs import EPOCHS
from experiments.study.search_space import ChoiceRange, FloatRange, SearchSpace, grid_points
from sagemaker_launch.aws.tags import to_tag_value
from sagemaker_launch.container.hyperparameters import encode, wire_name, wire_value
from sagemaker_launch.container.machines import has_gpu
from sagemaker_launch.container.metric_lines import metric_definitions, objective
from sagemaker_launch.jobs.debugger_fields import debugger_fields
from sagemaker_launch.settings.cloud import (
    EXPERIMENT_TAG,
    INSTANCE_COUNT_TAG,
    INSTANCE_TYPE_TAG,
    PROJECT_TAG,
    CloudSettings,
)
from sagemaker_launch.shipping.bundle import ENTRY
from sagemaker_launch.shipping.storage import Inputs

CODE_ARCHIVE = "/opt/ml/input/data/code/sourcedir.tar.gz"
CHECKPOINTS = "/opt/ml/checkpoints"
LOG_LEVEL = logging.INFO
"""Of AWS's toolkit, whose default it is: SageMaker's SDK v2 attaches to no job that does not name one."""


def training_job(
    settings: CloudSettings, config: RunConfig, inputs: Inputs, image_uri: str, *, name: str, checkpoints: str = ""
) -> dict[str, Any]:
    """The body of CreateTrainingJob.

    Args:
        checkpoints: name of its checkpoint folder in S3; by default the job's.

    Raises:
        ValueError: if Debugger is enabled and AWS publishes no image of its rules for the region.
    """
    request = _definition(settings, inputs, image_uri, checkpoints or name)
    request["TrainingJobName"] = name
    request["HyperParameters"] = encode(config) | _toolkit(settings)
    request["Tags"] = _tags(settings, config)
    if settings.keep_alive_seconds:
        request["ResourceConfig"]["KeepAlivePeriodInSeconds"] = settings.keep_alive_seconds
    if settings.debugger.enabled:
        request |= debugger_fields(settings)
    return request


def tuning_job(
    settings: CloudSettings, config: RunConfig, space: SearchSpace, inputs: Inputs, image_uri: str, *, name: str
) -> dict[str, Any]:
    """The body of CreateHyperParameterTuningJob.

    Raises:
        ValueError: if the strategy cannot search the space, or for a setting that a tuning job can't have.
    """
    require(
        settings.keep_alive_seconds == 0,
        "cloud.keep_alive_seconds",
        "be 0 in a tuning job",
        settings.keep_alive_seconds,
    )
    require(
        not settings.debugger.enabled,
        "cloud.debugger.enabled",
        "be false in a tuning job: SageMaker's TrainingJobDefinition has no field for Debugger's hooks "
        "(--recorder keeps losses and statistics of weights and gradients in every job, without Debugger)",
        settings.debugger.enabled,
    )
    tuned = {
        name: search_range
        for name, search_range in space.items()
        if not (settings.strategy == "Hyperband" and name == EPOCHS)
    }
    require(len(tuned) > 0, "search space", f"tune something besides {EPOCHS} with strategy Hyperband", sorted(space))
    metric = objective(config.sweep.metric)
    static = {key: value for key, value in encode(config).items() if key not in map(wire_name, tuned)}
    jobs = number_of_jobs(settings, config, space)
    tuning: dict[str, Any] = {
        "Strategy": settings.strategy,
        "HyperParameterTuningJobObjective": {"Type": config.sweep.direction.title(), "MetricName": metric},
        "ResourceLimits": {
            "MaxNumberOfTrainingJobs": jobs,
            # The default never asks for more at once than there are.
            "MaxParallelTrainingJobs": min(settings.max_parallel_jobs, jobs),
        },
        "ParameterRanges": parameter_ranges(tuned),
        "TrainingJobEarlyStoppingType": "Auto" if settings.early_stopping else "Off",
        "RandomSeed": config.seed,
    }
    if settings.strategy == "Hyperband":
        # Hyperband decides the epochs of each job, so each may train as long as the longest.
        static[wire_name(EPOCHS)] = json.dumps(config.trainer.epochs)
        resources = {"MinResource": 1, "MaxResource": config.trainer.epochs}
        tuning["StrategyConfig"] = {"HyperbandStrategyConfig": resources}
    if config.sweep.timeout_seconds is not None:
        tuning["ResourceLimits"]["MaxRuntimeInSeconds"] = max(120, round(config.sweep.timeout_seconds))
    completion: dict[str, Any] = {}
    if settings.target_value is not None:
        completion["TargetObjectiveMetricValue"] = settings.target_value
    if settings.max_jobs_without_improvement is not None:
        stop = {"MaxNumberOfTrainingJobsNotImproving": settings.max_jobs_without_improvement}
        completion["BestObjectiveNotImproving"] = stop
    if completion:
        tuning["TuningJobCompletionCriteria"] = completion
    definition = _definition(settings, inputs, image_uri, name)
    definition["StaticHyperParameters"] = static | _toolkit(settings)
    request = {
        "HyperParameterTuningJobName": name,
        "HyperParameterTuningJobConfig": tuning,
        "TrainingJobDefinition": definition,
        "Tags": _tags(settings, config),
    }
    if settings.warm_start_from:
        parents = [{"HyperParameterTuningJobName": parent} for parent in settings.warm_start_from]
        # The other type needs the same image and the same code, which change with every release.
        request["WarmStartConfig"] = {
            "ParentHyperParameterTuningJobs": parents,
            "WarmStartType": "TransferLearning",
        }
    return request


def number_of_jobs(settings: CloudSettings, config: RunConfig, space: SearchSpace) -> int:
    """Number of training jobs of a tuning job; of a grid the number of its points.

    Raises:
        ValueError: if a range of a grid is not a list of choices.
    """
    if settings.strategy != "Grid":
        return config.sweep.n_trials
    points = 1
    for values in grid_points(space).values():
        points *= len(values)
    return points


def parameter_ranges(space: SearchSpace) -> dict[str, list[dict[str, Any]]]:
    """The search space as ParameterRanges."""
    ranges: dict[str, list[dict[str, Any]]] = {
        "ContinuousParameterRanges": [],
        "IntegerParameterRanges": [],
        "CategoricalParameterRanges": [],
    }
    for field, search_range in space.items():
        name = {"Name": wire_name(field)}
        if isinstance(search_range, ChoiceRange):
            ranges["CategoricalParameterRanges"].append(
                name | {"Values": [wire_value(field, value) for value in search_range.values]}
            )
            continue
        range_key = "ContinuousParameterRanges" if isinstance(search_range, FloatRange) else "IntegerParameterRanges"
        limits = {"MinValue": wire_value(field, search_range.low), "MaxValue": wire_value(field, search_range.high)}
        ranges[range_key].append(name | limits | {"ScalingType": "Logarithmic" if search_range.log else "Linear"})
    return {range_key: listed for range_key, listed in ranges.items() if listed}


def _definition(settings: CloudSettings, inputs: Inputs, image_uri: str, checkpoints: str) -> dict[str, Any]:
    """The fields that single training jobs and those of a tuning job share."""
    stopping = {"MaxRuntimeInSeconds": settings.max_runtime_seconds}
    if settings.longest_wait_seconds is not None:
        stopping["MaxWaitTimeInSeconds"] = settings.longest_wait_seconds
    definition: dict[str, Any] = {
        "AlgorithmSpecification": {
            "TrainingImage": image_uri,
            "TrainingInputMode": "File",
            "MetricDefinitions": metric_definitions(),
        },
        "RoleArn": settings.role_arn,
        "InputDataConfig": _channels(settings, inputs),
        "OutputDataConfig": {"S3OutputPath": f"{settings.uri}/jobs"},
        "ResourceConfig": {
            "InstanceType": settings.instance_type,
            "InstanceCount": settings.instance_count,
            "VolumeSizeInGB": settings.volume_size_gb,
        },
        "StoppingCondition": stopping,
        "EnableManagedSpotTraining": settings.spot,
        "EnableNetworkIsolation": settings.network_isolation,
        "EnableInterContainerTrafficEncryption": settings.encrypt_inter_container_traffic,
    }
    if settings.volume_kms_key:
        definition["ResourceConfig"]["VolumeKmsKeyId"] = settings.volume_kms_key
    if settings.output_kms_key:
        definition["OutputDataConfig"]["KmsKeyId"] = settings.output_kms_key
    if settings.subnets:
        definition["VpcConfig"] = {"Subnets": settings.subnets, "SecurityGroupIds": settings.security_group_ids}
    if settings.checkpoints:
        # Without its last slash, the prefix of dogs-1 is one of dogs-10 too (github.com/syne-tune/syne-tune/pull/363).
        definition["CheckpointConfig"] = {
            "S3Uri": f"{settings.uri}/checkpoints/{checkpoints}/",
            "LocalPath": CHECKPOINTS,
        }
    if settings.environment:
        definition["Environment"] = dict(settings.environment)
    if settings.retry_attempts:
        definition["RetryStrategy"] = {"MaximumRetryAttempts": settings.retry_attempts}
    return definition


def _channels(settings: CloudSettings, inputs: Inputs) -> list[dict[str, Any]]:
    channels = [("photos", inputs.photos, settings.input_mode), ("code", inputs.code, "File")]
    if inputs.weights:
        channels.append(("weights", inputs.weights, "File"))
    return [
        {
            "ChannelName": name,
            "DataSource": {
                "S3DataSource": {
                    "S3DataType": "ManifestFile" if uri.endswith("/manifest.json") else "S3Prefix",
                    "S3Uri": uri,
                    "S3DataDistributionType": "FullyReplicated",
                }
            },
            "InputMode": mode,
        }
        for name, uri, mode in channels
    ]


def _toolkit(settings: CloudSettings) -> dict[str, str]:
    """The hyperparameters that AWS's toolkit reads; the code is a channel, which needs no network."""
    hyperparameters = {
        "sagemaker_program": json.dumps(ENTRY),
        "sagemaker_submit_directory": json.dumps(CODE_ARCHIVE),
        "sagemaker_container_log_level": json.dumps(LOG_LEVEL),
    }
    if settings.instance_count > 1 or has_gpu(settings.instance_type):
        hyperparameters["sagemaker_torch_distributed_enabled"] = "true"  # one process per GPU, by torchrun
    return hyperparameters


def _tags(settings: CloudSettings, config: RunConfig) -> list[dict[str, str]]:
    tags: Mapping[str, str] = {
        PROJECT_TAG: settings.project,
        EXPERIMENT_TAG: to_tag_value(config.tracking.experiment),
        INSTANCE_TYPE_TAG: settings.instance_type,
        INSTANCE_COUNT_TAG: str(settings.instance_count),
        **settings.tags,
    }
    return [{"Key": key, "Value": value} for key, value in tags.items()]
