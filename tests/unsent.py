"""Requests as botocore writes them, and answers as it reads them, without a server in between."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

from botocore.model import OperationModel, ServiceModel, Shape
from botocore.parsers import create_parser
from botocore.serialize import create_serializer
from botocore.session import Session

Environ = dict[str, Any]
SESSION = Session()
"""One, because each reads the models of its services again."""
STAND_INS: Mapping[str, object] = {
    "string": "x",
    "structure": {},
    "list": [],
    "map": {},
    "boolean": True,
    "blob": b"x",
    "timestamp": "2026-01-01T00:00:00Z",
}
"""A value by type of the model; 1 for numbers."""


@functools.cache
def service_model(service: str) -> ServiceModel:
    """A service as botocore describes it."""
    return SESSION.get_service_model(service)


def operation_model(service: str, operation: str) -> OperationModel:
    """The operation as botocore describes it."""
    return service_model(service).operation_model(operation)


def least(shape: Shape | None) -> dict[str, Any]:
    """Something for each required member, whether or not a service would take it."""
    required = [] if shape is None else shape.required_members
    return {name: STAND_INS.get(shape.members[name].type_name, 1) for name in required} if shape is not None else {}


def written(
    service: str, operation: str, parameters: Mapping[str, Any] | None = None, *, protocol: str | None = None
) -> Environ:
    """The WSGI environment of a call, signed by nobody; by default with the least that it needs."""
    model = operation_model(service, operation)
    protocol = protocol or str(model.service_model.resolved_protocol)
    given = least(model.input_shape) if parameters is None else dict(parameters)
    members = model.input_shape.members if model.input_shape is not None else {}
    given = {name: value for name, value in given.items() if name in members}
    request = create_serializer(protocol, include_validation=False).serialize_to_request(given, model)
    body = request["body"]
    body = urlencode(body) if isinstance(body, dict) else body
    content: bytes = body.encode() if isinstance(body, str) else body.read() if hasattr(body, "read") else body or b""
    query = request.get("query_string") or {}
    path = request["url_path"]
    if query:
        path += ("&" if "?" in path else "?") + (query if isinstance(query, str) else urlencode(query, doseq=True))
    name = str(model.service_model.signing_name)
    scope = f"AKIAIOSFODNN7EXAMPLE/20260101/us-east-1/{name}/aws4_request"
    environ: Environ = {
        "REQUEST_METHOD": request["method"],
        "RAW_URI": path,
        "PATH_INFO": urlsplit(path).path,
        "QUERY_STRING": urlsplit(path).query,
        "HTTP_HOST": "127.0.0.1:5000",
        "HTTP_AUTHORIZATION": f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature={'0' * 64}",
        "CONTENT_LENGTH": str(len(content)),
        "wsgi.input": io.BytesIO(content),
    }
    for header, value in request["headers"].items():
        key = header.upper().replace("-", "_")
        environ[key if key == "CONTENT_TYPE" else f"HTTP_{key}"] = str(value)
    return environ


def answered(
    application: Callable[[Environ, Any], Iterable[bytes]],
    environ: Environ,
    service: str,
    operation: str,
    *,
    protocol: str | None = None,
) -> dict[str, Any]:
    """What a client reads from an application's answer."""
    model, told = operation_model(service, operation), []
    body = b"".join(application(environ, lambda status, headers: told.append((status, headers))))
    [(status, headers)] = told
    protocol = protocol or str(model.service_model.resolved_protocol)
    answer = {
        "status_code": int(status.split()[0]),
        "headers": {name.lower(): value for name, value in headers},
        "body": body,
    }
    parsed: dict[str, Any] = create_parser(protocol).parse(answer, model.output_shape)
    return parsed
