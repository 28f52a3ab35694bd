"""A tuning job: which training jobs it starts, when it ends them, and how it describes them."""

from __future__ import annotations

import functools
import json
import logging
import math
import statistics
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

from sagemaker_launch.rehearsal.jobs.strategies import Point, Result, Strategy
from sagemaker_launch.rehearsal.jobs.training import ENDED, Status, TrainingJob, described_defaults, now
from sagemaker_launch.rehearsal.rules import with_resource_config

ObjectiveStatus = Literal["Succeeded", "Pending", "Failed"]
OBJECTIVE_HYPERPARAMETER = "_tuning_objective_metric"
"""Static hyperparameter that the service adds, in JSON's quotes; the toolkit knows it."""
OBJECTIVE_METRIC = "ObjectiveMetric"
"""A second name that the service gives to the objective."""
RANGES = ("IntegerParameterRanges", "ContinuousParameterRanges", "CategoricalParameterRanges")
"""Kinds of ranges, each of which a description has; SDK v2 reads all of them."""
PATIENCE = 5
"""Training jobs without a success, or without an objective, after which the service gives up."""
NO_OBJECTIVE = (
    "No objective metrics found after running {}. Please ensure that the custom algorithm is emitting the objective "
    "metric as defined by the regular expression provided."
)
POLL_SECONDS = 0.2

log = logging.getLogger(__name__)


class Launcher(Protocol):
    """What a tuning job needs of the service."""

    def instances_left(self, definition: Mapping[str, Any]) -> int:
        """How many more instances of a job's type the account may use."""

    def start_child(self, request: Mapping[str, Any], tuning_job_arn: str) -> TrainingJob:
        """Start a training job."""


@dataclass
class Child:
    """A training job of a tuning job."""

    job: TrainingJob
    tuned: Point
    epochs: int = 0
    """How many of its objective values the strategy has seen."""
    settled: bool = False
    """Whether its end has been processed."""


