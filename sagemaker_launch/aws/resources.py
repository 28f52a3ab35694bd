"""Resources of SageMaker's API: how each type is created, found and deleted.

A request whose answer got lost (time-out, 5xx, throttling) is sent again under the same name, and AWS gives a name
only once. What was created may be found some seconds later.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from experiments.console import say
from experiments.errors import CommandError, UserError
from sagemaker_launch.aws.api_model import violations
from sagemaker_launch.aws.client import NOT_THERE, error_code
from sagemaker_launch.aws.combinations import broken_rules
from sagemaker_launch.aws.retries import WHILE_RUNNING_SECONDS

Request = dict[str, Any]
MAX_TRIES = 6
"""Attempts of a request whose answer was lost, with pauses that double from half a second."""
VISIBLE_PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds between looks at what was created and is not found yet."""
TAG_PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds between looks at the tags of what was created: AWS may list them late (sagemaker-python-sdk issue 4600)."""


@dataclass(frozen=True)
class ResourceType:
    """The names of a type of resource in SageMaker's API."""

    operation: str
    name: str
    arn: str
    word: str
    status: str = ""
    """Key of the status of jobs and endpoints; models and configs have none."""

    @property
    def kind(self) -> str:
        """The type as ARNs name it."""
        return self.operation.replace("_", "-")

    @property
    def create_operation(self) -> str:
        """The operation as AWS's model calls it."""
        return f"Create{self.operation.title().replace('_', '')}"

    def describe(self, client: Any, name: str) -> dict[str, Any]:
        """AWS's description of a resource."""
        described: dict[str, Any] = self._call(client, "describe")(**{self.name: name})
        return described

    def find(self, client: Any, name: str) -> dict[str, Any] | None:
        """AWS's description of a resource; None if none has that name."""
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
        """Request that a job stops."""
        self._call(client, "stop")(**{self.name: name})

    def delete(self, client: Any, name: str) -> None:
        """Delete a resource, which may be deleted already."""
        try:
            self._call(client, "delete")(**{self.name: name})
        except ClientError:
            if self.find(client, name) is not None:
                raise

    def _call(self, client: Any, verb: str) -> Callable[..., Any]:
        call: Callable[..., Any] = getattr(client, f"{verb}_{self.operation}")
        return call


TRAINING = ResourceType("training_job", "TrainingJobName", "TrainingJobArn", "training job", "TrainingJobStatus")
TUNING = ResourceType(
    "hyper_parameter_tuning_job",
    "HyperParameterTuningJobName",
    "HyperParameterTuningJobArn",
    "tuning job",
    "HyperParameterTuningJobStatus",
)
MODEL = ResourceType("model", "ModelName", "ModelArn", "model")
CONFIG = ResourceType("endpoint_config", "EndpointConfigName", "EndpointConfigArn", "endpoint config")
ENDPOINT = ResourceType("endpoint", "EndpointName", "EndpointArn", "endpoint", "EndpointStatus")


class LaunchError(CommandError):
    """AWS refused the request: there is no resource."""


class UnansweredError(CommandError):
    """AWS gave no answer, so the resource may have been created."""


class InvalidRequestError(UserError):
    """AWS would refuse a request, by its model of the API or by its documentation."""


def validate(
    operation: str, request: Mapping[str, Any], *, region: str | None = None, service: str = "sagemaker"
) -> None:
    """Check a request offline, by AWS's model of its API and by its documentation.

    Args:
        region: to which it is sent; None does not look for names of other regions.

    Raises:
        InvalidRequestError: naming what AWS would refuse.
    """
    refused = violations(operation, request, service) or broken_rules(operation, request, region)
    if refused:
        raise InvalidRequestError(f"{operation} would not be taken: {'; '.join(refused)}")


