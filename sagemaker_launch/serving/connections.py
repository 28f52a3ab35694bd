"""Connections without a request: they are closed after a time, or to make room for others."""

from __future__ import annotations

import asyncio
import resource
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 4096
"""Largest number of open connections; each takes some 50 KB."""


class Connection(H11Protocol):
    """A connection of uvicorn, which itself waits for a first request without a limit.

    It is closed if the head of a request does not arrive in time. If there are too many connections, the one that is
    idle for longest is closed at once, so that a new client is always answered.
    """

    head_seconds: ClassVar[float]
    """How long the head of a request may take, from the connection or its first byte on."""
    most: ClassVar[int]
    """How many connections may be open."""
    _idle: ClassVar[dict[Connection, None]]
    """Those without a request, the longest idle one first."""
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request."""
        super().connection_made(transport)
        self._waits(timed=True)
        if len(self.connections) > self.most and self._idle:
            next(iter(self._idle)).transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        super().connection_lost(exc)
        self._waits_no_longer()

    def data_received(self, data: bytes) -> None:
        """Wait for the rest of a request's head, unless it is there."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._waits_no_longer()
        elif self._timer is None:
            self._waits(timed=True)

    def on_response_complete(self) -> None:
        """Wait for the next request, as long as uvicorn keeps a connection alive."""
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE:
            self._waits(timed=False)

    def _waits(self, *, timed: bool) -> None:
        self._waits_no_longer()
        self._idle[self] = None
        if timed:
            self._timer = self.loop.call_later(self.head_seconds, self.transport.close)

    def _waits_no_longer(self) -> None:
        self._idle.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def connection_class(head_seconds: float) -> type[Connection]:
    """The connections of one server.

    Args:
        head_seconds: how long the head of a request may take.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Half of the file limit, as the system may accept a hundred connections before the first one is handled.
    most = MAX_CONNECTIONS if files == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, files // 2)
    return type("ServerConnection", (Connection,), {"head_seconds": head_seconds, "most": most, "_idle": {}})