@dataclass
class TuningJob:
    """One tuning job: its request and its state."""

    arn: str
    request: Mapping[str, Any]
    tags: list[dict[str, str]]
    status: Status = "InProgress"
    created: datetime = field(default_factory=now)
    modified: datetime = field(default_factory=now)
    ended: datetime | None = None
    failure_reason: str | None = None
    children: list[Child] = field(default_factory=list)
    not_improving: int = 0
    """Number of jobs that ended after the best one."""
    stop_requested: threading.Event = field(default_factory=threading.Event)
    finished: threading.Event = field(default_factory=threading.Event)

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.request["HyperParameterTuningJobName"])

    @property
    def config(self) -> Mapping[str, Any]:
        """HyperParameterTuningJobConfig."""
        config: Mapping[str, Any] = self.request["HyperParameterTuningJobConfig"]
        return config

    @functools.cached_property
    def definition(self) -> dict[str, Any]:
        """TrainingJobDefinition with what the service adds, as public records of descriptions show it (2020, 2025)."""
        definition = with_resource_config(self.request["TrainingJobDefinition"])
        objective = self.config["HyperParameterTuningJobObjective"]["MetricName"]
        algorithm = definition["AlgorithmSpecification"]
        metrics = algorithm.get("MetricDefinitions", [])
        own = [{"Name": OBJECTIVE_METRIC, "Regex": each["Regex"]} for each in metrics if each["Name"] == objective]
        static = {
            **definition.get("StaticHyperParameters", {}),
            OBJECTIVE_HYPERPARAMETER: json.dumps(objective),
        }
        return {
            **definition,
            "AlgorithmSpecification": {**algorithm, "MetricDefinitions": [*metrics, *own]},
            **described_defaults(definition),
            "StaticHyperParameters": static,
        }

    @property
    def maximize(self) -> bool:
        """Whether a larger objective is better."""
        return bool(self.config["HyperParameterTuningJobObjective"]["Type"] == "Maximize")

    def values(self, child: Child) -> list[float]:
        """The objectives that a child reported so far, in order."""
        points = child.job.metrics.points(self.config["HyperParameterTuningJobObjective"]["MetricName"])
        return [point.value for point in points]

    def objective(self, child: Child) -> float | None:
        """The objective of a child that ended well, or was stopped after it had reported one."""
        values = self.values(child)
        return values[-1] if child.job.status in ("Completed", "Stopped") and values else None

    def objective_status(self, child: Child) -> ObjectiveStatus:
        """Whether the objective of a child is known."""
        if child.job.status not in ENDED:
            return "Pending"
        return "Failed" if self.objective(child) is None else "Succeeded"

    def best(self) -> Child | None:
        """The child with the best objective; the first of equals."""
        known = [(value, child) for child in self.children if (value := self.objective(child)) is not None]
        best = (max if self.maximize else min)(known, key=lambda pair: pair[0], default=None)
        return None if best is None else best[1]

    def results(self) -> list[Result]:
        """Results for the warm start of another tuning job."""
        known = ((child.tuned, self.objective(child)) for child in self.children)
        return [Result(tuned, value) for tuned, value in known if value is not None]

    def request_stop(self) -> None:
        """Note that the job is to stop, if it still runs."""
        if self.status == "InProgress":
            self.status, self.modified = "Stopping", now()
            self.stop_requested.set()

    def finish(self, status: Status, failure_reason: str | None = None) -> None:
        """End the job."""
        self.ended = self.modified = now()
        self.failure_reason = failure_reason
        self.status = status
        self.finished.set()

    def describe(self) -> dict[str, Any]:
        """The answer to DescribeHyperParameterTuningJob."""
        end = self.ended or now()
        ranges = {**{kind: [] for kind in RANGES}, **self.config.get("ParameterRanges", {})}
        answer = {
            **{key: value for key, value in self.request.items() if key != "Tags"},
            "HyperParameterTuningJobConfig": {
                "TrainingJobEarlyStoppingType": "Off",
                **self.config,
                "ParameterRanges": ranges,
            },
            "TrainingJobDefinition": self.definition,
            **self.summary(),
            "TuningJobCompletionDetails": {"NumberOfTrainingJobsObjectiveNotImproving": self.not_improving},
            "ConsumedResources": {"RuntimeInSeconds": round((end - self.created).total_seconds())},
        }
        if (best := self.best()) is not None:
            answer["BestTrainingJob"] = self.child_summary(best)
        if self.failure_reason is not None:
            answer["FailureReason"] = self.failure_reason
        return answer

    def summary(self) -> dict[str, Any]:
        """An entry of ListHyperParameterTuningJobs."""
        jobs, objectives = _counters(self)
        shown: dict[str, Any] = {
            "HyperParameterTuningJobName": self.name,
            "HyperParameterTuningJobArn": self.arn,
            "HyperParameterTuningJobStatus": self.status,
            "Strategy": self.config["Strategy"],
            "CreationTime": self.created,
            "LastModifiedTime": self.modified,
            "TrainingJobStatusCounters": jobs,
            "ObjectiveStatusCounters": objectives,
            "ResourceLimits": self.config["ResourceLimits"],
        }
        return shown if self.ended is None else {**shown, "HyperParameterTuningEndTime": self.ended}

    def child_summary(self, child: Child) -> dict[str, Any]:
        """An entry of ListTrainingJobsForHyperParameterTuningJob."""
        described = child.job.describe()
        wanted = (
            *("TrainingJobName", "TrainingJobArn", "CreationTime", "TrainingStartTime", "TrainingEndTime"),
            *("TrainingJobStatus", "FailureReason"),
        )
        shown = {key: described[key] for key in wanted if key in described}
        shown |= {"TunedHyperParameters": child.tuned, "ObjectiveStatus": self.objective_status(child)}
        if "DefinitionName" in self.definition:
            shown["TrainingJobDefinitionName"] = self.definition["DefinitionName"]
        value = self.objective(child)
        if value is not None:
            objective = self.config["HyperParameterTuningJobObjective"]
            shown["FinalHyperParameterTuningJobObjectiveMetric"] = {**objective, "Value": value}
        elif child.job.status == "Completed":
            shown["FailureReason"] = NO_OBJECTIVE.format("this training job")
        return shown


