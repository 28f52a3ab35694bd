"""`live-check`: the whole path on a real account, and how AWS's answers differ from those of a rehearsal.

The report has no account number, ARN, host or key, so it can be attached to a bug report; its shapes can replace
`aws/expected_shapes.json`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from experiments.console import invocation, say
from experiments.errors import CommandError
from lightning_modules.files import replaced_whole
from sagemaker_launch.aws.image_uris import read_image_uri
from sagemaker_launch.aws.recording import FOLDER, Shapes, read_shapes
from sagemaker_launch.aws.response_shapes import Shape
from sagemaker_launch.aws.running import ending_signals_raise
from sagemaker_launch.aws.shape_differences import differences, unknown_operations
from sagemaker_launch.settings.cloud import CloudSettings
from sagemaker_launch.stages import Stages

EXPECTED = Path(__file__).parent / "aws" / "expected_shapes.json"
"""Shapes of a rehearsal's answers, as a report has them."""
ENDPOINT = "live-check"
FORMAT = 1
SHARES: Mapping[str, tuple[str, float]] = {
    "tune": ("budget_usd", 0.5),
    "train": ("budget_usd", 0.25),
    "deploy": ("endpoint.budget_usd_per_hour", 0.25),
}
"""The limit of each command that costs money: a field of the settings, and its share of the budget.

An endpoint runs for minutes, an update doubles its machines, and its lease ends after an hour.
"""
SMALL = {
    "instance_type": "ml.m5.large",
    "instance_count": "1",
    "max_parallel_jobs": "1",
    "max_runtime_seconds": "1800",
    "keep_alive_seconds": "0",
    "endpoint.kind": "realtime",
    "endpoint.instance_type": "ml.m5.large",
    "endpoint.min_instances": "1",
    "endpoint.max_instances": "1",
    "endpoint.rollout": "all_at_once",
    "endpoint.rollout_wait_seconds": "0",
}
"""Settings in place of those of a preset: the smallest machines whose prices are known, and little waiting."""
NO_IMAGE = {"image_uri": "null"}
"""Where a preset names an image for GPUs: AWS's newest image for the small machine is looked up."""
SHORT = {"sweep.n_trials": "2"}
"""Fields of the config in place of those of a preset."""
REVEALING = re.compile(r"\d{12}|arn:|AKIA|ASIA|https?:|amazonaws", re.IGNORECASE)
"""What no report may hold."""


class LiveCheckError(CommandError):
    """A stage failed, or something could not be removed."""


def small(settings: CloudSettings) -> dict[str, str]:
    """Settings in place of those of a preset."""
    image = read_image_uri(settings.image_uri or "")
    return SMALL | (NO_IMAGE if image is not None and image.device == "cuda" else {})


def live_check(
    folder: Path,
    arguments_of: Callable[[str], Sequence[str]],
    budget_usd: float,
    secrets: Mapping[str, str],
) -> Path:
    """Run the stages, remove what they made, and write the report.

    Args:
        folder: of the report; a stage's results are beside it.
        arguments_of: presets and fields of a command, without passwords and budgets.
        secrets: further environment of the commands, which has the passwords.

    Returns:
        The report.

    Raises:
        LiveCheckError: if a stage failed, or something may still run.
    """
    shapes = folder / "shapes"
    shutil.rmtree(shapes, ignore_errors=True)
    shapes.mkdir(parents=True)

    def with_limit(command: str) -> list[str]:
        if command not in SHARES:
            return list(arguments_of(command))
        field, share = SHARES[command]
        return [*arguments_of(command), f"--cloud.{field}={budget_usd * share:g}"]

    stages = Stages({**os.environ, **secrets, FOLDER: str(shapes)}, with_limit, ENDPOINT)
    with ending_signals_raise():
        try:
            stages.run(folder.parent, "--ttl", "1h")
        finally:
            left = clean_up(stages)
    print(stages.verdicts())
    found = report_of(stages, read_shapes(shapes))
    report = folder / "report.json"
    with replaced_whole(report) as part:
        part.write_text(json.dumps(found, indent=1))
    for line in found["differences"]:
        print(line)
    say(f"the report, which can be attached to a bug report: {report}")
    if left:
        raise LiveCheckError(f"these may still run and cost money, and could not be removed: {'; '.join(left)}")
    if not stages.passed:
        raise LiveCheckError("a stage failed: see above")
    return report


def clean_up(stages: Stages) -> list[str]:
    """Stop the jobs that still run and delete the endpoint.

    Returns:
        The commands that failed, which a person has to run.
    """
    left = []
    for words in [["stop", job] for job in stages.jobs] + ([["delete", ENDPOINT]] if stages.has_deployed else []):
        if not stages.succeeds(*words):
            left.append(invocation("sagemaker_launch", *words, *stages.arguments_of(words[0])))
            say(f"it may still run and cost money: {left[-1]}")  # now, whatever follows
    return left


def report_of(stages: Stages, found: Shapes) -> dict[str, Any]:
    """The report: versions, verdicts, differences, and the shapes of all answers.

    Raises:
        LiveCheckError: if it would hold what is secret.
    """
    expected = read_expected()
    report = {
        "format": FORMAT,
        "made": datetime.now(UTC).date().isoformat(),
        "versions": {name: metadata.version(name) for name in ("local-first-experiments", "boto3", "botocore")},
        "stages": {stage.label: "passed" if stage.passed else "failed" for stage in stages.done},
        "differences": [one.line() for one in differences(expected, found)],
        "unknown_operations": unknown_operations(expected, found),
        "shapes": to_json(found),
    }
    if revealing := REVEALING.search(json.dumps(report)):
        raise LiveCheckError(f"the report would hold {revealing[0][:4]}…, so it was not written: report this")
    return report


def to_json(shapes: Shapes) -> dict[str, dict[str, Any]]:
    """Shapes as a report has them."""
    return {
        operation: {state: shape.to_json() for state, shape in sorted(states.items())}
        for operation, states in sorted(shapes.items())
    }


def read_expected(report: Path = EXPECTED) -> Shapes:
    """The shapes in a report."""
    found = json.loads(report.read_text(encoding="utf-8"))
    if found["format"] != FORMAT:
        raise LiveCheckError(f"{report} must have format {FORMAT}, got {found['format']}")
    return {
        operation: {state: Shape.from_json(shape) for state, shape in states.items()}
        for operation, states in found["shapes"].items()
    }
