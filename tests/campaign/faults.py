"""The faults of a bad day. Each begins at one call of a command and lasts as long as it does on AWS."""

from __future__ import annotations

import json
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from urllib3.util import connection

from tests.bad_days import DENIED, EXPIRED, BadDay, Fault
from tests.campaign.clock import Clock

Reach = Literal["call", "operation", "service", "account"]
MINUTE, TAGS_SECONDS, VISIBLE_SECONDS = 60.0, 10.0, 5.0
"""Of 503 and of throttling; until tags are listed; until what was created is found everywhere."""
HTML = b"<html><head><title>502 Bad Gateway</title></head><body>proxy.corp: upstream is away</body></html>"
PORTAL = b"<html><body>Welcome to the guest network. <a href='/login'>Sign in</a></body></html>"


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Args:
        answer: what the proxy does.
        reach: the calls that meet it from then on: this one, this operation's, the service's, all.
        seconds: how long, by the command's clock; None for ever.
        only: operations that it happens to, as a part of their name; empty for all.
        after: the fault needs this operation before it, `Create` and the rest of `Describe…`.
        does: what happens beside the answer: Ctrl-C, or no more names are resolved.
    """

    answer: Fault
    reach: Reach = "operation"
    seconds: float | None = None
    only: str = ""
    after: str = ""
    does: Literal["", "Ctrl-C", "no DNS"] = ""


def refusal(code: str, message: str, status: int = 400) -> Fault:
    return Fault("", code=code, message=message, status=status)


KINDS: dict[str, Kind] = {
    # What the issue lists.
    "expired token": Kind(Fault("", **EXPIRED), "account"),
    "throttled for a minute": Kind(refusal("ThrottlingException", "Rate exceeded"), "operation", MINUTE),
    "503 for a minute": Kind(refusal("ServiceUnavailable", "Service is unavailable", 503), "service", MINUTE),
    "answer lost": Kind(Fault("", lost="answer"), "call"),
    "access denied": Kind(Fault("", **DENIED), "operation"),
    "late tags": Kind(Fault("", body=json.dumps({"Tags": []}).encode()), "operation", TAGS_SECONDS, only="ListTags"),
    # What nobody listed.
    "connection lost": Kind(Fault("", lost="request"), "call"),
    "network gone": Kind(Fault("", lost="request"), "account", does="no DNS"),
    "answer cut": Kind(Fault("", is_cut=True), "call"),
    "502 of a proxy": Kind(Fault("", body=HTML, content_type="text/html", status=502), "account", MINUTE),
    "guest portal": Kind(Fault("", body=PORTAL, content_type="text/html"), "account", MINUTE),
    "clock is wrong": Kind(refusal("InvalidSignatureException", "Signature expired: it is earlier than …"), "account"),
    "not found yet": Kind(
        refusal("ValidationException", "Could not find what was just created."),
        "operation",
        VISIBLE_SECONDS,
        only="SageMaker.Describe",
        after="Create",
    ),
    "Ctrl-C before": Kind(Fault("", lost="request"), "call", does="Ctrl-C"),
    "Ctrl-C after": Kind(Fault("", lost="answer"), "call", does="Ctrl-C"),
}


@dataclass
class Planted(BadDay):
    """A proxy whose fault begins at a call of an operation."""

    kind: Kind | None = None
    operation: str = ""
    ordinal: int = 1
    clock: Clock = field(default_factory=Clock)
    began: float | None = None
    names_resolve: bool = True

    def plant(self, kind: Kind | None, operation: str = "", ordinal: int = 1) -> None:
        """Forget the last case; None plants no fault."""
        self.kind, self.operation, self.ordinal = kind, operation, ordinal
        self.faults = () if kind is None else (kind.answer,)
        self.began, self.names_resolve, self.hits = None, True, 0
        self.calls.clear()
        self.done.clear()

    def meets(self, fault: Fault, operation: str, call: int) -> bool:
        """Whether a call meets the fault."""
        del fault
        kind = self.kind
        assert kind is not None
        if self.began is None:
            is_first = operation == self.operation and call >= self.ordinal
            if not is_first or (kind.after and operation.replace("Describe", kind.after) not in self.done):
                return False
            self.began, self.names_resolve = self.clock.passed, kind.does != "no DNS"
            if kind.does == "Ctrl-C":
                interrupt()  # where the service gets the call, it does so while the command ends
            return True
        if kind.reach == "call" or (kind.seconds is not None and self.clock.passed - self.began >= kind.seconds):
            return False
        if kind.reach == "operation":
            return operation == self.operation
        return kind.reach == "account" or service_of(operation) == service_of(self.operation)

    @contextmanager
    def resolving(self) -> Iterator[None]:
        """Within it, names resolve as long as this day says so."""
        create: Any = connection.create_connection

        def connect(*given: Any, **options: Any) -> Any:
            if not self.names_resolve:
                raise socket.gaierror(-3, "Temporary failure in name resolution")
            return create(*given, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(connection, "create_connection", connect)
            yield


def service_of(operation: str) -> str:
    """The service of an operation."""
    return operation.partition(".")[0]


def interrupt() -> None:
    """Ctrl-C."""
    assert threading.main_thread().ident is not None
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
