"""Tables of running jobs and endpoints with their cost per hour, and of the cost of jobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sagemaker_launch.aws.client import region
from sagemaker_launch.aws.prices import price_finder
from sagemaker_launch.aws.resources import CONFIG, TRAINING
from sagemaker_launch.endpoints.fleet import FoundEndpoint, Services, project_endpoints
from sagemaker_launch.jobs.found import FoundJob, children, project_jobs, seconds
from sagemaker_launch.settings.cloud import CloudSettings


def status_table(services: Services, settings: CloudSettings) -> str:
    """One line for each job and endpoint that runs, and the sum."""
    price = price_finder(settings, region(settings))
    lines, total = [], 0.0
    for job in project_jobs(services.sagemaker, settings, "InProgress"):
        resources = _resources(job)
        machines = resources["InstanceCount"] * (1 if job.job_type is TRAINING else _running_jobs(job))
        hourly = machines * price(resources["InstanceType"])
        total += hourly
        lines.append(f"{job.name:34} {job.status:12} {machines:3} x {resources['InstanceType']:16} ${hourly:.2f}/h")
    jobs, hosting = len(lines), price_finder(settings, region(settings), "Hosting")
    for endpoint in project_endpoints(services, settings):
        machines, usd = _endpoint_cost(services, endpoint, hosting)
        total += usd
        over = "  <- delete --expired" if endpoint.lease.has_expired() else ""
        lines.append(
            f"{endpoint.name:34} {endpoint.status:12} {machines:22} ${usd:.2f}/h  {endpoint.lease.owner}, "
            f"{endpoint.lease.text()}{over}"
        )
    return "\n".join([*lines, f"{jobs} jobs and {len(lines) - jobs} endpoints run, ${total:.2f} an hour"])


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


def cost_table(client: Any, settings: CloudSettings) -> str:
    """One line for each job, and the sum; newest first."""
    price = price_finder(settings, region(settings))
    lines, total = [], 0.0
    for job in project_jobs(client, settings):
        resources = _resources(job)
        jobs = [job.described] if job.job_type is TRAINING else children(client, job.name)
        billed = sum(seconds(training_job) for training_job in jobs) * resources["InstanceCount"]
        usd = billed / 3600 * price(resources["InstanceType"])
        total += usd
        lines.append(f"{job.name:34} {job.status:12} {billed:8.0f} s on {resources['InstanceType']:16} ${usd:.2f}")
    return "\n".join([*lines, f"{len(lines)} jobs, ${total:.2f}; disks, S3 and transfer are not in it"])


def _resources(job: FoundJob) -> Mapping[str, Any]:
    definition = job.described if job.job_type is TRAINING else job.described["TrainingJobDefinition"]
    resources: Mapping[str, Any] = definition["ResourceConfig"]
    return resources


def _running_jobs(job: FoundJob) -> int:
    return int(job.described["TrainingJobStatusCounters"].get("InProgress", 0))
