"""The operations of the service on jobs, for one account and region."""

from __future__ import annotations

import base64
import binascii
import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from moto.core.exceptions import ServiceException
from moto.utilities.utils import get_partition

from sagemaker_launch.rehearsal.rules import check_shape, check_training_job, invalid
from sagemaker_launch.rehearsal.runner import JobRunner, Machine
from sagemaker_launch.rehearsal.training_jobs import ENDED, TrainingJob

Request = Mapping[str, Any]
Answer = dict[str, Any]

log = logging.getLogger(__name__)


class Listed(Protocol):
    """What a list operation can filter and sort."""

    name: str
    status: Any
    created: datetime
    modified: datetime


class Service:
    """Training jobs of one account in one region."""

    def __init__(self, region: str, machine: Machine) -> None:
        self.region, self.machine = region, machine
        self.lock = threading.RLock()
        """Held while the set of jobs is read or changed."""
        self.training_jobs: dict[str, TrainingJob] = {}
        self._runners: list[JobRunner] = []

    def arn(self, kind: str, name: str) -> str:
        """The ARN of a job."""
        partition = get_partition(self.region)
        return f"arn:{partition}:sagemaker:{self.region}:{self.machine.settings.account}:{kind}/{name}"

    def create_training_job(self, request: Request) -> Answer:
        """CreateTrainingJob."""
        check_training_job(request)
        self.check_machine(request)
        name = request["TrainingJobName"]
        with self.lock:
            if name in self.training_jobs:
                raise ServiceException(
                    "ResourceInUse",
                    "Training job names must be unique within an AWS account and region, and a training job with this "
                    f"name already exists ({self.training_jobs[name].arn})",
                )
            self.check_quota(request["ResourceConfig"]["InstanceType"], request["ResourceConfig"]["InstanceCount"])
            job = TrainingJob(self.arn("training-job", name), request)
            self.start(job)
        return {"TrainingJobArn": job.arn}

    def start(self, job: TrainingJob) -> None:
        """Take a job in, and run it."""
        with self.lock:
            self.training_jobs[job.name] = job
            runner = JobRunner(job, self.region, self.machine)
            self._runners.append(runner)
            runner.start()

    def instances_left(self) -> int:
        """How many more instances the account may use."""
        with self.lock:
            used = sum(job.instances for job in self.training_jobs.values() if job.status not in ENDED)
        return self.machine.settings.max_parallel_jobs - used

    def check_quota(self, instance_type: str, wanted: int) -> None:
        """Refuse instances beyond the account's quota.

        Raises:
            ServiceException: with AWS's words, quota and use.
        """
        limit = self.machine.settings.max_parallel_jobs
        left = self.instances_left()
        if wanted > left:
            raise ServiceException(
                "ResourceLimitExceeded",
                f"The account-level service limit '{instance_type} for training job usage' is {limit} Instances, with "
                f"current utilization of {limit - left} Instances and a request delta of {wanted} Instances. Please "
                "use AWS Service Quotas to request an increase for this quota. If AWS Service Quotas is not available, "
                "contact AWS support to request an increase for this quota.",
            )

    def check_machine(self, definition: Request) -> None:
        """Refuse what this machine can't rehearse.

        Raises:
            ServiceException: naming what it lacks.
        """
        if self.machine.namespaces is not None:
            return
        if definition["ResourceConfig"]["InstanceCount"] > 1:
            raise invalid("InstanceCount > 1 needs Linux namespaces, which the rehearsal does not have here")
        if definition.get("EnableNetworkIsolation"):
            log.warning("EnableNetworkIsolation is not rehearsed here: without Linux namespaces jobs keep the network")

    def describe_training_job(self, request: Request) -> Answer:
        """DescribeTrainingJob."""
        return self.training_job(request["TrainingJobName"]).describe()

    def training_job(self, name: str) -> TrainingJob:
        """A job by name.

        Raises:
            ServiceException: as AWS answers for an unknown one.
        """
        with self.lock:
            if name not in self.training_jobs:
                raise invalid("Requested resource not found.")
            return self.training_jobs[name]

    def list_training_jobs(self, request: Request) -> Answer:
        """ListTrainingJobs."""
        check_shape("ListTrainingJobs", request)
        for field in ("WarmPoolStatusEquals", "TrainingPlanArnEquals"):
            if field in request:
                raise invalid(f"{field} is not rehearsed")
        with self.lock:
            jobs = select(list(self.training_jobs.values()), request)
        return page([job.summary() for job in jobs], request, "TrainingJobSummaries")

    def stop_training_job(self, request: Request) -> Answer:
        """StopTrainingJob."""
        job = self.training_job(request["TrainingJobName"])
        if job.status in ENDED:
            raise invalid(f"The request was rejected because the training job is in status {job.status}.")
        job.request_stop()
        return {}

    def tags(self, arn: str) -> list[dict[str, str]] | None:
        """The tags of a job, to read and to change, or None if the ARN is of something else."""
        with self.lock:
            return next((job.tags for job in self.training_jobs.values() if job.arn == arn), None)

    def interrupt(self, name: str, at_once: bool) -> None:
        """Take a spot job's instance away.

        Raises:
            ValueError: if there is nothing to take away.
        """
        with self.lock:
            job = self.training_jobs.get(name)
        if job is None or job.status != "InProgress":
            raise ValueError(f"no training job {name} is in progress")
        if not job.spot:
            raise ValueError(f"training job {name} runs on demand, only EnableManagedSpotTraining jobs are interrupted")
        if job.secondary_status != "Training":
            raise ValueError(f"training job {name} is {job.secondary_status}, only Training is interrupted")
        job.interruption = "SIGKILL" if at_once else "SIGTERM"

    def join(self) -> None:
        """Wait until all jobs have ended."""
        with self.lock:
            runners = list(self._runners)
        for runner in runners:
            runner.join()


def select(jobs: Sequence[Any], request: Request) -> list[Any]:
    """Filter and sort jobs as the list operations do."""
    sort_by = request.get("SortBy", "CreationTime")
    keys: dict[str, Callable[[Listed], Any]] = {
        "CreationTime": lambda job: job.created,
        "Name": lambda job: job.name,
        "Status": lambda job: job.status,
    }
    found = [job for job in jobs if _matches(job, request)]
    return sorted(found, key=keys[sort_by], reverse=request.get("SortOrder") == "Descending")


def _matches(job: Listed, request: Request) -> bool:
    times = (("CreationTime", job.created), ("LastModifiedTime", job.modified))
    return (
        job.status == request.get("StatusEquals", job.status)
        and request.get("NameContains", "").lower() in job.name.lower()
        and all(time.timestamp() > request.get(f"{field}After", -math.inf) for field, time in times)
        and all(time.timestamp() < request.get(f"{field}Before", math.inf) for field, time in times)
    )


def page(entries: Sequence[Answer], request: Request, field: str) -> Answer:
    """One page of entries, with a token for the next."""
    try:
        start = int(base64.b64decode(request.get("NextToken", "MA=="), validate=True))
    except (binascii.Error, ValueError) as error:
        raise invalid("Invalid NextToken.") from error
    # 10 a page unless asked otherwise (AWS API reference of the list operations, 2025).
    end = start + request.get("MaxResults", 10)
    answer: Answer = {field: entries[start:end]}
    if end < len(entries):
        answer["NextToken"] = base64.b64encode(str(end).encode()).decode()
    return answer
