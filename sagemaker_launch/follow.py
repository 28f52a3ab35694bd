"""Watching a job until it ends. Nothing of the job depends on it: Ctrl-C leaves the job running."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from experiments.console import say
from sagemaker_launch.jobs import ENDED, children, seconds
from sagemaker_launch.launch import TRAINING, Launched
from sagemaker_launch.logs import JobLog

POLL_SECONDS = 10.0
"""How often AWS is asked; a rehearsal asks more often."""


class JobFailedError(RuntimeError):
    """The job failed; the message is AWS's reason."""


def follow(sagemaker: Any, logs: Any, job: Launched, usd_per_hour: float, *, poll_seconds: float) -> str:
    """Say what a job does until it has ended.

    Args:
        usd_per_hour: of all machines of one training job together.

    Returns:
        Its last status: Completed or Stopped.

    Raises:
        JobFailedError: if it failed.
    """
    log, quiet, said = JobLog(logs, job.name), WithoutEnvironment(), ""
    while True:
        described = job.kind.describe(sagemaker, job.name)
        status = str(described[job.kind.status])
        if job.kind is TRAINING:
            text = f"{status} ({described.get('SecondaryStatus', '')})"
            spent = seconds(described)
            for text in quiet.lines(line.text for line in log.read()):
                say(f"  {text}")
        else:
            summaries = children(sagemaker, job.name)
            spent = sum(seconds(summary) for summary in summaries)
            text = f"{status}, {_tuning_state(described)}"
        if text != said:
            said = text
            say(f"{job.name}: {text}, ${spent / 3600 * usd_per_hour:.2f} so far")
        if status == "Failed":
            raise JobFailedError(f"{job.name} failed: {described.get('FailureReason', 'AWS gives no reason')}")
        if status in ENDED:
            return status
        time.sleep(poll_seconds)


class WithoutEnvironment:
    """Leaves out the hundred lines in which AWS's toolkit lists the environment of a job."""

    def __init__(self) -> None:
        self._listing = False

    def lines(self, texts: Iterable[str]) -> Iterator[str]:
        """What is left of the next lines of a log."""
        for text in texts:
            self._listing = self._listing or text.startswith("Training Env:") or "Invoking user script" in text
            if not self._listing and text.strip():
                yield text
            if text.startswith("Invoking script with the following command"):
                self._listing = False


def _tuning_state(described: dict[str, Any]) -> str:
    counters = described["TrainingJobStatusCounters"]
    of = described["HyperParameterTuningJobConfig"]["ResourceLimits"]["MaxNumberOfTrainingJobs"]
    failed = counters.get("RetryableError", 0) + counters.get("NonRetryableError", 0)
    text = f"{counters.get('Completed', 0)}/{of} done, {counters.get('InProgress', 0)} running, {failed} failed"
    metric = described.get("BestTrainingJob", {}).get("FinalHyperParameterTuningJobObjectiveMetric")
    return f"{text}, {metric['MetricName']} {metric['Value']:.4f}" if metric else text