def _counters(tuning: TuningJob) -> tuple[dict[str, int], dict[str, int]]:
    statuses = [child.job.status for child in tuning.children]
    objectives = [tuning.objective_status(child) for child in tuning.children]
    jobs = {
        "Completed": statuses.count("Completed"),
        "InProgress": statuses.count("InProgress") + statuses.count("Stopping"),
        "RetryableError": 0,
        "NonRetryableError": statuses.count("Failed"),
        "Stopped": statuses.count("Stopped"),
    }
    return jobs, {status: objectives.count(status) for status in ("Succeeded", "Pending", "Failed")}


def falls_behind(values: Sequence[float], earlier: Sequence[Sequence[float]], maximize: bool) -> bool:
    """Whether early stopping ends a job after these objectives.

    Args:
        values: of the running job, one per epoch.
        earlier: those of the jobs that ended before.

    Source: AWS documentation, "Stop Training Jobs Early", 2025: the last value is worse than the median of the running
    averages of the earlier jobs up to the same epoch.
    """
    epoch = len(values)
    comparable = [each[:epoch] for each in earlier if len(each) >= epoch > 0]
    if not comparable:
        return False
    averages = [statistics.fmean(each) for each in comparable]
    median = statistics.median(averages)
    return values[-1] < median if maximize else values[-1] > median


