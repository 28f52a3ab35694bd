"""SageMaker Debugger: what the service refuses, and the rules that can be evaluated here.

AWS's rules are in an image that only AWS runs. Their descriptions are published, so this project evaluates its own
versions of them, with smdebug in an environment of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sagemaker_launch.rehearsal.jobs.training import RuleStatuses
from sagemaker_launch.rehearsal.machine.container import TENSORS
from sagemaker_launch.rehearsal.rules import invalid

Request = Mapping[str, Any]
RunRules = Callable[[Path, Sequence[Request]], Sequence[Mapping[str, Any]]]
FIELDS = ("DebugHookConfig", "DebugRuleConfigurations", "ProfilerRuleConfigurations")
"""Fields that an account without Debugger can't use."""
INTERVALS_MS = (100, 200, 500, 1000, 5000, 60_000)
"""Allowed values of ProfilingIntervalInMilliseconds (API reference, 2026)."""
PARAMETERS = re.compile(
    r"((train|eval|predict|global)\.)?(save_interval|save_steps|start_step|end_step)|include_regex|reductions|"
    r"save_histogram|save_raw_tensor|save_shape"
)
"""Parameters of hook and collection that smdebug 1.0.34 reads; it ignores others."""
HOOK_PARAMETERS = ("save_all", "include_workers", "export_tensorboard", "tensorboard_dir")
TEXTUAL_FLAGS = ("save_raw_tensor", "save_shape")
"""Parameters for which smdebug 1.0.34 needs a boolean, which a map of texts can't have: its hook then fails."""
BUILT_IN = "/sagemaker-debugger-rules:"
"""In the address of AWS's image of built-in rules."""
END_OF_JOB = "training_job_end.ts"
"""The file that tells smdebug the job has ended; on AWS the service writes it."""


def check_debugger(request: Request, *, available: bool) -> None:
    """Refuse what CreateTrainingJob refuses about Debugger.

    Args:
        available: whether the account has Debugger.

    Raises:
        SagemakerClientError: with the first broken rule.
    """
    wanted = [name for name in FIELDS if name in request]
    if wanted and not available:
        # AWS publishes no text of this refusal.
        raise invalid(f"{wanted[0]}: Amazon SageMaker Debugger is not available to this account.")
    if "DebugRuleConfigurations" in request and "DebugHookConfig" not in request:
        raise invalid("DebugHookConfig must be provided with DebugRuleConfigurations.")
    names = [
        rule["RuleConfigurationName"]
        for kind in ("DebugRuleConfigurations", "ProfilerRuleConfigurations")
        for rule in request.get(kind, ())
    ]
    for name in names:
        if names.count(name) > 1:
            raise invalid(f"Rule configuration names must be unique, {name} is a duplicate.")
    interval = request.get("ProfilerConfig", {}).get("ProfilingIntervalInMilliseconds", INTERVALS_MS[0])
    if interval not in INTERVALS_MS:
        raise invalid(f"ProfilerConfig.ProfilingIntervalInMilliseconds must be one of {INTERVALS_MS}, got {interval}.")
    if "DebugHookConfig" in request:
        _check_hook(request["DebugHookConfig"])


def _check_hook(hook: Request) -> None:
    path = hook.get("LocalPath", TENSORS)
    if not path.startswith("/opt/ml/") or ".." in path or path.startswith("/opt/ml/input"):
        raise invalid(f"DebugHookConfig.LocalPath must lie below /opt/ml and outside input to be rehearsed, got {path}")
    collections = hook.get("CollectionConfigurations", ())
    parts = [("HookParameters", hook.get("HookParameters", {}))]
    parts += [(one.get("CollectionName", ""), one.get("CollectionParameters", {})) for one in collections]
    for place, parameters in parts:
        for name in parameters:
            known = PARAMETERS.fullmatch(name) or (place == "HookParameters" and name in HOOK_PARAMETERS)
            if not known or name in TEXTUAL_FLAGS:
                raise invalid(f"DebugHookConfig: smdebug can't read parameter {name} of {place}")


def judge(
    rules: RuleStatuses, request: Request, tensors: Path, run_rules: RunRules, *, end_now: Callable[[], bool]
) -> None:
    """Evaluate the rules of a job that has ended.

    Args:
        rules: get the findings.
        tensors: writable folder with all that the job has saved.
        run_rules: evaluates rules on a folder of tensors, as `debugger_environment.run_rules` does.
        end_now: whether the service stops now.
    """
    asked = request.get("DebugRuleConfigurations", ())
    here = [] if end_now() else [rule for rule in asked if BUILT_IN in rule["RuleEvaluatorImage"]]
    (tensors / END_OF_JOB).touch()  # or smdebug waits for more
    found = {one["RuleConfigurationName"]: one for one in (run_rules(tensors, here) if here else ())}
    for rule in rules:
        answer = found.get(rule.name)
        if answer is None:
            rule.conclude("Stopped", "not rehearsed: only AWS's own rules on tensors are")
        else:
            rule.conclude(answer["RuleEvaluationStatus"], answer["StatusDetails"])
