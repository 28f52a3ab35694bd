"""InvokeEndpoint and InvokeEndpointAsync over HTTP, in front of moto: bytes pass as they come."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Iterable
from functools import partial
from http import HTTPStatus
from typing import Any

from werkzeug.datastructures import Headers as HttpHeaders
from werkzeug.wrappers import Request as HttpRequest

from sagemaker_launch.rehearsal.calls import CALL, Call
from sagemaker_launch.rehearsal.endpoints.endpoints import Endpoint
from sagemaker_launch.rehearsal.endpoints.invocations import (
    ATTRIBUTES,
    MAX_BODY_BYTES,
    MAX_SERVERLESS_BODY_BYTES,
    TIMEOUT_SECONDS,
    Invocation,
    InvocationError,
    Invoker,
)
from sagemaker_launch.rehearsal.faults import Application
from sagemaker_launch.rehearsal.machine.objects import DataError, Objects, Uri
from sagemaker_launch.rehearsal.service import Service

PREFIX = "X-Amzn-SageMaker-"
MAX_INLINE_BYTES = 128_000
"""Body of InvokeEndpointAsync (botocore's model, 2026)."""
ASYNC_TIMEOUT_SECONDS = 900
ASYNC_TTL_SECONDS = 21_600

Headers = list[tuple[str, str]]
log = logging.getLogger(__name__)


class Runtime:
    """The operations of SageMaker's runtime, in front of moto."""

    def __init__(
        self, application: Application, services: Callable[[str], Service], account: str, objects: Objects
    ) -> None:
        """Prepare.

        Args:
            services: gives the service of a region.
        """
        self._application, self._services, self._account, self._objects = application, services, account, objects

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer a request."""
        call: Call = environ[CALL]
        if call.service != "sagemaker-runtime":
            return self._application(environ, start_response)
        request = HttpRequest(environ)
        try:
            status, headers, answer = self._answer(call, request.headers, request.get_data())
        except InvocationError as error:
            status, answer = error.status, json.dumps(error.body).encode()
            headers = [("Content-Type", "application/json")]
            headers += [] if error.code is None else [("x-amzn-ErrorType", error.code)]
        headers += [("Content-Length", str(len(answer))), ("x-amzn-RequestId", str(uuid.uuid4()))]
        phrase = HTTPStatus(status).phrase
        start_response(f"{status} {phrase}", headers)
        return [answer]

    def _answer(self, call: Call, headers: HttpHeaders, body: bytes) -> tuple[int, Headers, bytes]:
        name = call.parameters["EndpointName"]
        endpoint = self._services(call.region).hosting.endpoints.get(name)
        if endpoint is None or endpoint.blue is None or endpoint.status == "Deleting":
            raise InvocationError(400, "ValidationError", f"Endpoint {name} of account {self._account} not found.")
        asynchronous = "AsyncInferenceConfig" in endpoint.config.request
        objects = self._objects.acting_as(endpoint.blue.variants[0].process.role)
        invoker = Invoker(self._account, call.region, objects)
        if call.operation == "InvokeEndpointAsync":
            if not asynchronous:
                raise InvocationError(
                    400, "ValidationError", f"Endpoint {name} is not asynchronous: use InvokeEndpoint."
                )
            return self._enqueue(endpoint, invoker, headers, body)
        if asynchronous:
            raise InvocationError(400, "ValidationError", f"Endpoint {name} is asynchronous: use InvokeEndpointAsync.")
        return self._invoke(endpoint, invoker, headers, body)

    def _invoke(
        self, endpoint: Endpoint, invoker: Invoker, headers: HttpHeaders, body: bytes
    ) -> tuple[int, Headers, bytes]:
        if endpoint.serverless and len(body) > MAX_SERVERLESS_BODY_BYTES:
            raise InvocationError(400, "ValidationError", f"Request {uuid.uuid4()} has oversize body.")
        if len(body) > MAX_BODY_BYTES:
            raise InvocationError(413, None, f"HTTP content length exceeded {MAX_BODY_BYTES} bytes.")
        passed = {key: headers[key] for key in ("Content-Type", "Accept", ATTRIBUTES) if key in headers}
        invocation = Invocation(
            body, passed, headers.get(f"{PREFIX}Target-Variant"), headers.get(f"{PREFIX}Inference-Id")
        )
        variant, reply = invoker.invoke(endpoint, invocation, TIMEOUT_SECONDS)
        lower = {key.lower(): value for key, value in reply.headers.items()}
        told = [("x-Amzn-Invoked-Production-Variant", variant.name)]
        told += [(key, lower[key.lower()]) for key in ("Content-Type", ATTRIBUTES) if key.lower() in lower]
        return 200, told, reply.body

    def _enqueue(
        self, endpoint: Endpoint, invoker: Invoker, headers: HttpHeaders, body: bytes
    ) -> tuple[int, Headers, bytes]:
        location = headers.get(f"{PREFIX}InputLocation")
        if (location is None) == (not body):
            raise InvocationError(400, "ValidationError", "Exactly one of InputLocation and Body must be provided.")
        if len(body) > MAX_INLINE_BYTES:
            raise InvocationError(413, None, f"HTTP content length exceeded {MAX_INLINE_BYTES} bytes.")
        passed = {"Content-Type": headers.get(f"{PREFIX}Content-Type"), "Accept": headers.get(f"{PREFIX}Accept")}
        passed[ATTRIBUTES] = headers.get(ATTRIBUTES)
        given = {key: value for key, value in passed.items() if value is not None}
        inference_id = headers.get(f"{PREFIX}Inference-Id", str(uuid.uuid4()))
        output = endpoint.config.request["AsyncInferenceConfig"]["OutputConfig"]
        key = str(uuid.uuid4())
        success = Uri.parse(output["S3OutputPath"]) / f"{key}.out"
        failure = Uri.parse(output.get("S3FailurePath", output["S3OutputPath"])) / f"{key}-error.out"
        work = AsyncInvocation(endpoint, invoker, Invocation(body, given, inference_id=inference_id), location)
        timeout = int(headers.get(f"{PREFIX}InvocationTimeoutSeconds", ASYNC_TIMEOUT_SECONDS))
        until = time.monotonic() + int(headers.get(f"{PREFIX}RequestTTLSeconds", ASYNC_TTL_SECONDS))
        endpoint.enqueue(partial(work.run, success, failure, timeout, until))
        told = [
            ("Content-Type", "application/json"),
            (f"{PREFIX}OutputLocation", str(success)),
            (f"{PREFIX}FailureLocation", str(failure)),
        ]
        return 202, told, json.dumps({"InferenceId": inference_id}).encode()


class AsyncInvocation:
    """One request in the queue of an asynchronous endpoint."""

    def __init__(self, endpoint: Endpoint, invoker: Invoker, invocation: Invocation, location: str | None) -> None:
        self._endpoint, self._invoker, self._objects = endpoint, invoker, invoker.objects
        self._invocation, self._location = invocation, location

    def run(self, success: Uri, failure: Uri, timeout_seconds: float, until: float) -> None:
        """Read the input, ask the container, write what it says.

        Args:
            until: monotonic time at which the request is too old.
        """
        try:
            if time.monotonic() > until:
                raise DataError("The request expired in the queue.")
            self._objects.put(success, self._ask(timeout_seconds))
        except (DataError, InvocationError) as error:
            try:
                self._objects.put(failure, str(error).encode())
            except DataError:
                log.exception("endpoint %s: %s could not be told", self._endpoint.name, error)
        except Exception:
            log.exception("endpoint %s: internal error in an asynchronous invocation", self._endpoint.name)

    def _ask(self, timeout_seconds: float) -> bytes:
        invocation = self._invocation
        if self._location is not None:
            place = Uri.parse(self._location)
            # Without a type in the request, the object's own counts: AWS's examples and SDK upload it with one.
            headers = {"Content-Type": self._objects.content_type(place), **invocation.headers}
            invocation = Invocation(self._objects.get(place), headers, inference_id=invocation.inference_id)
        _, reply = self._invoker.invoke(self._endpoint, invocation, timeout_seconds)
        return reply.body
