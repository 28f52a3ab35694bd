"""A proxy in front of the rehearsal that answers some calls as AWS does on a bad day."""

from __future__ import annotations

import http.client
import json
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

import pytest

EXPIRED = {"code": "ExpiredTokenException", "message": "The security token included in the request is expired"}
DENIED = {"code": "AccessDeniedException", "message": "User is not authorized to perform this operation"}
IN_S3 = {
    "ExpiredTokenException": ("ExpiredToken", 400),
    "AccessDeniedException": ("AccessDenied", 403),
    "ThrottlingException": ("SlowDown", 503),
    "InvalidSignatureException": ("RequestTimeTooSkewed", 403),
}
"""S3's codes and statuses for what other services name otherwise (Amazon S3's API reference, ErrorResponses)."""
HOP_BY_HOP = ("transfer-encoding", "content-length", "connection", "expect", "server", "date")


Rewrite = Callable[[str, bytes, bytes], bytes]
"""From an operation, the body of its request and that of its answer to another body."""


@dataclass(frozen=True)
class Fault:
    """What happens to some calls of an operation.

    Args:
        operation: regular expression of its name, such as `SageMaker.DescribeEndpoint` or `S3.PUT`.
        after: calls count from this operation on; empty for all.
        first: the first call that is answered so, counted from 1.
        last: the last one; None for all that follow.
        lost: `request` drops the connection before the service gets the call, `answer` after it.
        status: of the answer, where the connection is not dropped; by default 200 with `body`, 400 with `code`.
    """

    operation: str
    after: str = ""
    first: int = 1
    last: int | None = None
    lost: Literal["", "request", "answer"] = ""
    status: int | None = None
    code: str = ""
    message: str = ""
    body: bytes | None = None
    """An answer of its own, in place of an error."""
    content_type: str = "application/x-amz-json-1.1"
    """Of that answer."""
    rewrite: Rewrite | None = None
    """Changes the service's own answer, unless that is an error."""
    is_cut: bool = False
    """Send the service's own answer, and close the connection in the middle of it."""

    def meets(self, operation: str, call: int) -> bool:
        """Whether it happens to a call."""
        matches = re.fullmatch(self.operation, operation) is not None
        return matches and self.first <= call <= (self.last or call)


@dataclass
class BadDay:
    """A running proxy."""

    address: str = ""
    faults: Sequence[Fault] = ()
    calls: Counter[str] = field(default_factory=Counter)
    before: dict[str, Counter[str]] = field(default_factory=dict)
    """How often each operation had been called when a fault's `after` was called first."""
    hits: int = 0
    """How many calls met a fault."""
    done: list[str] = field(default_factory=list)
    """The operations that the service has carried out, although an answer may have been lost."""

    def meets(self, fault: Fault, operation: str, call: int) -> bool:
        """Whether a fault happens to a call."""
        if not fault.after:
            return fault.meets(operation, call)
        return fault.after in self.before and fault.meets(operation, call - self.before[fault.after][operation])


@contextmanager
def bad_day(upstream: str, *faults: Fault, day: BadDay | None = None) -> Iterator[BadDay]:
    """A proxy to a service, on a free port.

    Args:
        day: what it does, where its faults change while it runs.
    """
    day = day or BadDay(faults=faults)
    lock, host = threading.Lock(), urlsplit(upstream).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self._body()
            operation = operation_of(self.command, self.path, self.headers.get("X-Amz-Target", ""), self._signed_for())
            with lock:
                day.calls[operation] += 1
                for waiting in (fault.after for fault in day.faults if fault.after == operation):
                    day.before[waiting] = day.before.get(waiting) or Counter(day.calls)
                call = day.calls[operation]
                fault = next((fault for fault in day.faults if day.meets(fault, operation, call)), None)
                day.hits += fault is not None
            if fault is None:
                self._answer(*self._forwarded(body, operation))
            elif fault.lost:
                if fault.lost == "answer":
                    self._forwarded(body, operation)
                self.close_connection = True
            elif fault.rewrite is not None:
                status, headers, answer = self._forwarded(body, operation)
                self._answer(status, headers, fault.rewrite(operation, body, answer) if status == 200 else answer)
            elif fault.is_cut:
                self._answer(*self._forwarded(body, operation), is_cut=True)
            elif fault.body is not None:
                self._answer(fault.status or 200, [("Content-Type", fault.content_type)], fault.body)
            else:
                self._refuse(fault, operation)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST

        def _signed_for(self) -> str:
            found = re.search(r"/(\w[\w-]*)/aws4_request", self.headers.get("Authorization", ""))
            return found[1] if found else ""

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                chunks = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    chunks.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(chunks)
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _forwarded(self, body: bytes, operation: str) -> tuple[int, list[tuple[str, str]], bytes]:
            connection = http.client.HTTPConnection(host, timeout=120)
            kept = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
            connection.request(self.command, self.path, body, kept | {"Content-Length": str(len(body))})
            answer = connection.getresponse()
            content = answer.read()
            if answer.status < 400:
                with lock:
                    day.done.append(operation)
            return answer.status, answer.getheaders(), content

        def _refuse(self, fault: Fault, operation: str) -> None:
            status = fault.status or 400
            if operation.startswith("S3."):
                code, status = IN_S3.get(fault.code, (fault.code, status))
                text = f"<Error><Code>{code}</Code><Message>{fault.message}</Message></Error>"
                self._answer(status, [("Content-Type", "application/xml")], text.encode())
            else:
                answer = json.dumps({"__type": fault.code, "message": fault.message}).encode()
                kinds = [("Content-Type", "application/x-amz-json-1.1"), ("x-amzn-ErrorType", fault.code)]
                self._answer(status, kinds, answer)

        def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, *, is_cut: bool = False) -> None:
            self.send_response_only(status)
            length = dict(headers).get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
            for name, value in headers:
                if name.lower() not in HOP_BY_HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[: len(body) // 2] if is_cut else body)
            self.close_connection = is_cut or self.close_connection

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # a client that left, which is a part of a bad day
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    day.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield day
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def on_a_bad_day(*faults: Fault) -> Iterator[BadDay]:
    """A proxy in front of the service that this process calls."""
    with bad_day(os.environ["AWS_ENDPOINT_URL"], *faults) as day, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", day.address)
        yield day


def operation_of(method: str, path: str, target: str, service: str) -> str:
    """The name of a call: that of JSON services' header, else service, method and the path's first words."""
    if target:
        return target
    if service == "s3":
        return "S3.LIST" if "list-type=" in path else f"S3.{method}"
    return f"{service}.{method} {re.sub(r'[^/]*[0-9][^/]*', '*', path)}"
