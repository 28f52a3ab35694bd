"""`debug-report`: reads the tensors of a debug job, evaluates rules, and adds a report to its run in MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from experiments.config import RunConfig
from experiments.console import say
from experiments.errors import UserError
from experiments.report.page import Plot
from experiments.tracking.store import RunStore
from sagemaker_launch.container.smdebug.rules import RULES
from sagemaker_launch.debugger.environment import read_tensors, run_rules
from sagemaker_launch.debugger.page import write_report
from sagemaker_launch.jobs.found import find_job
from sagemaker_launch.jobs.sync import Synchroniser
from sagemaker_launch.shipping.download import fetch_folder

PAGE = "debug-report.html"


def report_folder(config: RunConfig, folder: Path) -> Path:
    """Write the report of a folder of tensors beside it.

    Raises:
        UserError: if the folder has no tensors.
    """
    page = folder.resolve().with_name(f"{folder.resolve().name}-{PAGE}")
    tensors, statuses = _judge(config, folder, {})
    _write(page, {"Folder": folder.name}, tensors, statuses)
    return page


def report_job(config: RunConfig, name: str, synchroniser: Synchroniser) -> Path:
    """Fetch the tensors of a training job, write its report, and add both job and report to MLflow.

    Raises:
        UserError: if it is not a debugged training job, or its tensors are missing.
    """
    job = find_job(synchroniser.sagemaker, name)
    hook = job.described.get("DebugHookConfig")
    if not hook:  # a tuning job has none
        raise UserError(f"{name} must be a training job that is debugged: start one with train --debug")
    (run,) = synchroniser.sync(job)
    tensors = run.path / "tensors"
    uri = f"{hook['S3OutputPath'].rstrip('/')}/{name}/debug-output"
    if not fetch_folder(synchroniser.s3, uri, tensors):
        raise UserError(f"{uri} must hold the job's tensors, found nothing: the service copies them as the job runs")
    read, statuses = _judge(config, tensors, job.described)
    page = run.artifacts / PAGE
    for plot in _write(page, {"Job": name, "Status": job.status}, read, statuses):
        (run.artifacts / f"debug_{plot.name}.png").write_bytes(plot.png)
    (run.artifacts / "debug.json").write_text(json.dumps({"rules": statuses, **read}))
    if run.outcome is None:
        say(f"{name} is {job.status}: its report goes to MLflow when the same command runs after its end")
    else:
        RunStore.open_or_wait(config).push_or_wait(run)
    return page


def _judge(
    config: RunConfig, folder: Path, described: Mapping[str, Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The tensors of a folder, and the findings of the job's rules, or of all rules."""
    every = [{"RuleConfigurationName": name, "RuleParameters": {"rule_to_invoke": name}} for name in RULES]
    configurations = described.get("DebugRuleConfigurations") or every
    tensors = read_tensors(config.data.cache_dir, folder)
    ours = run_rules(config.data.cache_dir, folder, configurations)
    return tensors, [*_by_service(described.get("DebugRuleEvaluationStatuses", ())), *_by_us(ours)]


def _write(
    page: Path, facts: Mapping[str, str], tensors: Mapping[str, Any], statuses: Sequence[Mapping[str, Any]]
) -> list[Plot]:

    (subject,) = list(facts.values())[:1]
    facts = {
        **facts,
        **{f"{mode} steps": str(number) for mode, number in tensors["modes"].items()},
        "Tensors": str(len(tensors["tensors"]) + len(tensors["losses"])),
        "Rules with issues": str(sum(status["RuleEvaluationStatus"] == "IssuesFound" for status in statuses)),
    }
    for status in statuses:
        say(
            f"{status['RuleConfigurationName']}: {status['RuleEvaluationStatus']}, says {status['by']} "
            f"({status['StatusDetails']})"
        )
    return write_report(f"Debug report: {subject}", facts, tensors, statuses, page)


def _by_service(evaluated: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """DebugRuleEvaluationStatuses, with the time of their last change."""
    found = []
    for evaluation in evaluated:
        changed = evaluation.get("LastModifiedTime")
        when = f"{changed:%Y-%m-%d %H:%M:%S}" if isinstance(changed, datetime) else ""
        keys = ("RuleConfigurationName", "RuleEvaluationStatus", "StatusDetails")
        found.append({key: str(evaluation.get(key, "")) for key in keys} | {"by": "the service", "when": when})
    return found


def _by_us(statuses: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The findings of our own rules, with their steps."""
    return [
        {**status, "by": "this command", "when": "" if status["step"] is None else f"step {status['step']}"}
        for status in statuses
    ]
