"""Connections that wait for their client: they are closed after a time, or to make room for others."""

from __future__ import annotations

import asyncio
import resource
from typing import ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_IDLE = 256
"""Largest number of connections that wait for their client. SageMaker and load balancers open some dozens."""


class Connection(H11Protocol):
    """A connection of uvicorn, which itself waits without a limit for a first request, and for an answer to be read.

    A connection is idle while the client has to do something: send the head of a request, send the rest of a body
    after the answer, read the answer. It is closed if that takes too long. If there are too many idle connections, the
    one that is idle for longest is closed at once, so that a new client is always answered.
    """

    idle_seconds: ClassVar[float]
    """How long a connection may be idle."""
    most: ClassVar[int]
    """How many connections may be idle."""
    _idle: ClassVar[dict[Connection, asyncio.TimerHandle]]
    """The longest idle one first."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        super().connection_lost(exc)
        self._stop_waiting()

    def data_received(self, data: bytes) -> None:
        """Wait for the rest of a request's head, unless it is there."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of this one."""
        super().on_response_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            self._wait()

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        super().pause_writing()
        self._wait()

    def resume_writing(self) -> None:
        """Wait no longer."""
        super().resume_writing()
        self._stop_waiting()

    def _wait(self) -> None:
        self._stop_waiting()
        # Not close(), which waits until the client has read everything.
        self._idle[self] = self.loop.call_later(self.idle_seconds, self.transport.abort)
        if len(self._idle) > self.most:
            longest = next(iter(self._idle))
            longest._stop_waiting()  # at once: of many clients that connect together each closes another one
            longest.transport.abort()

    def _stop_waiting(self) -> None:
        if (timer := self._idle.pop(self, None)) is not None:
            timer.cancel()


def connection_class(idle_seconds: float) -> type[Connection]:
    """The connections of one server.

    Args:
        idle_seconds: how long a connection may be idle.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Half of the file limit, as the system may accept a hundred connections before the first one is handled.
    most = MAX_IDLE if files == resource.RLIM_INFINITY else min(MAX_IDLE, files // 2)
    return type("ServerConnection", (Connection,), {"idle_seconds": idle_seconds, "most": most, "_idle": {}})
