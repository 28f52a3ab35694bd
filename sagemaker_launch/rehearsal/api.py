"""moto's SageMaker answers, with jobs that run in place of jobs that pretend."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any, ClassVar

from moto.core.responses import ActionResult, EmptyResult
from moto.sagemaker.responses import SageMakerResponse

from sagemaker_launch.rehearsal import moto_urls
from sagemaker_launch.rehearsal.machine.runner import Machine
from sagemaker_launch.rehearsal.rules import check_shape, invalid
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


TAGGED = ("training-job", "hyper-parameter-tuning-job", "model", "endpoint-config", "endpoint")
"""Resources whose tags are kept here."""


def _operation(name: str) -> Callable[[RehearsalResponse], ActionResult]:
    def answer(response: RehearsalResponse) -> ActionResult:
        return ActionResult(getattr(response.service, name)(response.request_body))

    return answer


def _hosting(name: str) -> Callable[[RehearsalResponse], ActionResult]:
    def answer(response: RehearsalResponse) -> ActionResult:
        return ActionResult(getattr(response.service.hosting, name)(response.request_body))

    return answer


class RehearsalResponse(SageMakerResponse):
    """Answers requests about jobs and endpoints itself; moto answers all others."""

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

    create_training_job = _operation("create_training_job")
    describe_training_job = _operation("describe_training_job")
    list_training_jobs = _operation("list_training_jobs")
    stop_training_job = _operation("stop_training_job")
    create_hyper_parameter_tuning_job = _operation("create_hyper_parameter_tuning_job")
    describe_hyper_parameter_tuning_job = _operation("describe_hyper_parameter_tuning_job")
    list_hyper_parameter_tuning_jobs = _operation("list_hyper_parameter_tuning_jobs")
    list_training_jobs_for_hyper_parameter_tuning_job = _operation("list_training_jobs_for_hyper_parameter_tuning_job")
    stop_hyper_parameter_tuning_job = _operation("stop_hyper_parameter_tuning_job")
    create_model = _hosting("create_model")
    describe_model = _hosting("describe_model")
    list_models = _hosting("list_models")
    delete_model = _hosting("delete_model")
    create_endpoint_config = _hosting("create_endpoint_config")
    describe_endpoint_config = _hosting("describe_endpoint_config")
    list_endpoint_configs = _hosting("list_endpoint_configs")
    delete_endpoint_config = _hosting("delete_endpoint_config")
    create_endpoint = _hosting("create_endpoint")
    describe_endpoint = _hosting("describe_endpoint")
    list_endpoints = _hosting("list_endpoints")
    delete_endpoint = _hosting("delete_endpoint")
    update_endpoint = _hosting("update_endpoint")
    update_endpoint_weights_and_capacities = _hosting("update_endpoint_weights_and_capacities")

    def list_tags(self) -> ActionResult:
        """ListTags."""
        resource = self.request_body["ResourceArn"]
        tags = self.service.tags(resource)
        if tags is None and resource.split(":")[-1].partition("/")[0] in TAGGED:
            raise invalid(f"Could not find {resource}.")  # the code is AWS's, the words are ours
        return super().list_tags() if tags is None else ActionResult({"Tags": tags})

    def add_tags(self) -> ActionResult:
        """AddTags: a key that is there gets the new value."""
        request = self.request_body
        tags = self.service.tags(request["ResourceArn"])
        if tags is None:
            return super().add_tags()
        check_shape("AddTags", request)
        united = {tag["Key"]: tag["Value"] for tag in [*tags, *request["Tags"]]}
        if len(united) > 50:
            raise invalid("The number of tags must be at most 50.")
        tags[:] = [{"Key": key, "Value": value} for key, value in united.items()]
        return ActionResult({"Tags": tags})

    def delete_tags(self) -> ActionResult:
        """DeleteTags."""
        request = self.request_body
        tags = self.service.tags(request["ResourceArn"])
        if tags is None:
            return super().delete_tags()
        tags[:] = [tag for tag in tags if tag["Key"] not in request["TagKeys"]]
        return EmptyResult()


def install(regions: Regions) -> None:
    """Replace moto's answers, in this process."""
    RehearsalResponse.regions = regions
    moto_urls.answer("sagemaker", RehearsalResponse.dispatch)
