"""What every request must pass: an address of this machine, no browser page behind it, and a signature that we know.

Without it, each page that the user's browser shows and each user of the machine could start a job, which is code of
their choice under the user's name.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Literal
from xml.sax.saxutils import escape

from experiments.loopback import is_loopback
from sagemaker_launch.rehearsal.faults import Application
from sagemaker_launch.rehearsal.keys import ADMINISTRATOR, LAUNCHER, Keys
from sagemaker_launch.rehearsal.signatures import SCOPE, Environ, Fault, RefusedRequestError, verify

PRINCIPAL = "rehearsal.principal"
"""Key under which a request's WSGI environment has the ARN of the user or role that signed it."""
MOTO_PATHS = ("/moto-api", "/latest/meta-data", "/latest/api", "/favicon.ico")
"""What moto answers beside AWS: it resets all state, replays requests, hands out credentials. Closed to everybody."""
MOTO_HEADERS = "HTTP_X_MOTO_"
"""Headers by which a client chooses moto's account."""
CODES: dict[Fault, tuple[str, str, str]] = {
    "missing": ("AccessDenied", "MissingAuthenticationTokenException", "MissingAuthenticationToken"),
    "malformed": ("AuthorizationHeaderMalformed", "IncompleteSignatureException", "IncompleteSignature"),
    "key": ("InvalidAccessKeyId", "UnrecognizedClientException", "InvalidClientTokenId"),
    "signature": ("SignatureDoesNotMatch", "InvalidSignatureException", "SignatureDoesNotMatch"),
    "time": ("RequestTimeTooSkewed", "InvalidSignatureException", "SignatureDoesNotMatch"),
    "expired": ("AccessDenied", "ExpiredTokenException", "RequestExpired"),
    "payload": ("XAmzContentSHA256Mismatch", "InvalidSignatureException", "SignatureDoesNotMatch"),
    "forbidden": ("AccessDenied", "AccessDeniedException", "AccessDenied"),
    "unsupported": ("NotImplemented", "ValidationException", "ValidationError"),
    "unknown": ("MethodNotAllowed", "UnknownOperationException", "InvalidAction"),
    "body": ("MalformedXML", "SerializationException", "MalformedQueryString"),
    "internal": ("InternalError", "InternalFailure", "InternalFailure"),
}
"""AWS's error codes by fault: of S3, of services with JSON, and of the query services such as STS and IAM.

Sources, 2026: docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html, and the pages "Common Errors" of SageMaker's
and of IAM's API reference.
"""
BAD_REQUESTS: tuple[Fault, ...] = ("malformed", "payload", "unsupported", "unknown", "body")
"""Faults that S3 and the query services answer with 400; all others with 403."""
S3_SERVICES = ("s3", "s3express", "s3-outposts")
"""Names in signatures of services that answer as S3 does."""
QUERY_SERVICES = ("iam", "sts")
"""Names in signatures of rehearsed services that have the query protocol alone."""
XML_SERVICES = ("cloudfront", "route53")
"""Names in signatures of services with XML and operations in the path; all others with such operations have JSON."""


class Gate:
    """The outermost application: it lets the owners of the keys in and nobody else."""

    def __init__(self, application: Application, keys: Keys) -> None:
        self._application, self._keys = application, keys

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        """Pass a request on, with its principal, or refuse it as AWS does."""
        try:
            _check_source(environ)
            environ[PRINCIPAL] = verify(environ, self._keys, datetime.now(UTC))
        except RefusedRequestError as refused:
            return answer_refused(environ, start_response, refused)
        return self._application(environ, _without_cors(start_response))


def check_is_user(environ: Environ) -> None:
    """Let users do what no role may do.

    Raises:
        RefusedRequestError: if a role signed the request.
    """
    principal: str = environ[PRINCIPAL]
    if principal.rpartition(":")[2] not in (f"user/{LAUNCHER}", f"user/{ADMINISTRATOR}"):
        raise RefusedRequestError("forbidden", f"{principal} may not call the rehearsal's own addresses")


