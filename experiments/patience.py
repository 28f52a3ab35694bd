"""Waiting for what another process holds, such as a locked database: for a limited time, and not after Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from experiments.errors import SweepError

PAUSE_SECONDS = 0.05
_Item = TypeVar("_Item")


class Patience:
    """Repeats a call that fails while another process holds something.

    Args:
        seconds: how long to wait for one call.
        check: called between two tries; raises to stop, such as after Ctrl-C.
    """

    def __init__(self, seconds: float, check: Callable[[], None] = lambda: None) -> None:
        self._seconds, self._check = seconds, check

    def call(self, call: Callable[[], _Item], is_busy: Callable[[Exception], bool], name: str) -> _Item:
        """Make a call as often as it takes.

        Args:
            is_busy: whether an error of the call says that waiting helps.
            name: of what is waited for, in the error.

        Raises:
            SweepError: if it is busy for too long.
        """
        begun = time.monotonic()
        while True:
            try:
                return call()
            except Exception as error:
                if not is_busy(error):
                    raise
                if time.monotonic() - begun > self._seconds:
                    raise SweepError(
                        f"{name} was locked by another process for {self._seconds:g} seconds: the trials are kept, "
                        "and the same command continues when the lock is gone"
                    ) from error
            self._check()
            time.sleep(PAUSE_SECONDS)

    def lock(self, path: Path) -> FileLock:
        """Acquire a file lock; leaving it as a context manager releases it."""
        lock = FileLock(path, is_singleton=False)
        self.call(lambda: lock.acquire(timeout=0), lambda error: isinstance(error, Timeout), str(path))
        return lock
