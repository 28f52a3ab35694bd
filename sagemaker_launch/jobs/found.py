"""Find jobs in AWS, and read their descriptions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from experiments.config import require
from experiments.errors import UserError
from sagemaker_launch.aws.resources import TRAINING, TUNING, ResourceType, tags_of
from sagemaker_launch.settings.cloud import PROJECT_TAG, CloudSettings

ENDED = ("Completed", "Failed", "Stopped")


@dataclass(frozen=True)
class FoundJob:
    """A job that exists in AWS."""

    job_type: ResourceType
    name: str
    described: Mapping[str, Any]

    @property
    def status(self) -> str:
        """InProgress, Completed, Failed, Stopping or Stopped."""
        return str(self.described[self.job_type.status])


def find_job(client: Any, name: str) -> FoundJob:
    """The tuning job or training job with a name.

    Raises:
        UserError: if there is neither.
    """
    for job_type in (TUNING, TRAINING):
        described = job_type.find(client, name)
        if described is not None:
            return FoundJob(job_type, name, described)
    raise UserError(f"{name!r} must be a tuning job or a training job of this account and region, found neither")


def children(client: Any, tuning_job: str) -> list[Mapping[str, Any]]:
    """Summaries of a tuning job's training jobs, in the order in which they were created."""
    pages = client.get_paginator("list_training_jobs_for_hyper_parameter_tuning_job").paginate(
        HyperParameterTuningJobName=tuning_job, SortBy="CreationTime", SortOrder="Ascending"
    )
    return [summary for page in pages for summary in page["TrainingJobSummaries"]]


def best_training_job(client: Any, tuning_job: str) -> Mapping[str, Any]:
    """AWS's description of the best training job of a tuning job.

    Raises:
        UserError: if it has none yet.
    """
    job = find_job(client, tuning_job)
    best = job.described.get("BestTrainingJob")
    state = job.described.get("FailureReason") or job.status
    require(best is not None, tuning_job, "have a training job with an objective", state)
    assert best is not None
    return TRAINING.describe(client, best["TrainingJobName"])


def project_jobs(client: Any, settings: CloudSettings, status: str | None = None) -> Iterator[FoundJob]:
    """The tuning jobs and single training jobs that this project has made, newest first."""
    only = {"StatusEquals": status} if status else {}
    tuning_jobs: set[str] = set()
    for job_type, operation, key in (
        (TUNING, "list_hyper_parameter_tuning_jobs", "HyperParameterTuningJobSummaries"),
        (TRAINING, "list_training_jobs", "TrainingJobSummaries"),
    ):
        pages = client.get_paginator(operation).paginate(SortBy="CreationTime", SortOrder="Descending", **only)
        for summary in (summary for page in pages for summary in page[key]):
            name = summary[job_type.name]
            if job_type is TUNING:
                tuning_jobs.add(name)
            elif name.rsplit("-", 2)[0] in tuning_jobs:
                continue  # NAME-001-1a2b3c4d: no request per training job of a tuning job
            if tags_of(client, summary[job_type.arn]).get(PROJECT_TAG) != settings.project:
                continue
            described = job_type.describe(client, name)
            if job_type is TUNING or "TuningJobArn" not in described:
                yield FoundJob(job_type, name, described)


def seconds(job: Mapping[str, Any]) -> float:
    """Seconds that a training job has trained so far, by its summary or description."""
    if "BillableTimeInSeconds" in job:
        return float(job["BillableTimeInSeconds"])
    started = job.get("TrainingStartTime")
    if started is None:
        return 0.0
    ended = job.get("TrainingEndTime") or datetime.now(UTC)
    return max(0.0, float((ended - started).total_seconds()))


def milliseconds(time: datetime) -> int:
    """A time as MLflow counts it."""
    return round(time.timestamp() * 1000)
