"""Pure functions: the fields of CreateTrainingJob about SageMaker Debugger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.errors import UserError
from sagemaker_launch.aws.partitions import dns_suffix
from sagemaker_launch.container.smdebug.recorder import TENSORS
from sagemaker_launch.settings.cloud import CloudSettings
from sagemaker_launch.settings.debugger import DebuggerSettings

RULE_ACCOUNTS: Mapping[str, str] = {
    "af-south-1": "314341159256",
    "ap-east-1": "199566480951",
    "ap-northeast-1": "430734990657",
    "ap-northeast-2": "578805364391",
    "ap-south-1": "904829902805",
    "ap-southeast-1": "972752614525",
    "ap-southeast-2": "184798709955",
    "ca-central-1": "519511493484",
    "cn-north-1": "618459771430",
    "cn-northwest-1": "658757709296",
    "eu-central-1": "482524230118",
    "eu-north-1": "314864569078",
    "eu-south-1": "563282790590",
    "eu-west-1": "929884845733",
    "eu-west-2": "250201462417",
    "eu-west-3": "447278800020",
    "me-south-1": "986000313247",
    "sa-east-1": "818342061345",
    "us-east-1": "503895931360",
    "us-east-2": "915447279597",
    "us-gov-west-1": "515509971035",
    "us-west-1": "685455198987",
    "us-west-2": "895741380848",
}
"""Accounts of AWS that hold the image of the built-in rules, by region.

Source: AWS's developer guide, "Amazon SageMaker Debugger references", read 2026-11.
"""
RELU = {"relu_input": ".*relu_input", "relu_output": ".*relu_output"}
"""Collections of activations by the names and patterns that AWS's rules look for (smdebug_rulesconfig 1.0.1)."""
PROFILER_REPORT = "ProfilerReport"


def debugger_fields(settings: CloudSettings) -> dict[str, Any]:
    """All fields about Debugger.

    Raises:
        UserError: if AWS publishes no image of rules for the region.
    """
    debugger = settings.debugger
    output = {"S3OutputPath": f"{settings.uri}/debug"}
    fields: dict[str, Any] = {"DebugHookConfig": output | hook(debugger)}
    image = rule_image(settings)
    if debugger.rules:
        fields["DebugRuleConfigurations"] = [_rule(debugger, image, name) for name in debugger.rules]
    if debugger.profiler:
        fields["ProfilerConfig"] = output | {"ProfilingIntervalInMilliseconds": debugger.profiling_interval_ms}
        fields["ProfilerRuleConfigurations"] = [_rule(debugger, image, PROFILER_REPORT)]
    else:
        fields["ProfilerConfig"] = {"DisableProfiler": True}  # AWS samples instances by default
    return fields


def rule_image(settings: CloudSettings) -> str:
    """The image that evaluates rules.

    Raises:
        UserError: if none is set and AWS publishes none for the region.
    """
    if settings.debugger.rule_image_uri is not None:
        return settings.debugger.rule_image_uri
    region = str(settings.region)
    if region not in RULE_ACCOUNTS:
        raise UserError(
            f"cloud.debugger.rule_image_uri must be set: AWS publishes no image of Debugger's rules for {region}"
        )
    return f"{RULE_ACCOUNTS[region]}.dkr.ecr.{region}.{dns_suffix(region)}/sagemaker-debugger-rules:latest"


def hook(debugger: DebuggerSettings) -> dict[str, Any]:
    """The configuration of smdebug's hook; all values in the request are text."""
    collections = [_collection("losses", debugger.losses_every, debugger.eval_losses_every)]
    for name in ("weights", "gradients", "biases"):
        # Validation has no gradients.
        eval_every = 0 if name == "gradients" else debugger.eval_every
        collections.append(_collection(name, getattr(debugger, f"{name}_every"), eval_every))
    for name, pattern in RELU.items():
        collections.append(_collection(name, debugger.relu_every, debugger.eval_every, pattern))
    if debugger.include_regex is not None:
        further = _collection("custom", debugger.custom_every, debugger.eval_every, debugger.include_regex)
        collections.append(further)
    kept = [
        collection for collection in collections if collection["CollectionParameters"]["train.save_interval"] != "0"
    ]
    built: dict[str, Any] = {"LocalPath": TENSORS, "CollectionConfigurations": kept}
    # Without reductions smdebug keeps whole tensors. Its save_raw_tensor needs a boolean, which the request can't have.
    if not debugger.raw_tensors:
        built["HookParameters"] = {"reductions": ",".join(debugger.reductions)}
    return built


def _collection(name: str, train_every: int, eval_every: int, pattern: str | None = None) -> dict[str, Any]:
    parameters = {"train.save_interval": str(train_every)}
    # smdebug divides by the interval, so "never" is expressed by an end before the first step.
    parameters |= {"eval.save_interval": str(eval_every)} if eval_every else {"eval.end_step": "0"}
    if pattern is not None:
        parameters["include_regex"] = pattern
    return {"CollectionName": name, "CollectionParameters": parameters}


def _rule(debugger: DebuggerSettings, image: str, name: str) -> dict[str, Any]:
    machine: dict[str, Any] = {}
    if debugger.rule_instance_type is not None:
        machine = {"InstanceType": debugger.rule_instance_type, "VolumeSizeInGB": debugger.rule_volume_size_gb}
    return {
        "RuleConfigurationName": name,
        "RuleEvaluatorImage": image,
        "RuleParameters": {"rule_to_invoke": name},
        **machine,
    }
