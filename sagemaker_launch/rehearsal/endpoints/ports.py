"""Ports of containers on this machine, and connections to them."""

from __future__ import annotations

import http.client
import socket
from contextlib import ExitStack

from sagemaker_launch.rehearsal.machine.namespaces import Process, socket_in_network


def free_ports(count: int = 1) -> list[int]:
    """Ports of 127.0.0.1 that nothing listens on."""
    with ExitStack() as held:
        return [held.enter_context(_bound()).getsockname()[1] for _ in range(count)]


def _bound() -> socket.socket:
    """A socket bound to a free port, which is reserved until the socket is closed."""
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    return held


def connect(process: Process, port: int, timeout_seconds: float, *, own_network: bool) -> http.client.HTTPConnection:
    """A connection to a container's server, which opens with the first request.

    Args:
        own_network: whether the container has a network of its own, which root may enter.
    """
    if own_network:
        return _Connection(process, port, timeout_seconds)
    return http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_seconds)


class _Connection(http.client.HTTPConnection):
    """A connection to a container in its own network."""

    def __init__(self, process: Process, port: int, timeout_seconds: float) -> None:
        super().__init__("127.0.0.1", port, timeout=timeout_seconds)
        self._guest = process

    def connect(self) -> None:
        """Connect from within that network."""
        self.sock = socket_in_network(self._guest.first_process())
        self.sock.settimeout(self.timeout)
        self.sock.connect((self.host, self.port))
