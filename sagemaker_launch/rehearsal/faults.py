"""Faults on request, in front of the service: throttling, internal errors, lost answers, slow storage, late tags."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal

from sagemaker_launch.rehearsal.calls import CALL, Call

Application = Callable[[dict[str, Any], Any], Iterable[bytes]]
Fault = Literal["throttling", "error", "lost"]
LATE_TAGS = 2
"""The first calls of ListTags for a resource that show none: AWS may list them some seconds late (sagemaker-python-sdk
issue 4600)."""
FAULTS: tuple[Fault, ...] = ("throttling", "error", "lost")
BODIES = {
    "throttling": ("400 Bad Request", {"__type": "ThrottlingException", "message": "Rate exceeded"}),
    "error": ("500 Internal Server Error", {"__type": "InternalFailure", "message": "Internal failure (rehearsed)"}),
}


@dataclass(frozen=True)
class FaultSettings:
    """Kinds of faults and their rates."""

    rate: float = 0.0
    """Share of SageMaker calls that fail, of S3 requests that are slow, and of checkpoints that are copied later."""
    seed: int = 0
    """Seed of the draws."""
    slow_seconds: float = 1.0
    """How much longer a slow S3 request takes."""

    def __post_init__(self) -> None:
        """Check that shares are 0 to 1, and times are not negative."""
        if not 0 <= self.rate < 1:
            raise ValueError(f"faults: rate must be in [0, 1), got {self.rate}")
        if self.slow_seconds < 0:
            raise ValueError(f"faults: slow_seconds must be >= 0, got {self.slow_seconds}")

    @classmethod
    def parse(cls, text: str) -> FaultSettings:
        """Read `rate=0.2,seed=1`.

        Raises:
            ValueError: naming the unknown key, or the value that is not a number.
        """
        types = {"rate": float, "seed": int, "slow_seconds": float}
        assert types.keys() == {field.name for field in fields(cls)}
        values: dict[str, Any] = {}
        for pair in filter(None, text.split(",")):
            key, _, value = pair.partition("=")
            if key not in types:
                raise ValueError(f"faults: unknown {key!r}, known are {', '.join(types)} (rate=0.2,seed=1)")
            try:
                values[key] = types[key](value)
            except ValueError as error:
                raise ValueError(f"faults: {key} must be a number, got {value!r}") from error
        return cls(**values)


class Faults:
    """Draws the faults; the same settings and the same order of calls give the same faults."""

    def __init__(self, settings: FaultSettings) -> None:
        self._lock = threading.Lock()
        self.set(settings)

    def set(self, settings: FaultSettings) -> None:
        """Start again with other settings."""
        with self._lock:
            self.settings = settings
            # Several sequences: the number of S3 requests must not change the faults of SageMaker calls.
            self._calls, self._storage, self._files = (random.Random(settings.seed) for _ in range(3))
            self.counts: Counter[str] = Counter()
            self._tag_calls: Counter[str] = Counter()

    def next(self) -> Fault | None:
        """The fault of the next SageMaker call."""
        with self._lock:
            self.counts["calls"] += 1
            if self._calls.random() >= self.settings.rate:
                return None
            fault = self._calls.choice(FAULTS)
            self.counts[fault] += 1
            return fault

    def tags_are_late(self, arn: str) -> bool:
        """Whether the next ListTags does not show a resource's tags yet."""
        with self._lock:
            self._tag_calls[arn] += 1
            late = self.settings.rate > 0 and self._tag_calls[arn] <= LATE_TAGS
            if late:
                self.counts["late tags"] += 1
            return late

    def delay(self) -> float:
        """Seconds that the next S3 request takes longer."""
        with self._lock:
            if self._storage.random() >= self.settings.rate:
                return 0.0
            self.counts["slow"] += 1
            return self.settings.slow_seconds

    def skips_file(self) -> bool:
        """Whether the next copy of a checkpoint to S3 is left for later; an interruption may come first."""
        with self._lock:
            skips = self._files.random() < self.settings.rate
            self.counts["late files"] += skips
            return skips


class FaultyApplication:
    """Injects the faults in front of an application."""

    def __init__(self, application: Application, faults: Faults) -> None:
        self._application, self._faults = application, faults

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer a request, or don't."""
        call: Call = environ[CALL]
        if call.service not in ("sagemaker", "sagemaker-runtime"):
            if call.service == "s3":
                time.sleep(self._faults.delay())
            return self._application(environ, start_response)
        fault = self._faults.next()
        if fault is None:
            if call.operation == "ListTags" and self._faults.tags_are_late(call.parameters.get("ResourceArn", "")):
                return json_answer(start_response, "200 OK", {"Tags": []}, "application/x-amz-json-1.1")
            return self._application(environ, start_response)
        if fault == "lost":
            # The operation is carried out, but its answer is lost.
            for _ in self._application(environ, lambda *_: None):
                pass
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            # werkzeug takes this error for a client that went away.
            raise ConnectionAbortedError("answer lost (rehearsed)")
        status, body = BODIES[fault]
        return json_answer(start_response, status, body, "application/x-amz-json-1.1")


def json_answer(start_response: Any, status: str, body: object, kind: str = "application/json") -> Iterable[bytes]:
    """Answer a WSGI request with JSON."""
    content = json.dumps(body).encode()
    start_response(status, [("Content-Type", kind), ("Content-Length", str(len(content)))])
    return [content]
