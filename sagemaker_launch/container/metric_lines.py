"""The lines in which a job reports: their format, the regexes that the service finds metrics by, and their parser.

    [metrics] epoch=3 val_loss=0.62 best_val_loss=0.6 best_val_accuracy=0.72 highest_val_accuracy=0.73 end
    [outcome] epoch=5 best_val_loss=0.6 best_val_accuracy=0.72 highest_val_accuracy=0.73 val_loss=0.6 test_loss=0.64 end
    [facts] {"data.fingerprint": "..."}
    [environment] {"package.torch": "..."}

A value has a space on either side, so `val_loss` is not found within `best_val_loss`; and a line that the toolkit's
relay cuts in two has no number at all, instead of the first half of one.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from lightning_modules import metrics

Kind = Literal["metrics", "outcome", "facts", "environment"]
NUMBER = r"[-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?"
_LINE = re.compile(rf"\[(metrics|outcome)\] epoch=(\d+)((?: \w+={NUMBER})+) end$")
_FACTS = re.compile(r"\[(facts|environment)\] (\{.*\})$")
REPORTED = (
    metrics.TRAIN_LOSS,
    metrics.TRAIN_ACCURACY,
    metrics.VAL_LOSS,
    metrics.VAL_ACCURACY,
    metrics.VAL_TOP5_ACCURACY,
    metrics.TEST_LOSS,
    metrics.TEST_ACCURACY,
    metrics.TEST_TOP5_ACCURACY,
    metrics.LEARNING_RATE,
    metrics.EPOCH_SECONDS,
    metrics.IMAGES_PER_SECOND,
    *metrics.SUMMARY,
)
"""What the service keeps of a job. It takes a last value: the objectives are those of the best epoch so far."""


@dataclass(frozen=True)
class ReportedLine:
    """One line of a job's log about the run."""

    kind: Kind
    epoch: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    """Of the kind `facts` what becomes params of the run, of the kind `environment` what becomes its tags."""


def objective(metric: str) -> str:
    """The name under which a job reports what a sweep optimises."""
    return f"{metrics.BEST}{metric}"


def metric_definitions() -> list[dict[str, str]]:
    """MetricDefinitions of a request: every metric with the regex that finds it."""
    return [{"Name": name, "Regex": f" {name}=({NUMBER}) "} for name in REPORTED]


def metric_line(kind: Literal["metrics", "outcome"], epoch: int, values: Mapping[str, float]) -> str:
    """One epoch, or the end, as a line; values keep all their digits."""
    pairs = " ".join(f"{name}={float(value)!r}" for name, value in values.items())
    return f"[{kind}] epoch={epoch} {pairs} end"


def facts_line(facts: Mapping[str, object]) -> str:
    """Facts of the run that are known once it has started."""
    return f"[facts] {json.dumps({name: str(value) for name, value in facts.items()})}"


def environment_line(tags: Mapping[str, str]) -> str:
    """Where the run is made."""
    return f"[environment] {json.dumps(dict(tags))}"


def write_line(line: str) -> None:
    """Print in a single write: the toolkit relays what it reads, and would put lines of two processes into one."""
    sys.stdout.flush()
    os.write(sys.stdout.fileno(), f"{line}\n".encode())


def parse_lines(lines: Iterable[str]) -> list[ReportedLine]:
    """All reports of a log, in order; a cut line is skipped."""
    return [parsed for line in lines if (parsed := _parse(line.strip())) is not None]


def _parse(line: str) -> ReportedLine | None:
    if match := _LINE.search(line):
        pairs = (pair.split("=") for pair in match[3].split())
        kind: Kind = "metrics" if match[1] == "metrics" else "outcome"
        return ReportedLine(kind, int(match[2]), {name: float(value) for name, value in pairs})
    if match := _FACTS.search(line):
        try:
            return ReportedLine("facts" if match[1] == "facts" else "environment", facts=json.loads(match[2]))
        except ValueError:
            return None
    return None
