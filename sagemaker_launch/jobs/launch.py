"""Start a job once: its name is a hash of its work, so the same command finds the job that it started before."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Protocol

from sagemaker_launch.aws.readback import ProtectionError, read_back
from sagemaker_launch.aws.resources import Request, ResourceType, create
from sagemaker_launch.container.machines import run_folder_name
from sagemaker_launch.settings.cloud import MAX_TUNING_JOB_NAME, NAME_MARK


@dataclass(frozen=True)
class Launched:
    """A job that was started or found."""

    job_type: ResourceType
    name: str
    arn: str
    found: bool
    """Whether it existed before."""
    is_running: bool = True
    """Whether it had not ended when it was started or found."""
    differences: tuple[str, ...] = ()
    """Differences between the request and AWS's description, as sentences."""


class Build(Protocol):
    """Makes the request of a job."""

    def __call__(self, name: str, checkpoints: str = "") -> Request:
        """The request.

        Args:
            checkpoints: name of the checkpoint folder of a training job in S3; by default the job's.
        """


def job_name(label: str, build: Build, attempt: int) -> str:
    """The name of a training or tuning job: a label and a hash of its request.

    Args:
        label: readable prefix.
        attempt: 1 for the first job with this work.
    """
    digest = hashlib.sha256(json.dumps(build(""), sort_keys=True).encode()).hexdigest()[:10]
    tail = f"{NAME_MARK}{digest}-{attempt}"
    head = re.sub(r"[^a-zA-Z0-9]+", "-", label)[: MAX_TUNING_JOB_NAME - len(tail)].strip("-")
    return f"{head or 'job'}{tail}"


def checkpoint_folder(name: str, completed: int) -> str:
    """The checkpoint folder of a training job in S3, in which an attempt finds the checkpoints of the one before it.

    Args:
        name: of the job.
        completed: how many jobs with this work are complete: another one (`--again`) starts in an empty folder.
    """
    return run_folder_name(name) + (f"-again-{completed}" if completed else "")


def launch(
    client: Any,
    job_type: ResourceType,
    label: str,
    build: Build,
    *,
    again: bool = False,
    starts: Callable[[str], None] = lambda _name: None,
    exists: Callable[[Launched], None] = lambda _job: None,
) -> Launched:
    """Start the job that `build` describes, or find the one that was started before.

    The newest attempt counts. If it failed or was stopped, another one follows, which resumes from its checkpoints; if
    it runs or is complete, it is found.

    Args:
        again: start another job even if the newest one is complete.
        starts: called with the job's name before it is created.
        exists: called as soon as AWS has the job, before anything else can fail.

    Raises:
        LaunchError: if AWS does not take it.
        UnansweredError: if AWS gives no answer, so that it may run.
        ProtectionError: if the job lacks a protection that was asked for; it was stopped.
    """
    completed = 0
    complete: Launched | None = None
    for attempt in count(1):
        name = job_name(label, build, attempt)
        described = job_type.find(client, name)
        if described is None:
            break
        status = described[job_type.status]
        found = Launched(job_type, name, described[job_type.arn], found=True, is_running=status != "Completed")
        if status in ("InProgress", "Stopping"):
            exists(found)
            return found
        completed += status == "Completed"
        complete = found if status == "Completed" else None
    if complete is not None and not again:
        exists(complete)
        return complete
    starts(name)
    return _create_job(client, job_type, build(name, checkpoint_folder(name, completed)), name, exists)


def _create_job(
    client: Any, job_type: ResourceType, request: Request, name: str, exists: Callable[[Launched], None]
) -> Launched:
    described = create(client, job_type, request)
    started = Launched(job_type, name, described[job_type.arn], found=False)
    exists(started)
    try:
        differing = read_back(client, job_type, request, described)
    except ProtectionError as error:
        job_type.stop(client, name)
        raise ProtectionError(f"{error}; the job was stopped: start it again, and report this if it recurs") from error
    return replace(started, differences=tuple(differing))
