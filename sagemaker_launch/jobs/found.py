"""Find jobs in AWS, and read their descriptions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from experiments.config import require
from experiments.console import say
from experiments.errors import UserError
from sagemaker_launch.aws.resources import TRAINING, TUNING, ResourceType
from sagemaker_launch.aws.tag_index import ProjectTags
from sagemaker_launch.settings.cloud import INSTANCE_COUNT_TAG, INSTANCE_TYPE_TAG, NAME_MARK, CloudSettings

ENDED = ("Completed", "Failed", "Stopped")
TIME_LIMITS = {
    "MaxRuntimeExceeded": ("cloud.max_runtime_seconds", "MaxRuntimeInSeconds"),
    "MaxWaitTimeExceeded": ("cloud.max_wait_seconds", "MaxWaitTimeInSeconds"),
}
"""Secondary statuses of a job that AWS has stopped: the setting, and its field in StoppingCondition."""
PAGES = {"PageSize": 100}
"""Entries of one answer of a list: the most that AWS allows, as it takes two calls of ListTrainingJobs a second."""


@dataclass(frozen=True)
class FoundJob:
    """A job that exists in AWS."""

    job_type: ResourceType
    name: str
    described: Mapping[str, Any]

    @property
    def arn(self) -> str:
        """Its ARN."""
        return str(self.described[self.job_type.arn])

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
        HyperParameterTuningJobName=tuning_job,
        SortBy="CreationTime",
        SortOrder="Ascending",
        PaginationConfig=PAGES,
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
    described = TRAINING.describe(client, best["TrainingJobName"])
    if described[TRAINING.status] == "Stopped":
        why = described.get("SecondaryStatus", "Stopped")
        say(f"{described[TRAINING.name]}, the best of {tuning_job}, was stopped ({why}): it has left no model")
    return described


@dataclass(frozen=True)
class OwnJob:
    """A job of this project, as a list shows it."""

    job_type: ResourceType
    summary: Mapping[str, Any]
    tags: Mapping[str, str]

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.summary[self.job_type.name])

    @property
    def status(self) -> str:
        """InProgress, Completed, Failed, Stopping or Stopped."""
        return str(self.summary[self.job_type.status])

    def describe(self, client: Any) -> FoundJob:
        """The job with AWS's description."""
        return FoundJob(self.job_type, self.name, self.job_type.describe(client, self.name))

    def machines(self, client: Any) -> Machines:
        """The machines of one training job: by its tags, or by its description if it lacks them."""
        count = self.tags.get(INSTANCE_COUNT_TAG, "")
        if count.isdecimal() and INSTANCE_TYPE_TAG in self.tags:
            return Machines(int(count), self.tags[INSTANCE_TYPE_TAG])
        described = self.job_type.describe(client, self.name)
        definition = described if self.job_type is TRAINING else described["TrainingJobDefinition"]
        return Machines(definition["ResourceConfig"]["InstanceCount"], definition["ResourceConfig"]["InstanceType"])


class Machines(NamedTuple):
    """Instances of one training job."""

    instances: int
    instance_type: str


def job_tags(client: Any, tagging: Any, settings: CloudSettings) -> ProjectTags:
    """The tags of this project's jobs.

    Args:
        tagging: client of AWS's index of tags.
    """
    return ProjectTags(client, tagging, settings, TUNING, TRAINING)


def project_jobs(client: Any, tags: ProjectTags, **only: str) -> Iterator[OwnJob]:
    """The tuning jobs and single training jobs that this project has made, newest first.

    Args:
        tags: of `job_tags`.
        only: filters of the lists, such as StatusEquals.
    """
    tuning_jobs = tags.names(TUNING)
    if all(NAME_MARK in name for name in tuning_jobs | tags.names(TRAINING)):
        only |= {"NameContains": NAME_MARK}  # leaves out most jobs of others
    for job_type, operation, key in (
        (TUNING, "list_hyper_parameter_tuning_jobs", "HyperParameterTuningJobSummaries"),
        (TRAINING, "list_training_jobs", "TrainingJobSummaries"),
    ):
        if job_type is TUNING and "WarmPoolStatusEquals" in only:
            continue  # only training jobs have warm pools
        pages = client.get_paginator(operation).paginate(
            SortBy="CreationTime", SortOrder="Descending", PaginationConfig=PAGES, **only
        )
        for summary in (summary for page in pages for summary in page[key]):
            name = summary[job_type.name]
            if job_type is TRAINING and name.rsplit("-", 2)[0] in tuning_jobs:
                continue  # NAME-001-1a2b3c4d is a training job of a tuning job, and carries its tags
            own = tags.of(summary[job_type.arn], summary["CreationTime"])
            if own is not None:
                yield OwnJob(job_type, summary, own)
            if job_type is TUNING:
                tuning_jobs.add(name)


def seconds(job: Mapping[str, Any]) -> float:
    """Billed seconds of a training job so far, by its summary or description; with those of its warm instances."""
    if "BillableTimeInSeconds" in job:
        warm = job.get("WarmPoolStatus", {}).get("ResourceRetainedBillableTimeInSeconds", 0)
        return float(job["BillableTimeInSeconds"] + warm)
    started = job.get("TrainingStartTime")
    if started is None:
        return 0.0
    ended = job.get("TrainingEndTime") or datetime.now(UTC)
    return max(0.0, float((ended - started).total_seconds()))


def milliseconds(time: datetime) -> int:
    """A time as MLflow counts it."""
    return round(time.timestamp() * 1000)
