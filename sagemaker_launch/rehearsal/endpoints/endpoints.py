"""Models, endpoint configs and endpoints as the service stores and describes them."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from sagemaker_launch.rehearsal.endpoints.rules import is_serverless
from sagemaker_launch.rehearsal.endpoints.serving_process import ServingProcess
from sagemaker_launch.rehearsal.jobs.training import now

Status = Literal["Creating", "Updating", "InService", "Failed", "Deleting"]
Request = Mapping[str, Any]
Answer = dict[str, Any]
DEFAULT_CONCURRENCY = 4
"""Concurrent asynchronous requests per instance; AWS chooses a default."""
IN_PROGRESS = ("Creating", "Updating", "Deleting")


class Resource:
    """A model or an endpoint config: its request, and the time of the request."""

    status = ""

    def __init__(self, kind: Literal["Model", "EndpointConfig"], arn: str, request: Request) -> None:
        self.kind, self.arn = kind, arn
        self.request = {key: value for key, value in request.items() if key != "Tags"}
        self.tags: list[dict[str, str]] = list(request.get("Tags", ()))
        self.name: str = request[f"{kind}Name"]
        self.created = self.modified = now()

    def describe(self) -> Answer:
        """The answer to describe: all fields of the request as they came."""
        return {
            "EnableNetworkIsolation": False,
            **self.request,
            f"{self.kind}Arn": self.arn,
            "CreationTime": self.created,
        }

    def summary(self) -> Answer:
        """An entry of the list."""
        return {f"{self.kind}Name": self.name, f"{self.kind}Arn": self.arn, "CreationTime": self.created}


@dataclass
class Variant:
    """A running production variant: one process for any number of instances."""

    request: Request
    """ProductionVariant of the endpoint config."""
    container: Request
    """ContainerDefinition of its model."""
    process: ServingProcess
    weight: float
    instances: int
    serverless: Request | None = None
    running: int = 0
    """Number of running invocations."""
    resolved: datetime = field(default_factory=now)

    @property
    def name(self) -> str:
        """Name of the variant."""
        return str(self.request["VariantName"])

    def summary(self) -> Answer:
        """ProductionVariantSummary."""
        image = self.container["Image"]
        shown: Answer = {
            "VariantName": self.name,
            "DeployedImages": [{"SpecifiedImage": image, "ResolvedImage": image, "ResolutionTime": self.resolved}],
            "CurrentWeight": self.weight,
            "DesiredWeight": self.weight,
            "CurrentInstanceCount": self.instances,
            "DesiredInstanceCount": self.instances,
        }
        if self.serverless is not None:
            shown |= {"CurrentServerlessConfig": self.serverless, "DesiredServerlessConfig": self.serverless}
        for key in ("RoutingConfig", "ManagedInstanceScaling"):
            if key in self.request:
                shown[key] = self.request[key]
        return shown


@dataclass
class Fleet:
    """All variants of one endpoint config."""

    config: Resource
    variants: list[Variant]
    share: float = 0.0
    """Its share of the endpoint's traffic."""
    stage: str = "Creating"
    """VariantStatus while it is being deployed."""
    staged: datetime = field(default_factory=now)
    queue: ThreadPoolExecutor | None = None
    """Works on asynchronous invocations."""

    @property
    def instances(self) -> int:
        """Number of instances that it occupies."""
        return self.instances_by_type.total()

    @property
    def instances_by_type(self) -> Counter[str]:
        """Number of instances that it occupies, by their type; a serverless variant has none."""
        used: Counter[str] = Counter()
        for variant in self.variants:
            used[variant.request.get("InstanceType", "serverless")] += variant.instances
        return used

    def enter(self, stage: str) -> None:
        """Continue with the next stage of the deployment."""
        self.stage, self.staged = stage, now()


