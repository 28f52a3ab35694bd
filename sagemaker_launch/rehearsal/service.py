"""The operations of the service on jobs, for one account and region."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

from moto.sagemaker.exceptions import SagemakerClientError

from sagemaker_launch.aws.combinations import MAX_TAGS
from sagemaker_launch.rehearsal.endpoints.endpoints import Endpoint
from sagemaker_launch.rehearsal.endpoints.hosting import Hosting
from sagemaker_launch.rehearsal.jobs.debugger import check_debugger
from sagemaker_launch.rehearsal.jobs.log import JobMetrics
from sagemaker_launch.rehearsal.jobs.strategies import make_strategy
from sagemaker_launch.rehearsal.jobs.training import ENDED, TrainingJob
from sagemaker_launch.rehearsal.jobs.tuning import TuningJob, TuningRunner
from sagemaker_launch.rehearsal.listing import arn, page, select
from sagemaker_launch.rehearsal.machine.runner import JobRunner, Machine
from sagemaker_launch.rehearsal.quotas import check_quota, instances_left
from sagemaker_launch.rehearsal.roles import check_role
from sagemaker_launch.rehearsal.rules import (
    check_image,
    check_training_job,
    check_tuning_job,
    check_warm_start,
    invalid,
    parse_uri,
    with_resource_config,
)
from sagemaker_launch.rehearsal.search import search

Request = Mapping[str, Any]
Answer = dict[str, Any]

log = logging.getLogger(__name__)


class Service:
    """Training and tuning jobs of one account in one region, and its endpoints."""

    def __init__(self, region: str, machine: Machine) -> None:
        self.region, self.machine = region, machine
        self.lock = threading.RLock()
        """Held while the set of jobs is read or changed."""
        self.training_jobs: dict[str, TrainingJob] = {}
        self.tuning_jobs: dict[str, TuningJob] = {}
        self._runners: list[threading.Thread] = []
        self.hosting = Hosting(region, machine)

    def arn(self, kind: str, name: str) -> str:
        """The ARN of a job."""
        return arn(self.region, self.machine.settings.account, kind, name)

    def create_training_job(self, request: Request) -> Answer:
        """CreateTrainingJob."""
        check_training_job(request, self.region)
        check_debugger(request, available=self.machine.settings.debugger)
        self.check_machine(request)
        name = request["TrainingJobName"]
        with self.lock:
            if name in self.training_jobs:
                raise SagemakerClientError(
                    "ResourceInUse",
                    "Training job names must be unique within an AWS account and region, and a training job with this "
                    f"name already exists ({self.training_jobs[name].arn})",
                )
            self.check_quota(request)
            job = self._start(request, None)
        return {"TrainingJobArn": job.arn}

    def start_child(self, request: Request, tuning_job_arn: str) -> TrainingJob:
        """Start a training job of a tuning job."""
        with self.lock:
            return self._start(request, tuning_job_arn)

    def _start(self, request: Request, tuning_job_arn: str | None) -> TrainingJob:
        name = request["TrainingJobName"]
        published = JobMetrics(self.machine.settings.account, self.region, name)
        job = TrainingJob(self.arn("training-job", name), request, tuning_job_arn, published.put)
        self.training_jobs[name] = job
        self._run(JobRunner(job, self.region, self.machine))
        return job

    def _run(self, runner: threading.Thread) -> None:
        self._runners.append(runner)
        runner.start()

    def instances_left(self, definition: Request) -> int:
        """How many more instances of a job's type the account may use."""
        settings = self.machine.settings
        wanted = definition["ResourceConfig"]["InstanceType"]
        return instances_left(settings.quotas, settings.max_parallel_jobs, self._instances(), wanted)

    def _instances(self) -> Counter[str]:
        """Instances in use, by type."""
        used: Counter[str] = Counter()
        with self.lock:
            for job in self.training_jobs.values():
                if job.status not in ENDED:
                    used[job.request["ResourceConfig"]["InstanceType"]] += job.instances
        return used

    def check_quota(self, definition: Request, jobs: int = 1) -> None:
        """Refuse instances beyond the account's quota.

        Args:
            jobs: how many jobs run at once.

        Raises:
            SagemakerClientError: with AWS's words, quota and use.
        """
        resources, settings = definition["ResourceConfig"], self.machine.settings
        wanted = {resources["InstanceType"]: resources["InstanceCount"] * jobs}
        usage = "spot training job usage" if definition.get("EnableManagedSpotTraining") else "training job usage"
        check_quota(settings.quotas, settings.max_parallel_jobs, self._instances(), wanted, usage)

    def check_machine(self, definition: Request) -> None:
        """Refuse output without a bucket, a foreign role or image, and what this machine can't rehearse.

        Raises:
            SagemakerClientError: naming what is missing.
        """
        check_role(definition["RoleArn"], self.machine.settings.account, self.region)
        image = definition["AlgorithmSpecification"]["TrainingImage"]
        check_image(image, self.machine.settings.account, ("pytorch-training", "pytorch"))
        for field in ("OutputDataConfig", "DebugHookConfig", "ProfilerConfig"):
            if "S3OutputPath" not in definition.get(field, {}):
                continue
            output = parse_uri(definition[field]["S3OutputPath"])
            if not self.machine.objects.bucket_exists(output.bucket):
                raise invalid(f"{field}.S3OutputPath {output}: bucket {output.bucket} does not exist")
        namespaces, isolated = self.machine.namespaces, definition.get("EnableNetworkIsolation", False)
        if definition["ResourceConfig"]["InstanceCount"] > 1 and (
            namespaces is None or (isolated and not namespaces.root)
        ):
            raise invalid("InstanceCount > 1 needs Linux namespaces, and under isolation root, to be rehearsed")
        if namespaces is None and isolated:
            log.warning("EnableNetworkIsolation is not rehearsed here: without Linux namespaces jobs keep the network")

    def describe_training_job(self, request: Request) -> Answer:
        """DescribeTrainingJob."""
        return self.training_job(request["TrainingJobName"]).describe()

    def training_job(self, name: str) -> TrainingJob:
        """A job by name.

        Raises:
            SagemakerClientError: as AWS answers for an unknown one.
        """
        with self.lock:
            if name not in self.training_jobs:
                raise invalid("Requested resource not found.")
            return self.training_jobs[name]

    def list_training_jobs(self, request: Request) -> Answer:
        """ListTrainingJobs."""
        warm = request.get("WarmPoolStatusEquals")
        with self.lock:
            jobs = select(list(self.training_jobs.values()), request)
        if warm is not None:
            jobs = [job for job in jobs if job.warm_pool().get("Status") == warm]
        return page([job.summary() for job in jobs], request, "TrainingJobSummaries")

    def stop_training_job(self, request: Request) -> Answer:
        """StopTrainingJob."""
        job = self.training_job(request["TrainingJobName"])
        if job.status in ENDED:
            raise invalid(f"The request was rejected because the training job is in status {job.status}.")
        job.request_stop()
        return {}

    def create_hyper_parameter_tuning_job(self, request: Request) -> Answer:
        """CreateHyperParameterTuningJob."""
        check_tuning_job(request, self.region)
        definition = with_resource_config(request["TrainingJobDefinition"])
        name = request["HyperParameterTuningJobName"]
        self.check_machine(definition)
        with self.lock:
            if name in self.tuning_jobs:
                raise SagemakerClientError(
                    "ResourceInUse",
                    "Hyperparameter tuning job names must be unique within an AWS account and region, and a tuning job "
                    f"with this name already exists ({self.tuning_jobs[name].arn})",
                )
            parents = self._parents(request)
            check_warm_start(request, [parent.request for parent in parents])
            limits = request["HyperParameterTuningJobConfig"]["ResourceLimits"]
            self.check_quota(definition, limits["MaxParallelTrainingJobs"])
            arn = self.arn("hyper-parameter-tuning-job", name)
            job = self.tuning_jobs[name] = TuningJob(arn, request, list(request.get("Tags", ())))
            earlier = [result for parent in parents for result in parent.results()]
            self._run(TuningRunner(job, make_strategy(job.config, earlier), self, self.machine.shutdown))
        return {"HyperParameterTuningJobArn": arn}

    def _parents(self, request: Request) -> list[TuningJob]:
        """The parents of a warm start, which must have ended."""
        named = request.get("WarmStartConfig", {}).get("ParentHyperParameterTuningJobs", ())
        parents = [self.tuning_job(parent["HyperParameterTuningJobName"]) for parent in named]
        for parent in parents:
            if parent.status not in ENDED:
                raise invalid(f"Parent hyperparameter tuning job {parent.name} is still {parent.status}.")
        return parents

    def tuning_job(self, name: str) -> TuningJob:
        """A tuning job by name.

        Raises:
            SagemakerClientError: as AWS answers for an unknown one.
        """
        with self.lock:
            if name not in self.tuning_jobs:
                arn = self.arn("hyper-parameter-tuning-job", name)
                raise SagemakerClientError(
                    "ResourceNotFound", f"Amazon SageMaker can't find a tuning job with ARN {arn}"
                )
            return self.tuning_jobs[name]

    def describe_hyper_parameter_tuning_job(self, request: Request) -> Answer:
        """DescribeHyperParameterTuningJob."""
        job = self.tuning_job(request["HyperParameterTuningJobName"])
        return {**job.describe(), **self._overall_best(job)}

    def _overall_best(self, job: TuningJob) -> Answer:
        """The best training job of a tuning job and of the parents of its warm start."""
        family = [job, *self._parents(job.request)] if "WarmStartConfig" in job.request else []
        bests = [(one.objective(best), one, best) for one in family if (best := one.best()) is not None]
        if not bests:
            return {}
        _, one, best = (max if job.maximize else min)(bests, key=lambda each: each[0] or 0.0)
        return {"OverallBestTrainingJob": {**one.child_summary(best), "TuningJobName": one.name}}

    def list_hyper_parameter_tuning_jobs(self, request: Request) -> Answer:
        """ListHyperParameterTuningJobs."""
        with self.lock:
            jobs = select(list(self.tuning_jobs.values()), request, sort_by="Name")
        return page([job.summary() for job in jobs], request, "HyperParameterTuningJobSummaries")

    def list_training_jobs_for_hyper_parameter_tuning_job(self, request: Request) -> Answer:
        """ListTrainingJobsForHyperParameterTuningJob."""
        tuning = self.tuning_job(request["HyperParameterTuningJobName"])
        by_name = {child.job.name: child for child in tuning.children}
        if request.get("SortBy") == "FinalObjectiveMetricValue":
            # Jobs without an objective are not listed then (AWS API reference, 2025).
            values = {name: value for name, child in by_name.items() if (value := tuning.objective(child)) is not None}
            descending = request.get("SortOrder") == "Descending"
            wanted = [
                name
                for name in sorted(values, key=values.__getitem__, reverse=descending)
                if by_name[name].job.status == request.get("StatusEquals", by_name[name].job.status)
            ]
        else:
            jobs = [child.job for child in tuning.children]
            wanted = [job.name for job in select(jobs, request, sort_by="Name")]
        entries = [tuning.child_summary(by_name[name]) for name in wanted]
        return page(entries, request, "TrainingJobSummaries")

    def search(self, request: Request) -> Answer:
        """Search."""
        with self.lock:
            found: dict[str, list[TrainingJob] | list[TuningJob] | list[Endpoint]] = {
                "TrainingJob": list(self.training_jobs.values()),
                "HyperParameterTuningJob": list(self.tuning_jobs.values()),
                "Endpoint": list(self.hosting.endpoints.values()),
            }
        return search([{**one.describe(), "Tags": one.tags} for one in found[request["Resource"]]], request)

    def stop_hyper_parameter_tuning_job(self, request: Request) -> Answer:
        """StopHyperParameterTuningJob."""
        job = self.tuning_job(request["HyperParameterTuningJobName"])
        if job.status in ENDED:
            raise invalid(f"The request was rejected because the hyperparameter tuning job is in status {job.status}.")
        job.request_stop()
        return {}

    def tags(self, resource: str) -> list[dict[str, str]] | None:
        """The tags of what has this ARN, to read and to change, or None for an ARN of another kind."""
        return dict(self.tagged()).get(resource)

    def tagged(self) -> list[tuple[str, list[dict[str, str]]]]:
        """ARN and tags of all jobs and of what serves models."""
        with self.lock:
            jobs: list[TrainingJob | TuningJob] = [*self.training_jobs.values(), *self.tuning_jobs.values()]
        return [(job.arn, job.tags) for job in jobs] + self.hosting.tagged()

    def list_tags(self, request: Request) -> Answer:
        """ListTags."""
        return {"Tags": self._tags_of(request)}

    def add_tags(self, request: Request) -> Answer:
        """AddTags: a key that is there gets the new value."""
        tags = self._tags_of(request)
        united = {tag["Key"]: tag["Value"] for tag in [*tags, *request["Tags"]]}
        if len(united) > MAX_TAGS:
            raise invalid(f"The number of tags must be at most {MAX_TAGS}.")
        tags[:] = [{"Key": key, "Value": value} for key, value in united.items()]
        return {"Tags": tags}

    def delete_tags(self, request: Request) -> Answer:
        """DeleteTags."""
        tags = self._tags_of(request)
        tags[:] = [tag for tag in tags if tag["Key"] not in request["TagKeys"]]
        return {}

    def _tags_of(self, request: Request) -> list[dict[str, str]]:
        tags = self.tags(request["ResourceArn"])
        if tags is None:
            raise invalid(f"Could not find {request['ResourceArn']}.")  # the code is AWS's, the words are ours
        return tags

    def interrupt(self, name: str, at_once: bool) -> None:
        """Interrupt a spot job: its instance is taken away.

        Raises:
            ValueError: if it is not a running spot job.
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
        """Wait until all jobs and endpoints have ended."""
        self.hosting.join()
        with self.lock:
            runners = list(self._runners)
        for runner in runners:
            runner.join()