class TuningRunner(threading.Thread):
    """Runs one tuning job."""

    def __init__(self, job: TuningJob, strategy: Strategy, launcher: Launcher, shutdown: threading.Event) -> None:
        super().__init__(name=f"tuning job {job.name}")
        self._job, self._strategy, self._launcher, self._shutdown = job, strategy, launcher, shutdown
        self._limits = job.config["ResourceLimits"]
        self._began = time.monotonic()
        self._exhausted = False

    def run(self) -> None:
        """Run the job to its end."""
        job = self._job
        try:
            job.finish(*self._run())
        except Exception:
            log.exception("tuning job %s: internal error", job.name)
            self._stop_children()
            job.finish("Failed", "InternalServerError: We encountered an internal error. Please try again.")
        log.info("tuning job %s: %s%s", job.name, job.status, f" ({job.failure_reason})" if job.failure_reason else "")

    def _run(self) -> tuple[Status, str | None]:
        while True:
            self._settle()
            ending = self._ending()
            if ending is not None:
                self._stop_children()
                self._settle()
                return ending
            self._stop_early()
            self._start_children()
            time.sleep(POLL_SECONDS)

    @property
    def _running(self) -> list[Child]:
        return [child for child in self._job.children if child.job.status not in ENDED]

    def _settle(self) -> None:
        """Process the children that have ended."""
        job = self._job
        for child in job.children:
            if child.job.status not in ENDED or child.settled:
                continue
            self._report(child)
            child.settled = True
            job.modified = now()
            self._strategy.tell(child.job.name, job.objective(child))
            job.not_improving = 0 if job.best() is child else job.not_improving + 1

    def _report(self, child: Child) -> bool:
        """Report the new values of a child to the strategy; return whether it ends the child."""
        hopeless = False
        for value in self._job.values(child)[child.epochs :]:
            child.epochs += 1
            hopeless = self._strategy.report(child.job.name, child.epochs, value) or hopeless
        return hopeless

    def _ending(self) -> tuple[Status, str | None] | None:
        """How the tuning job ends now, or None if it continues."""
        job = self._job
        if self._shutdown.is_set() or job.stop_requested.is_set():
            return "Stopped", None
        if time.monotonic() - self._began > self._limits.get("MaxRuntimeInSeconds", math.inf):
            return "Stopped", None
        if self._criterion_met():
            return "Completed", None
        ended = [child for child in job.children if child.settled]
        last = not self._running and (self._exhausted or len(job.children) == self._limits.get(_MAX_JOBS))
        if len(ended) >= PATIENCE and all(child.job.status == "Failed" for child in ended):
            return "Failed", (
                f"No training job succeeded after {PATIENCE} attempts. Please take a look at the training job failures "
                "to get more details."
            )
        if last and all(child.job.status == "Failed" for child in ended):
            return "Failed", (
                "All training jobs failed. Please take a look at the training jobs failures to get more details."
            )
        if (len(ended) >= PATIENCE or last) and all(job.objective_status(child) == "Failed" for child in ended):
            return "Failed", NO_OBJECTIVE.format(f"{len(ended)} training jobs")
        return ("Completed", None) if last else None

    def _criterion_met(self) -> bool:
        job, criteria = self._job, self._job.config.get("TuningJobCompletionCriteria", {})
        best = job.best()
        if best is None:
            return False
        value, target = job.objective(best), criteria.get("TargetObjectiveMetricValue")
        assert value is not None
        if target is not None and (value >= target if job.maximize else value <= target):
            return True
        patience = criteria.get("BestObjectiveNotImproving", {}).get("MaxNumberOfTrainingJobsNotImproving")
        return patience is not None and job.not_improving >= patience

    def _stop_early(self) -> None:
        job = self._job
        earlier = [job.values(child) for child in job.children if child.job.status == "Completed"]
        auto = job.config.get("TrainingJobEarlyStoppingType", "Off") == "Auto"
        for child in self._running:
            seen = child.epochs
            hopeless = self._report(child)
            if auto and child.epochs > seen:
                hopeless = falls_behind(job.values(child), earlier, job.maximize) or hopeless
            if hopeless:
                log.info("tuning job %s: stops %s early", job.name, child.job.name)
                child.job.request_stop()

    def _start_children(self) -> None:
        job, instances = self._job, int(self._job.definition["ResourceConfig"]["InstanceCount"])
        room = min(
            self._limits["MaxParallelTrainingJobs"] - len(self._running),
            self._limits.get(_MAX_JOBS, math.inf) - len(job.children),
        )
        while room > 0 and not self._exhausted and self._launcher.instances_left(job.definition) >= instances:
            room -= 1
            name = f"{job.name}-{len(job.children) + 1:03d}-{uuid.uuid4().hex[:8]}"
            tuned = self._strategy.ask(name)
            if tuned is None:
                self._exhausted = True
                return
            request = {"TrainingJobName": name, **dict(child_request(job.definition, tuned)), "Tags": list(job.tags)}
            job.children.append(Child(self._launcher.start_child(request, job.arn), tuned))
            job.modified = now()

    def _stop_children(self) -> None:
        for child in self._running:
            child.job.request_stop()
        for child in self._job.children:
            child.job.finished.wait()


_MAX_JOBS = "MaxNumberOfTrainingJobs"
NO_FIELDS_OF_A_JOB = (
    *("StaticHyperParameters", "DefinitionName", "TuningObjective", "HyperParameterRanges"),
    "HyperParameterTuningResourceConfig",
)
"""Fields of a TrainingJobDefinition that CreateTrainingJob does not have, or has under another name."""


def child_request(definition: Mapping[str, Any], tuned: Point) -> Iterator[tuple[str, Any]]:
    """The fields of a child's CreateTrainingJob, from the tuning job's definition and a point."""
    yield "HyperParameters", {**definition["StaticHyperParameters"], **tuned}
    for key, value in definition.items():
        if key == "ResourceConfig":
            # Warm pools do not work in tuning jobs: the service takes the field and drops it.
            yield key, {name: each for name, each in value.items() if name != "KeepAlivePeriodInSeconds"}
        elif key not in NO_FIELDS_OF_A_JOB:
            yield key, value