def answer_refused(environ: Environ, start_response: Any, refused: RefusedRequestError) -> Iterable[bytes]:
    """Answer in the form in which the service that was called answers errors."""
    message, request_id = str(refused), str(uuid.uuid4())
    s3_code, json_code, query_code = CODES[refused.fault]
    status = 400 if refused.fault in BAD_REQUESTS else 403
    headers = [("x-amzn-RequestId", request_id)]
    form = error_form(environ)
    if refused.fault == "internal":
        status = 500
    elif form in ("json", "cbor"):
        status = 400  # of all client errors of these protocols
    if form == "json":
        kind, body = "application/x-amz-json-1.1", json.dumps({"__type": json_code, "message": message}).encode()
    elif form == "cbor":
        kind = "application/cbor"
        body = b"\xa2" + b"".join(map(_cbor_text, ("__type", json_code, "message", message)))
        headers.append(("smithy-protocol", "rpc-v2-cbor"))
    elif form == "rest-json":
        if refused.fault == "unsupported" and "/sagemaker/" in environ["HTTP_AUTHORIZATION"]:
            json_code = "ValidationError"  # the runtime's name for it
        kind, body = "application/json", json.dumps({"message": message}).encode()
        headers.append(("x-amzn-ErrorType", json_code))
    else:
        code = s3_code if form == "s3" else query_code
        kind, error = "text/xml", f"<Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
        number = f"<RequestId>{request_id}</RequestId>"
        text = {
            "s3": error.replace("</Error>", f"{number}</Error>"),
            "ec2": f"<Response><Errors>{error}</Errors><RequestID>{request_id}</RequestID></Response>",
            "query": f"<ErrorResponse>{error}{number}</ErrorResponse>",
        }[form]
        body = f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'.encode()
    headers += [("Content-Type", kind), ("Content-Length", str(len(body)))]
    start_response(f"{status} {HTTPStatus(status).phrase}", headers)
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


def error_form(environ: Environ) -> Literal["json", "cbor", "rest-json", "s3", "ec2", "query"]:
    """The form in which the called service answers errors, by what clients of each protocol send."""
    found = SCOPE.search(environ.get("HTTP_AUTHORIZATION", ""))
    service = "" if found is None else found[4]
    if environ.get("HTTP_SMITHY_PROTOCOL") == "rpc-v2-cbor":
        return "cbor"
    if service in S3_SERVICES:
        return "s3"
    if "HTTP_X_AMZ_TARGET" in environ and service not in QUERY_SERVICES:
        return "json"
    # What is posted to an endpoint may have any type.
    is_form = environ.get("CONTENT_TYPE", "").startswith("application/x-www-form-urlencoded")
    if is_form and service != "sagemaker":
        return "ec2" if service == "ec2" else "query"
    if found is None:
        return "s3"
    return "query" if service in XML_SERVICES else "rest-json"


def _cbor_text(text: str) -> bytes:
    """A text as CBOR writes it (RFC 8949, major type 3)."""
    data = text.encode()
    return b"\x79" + len(data).to_bytes(2, "big") + data


def _check_source(environ: Environ) -> None:
    """Refuse what a web page could send, and what leads around the signature.

    Raises:
        RefusedRequestError: saying what was refused.
    """
    # A page whose host name was made to resolve to 127.0.0.1 still sends that name. Any port: a proxy has its own.
    if not is_loopback(environ.get("HTTP_HOST", "")):
        raise RefusedRequestError(
            "forbidden", "Host must be an address of this machine, such as 127.0.0.1 or localhost"
        )
    # Browsers send it with every request that a page makes to another site. No SDK and no CLI sends it.
    if "HTTP_ORIGIN" in environ:
        raise RefusedRequestError("forbidden", "requests from web pages are refused: there must be no Origin header")
    uri = environ["RAW_URI"]
    if not uri.startswith("/") or uri.startswith("//"):
        raise RefusedRequestError("forbidden", "the request target must be a path with one slash at its start")
    if environ["PATH_INFO"].startswith(MOTO_PATHS) or any(key.startswith(MOTO_HEADERS) for key in environ):
        raise RefusedRequestError("forbidden", "moto's own addresses and headers are closed in a rehearsal")


def _without_cors(start_response: Any) -> Any:
    """Drop the headers by which moto lets every web page read its answers."""

    def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
        kept = [(name, value) for name, value in headers if not name.lower().startswith("access-control-")]
        return start_response(status, kept, *rest)

    return start
