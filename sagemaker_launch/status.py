"""Tables of running jobs and endpoints with their cost per hour, and of the cost of jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sagemaker_launch.aws.client import region
from sagemaker_launch.aws.prices import price_finder
from sagemaker_launch.aws.resources import CONFIG, TRAINING
from sagemaker_launch.endpoints.fleet import FoundEndpoint, Services, project_endpoints
from sagemaker_launch.jobs.found import OwnJob, children, job_tags, project_jobs, seconds
from sagemaker_launch.settings.cloud import CloudSettings


def status_table(services: Services, settings: CloudSettings) -> str:
    """One line for each job and endpoint that runs or keeps its machines warm, and the sum."""
    return "\n".join(status_lines(services, settings))


def status_lines(services: Services, settings: CloudSettings) -> Iterator[str]:
    """The lines of `status_table`, each as soon as it is known."""
    client, tags = services.sagemaker, job_tags(services.sagemaker, services.tagging, settings)
    price = price_finder(settings, region(settings))
    jobs, endpoints, total = 0, 0, 0.0
    running = [(job, job.status) for job in project_jobs(client, tags, StatusEquals="InProgress")]
    warm = [(job, "kept warm") for job in project_jobs(client, tags, WarmPoolStatusEquals="Available")]
    for job, state in running + warm:
        count, instance_type = job.machines(client)
        machines = count * (1 if job.job_type is TRAINING else _running_jobs(job))
        hourly = machines * price(instance_type)
        jobs, total = jobs + 1, total + hourly
        yield f"{job.name:34} {state:12} {machines:3} x {instance_type:16} ${hourly:.2f}/h"
    hosting = price_finder(settings, region(settings), "Hosting")
    for endpoint in project_endpoints(services, settings):
        machines_text, usd = _endpoint_cost(services, endpoint, hosting)
        endpoints, total = endpoints + 1, total + usd
        over = "  <- delete --expired" if endpoint.lease.has_expired() else ""
        yield (
            f"{endpoint.name:34} {endpoint.status:12} {machines_text:22} ${usd:.2f}/h  {endpoint.lease.owner}, "
            f"{endpoint.lease.text()}{over}"
        )
    yield f"{jobs} jobs and {endpoints} endpoints run, ${total:.2f} an hour"


def _endpoint_cost(
    services: Services, endpoint: FoundEndpoint, usd_per_hour: Callable[[str], float]
) -> tuple[str, float]:
    """The instances of an endpoint now, and their cost per hour; a serverless endpoint costs per request."""
    config = CONFIG.describe(services.sagemaker, endpoint.config_name)
    (variant,) = config["ProductionVariants"]
    if "ServerlessConfig" in variant:
        return f"serverless, {variant['ServerlessConfig']['MemorySizeInMB']} MB", 0.0
    (now,) = endpoint.described.get("ProductionVariants") or [{}]
    count = int(now.get("CurrentInstanceCount", variant["InitialInstanceCount"]))
    return f"{count:3} x {variant['InstanceType']:16}", count * usd_per_hour(variant["InstanceType"])


def cost_lines(client: Any, tagging: Any, settings: CloudSettings) -> Iterator[str]:
    """One line for each job, newest first, as soon as it is known, and the sum."""
    price = price_finder(settings, region(settings))
    count_of_jobs, total = 0, 0.0
    for job in project_jobs(client, job_tags(client, tagging, settings)):
        count, instance_type = job.machines(client)
        jobs = [job.describe(client).described] if job.job_type is TRAINING else children(client, job.name)
        billed = sum(seconds(training_job) for training_job in jobs) * count
        usd = billed / 3600 * price(instance_type)
        count_of_jobs, total = count_of_jobs + 1, total + usd
        yield f"{job.name:34} {job.status:12} {billed:8.0f} s on {instance_type:16} ${usd:.2f}"
    yield f"{count_of_jobs} jobs, ${total:.2f}; disks, S3 and transfer are not in it"


def _running_jobs(job: OwnJob) -> int:
    return int(job.summary["TrainingJobStatusCounters"].get("InProgress", 0))
