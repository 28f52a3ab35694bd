"""moto's SageMaker answers, with jobs that run in place of jobs that pretend."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any, ClassVar

from botocore.model import ListShape, Shape, StructureShape
from moto.core.responses import ActionResult
from moto.core.utils import camelcase_to_underscores
from moto.sagemaker.responses import SageMakerResponse

from sagemaker_launch.aws.api_model import service_model
from sagemaker_launch.rehearsal import moto_urls
from sagemaker_launch.rehearsal.machine.runner import Machine
from sagemaker_launch.rehearsal.rehearsed import OPERATIONS
from sagemaker_launch.rehearsal.rules import check_shape
from sagemaker_launch.rehearsal.service import Service


class Regions:
    """The service of each region in use."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._lock = threading.Lock()
        self._services: dict[str, Service] = {}

    def __getitem__(self, region: str) -> Service:
        with self._lock:
            if region not in self._services:
                self._services[region] = Service(region, self._machine)
            return self._services[region]

    def values(self) -> list[Service]:
        """All services in use."""
        with self._lock:
            return list(self._services.values())

    def stop(self) -> None:
        """End all jobs and endpoints at once."""
        self._machine.shutdown.set()
        for service in self.values():
            service.join()


def in_aws_order(operation: str, answer: dict[str, Any]) -> dict[str, Any]:
    """An answer with its fields in the order of AWS's model, and not in that of the request that it repeats."""
    shape = service_model().operation_model(operation).output_shape
    ordered: dict[str, Any] = answer if shape is None else _ordered(shape, answer)
    return ordered


def _ordered(shape: Shape, value: Any) -> Any:
    if isinstance(shape, StructureShape):
        members = {name: _ordered(member, value[name]) for name, member in shape.members.items() if name in value}
        return members | {name: item for name, item in value.items() if name not in members}
    if isinstance(shape, ListShape):
        return [_ordered(shape.member, item) for item in value]
    return value


class RehearsalResponse(SageMakerResponse):
    """Answers each operation of the allow-list itself."""

    regions: ClassVar[Regions]

    @property
    def service(self) -> Service:
        """The service of the region that was called."""
        return self.regions[self.region]

    @property
    def request_body(self) -> dict[str, Any]:
        """The request as it came, for describe to repeat."""
        body = json.loads(self.body or "{}")
        assert isinstance(body, dict)
        return body


def _operation(name: str) -> Callable[[RehearsalResponse], ActionResult]:
    method = camelcase_to_underscores(name)

    def answer(response: RehearsalResponse) -> ActionResult:
        check_shape(name, response.request_body)
        owner = response.service if hasattr(Service, method) else response.service.hosting
        return ActionResult(in_aws_order(name, getattr(owner, method)(response.request_body)))

    return answer


for _name in OPERATIONS["sagemaker"]:
    setattr(RehearsalResponse, camelcase_to_underscores(_name), _operation(_name))


def install(regions: Regions) -> None:
    """Replace moto's answers, in this process."""
    RehearsalResponse.regions = regions
    moto_urls.answer("sagemaker", RehearsalResponse.dispatch)
