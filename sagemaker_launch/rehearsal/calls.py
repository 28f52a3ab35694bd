"""Which operation of which service a request calls, and with what: read by the protocols of botocore's models."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from moto.core.model import OperationModel
from moto.core.parse import PROTOCOL_PARSERS, RequestParserError
from moto.core.request import Request, determine_request_protocol
from moto.core.routing import ProtocolRouter, get_router_class
from moto.core.utils import get_service_model
from werkzeug.exceptions import NotFound

from sagemaker_launch.rehearsal.signatures import SCOPE, Environ, RefusedRequestError

CALL = "rehearsal.call"
"""Key under which a request's WSGI environment has its `Call`."""
TARGET = "X-Amz-Target"
"""Header with the operation, in the JSON protocol alone; none of these services has a sister with that protocol."""
SERVICES: Mapping[str, tuple[str, ...]] = {
    "application-autoscaling": ("application-autoscaling",),
    "iam": ("iam",),
    "logs": ("logs",),
    "monitoring": ("cloudwatch",),
    "s3": ("s3",),
    "sagemaker": ("sagemaker", "sagemaker-runtime"),
    "scheduler": ("scheduler",),
    "sts": ("sts",),
    "tagging": ("resourcegroupstaggingapi",),
}
"""The services of the rehearsal: botocore's names, by the name that a signature has. The others are not rehearsed."""


@dataclass(frozen=True)
class Call:
    """One call of an operation."""

    service: str
    """botocore's name."""
    operation: str
    region: str
    parameters: Mapping[str, Any]
    """As a client gives them. Of an upload, without the body."""

    @classmethod
    def of(cls, environ: Environ) -> Call:
        """Read a request whose signature has been checked. Its body stays readable.

        Raises:
            RefusedRequestError: if it calls nothing that the rehearsal knows, or its body can't be read.
        """
        found = SCOPE.search(environ["HTTP_AUTHORIZATION"])
        assert found is not None
        region, signed_for = found[3], found[4]
        request = Request(environ, populate_request=False)
        try:
            for service in SERVICES.get(signed_for, ()):
                try:
                    protocol = _protocol(service, request)
                    operation, labels = _router(service, protocol).match(request)
                except (NotFound, NotImplementedError):
                    continue
                if not _is_addressed(protocol, request):
                    continue
                return cls(service, str(operation.name), region, _parameters(operation, protocol, request, labels))
            name = request.headers.get(TARGET) or request.values.get("Action")
        finally:
            environ["wsgi.input"].seek(0)
        if name and signed_for in SERVICES:
            raise RefusedRequestError("unknown", f"{name} is no operation of {signed_for} in botocore's model")
        raise RefusedRequestError("unsupported", f"{_named(environ, signed_for)} works on AWS, but is not rehearsed")


def _is_addressed(protocol: str, request: Request) -> bool:
    """Whether a request is addressed as clients of its protocol do it: moto would answer others with pages of HTML."""
    if protocol == "json":
        return request.method == "POST" and request.path == "/"
    if protocol == "query" and request.path != "/":
        return False
    return TARGET not in request.headers


def _protocol(service: str, request: Request) -> str:
    """The protocol of a request; what is posted to an endpoint may have any type, also that of another protocol."""
    model = get_service_model(service)
    several = len(model.metadata.get("protocols", ())) > 1
    return determine_request_protocol(model, request.content_type) if several else str(model.protocol)


@functools.cache
def _router(service: str, protocol: str) -> ProtocolRouter:
    kind = get_router_class(service, protocol)
    if kind is None:
        raise NotFound
    return kind(get_service_model(service))


def _parameters(
    operation: OperationModel, protocol: str, request: Request, labels: dict[str, Any]
) -> Mapping[str, Any]:
    _check_query(operation, protocol, request)
    try:
        if protocol == "json":
            found = json.loads(request.get_data() or b"{}")
            if not isinstance(found, dict):
                raise ValueError("the body must be an object")
            return found
        body = b"" if operation.has_streaming_input else request.get_data()
        parsed: Mapping[str, Any] = PROTOCOL_PARSERS[protocol](operation).parse(
            {
                "method": request.method,
                "values": request.values,
                "headers": request.headers,
                "body": body,
                "url_path": request.path,
                "url_params": labels,
            }
        )
    except (ValueError, RequestParserError) as error:
        raise RefusedRequestError("body", f"{operation.name}: the request can't be read: {error}") from error
    return parsed


def _check_query(operation: OperationModel, protocol: str, request: Request) -> None:
    """Refuse parameters in the URL that the operation does not have there: moto would prefer them to the body's."""
    if not protocol.endswith("json"):
        return
    shape = operation.input_shape
    members = shape.members.values() if shape is not None else ()
    known = {each.serialization.get("name") for each in members if each.serialization.get("location") == "querystring"}
    known |= set(operation.http_trait.query_args)
    for name in request.args:
        if name not in known and not name.startswith("X-Amz-"):
            raise RefusedRequestError("body", f"{operation.name} has no parameter {name} in the URL")


def _named(environ: Environ, signed_for: str) -> str:
    """What was called, as far as the request says so."""
    target = environ.get("HTTP_X_AMZ_TARGET", "").rpartition(".")[2]
    return f"{signed_for}:{target}" if target else f"{environ['REQUEST_METHOD']} {_path(environ)} of {signed_for}"


def _path(environ: Environ) -> str:
    return urlsplit(environ["RAW_URI"]).path
