"""Tables of running jobs and endpoints with their cost per hour, and of the cost of jobs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sagemaker_launch.aws.client import region
from sagemaker_launch.aws.prices import price_finder
from sagemaker_launch.aws.resources import CONFIG, TRAINING
from sagemaker_launch.endpoints.fleet import FoundEndpoint, Services, project_endpoints
from sagemaker_launch.jobs.found import OwnJob, children, job_tags, project_jobs, seconds
from sagemaker_launch.settings.cloud import CloudSettings


def status_table(services: Services, settings: CloudSettings) -> str:
    """One line for each job and endpoint that runs or keeps its machines warm, and the sum."""
    client, tags = services.sagemaker, job_tags(services.sagemaker, services.tagging, settings)
    price = price_finder(settings, region(settings))
    lines, total = [], 0.0
    running = [(job, job.status) for job in project_jobs(client, tags, StatusEquals="InProgress")]
    warm = [(job, "kept warm") for job in project_jobs(client, tags, WarmPoolStatusEquals="Available")]
    for job, state in running + warm:
        count, instance_type = job.machines(client)
        machines = count * (1 if job.job_type is TRAINING else _running_jobs(job))
        hourly = machines * price(instance_type)
        total += hourly
        lines.append(f"{job.name:34} {state:12} {machines:3} x {instance_type:16} ${hourly:.2f}/h")
    jobs, hosting = len(lines), price_finder(settings, region(settings), "Hosting")
    for endpoint in project_endpoints(services, settings):
        machines_text, usd = _endpoint_cost(services, endpoint, hosting)
        total += usd
        over = "  <- delete --expired" if endpoint.lease.has_expired() else ""
        lines.append(
            f"{endpoint.name:34} {endpoint.status:12} {machines_text:22} ${usd:.2f}/h  {endpoint.lease.owner}, "
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


def cost_table(client: Any, tagging: Any, settings: CloudSettings) -> str:
    """One line for each job, and the sum; newest first."""
    price = price_finder(settings, region(settings))
    lines, total = [], 0.0
    for job in project_jobs(client, job_tags(client, tagging, settings)):
        count, instance_type = job.machines(client)
        jobs = [job.describe(client).described] if job.job_type is TRAINING else children(client, job.name)
        billed = sum(seconds(training_job) for training_job in jobs) * count
        usd = billed / 3600 * price(instance_type)
        total += usd
        lines.append(f"{job.name:34} {job.status:12} {billed:8.0f} s on {instance_type:16} ${usd:.2f}")
    return "\n".join([*lines, f"{len(lines)} jobs, ${total:.2f}; disks, S3 and transfer are not in it"])


def _running_jobs(job: OwnJob) -> int:
    return int(job.summary["TrainingJobStatusCounters"].get("InProgress", 0))
