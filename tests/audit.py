"""What this process does with pickles and networks, as Python itself reports it (PEP 578)."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator

UNPICKLED, CONNECTED = "pickle.find_class", "socket.connect"
WATCHED = (UNPICKLED, CONNECTED, "socket.getaddrinfo", "urllib.Request")

_watchers: list[list[str]] = []


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """The classes that are unpickled and the addresses that are asked for, meanwhile."""
    _install()
    seen: list[str] = []
    _watchers.append(seen)
    try:
        yield seen
    finally:
        _watchers.remove(seen)


@functools.cache
def _install() -> None:
    """A hook stays until the process ends, so there is one."""

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in WATCHED and _watchers:
            for seen in _watchers:
                seen.append(f"{event} {arguments}")

    sys.addaudithook(hook)
