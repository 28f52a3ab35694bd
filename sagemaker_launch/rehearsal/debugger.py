"""SageMaker Debugger: what the service refuses, how it tells of rules, and the rules that can be evaluated here.

AWS's rules are in an image that only AWS may run. What they look for is known, so the job's side of this project, which
has smdebug, looks for the same in an interpreter of its own.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sagemaker_launch.rehearsal.container import TENSORS
from sagemaker_launch.rehearsal.rules import invalid
from sagemaker_launch.rehearsal.training_jobs import RuleStatuses

Request = Mapping[str, Any]
FIELDS = ("DebugHookConfig", "DebugRuleConfigurations", "ProfilerRuleConfigurations")
"""What an account without Debugger can't ask for."""
INTERVALS_MS = (100, 200, 500, 1000, 5000, 60_000)
"""What ProfilingIntervalInMilliseconds may be (API reference, 2026)."""
PARAMETERS = re.compile(
    r"((train|eval|predict|global)\.)?(save_interval|save_steps|start_step|end_step)|include_regex|reductions|"
    r"save_histogram|save_raw_tensor|save_shape"
)
"""Parameters of hook and collection that smdebug 1.0.34 reads; it takes no notice of others."""
HOOK_PARAMETERS = ("save_all", "include_workers", "export_tensorboard", "tensorboard_dir")
TEXTUAL_FLAGS = ("save_raw_tensor", "save_shape")
"""Parameters for which smdebug 1.0.34 wants a boolean, which a map of texts can't give: its hook is not made then."""
BUILT_IN = "/sagemaker-debugger-rules:"
"""In the address of AWS's image of built-in rules."""
LIMIT_SECONDS = 300.0
"""Time for the rules of one job."""
END_OF_JOB = "training_job_end.ts"
"""By which smdebug knows that nothing more comes; on AWS the service writes it."""
MODULE = "sagemaker_launch.container.debugger"

log = logging.getLogger(__name__)


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
            raise invalid(f"Rule configuration names must be unique, {name} stands there twice.")
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
    rules: RuleStatuses, request: Request, tensors: Path, find_python: Callable[[], Path], stop: threading.Event
) -> None:
    """Evaluate the rules of a job that has ended.

    Args:
        rules: where the findings go.
        tensors: all that the job has saved, in a folder that may be written to.
        find_python: an interpreter that has smdebug.
        stop: ends the evaluation when it is set.
    """
    asked = request.get("DebugRuleConfigurations", ())
    here = [rule for rule in asked if BUILT_IN in rule["RuleEvaluatorImage"]]
    found = dict.fromkeys((one.name for one in rules), ("Stopped", "not rehearsed: only AWS's rules on tensors are"))
    if stop.is_set():
        log.info("rules of %s are not evaluated: the service stops", request["TrainingJobName"])
    elif here and not any(tensors.iterdir()):
        found |= dict.fromkeys((rule["RuleConfigurationName"] for rule in here), ("Error", "the job saved no tensors"))
    elif here:
        (tensors / END_OF_JOB).touch()  # or smdebug waits for more
        found |= evaluate(here, tensors, find_python(), stop)
    for one in rules:
        one.conclude(*found[one.name])


def evaluate(
    rules: Sequence[Request], tensors: Path, python: Path, stop: threading.Event
) -> dict[str, tuple[str, str]]:
    """Evaluate rules on what a job has saved.

    Args:
        rules: of DebugRuleConfigurations.
        tensors: smdebug's folder, complete.
        python: an interpreter that has smdebug.
        stop: ends the evaluation when it is set.

    Returns:
        Status and details by rule; what could not be evaluated is Stopped, and what went wrong is Error.
    """
    names = [rule["RuleConfigurationName"] for rule in rules]
    with tempfile.TemporaryDirectory(prefix="rules-") as scratch:
        wanted, answer, errors = (Path(scratch) / name for name in ("rules.json", "answer", "errors"))
        wanted.write_text(json.dumps(rules))
        command = [str(python), "-m", MODULE, "rules", str(tensors), str(wanted)]
        with answer.open("wb") as stdout, errors.open("wb") as stderr:
            code = _wait(subprocess.Popen(command, stdout=stdout, stderr=stderr, env=_environment()), stop)
        lines, said = answer.read_text().splitlines(), errors.read_text(errors="replace").strip()
    if code is None:
        return dict.fromkeys(names, ("Stopped" if stop.is_set() else "Error", "the evaluation was ended"))
    if code or not lines:
        log.warning("rules: exit code %s: %s", code, said)
        return dict.fromkeys(names, ("Error", f"exit code {code}: {said[-500:]}"))
    found = {one["RuleConfigurationName"]: one for one in json.loads(lines[-1])}
    unknown = {"RuleEvaluationStatus": "Stopped", "StatusDetails": "not rehearsed: nothing here evaluates this rule"}
    return {
        name: (one["RuleEvaluationStatus"], one.get("StatusDetails") or "")
        for name in names
        for one in [found.get(name, unknown)]
    }


def _environment() -> dict[str, str]:
    """This process's variables, and where this project's code is."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONDONTWRITEBYTECODE": "1"}


def _wait(process: subprocess.Popen[bytes], stop: threading.Event) -> int | None:
    """The exit code, or None for a process that had to be ended."""
    until = time.monotonic() + LIMIT_SECONDS
    while not stop.is_set() and time.monotonic() < until:
        try:
            return process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    process.kill()
    process.wait()
    return None
