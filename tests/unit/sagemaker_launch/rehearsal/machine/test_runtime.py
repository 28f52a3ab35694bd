"""The runtime and the faults act on the call that was authorized, whatever else a request says."""

from __future__ import annotations

import json
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from sagemaker_launch.rehearsal.calls import CALL
from sagemaker_launch.rehearsal.faults import Faults, FaultSettings, FaultyApplication
from sagemaker_launch.rehearsal.machine.runtime import Runtime
from sagemaker_launch.rehearsal.rehearsed import Rehearsed
from sagemaker_launch.rehearsal.signatures import Environ
from tests.unsent import answered, written

ARN = "arn:aws:sagemaker:us-east-1:123456789012:training-job/dogs"


class Moto:
    """Stands for moto: it keeps each call and body that reach it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.bodies: list[bytes] = []

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        self.calls.append((environ[CALL].service, environ[CALL].operation))
        self.bodies.append(environ["wsgi.input"].read())
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps({"Tags": [{"Key": "project", "Value": "dogs"}]}).encode()]


def applications(moto: Moto, rate: float = 0.0) -> Rehearsed:
    """The server's applications from the allow-list on, for an account without endpoints."""
    service: Any = SimpleNamespace(hosting=SimpleNamespace(endpoints={}))
    objects: Any = None  # nothing is read
    runtime = Runtime(moto, lambda region: service, "123456789012", objects)
    return Rehearsed(FaultyApplication(runtime, Faults(FaultSettings(rate))))


@pytest.mark.parametrize("path", ["/endpoints/dogs/invocations", "/endpoints/dogs/async-invocations"])
def test_an_operation_in_a_header_and_another_in_the_path_are_none(path: str) -> None:
    moto, environ = Moto(), written("sagemaker", "ListTrainingJobs", {})
    mixed = environ | {"RAW_URI": path, "PATH_INFO": path}
    error = answered(applications(moto), mixed, "sagemaker", "ListTrainingJobs")["Error"]
    assert error["Code"] == "UnknownOperationException"
    assert moto.calls == []


@pytest.mark.parametrize("operation", ["InvokeEndpoint", "InvokeEndpointAsync"])
@pytest.mark.parametrize("end", ["", "/"])
def test_an_invocation_never_reaches_moto(operation: str, end: str) -> None:
    given = {"EndpointName": "dogs", "Body": b"photo", "InputLocation": "s3://photos/1.jpg"}
    moto, environ = Moto(), written("sagemaker-runtime", operation, given)
    path = environ["PATH_INFO"] + end
    whole = environ | {"RAW_URI": path, "PATH_INFO": path}
    error = answered(applications(moto), whole, "sagemaker-runtime", operation)["Error"]
    assert error["Message"] == "Endpoint dogs of account 123456789012 not found."
    assert moto.calls == []


def test_tags_are_late_by_the_call_and_its_body_still_reaches_the_service() -> None:
    moto, rate = Moto(), 1e-12  # no call fails
    environ = written("sagemaker", "ListTags", {"ResourceArn": ARN})
    body = environ["wsgi.input"].getvalue()
    application = applications(moto, rate)
    shown = [answered(application, dict(environ), "sagemaker", "ListTags")["Tags"] for _ in range(3)]
    assert shown == [[], [], [{"Key": "project", "Value": "dogs"}]]
    assert moto.bodies == [body]
