"""Watch a job until it ends. The job does not depend on it: after Ctrl-C the job keeps running."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from experiments.console import say
from experiments.errors import EXIT_TIME_LIMIT, CommandError
from experiments.runs.intervals import metric_text, selection_text
from lightning_modules import metrics
from sagemaker_launch.aws import client as aws
from sagemaker_launch.aws.logs import LOG_GROUP, NewEvents, failure_reason, has_no_reason, job_log
from sagemaker_launch.aws.resources import TRAINING
from sagemaker_launch.aws.retries import WHILE_RUNNING_SECONDS
from sagemaker_launch.container.hyperparameters import decode
from sagemaker_launch.container.metric_lines import ReportedLine, parse_lines
from sagemaker_launch.jobs.found import ENDED, TIME_LIMITS, children, seconds
from sagemaker_launch.jobs.launch import Launched
from sagemaker_launch.settings.cloud import CloudSettings

SHOWN = {
    "metrics": (metrics.VAL_LOSS, metrics.VAL_ACCURACY),
    "outcome": (*metrics.SUMMARY, metrics.TEST_LOSS, metrics.TEST_ACCURACY),
}
REPORTED = ("[metrics]", "[facts]")
"""Beginnings of the lines of a log that are shown of a tuning job's training jobs."""
REPORTS = " ".join(f'?"{beginning}"' for beginning in REPORTED)
"""The same as a filter of CloudWatch: one of these terms."""
POLL_SECONDS = 10.0
"""Seconds between two requests to AWS; shorter for a rehearsal."""


class JobFailedError(CommandError):
    """The job failed; the message is AWS's reason."""


class TimeLimitError(CommandError):
    """AWS stopped the job at its time limit; the message says what it has reached."""

    exit_code = EXIT_TIME_LIMIT


def watch_job(settings: CloudSettings, job: Launched, usd_per_hour: float) -> str:
    """`follow` a job of this account or of a rehearsal."""
    sagemaker = aws.client("sagemaker", settings, patience_seconds=WHILE_RUNNING_SECONDS)
    logs = aws.client("logs", settings, patience_seconds=WHILE_RUNNING_SECONDS)
    poll = 1.0 if aws.is_rehearsal(sagemaker) else POLL_SECONDS
    return follow(sagemaker, logs, job, usd_per_hour, poll_seconds=poll)


def follow(sagemaker: Any, logs: Any, job: Launched, usd_per_hour: float, *, poll_seconds: float) -> str:
    """Print the progress of a job until it has ended.

    Args:
        usd_per_hour: of all machines of one training job together.

    Returns:
        Its last status: Completed or Stopped.

    Raises:
        JobFailedError: if it failed.
        TimeLimitError: if AWS stopped it at a time limit.
    """
    log, own, tails, reported_state = job_log(logs, job.name), OwnLines(), Tails(logs, job.name), ""
    while True:
        described = job.job_type.describe(sagemaker, job.name)
        status = str(described[job.job_type.status])
        if job.job_type is TRAINING:
            state = f"{status} ({described.get('SecondaryStatus', '')})"
            spent = seconds(described)
            for text in own.lines(line.text for line in log.read()):
                say(f"  {text}")
        else:
            summaries = children(sagemaker, job.name)
            spent = sum(seconds(summary) for summary in summaries)
            for text in tails.lines(summaries):
                say(f"  {text}")
            state = f"{status}, {_tuning_state(described)}"
        if state != reported_state:
            reported_state = state
            say(f"{job.name}: {state}, ${spent / 3600 * usd_per_hour:.2f} so far")
        if status == "Failed":
            raise JobFailedError(f"{job.name} failed: {failure_reason(described, log.last_lines)}")
        if status in ENDED and described.get("SecondaryStatus") in TIME_LIMITS:
            raise _time_is_up(described, own.reached)
        if status in ENDED:
            return status
        time.sleep(poll_seconds)


