"""A training job as the service stores and describes it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from sagemaker_launch.aws.combinations import DEFAULT_RUNTIME_SECONDS
from sagemaker_launch.rehearsal.jobs.log import Metrics, Publish, publish_nowhere

Status = Literal["InProgress", "Completed", "Failed", "Stopping", "Stopped"]
ENDED = ("Completed", "Failed", "Stopped")
SPOT_SHARE = 0.3
"""Share of the training time that a spot job is billed here; on AWS the saving follows the market, up to 90 %."""
MESSAGES = {
    "Starting": "Preparing the instances for training",
    "Downloading": "Downloading input data",
    "Training": "Training image download completed. Training in progress.",
    "Interrupted": "Training job interrupted: the spot instance was taken back",
    "Uploading": "Uploading generated training model",
    "Stopping": "Stopping the training job",
    "Completed": "Training job completed",
    "Failed": "Training job failed",
    "Stopped": "Training job stopped",
    "MaxRuntimeExceeded": "Training job runtime exceeded MaxRuntimeInSeconds provided",
    "MaxWaitTimeExceeded": "Training job wait time exceeded MaxWaitTimeInSeconds provided",
    "Restarting": "Restarting the training job after an internal error",
}


def now() -> datetime:
    """The time as AWS gives it, to the millisecond."""
    exact = datetime.now(UTC)
    return exact.replace(microsecond=exact.microsecond // 1000 * 1000)


@dataclass
class Transition:
    """A period in one secondary status."""

    status: str
    start: datetime
    message: str
    end: datetime | None = None


@dataclass
class RuleStatus:
    """State of one of Debugger's rules."""

    name: str
    arn: str
    modified: datetime
    status: str = "InProgress"
    details: str = ""

    def conclude(self, status: str, details: str) -> None:
        """End its evaluation."""
        self.details, self.modified = details[:1024], now()
        self.status = status

    def describe(self) -> dict[str, Any]:
        """An entry of DescribeTrainingJob."""
        shown = {
            "RuleConfigurationName": self.name,
            "RuleEvaluationJobArn": self.arn,
            "RuleEvaluationStatus": self.status,
            "LastModifiedTime": self.modified,
        }
        return shown | ({"StatusDetails": self.details} if self.details else {})


class RuleStatuses:
    """State of all rules of a job."""

    def __init__(self, arn: str, request: Mapping[str, Any]) -> None:
        """Begin to evaluate.

        Args:
            arn: of the training job.
        """
        start = f"{arn.rpartition(':')[0]}:processing-job/{request['TrainingJobName'][:26]}"
        self._of = {
            f"{kind}RuleEvaluationStatuses": [
                RuleStatus(name, f"{start}-{name[:26]}", now())
                for rule in request.get(f"{kind}RuleConfigurations", ())
                for name in [rule["RuleConfigurationName"]]
            ]
            for kind in ("Debug", "Profiler")
        }

    def __iter__(self) -> Iterator[RuleStatus]:
        return (status for statuses in self._of.values() for status in statuses)

    def describe(self) -> dict[str, Any]:
        """The fields of DescribeTrainingJob."""
        return {name: [one.describe() for one in statuses] for name, statuses in self._of.items() if statuses}


