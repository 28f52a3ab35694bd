"""Compare settings with the request, and the request with AWS's description. A lost field fails the launch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.config import RunConfig
from sagemaker_launch.aws.resources import LostFieldError
from sagemaker_launch.container.metric_lines import metric_definitions
from sagemaker_launch.jobs.debugger_fields import PROFILER_REPORT, RELU
from sagemaker_launch.settings.cloud import PROJECT_TAG, CloudSettings
from sagemaker_launch.settings.debugger import DebuggerSettings


def check_sent(settings: CloudSettings, config: RunConfig, request: Mapping[str, Any]) -> None:
    """Look for every configured field in a request.

    Raises:
        LostFieldError: naming the fields that are missing or have another value.
    """
    lost = [
        f"cloud.{name}" if hasattr(settings, name.partition(".")[0]) else name
        for name, (wanted, found) in _expected(settings, config, request).items()
        if wanted != found
    ]
    if lost:
        raise LostFieldError(
            f"missing from the request, or sent with another value: {', '.join(lost)}; nothing was started"
        )


def _expected(
    settings: CloudSettings, config: RunConfig, request: Mapping[str, Any]
) -> dict[str, tuple[object, object]]:
    """Each configured field: (setting, value in the request)."""
    tuning = request.get("HyperParameterTuningJobConfig")
    job: Mapping[str, Any] = request["TrainingJobDefinition"] if tuning else request

    def at(path: str, where: Mapping[str, Any] = job) -> object:
        value: Any = where
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    tags = {tag["Key"]: tag["Value"] for tag in request["Tags"]}
    photos = next(channel for channel in job["InputDataConfig"] if channel["ChannelName"] == "photos")
    checkpoint = str(at("CheckpointConfig.S3Uri") or "")
    pairs: dict[str, tuple[object, object]] = {
        "role_arn": (settings.role_arn, at("RoleArn")),
        "project": (settings.project, tags.get(PROJECT_TAG)),
        "tags": (settings.tags, {key: value for key, value in tags.items() if key != PROJECT_TAG}),
        "instance_type": (settings.instance_type, at("ResourceConfig.InstanceType")),
        "instance_count": (settings.instance_count, at("ResourceConfig.InstanceCount")),
        "volume_size_gb": (settings.volume_size_gb, at("ResourceConfig.VolumeSizeInGB")),
        "volume_kms_key": (settings.volume_kms_key, at("ResourceConfig.VolumeKmsKeyId")),
        "output_kms_key": (settings.output_kms_key, at("OutputDataConfig.KmsKeyId")),
        "keep_alive_seconds": (settings.keep_alive_seconds or None, at("ResourceConfig.KeepAlivePeriodInSeconds")),
        "max_runtime_seconds": (settings.max_runtime_seconds, at("StoppingCondition.MaxRuntimeInSeconds")),
        "max_wait_seconds": (settings.longest_wait_seconds, at("StoppingCondition.MaxWaitTimeInSeconds")),
        "spot": (settings.spot, at("EnableManagedSpotTraining")),
        "checkpoints": (settings.checkpoints, checkpoint.startswith(f"{settings.uri}/checkpoints/")),
        "retry_attempts": (settings.retry_attempts or None, at("RetryStrategy.MaximumRetryAttempts")),
        "input_mode": (settings.input_mode, photos["InputMode"]),
        "subnets": (settings.subnets or None, at("VpcConfig.Subnets")),
        "security_group_ids": (settings.security_group_ids or None, at("VpcConfig.SecurityGroupIds")),
        "network_isolation": (settings.network_isolation, at("EnableNetworkIsolation")),
        "encrypt_inter_container_traffic": (
            settings.encrypt_inter_container_traffic,
            at("EnableInterContainerTrafficEncryption"),
        ),
        "environment": (settings.environment or None, at("Environment")),
        "metric definitions": (metric_definitions(), at("AlgorithmSpecification.MetricDefinitions")),
        **{f"debugger.{name}": pair for name, pair in _of_debugger(settings.debugger, job).items()},
    }
    if tuning:
        parents = at("WarmStartConfig.ParentHyperParameterTuningJobs", request)
        names = [parent["HyperParameterTuningJobName"] for parent in parents] if isinstance(parents, list) else []
        criteria = "TuningJobCompletionCriteria"
        stale = f"{criteria}.BestObjectiveNotImproving.MaxNumberOfTrainingJobsNotImproving"
        pairs |= {
            "seed": (config.seed, tuning.get("RandomSeed")),
            "strategy": (settings.strategy, tuning.get("Strategy")),
            "max_parallel_jobs": (settings.max_parallel_jobs, at("ResourceLimits.MaxParallelTrainingJobs", tuning)),
            "early_stopping": (settings.early_stopping, tuning.get("TrainingJobEarlyStoppingType") == "Auto"),
            "warm_start_from": (settings.warm_start_from, names),
            "target_value": (
                settings.target_value,
                at("TuningJobCompletionCriteria.TargetObjectiveMetricValue", tuning),
            ),
            "max_jobs_without_improvement": (settings.max_jobs_without_improvement, at(stale, tuning)),
        }
    return pairs


def _of_debugger(debugger: DebuggerSettings, job: Mapping[str, Any]) -> dict[str, tuple[object, object]]:
    """Each field about Debugger: (setting, value in the request)."""
    hook = job.get("DebugHookConfig", {})
    pairs: dict[str, tuple[object, object]] = {"enabled": (debugger.enabled, bool(hook))}
    if not hook:
        return pairs
    kept = {one["CollectionName"]: one["CollectionParameters"] for one in hook["CollectionConfigurations"]}

    def every(collection: str, mode: str = "train") -> int:
        """The interval as smdebug reads it; 0 for never."""
        parameters = kept.get(collection, {f"{mode}.end_step": "0"})
        return 0 if parameters.get(f"{mode}.end_step") == "0" else int(parameters.get(f"{mode}.save_interval", 500))

    for name in ("losses", "weights", "gradients", "biases"):
        pairs[f"{name}_every"] = (getattr(debugger, f"{name}_every"), every(name))
    relu = {name: kept[name]["include_regex"] for name in RELU if name in kept}
    pairs["relu_every"] = (
        (dict.fromkeys(RELU, debugger.relu_every), RELU if debugger.relu_every else {}),
        ({name: every(name) for name in RELU}, relu),
    )
    pairs["include_regex"] = (debugger.include_regex, kept.get("custom", {}).get("include_regex"))
    pairs["custom_every"] = (debugger.custom_every if debugger.include_regex else 0, every("custom"))
    pairs["eval_losses_every"] = (debugger.eval_losses_every, every("losses", "eval"))
    others = kept.keys() - {"losses", "gradients"}
    pairs["eval_every"] = (
        ({debugger.eval_every}, 0),
        ({every(name, "eval") for name in others} or {0}, every("gradients", "eval")),
    )
    reductions = hook.get("HookParameters", {}).get("reductions")
    pairs["raw_tensors"] = (debugger.raw_tensors, reductions is None)
    pairs["reductions"] = (None if debugger.raw_tensors else ",".join(debugger.reductions), reductions)
    rules, reports = job.get("DebugRuleConfigurations", []), job.get("ProfilerRuleConfigurations", [])
    pairs["rules"] = (debugger.rules, [rule["RuleParameters"]["rule_to_invoke"] for rule in rules])
    images = {rule["RuleEvaluatorImage"] for rule in (*rules, *reports)}
    pairs["rule_image_uri"] = ({debugger.rule_image_uri} if debugger.rule_image_uri and images else images, images)
    machines = {(rule.get("InstanceType"), rule.get("VolumeSizeInGB")) for rule in (*rules, *reports)} or {(None, None)}
    paid = debugger.rule_instance_type is not None
    pairs["rule_instance_type"] = ({debugger.rule_instance_type}, {kind for kind, _ in machines})
    pairs["rule_volume_size_gb"] = ({debugger.rule_volume_size_gb if paid else None}, {size for _, size in machines})
    profiler = job.get("ProfilerConfig", {})
    reported = [rule["RuleParameters"]["rule_to_invoke"] for rule in reports]
    pairs["profiler"] = (
        (debugger.profiler, [PROFILER_REPORT] if debugger.profiler else []),
        (not profiler.get("DisableProfiler", False), reported),
    )
    interval = debugger.profiling_interval_ms if debugger.profiler else None
    pairs["profiling_interval_ms"] = (interval, profiler.get("ProfilingIntervalInMilliseconds"))
    return pairs