class OwnLines:
    """Removes the hundred lines that AWS's toolkit prints around a script, unless they report an error.

    The script's reports for `sync` are printed in words.
    """

    def __init__(self) -> None:
        self._running = False
        self._facts: dict[str, str] = {}
        self.reached: ReportedLine | None = None
        """The last epoch that was reported."""

    def lines(self, texts: Iterable[str]) -> Iterator[str]:
        """The next lines of a log, without the toolkit's."""
        for text in texts:
            # The command line repeats all hyperparameters.
            toolkit = "sagemaker-training-toolkit" in text or text.startswith("SM_") or " entry.py --" in text
            for report in parse_lines([text]):
                if report.topic == "metrics":
                    self.reached = report
            if "error" in text.lower() or (self._running and text.strip() and not toolkit):
                yield from _readable(text, self._facts)
            self._running = (self._running or "Invoking script" in text) and "Reporting training" not in text


class Tails:
    """The reports of the training jobs of a tuning job."""

    def __init__(self, logs: Any, tuning_job: str) -> None:
        self._logs = logs
        self._events = NewEvents(logs, LOG_GROUP, f"{tuning_job}-", REPORTS)
        self._facts: dict[str, dict[str, str]] = {}
        self._failed: set[str] = set()

    def lines(self, summaries: Iterable[Mapping[str, Any]]) -> Iterator[str]:
        """The epochs since the last call, and the reasons of new failures."""
        for stream, line in self._events.read():
            name = stream.partition("/")[0]
            if line.startswith(REPORTED):
                facts = self._facts.setdefault(name, {})
                yield from (f"{name}: {text}" for text in _readable(line, facts))
        for summary in summaries:
            name = summary["TrainingJobName"]
            if summary["TrainingJobStatus"] == "Failed" and name not in self._failed:
                self._failed.add(name)
                yield f"{name} failed: {failure_reason(summary, self._last_lines(name, summary))}"

    def _last_lines(self, name: str, summary: Mapping[str, Any]) -> list[str]:
        """The end of a job's log, where AWS's reason is empty."""
        if not has_no_reason(summary):
            return []
        log = job_log(self._logs, name)
        log.read()
        return log.last_lines


def _readable(line: str, facts: dict[str, str]) -> Iterator[str]:
    """A line of a log for a person; of a report its losses and accuracies only.

    Args:
        facts: facts that the job has reported so far; is updated by this line.
    """
    report = next(iter(parse_lines([line])), None)
    if report is None:
        yield line
    elif report.topic in {"metrics", "outcome"}:
        shown = [(name, value) for name, value in report.metrics.items() if name in SHOWN[report.topic]]
        values = (metric_text(name, value, facts) for name, value in shown)
        yield f"{f'epoch {report.epoch}' if report.topic == 'metrics' else 'ended'}: {' '.join(values)}"
    elif report.topic == "facts":
        facts |= report.facts


def _time_is_up(described: Mapping[str, Any], reached: ReportedLine | None) -> TimeLimitError:
    """The error of a job that AWS has stopped at a time limit: what it has reached, and the next step."""
    setting, limit = TIME_LIMITS[described["SecondaryStatus"]]
    stopped = f"{described[TRAINING.name]} was stopped at {setting} ({described['StoppingCondition'][limit]} s)"
    if reached is None:
        return TimeLimitError(f"{stopped} before its first epoch was finished: raise {setting}")
    of = decode(described["HyperParameters"]).get("trainer.max_epochs", "?")
    best = ", ".join(f"{name} {reached.metrics[name]:.4f}" for name in metrics.SUMMARY if name in reached.metrics)
    next_step = "the same command continues after its last checkpoint, as another attempt"
    if "CheckpointConfig" not in described:
        next_step = f"its weights are lost, as cloud.checkpoints is false; raise {setting}"
    return TimeLimitError(f"{stopped} after epoch {reached.epoch} of {of} ({best}): {next_step}")


def _tuning_state(described: dict[str, Any]) -> str:
    counters = described["TrainingJobStatusCounters"]
    of = described["HyperParameterTuningJobConfig"]["ResourceLimits"]["MaxNumberOfTrainingJobs"]
    failed = counters.get("RetryableError", 0) + counters.get("NonRetryableError", 0)
    text = f"{counters.get('Completed', 0)}/{of} done, {counters.get('InProgress', 0)} running, {failed} failed"
    metric = described.get("BestTrainingJob", {}).get("FinalHyperParameterTuningJobObjectiveMetric")
    if not metric:
        return text
    chosen = selection_text(counters.get("Completed", 0), "job", {})
    return f"{text}, {metric['MetricName']} {metric['Value']:.4f}, {chosen}"