class TrainingJob:
    """One training job: its request and its state."""

    def __init__(
        self,
        arn: str,
        request: Mapping[str, Any],
        tuning_job_arn: str | None = None,
        publish: Publish = publish_nowhere,
    ) -> None:
        """Create a job that is starting.

        Args:
            tuning_job_arn: of the tuning job that it belongs to.
            publish: called with each value of a metric.
        """
        self.arn, self.tuning_job_arn = arn, tuning_job_arn
        self.request = {key: value for key, value in request.items() if key != "Tags"}
        self.tags: list[dict[str, str]] = list(request.get("Tags", ()))
        self.name: str = request["TrainingJobName"]
        self.rules = RuleStatuses(arn, request)
        self.metrics = Metrics(request["AlgorithmSpecification"].get("MetricDefinitions", ()), publish)
        self.status: Status = "InProgress"
        self.created = self.modified = now()
        self.started: datetime | None = None
        self.ended: datetime | None = None
        self.training_seconds = 0.0
        """Time with a container, over all restarts of a spot job."""
        self.failure_reason: str | None = None
        self.artifacts: str | None = None
        self.stop_requested = threading.Event()
        self.finished = threading.Event()
        self.interruption: Literal["SIGTERM", "SIGKILL"] | None = None
        """A requested spot interruption, and the signal that the container gets."""
        self._transitions: list[Transition] = []
        self._lock = threading.RLock()
        self._append("Starting")

    @property
    def spot(self) -> bool:
        """Whether the job runs on spot capacity."""
        return bool(self.request.get("EnableManagedSpotTraining"))

    @property
    def instances(self) -> int:
        """Number of instances that it occupies."""
        return int(self.request["ResourceConfig"]["InstanceCount"])

    @property
    def secondary_status(self) -> str:
        """The secondary status."""
        return self._transitions[-1].status

    def enter(self, secondary: str) -> None:
        """Continue with the next secondary status, unless the job is ending."""
        with self._lock:
            if self.status == "InProgress":
                self._append(secondary)

    def request_stop(self) -> None:
        """Note that the job is to stop, if it still runs."""
        with self._lock:
            if self.status != "InProgress":
                return
            self.status = "Stopping"
            self._append("Stopping")
            self.stop_requested.set()

    def finish(self, status: Status, secondary: str, failure_reason: str | None = None) -> None:
        """End the job."""
        with self._lock:
            self._append(secondary)
            self._transitions[-1].end = self.modified
            self.ended = self.modified
            self.failure_reason = failure_reason
            self.status = status
        self.finished.set()

    def warm_pool(self) -> dict[str, Any]:
        """The WarmPoolStatus; empty without one. No later job uses its instances here."""
        keep_alive = self.request["ResourceConfig"].get("KeepAlivePeriodInSeconds", 0)
        if not keep_alive or self.status != "Completed" or self.ended is None:
            return {}
        kept = min(keep_alive, round((now() - self.ended).total_seconds()))
        status = "Available" if kept < keep_alive else "Terminated"
        return {"Status": status, "ResourceRetainedBillableTimeInSeconds": kept}

    def describe(self) -> dict[str, Any]:
        """The answer to DescribeTrainingJob: all fields of the request as they came, and the state."""
        with self._lock:
            return {
                "EnableNetworkIsolation": False,
                "EnableInterContainerTrafficEncryption": False,
                "EnableManagedSpotTraining": False,
                **self.request,
                **described_defaults(self.request),
                **self.rules.describe(),
                **dict(self._state()),
            }

    def summary(self) -> dict[str, Any]:
        """An entry of ListTrainingJobs."""
        with self._lock:
            wanted = (
                *("TrainingJobName", "TrainingJobArn", "CreationTime", "TrainingEndTime", "LastModifiedTime"),
                *("TrainingJobStatus", "SecondaryStatus", "WarmPoolStatus"),
            )
            described = self.describe()
            return {key: described[key] for key in wanted if key in described}

    def _append(self, secondary: str) -> None:
        self.modified = now()
        if self._transitions:
            self._transitions[-1].end = self.modified
        self._transitions.append(Transition(secondary, self.modified, MESSAGES[secondary]))

    def _state(self) -> Iterator[tuple[str, Any]]:
        yield "TrainingJobArn", self.arn
        yield "TrainingJobStatus", self.status
        yield "SecondaryStatus", self.secondary_status
        yield "SecondaryStatusTransitions", [_transition(each) for each in self._transitions]
        yield "CreationTime", self.created
        yield "LastModifiedTime", self.modified
        yield (
            "FinalMetricDataList",
            [
                {"MetricName": name, "Value": point.value, "Timestamp": point.time}
                for name, point in self.metrics.last().items()
            ],
        )
        if self.tuning_job_arn is not None:
            yield "TuningJobArn", self.tuning_job_arn
        if self.failure_reason is not None:
            yield "FailureReason", self.failure_reason
        if self.artifacts is not None:
            yield "ModelArtifacts", {"S3ModelArtifacts": self.artifacts}
        if warm_pool := self.warm_pool():
            yield "WarmPoolStatus", warm_pool
        if self.started is not None:
            yield "TrainingStartTime", self.started
        if self.ended is not None:
            yield "TrainingEndTime", self.ended
            seconds = round(self.training_seconds)
            yield "TrainingTimeInSeconds", seconds
            yield "BillableTimeInSeconds", round(seconds * SPOT_SHARE) if self.spot else seconds


def described_defaults(request: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a job's definition as AWS describes them, with the defaults of what was left out."""
    output = {"KmsKeyId": "", "CompressionType": "GZIP", **request["OutputDataConfig"]}
    channel_defaults = {"CompressionType": "None", "RecordWrapperType": "None"}
    channels = [channel_defaults | channel for channel in request.get("InputDataConfig", ())]
    stopping = {"MaxRuntimeInSeconds": DEFAULT_RUNTIME_SECONDS, **request["StoppingCondition"]}
    fields: dict[str, Any] = {"OutputDataConfig": output, "StoppingCondition": stopping}
    return {**fields, **({"InputDataConfig": channels} if channels else {})}


def _transition(each: Transition) -> dict[str, Any]:
    shown = {"Status": each.status, "StartTime": each.start, "StatusMessage": each.message}
    return shown if each.end is None else {**shown, "EndTime": each.end}