def create(client: Any, resource_type: ResourceType, request: Request) -> dict[str, Any]:
    """Send a request until AWS has the resource, even if answers get lost.

    Returns:
        AWS's description of the resource.

    Raises:
        LaunchError: if AWS does not take it.
        UnansweredError: if AWS gives no answer, so that it may exist.
        InvalidRequestError: if botocore would not send it.
    """
    validate(resource_type.create_operation, request)
    name = request[resource_type.name]
    until = time.monotonic() + WHILE_RUNNING_SECONDS
    for number in range(MAX_TRIES):
        try:
            resource_type.create(client, request)
            return _describe_new(client, resource_type, name)
        except ClientError as error:
            if not may_pass(error):
                return _find_refused(client, resource_type, request, error)
            problem: Exception = error
        except BotoCoreError as error:  # no answer
            problem = error
        if time.monotonic() >= until:
            break
        say(f"{resource_type.word} {name}: {type(problem).__name__}, looking whether it got through")
        time.sleep(0.5 * 2**number)
    raise UnansweredError(
        f"AWS gives no answer to {resource_type.word} {name} ({problem}): run the same command again, which finds it "
        "if it was started after all"
    )


def _describe_new(client: Any, resource_type: ResourceType, name: str) -> dict[str, Any]:
    """AWS's description of a resource that it has just created, and may find some seconds later.

    Raises:
        UnansweredError: if AWS does not describe it.
    """
    for pause in (0.0, *VISIBLE_PAUSES):
        time.sleep(pause)
        try:
            if (described := resource_type.find(client, name)) is not None:
                return described
        except (ClientError, BotoCoreError) as error:
            raise UnansweredError(f"{resource_type.word} {name} was created, but not described: {error}") from error
    raise UnansweredError(f"{resource_type.word} {name} was created, but AWS does not find it yet")


def _find_refused(client: Any, resource_type: ResourceType, request: Request, refusal: ClientError) -> dict[str, Any]:
    """The resource, as an earlier try may have succeeded, or another process sent the same request.

    Raises:
        LaunchError: if there is none.
    """
    name = request[resource_type.name]
    try:
        found = resource_type.find(client, name)
    except (ClientError, BotoCoreError):
        if refusal.response.get("ResponseMetadata", {}).get("RetryAttempts"):  # an earlier one may have succeeded
            raise
        found = None
    if found is None:
        message = f"AWS refuses {resource_type.word} {name}: {refusal.response['Error']['Message']}"
        raise LaunchError(f"{message}{_hint(request, refusal)}") from refusal
    return found


def _hint(request: Request, error: ClientError) -> str:
    """The likely reason of a refusal, and the next step."""
    # AWS publishes no text of this refusal. A quota that is used up is the one reason that is surely another.
    if "DebugHookConfig" not in request or error_code(error) == "ResourceLimitExceeded":
        return ""
    return (
        " (SageMaker Debugger is closed to new customers since 2026-07-30: if this account does not have it, leave out "
        "--debug and use --recorder, which keeps losses, weights and gradients without Debugger)"
    )


def may_pass(error: ClientError) -> bool:
    """Whether the same call may succeed later."""
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return status >= 500 or "Throttl" in error_code(error) or error_code(error) == "TooManyRequestsException"


def tags_of(
    client: Any, arn: str, created: datetime, are_whole: Callable[[Mapping[str, str]], bool] = bool
) -> Mapping[str, str]:
    """The tags of a resource. While it is young, AWS may not list them yet, and is asked again.

    Args:
        created: when AWS made it, as AWS says.
        are_whole: whether the tags are there; by default whether there is one, as each resource of ours has some.
    """
    age = (datetime.now(UTC) - created).total_seconds()
    for pause in TAG_PAUSES:
        tags = _listed_tags(client, arn)
        if are_whole(tags) or age >= sum(TAG_PAUSES):
            return tags
        time.sleep(pause)
        age += pause
    return _listed_tags(client, arn)


def _listed_tags(client: Any, arn: str) -> Mapping[str, str]:
    pages = client.get_paginator("list_tags").paginate(ResourceArn=arn)
    return {tag["Key"]: tag["Value"] for page in pages for tag in page["Tags"]}
