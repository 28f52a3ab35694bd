"""The lines in which a job reports metrics: their format, the regexes of the service, and their parser.

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

Topic = Literal["metrics", "outcome", "facts", "environment"]
NUMBER = r"[-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?"
_LINE = re.compile(r"\[(metrics|outcome)\] epoch=(\d+)((?: \w+=\S+)+) end$")
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
"""Metrics that the service records. It uses the last value, so the objectives are those of the best epoch so far."""


@dataclass(frozen=True)
class ReportedLine:
    """One line of a job's log about the run."""

    topic: Topic
    epoch: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    """Params of the run (topic `facts`), or its tags (topic `environment`)."""


def objective(metric: str) -> str:
    """The name under which a job reports what a sweep optimises."""
    return f"{metrics.BEST}{metric}"


def metric_definitions() -> list[dict[str, str]]:
    """MetricDefinitions of a request: every metric with the regex that finds it."""
    return [{"Name": name, "Regex": f" {name}=({NUMBER}) "} for name in REPORTED]


def metric_line(topic: Literal["metrics", "outcome"], epoch: int, values: Mapping[str, float]) -> str:
    """One epoch, or the end, as a line; values keep all their digits."""
    pairs = " ".join(f"{name}={float(value)!r}" for name, value in values.items())
    return f"[{topic}] epoch={epoch} {pairs} end"


def facts_line(facts: Mapping[str, object]) -> str:
    """A line with facts that are known once the run has started."""
    return f"[facts] {json.dumps({name: str(value) for name, value in facts.items()})}"


def environment_line(tags: Mapping[str, str]) -> str:
    """The environment of the run: packages and hardware."""
    return f"[environment] {json.dumps(dict(tags))}"


def write_line(line: str) -> None:
    """Print a line in a single write, as the toolkit would mix the partial lines of two processes."""
    sys.stdout.flush()
    os.write(sys.stdout.fileno(), f"{line}\n".encode())


def parse_lines(lines: Iterable[str]) -> list[ReportedLine]:
    """All reports of a log, in order; a cut line is skipped."""
    return [parsed for line in lines if (parsed := _parse(line.strip())) is not None]


def _parse(line: str) -> ReportedLine | None:
    if match := _LINE.search(line):
        pairs = (pair.split("=") for pair in match[3].split())
        topic: Topic = "metrics" if match[1] == "metrics" else "outcome"
        # A metric that is no number, such as nan, is left out; the others of its epoch count.
        values = {name: float(value) for name, value in pairs if re.fullmatch(NUMBER, value)}
        return ReportedLine(topic, int(match[2]), values)
    if match := _FACTS.search(line):
        try:
            return ReportedLine("facts" if match[1] == "facts" else "environment", facts=json.loads(match[2]))
        except ValueError:
            return None
    return None