class Endpoint:
    """One endpoint and its state."""

    def __init__(self, arn: str, name: str, tags: list[dict[str, str]], fleet: Fleet) -> None:
        self.arn, self.name, self.tags = arn, name, tags
        self.status: Status = "Creating"
        self.created = self.modified = now()
        self.failure_reason: str | None = None
        self.last_deployment: Request | None = None
        self.blue: Fleet | None = None
        """What is in service."""
        self.green: Fleet | None = fleet
        """What is being deployed."""
        self.started = self.created
        """Start of the running deployment."""
        self.lock = threading.RLock()

    def begin(self, status: Status) -> None:
        """Enter an operation."""
        with self.lock:
            self.status, self.failure_reason = status, None
            self.started = self.modified = now()

    def finish(self, status: Status, failure_reason: str | None = None) -> None:
        """End an operation."""
        with self.lock:
            self.status, self.failure_reason, self.modified = status, failure_reason, now()

    def fleets(self) -> list[Fleet]:
        """The fleets that have processes."""
        with self.lock:
            return [fleet for fleet in (self.blue, self.green) if fleet is not None]

    @property
    def serverless(self) -> bool:
        """Whether it runs without instances."""
        return is_serverless(self.config.request)

    @contextmanager
    def routed(self, target_variant: str | None) -> Iterator[Variant | None]:
        """The variant of an invocation; None if the requested one does not exist, or none is left."""
        with self.lock:
            variant = self._choose(target_variant)
            if variant is not None:
                variant.running += 1
        try:
            yield variant
        finally:
            if variant is not None:
                with self.lock:
                    variant.running -= 1

    def _choose(self, target_variant: str | None) -> Variant | None:
        fleets = [fleet for fleet in self.fleets() if fleet.share > 0]
        if not fleets:
            return None
        [fleet] = random.choices(fleets, [fleet.share for fleet in fleets])
        if target_variant is not None:
            return next((variant for variant in fleet.variants if variant.name == target_variant), None)
        [variant] = random.choices(fleet.variants, [variant.weight for variant in fleet.variants])
        return variant

    def enqueue(self, work: Callable[[], None]) -> None:
        """Put an asynchronous invocation into the queue."""
        with self.lock:
            assert self.blue is not None
            if self.blue.queue is None:
                client = self.config.request["AsyncInferenceConfig"].get("ClientConfig", {})
                each = client.get("MaxConcurrentInvocationsPerInstance", DEFAULT_CONCURRENCY)
                self.blue.queue = ThreadPoolExecutor(each * max(1, self.blue.instances), f"queue of {self.name}")
            self.blue.queue.submit(work)

    @property
    def config(self) -> Resource:
        """The endpoint config in service, or the first one to be deployed."""
        fleet = self.blue or self.green
        assert fleet is not None
        return fleet.config

    def describe(self) -> Answer:
        """The answer to DescribeEndpoint."""
        with self.lock:
            return dict(self._state())

    def summary(self) -> Answer:
        """An entry of ListEndpoints."""
        wanted = ("EndpointName", "EndpointArn", "CreationTime", "LastModifiedTime", "EndpointStatus")
        described = self.describe()
        return {key: described[key] for key in wanted}

    def _state(self) -> Iterator[tuple[str, Any]]:
        yield "EndpointName", self.name
        yield "EndpointArn", self.arn
        yield "EndpointConfigName", self.config.name
        yield "EndpointStatus", self.status
        yield "CreationTime", self.created
        yield "LastModifiedTime", self.modified
        if self.failure_reason is not None:
            yield "FailureReason", self.failure_reason
        if self.last_deployment is not None:
            yield "LastDeploymentConfig", self.last_deployment
        if self.blue is not None:
            yield "ProductionVariants", [variant.summary() for variant in self.blue.variants]
        if "AsyncInferenceConfig" in self.config.request:
            yield "AsyncInferenceConfig", self.config.request["AsyncInferenceConfig"]
        if "DataCaptureConfig" in self.config.request:
            yield "DataCaptureConfig", _capture_summary(self.config.request["DataCaptureConfig"])
        if self.green is not None and self.status in IN_PROGRESS:
            yield "PendingDeploymentSummary", self._pending(self.green)

    def _pending(self, fleet: Fleet) -> Answer:
        status = [{"Status": fleet.stage, "StartTime": fleet.staged}]
        variants = [{**variant.summary(), "VariantStatus": status} for variant in fleet.variants]
        return {"EndpointConfigName": fleet.config.name, "ProductionVariants": variants, "StartTime": self.started}


def _capture_summary(config: Request) -> Answer:
    enabled = config.get("EnableCapture", True)
    return {
        "EnableCapture": enabled,
        "CaptureStatus": "Started" if enabled else "Stopped",
        "CurrentSamplingPercentage": config["InitialSamplingPercentage"],
        "DestinationS3Uri": config["DestinationS3Uri"],
        "KmsKeyId": config.get("KmsKeyId", ""),
    }
