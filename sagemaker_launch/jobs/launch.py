"""Create a resource once. Its name is a hash of its content, so the same request finds it again.

A request whose answer got lost (time-out, 5xx, throttling) is sent again under the same name, and AWS gives a name
only once.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from experiments.console import say
from sagemaker_launch.aws.client import NOT_THERE, error_code
from sagemaker_launch.jobs.fidelity import LostFieldError, check_described, validate
from sagemaker_launch.settings.cloud import MAX_TUNING_JOB_NAME

Request = dict[str, Any]
MAX_TRIES = 6
"""Tries of a launch whose answer was lost, with pauses that double from half a second."""


@dataclass(frozen=True)
class Kind:
    """The names of one kind of resource in SageMaker's API."""

    operation: str
    name: str
    arn: str
    word: str
    status: str = ""
    """Of jobs and endpoints; models and configs have none."""

    @property
    def create_operation(self) -> str:
        """The operation as AWS's model calls it."""
        return f"Create{self.operation.title().replace('_', '')}"

    def describe(self, client: Any, name: str) -> dict[str, Any]:
        """AWS's description of one."""
        described: dict[str, Any] = self._call(client, "describe")(**{self.name: name})
        return described

    def find(self, client: Any, name: str) -> dict[str, Any] | None:
        """AWS's description of one; None if there is none of that name."""
        try:
            return self.describe(client, name)
        except ClientError as error:
            if error_code(error) in NOT_THERE:
                return None
            raise

    def create(self, client: Any, request: Request) -> None:
        """Send the request."""
        self._call(client, "create")(**request)

    def stop(self, client: Any, name: str) -> None:
        """Ask for a stop."""
        self._call(client, "stop")(**{self.name: name})

    def delete(self, client: Any, name: str) -> None:
        """Delete it; it may be deleted already."""
        try:
            self._call(client, "delete")(**{self.name: name})
        except ClientError:
            if self.find(client, name) is not None:
                raise

    def _call(self, client: Any, verb: str) -> Callable[..., Any]:
        call: Callable[..., Any] = getattr(client, f"{verb}_{self.operation}")
        return call


TRAINING = Kind("training_job", "TrainingJobName", "TrainingJobArn", "training job", "TrainingJobStatus")
TUNING = Kind(
    "hyper_parameter_tuning_job",
    "HyperParameterTuningJobName",
    "HyperParameterTuningJobArn",
    "tuning job",
    "HyperParameterTuningJobStatus",
)
MODEL = Kind("model", "ModelName", "ModelArn", "model")
CONFIG = Kind("endpoint_config", "EndpointConfigName", "EndpointConfigArn", "endpoint config")
ENDPOINT = Kind("endpoint", "EndpointName", "EndpointArn", "endpoint", "EndpointStatus")


@dataclass(frozen=True)
class Launched:
    """A job that runs, or has run."""

    kind: Kind
    name: str
    arn: str
    found: bool
    """Whether it existed before."""


class LaunchError(RuntimeError):
    """AWS took the request but no job can be found, or would not take it."""


def job_name(label: str, build: Callable[[str], Request], attempt: int) -> str:
    """A name from the content of a job, for both kinds of jobs.

    Args:
        label: readable prefix.
        build: the request, given a name.
        attempt: 1 for the first job that does this.
    """
    digest = hashlib.sha256(json.dumps(build(""), sort_keys=True).encode()).hexdigest()[:10]
    tail = f"-{digest}-{attempt}"
    head = re.sub(r"[^a-zA-Z0-9]+", "-", label)[: MAX_TUNING_JOB_NAME - len(tail)].strip("-")
    return f"{head or 'job'}{tail}"


def launch(client: Any, kind: Kind, label: str, build: Callable[[str], Request], *, again: bool = False) -> Launched:
    """Start the job that `build` describes, or find the one that was started before.

    A job that failed or was stopped is followed by another attempt; one that runs or is complete is found.

    Args:
        again: start another one although there is one that is complete.

    Raises:
        LaunchError: if AWS does not take it.
        LostFieldError: if AWS has other values than were sent; the job was stopped.
    """
    for attempt in count(1):
        name = job_name(label, build, attempt)
        described = kind.find(client, name)
        if described is not None and described[kind.status] in ("InProgress", "Stopping", "Completed"):
            if again and described[kind.status] == "Completed":
                continue
            return Launched(kind, name, described[kind.arn], found=True)
        if described is None:
            return _start(client, kind, build(name), name)
    raise AssertionError("count never ends")


def _start(client: Any, kind: Kind, request: Request, name: str) -> Launched:
    described = create(client, kind, request)
    try:
        check_described(request, described, tags_of(client, described[kind.arn]))
    except LostFieldError:
        kind.stop(client, name)
        raise
    return Launched(kind, name, described[kind.arn], found=False)


def create(client: Any, kind: Kind, request: Request) -> dict[str, Any]:
    """Send a request until AWS has the resource, even if answers get lost.

    Returns:
        All that AWS knows about it.

    Raises:
        LaunchError: if AWS does not take it.
        LostFieldError: if botocore would not send it.
    """
    validate(kind.create_operation, request)
    name = request[kind.name]
    for number in range(MAX_TRIES):
        try:
            kind.create(client, request)
            return kind.describe(client, name)
        except ClientError as error:
            # An earlier try may have succeeded, or another process sent the same request.
            if not may_pass(error) and (found := kind.find(client, name)) is not None:
                return found
            if not may_pass(error):
                said = f"AWS refuses {kind.word} {name}: {error.response['Error']['Message']}"
                raise LaunchError(f"{said}{_hint(request, error)}") from error
            problem: Exception = error
        except BotoCoreError as error:  # no answer
            problem = error
        say(f"{kind.word} {name}: {type(problem).__name__}, looking whether it got through")
        time.sleep(0.5 * 2**number)
    raise LaunchError(
        f"AWS gives no answer to {kind.word} {name} ({problem}): run the same command again, which finds it if it was "
        "started after all"
    )


def _hint(request: Request, error: ClientError) -> str:
    """A likely reason of a refusal, and what to do instead."""
    # AWS publishes no text of this refusal. A quota that is used up is the one reason that is surely another.
    if "DebugHookConfig" not in request or error_code(error) == "ResourceLimitExceeded":
        return ""
    return (
        " (SageMaker Debugger is closed to new customers since 2026-07-30: if this account does not have it, leave out "
        "--debug and use --recorder, which keeps losses, weights and gradients without Debugger)"
    )


def may_pass(error: ClientError) -> bool:
    """Whether the same call may be taken later."""
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return status >= 500 or "Throttl" in error_code(error) or error_code(error) == "TooManyRequestsException"


def tags_of(client: Any, arn: str) -> Mapping[str, str]:
    """The tags of a job."""
    pages = client.get_paginator("list_tags").paginate(ResourceArn=arn)
    return {tag["Key"]: tag["Value"] for page in pages for tag in page["Tags"]}
