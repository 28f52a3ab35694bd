"""Wait for another process, such as the holder of a database lock: for a limited time, and not after Ctrl-C."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from filelock import Timeout

from experiments.console import duration, say
from experiments.errors import SweepError
from lightning_modules.locks import KernelLock

PAUSE_SECONDS = 0.05
SILENT_SECONDS = 2.0
"""Seconds before a wait is reported."""
_Item = TypeVar("_Item")


class Patience:
    """Repeats a call that fails while another process holds a lock or a server is away.

    Args:
        seconds: how long to wait for one call.
        check: called between two tries; raises to stop, such as after Ctrl-C.
    """

    def __init__(self, seconds: float, check: Callable[[], None] = lambda: None) -> None:
        self._seconds, self._check = seconds, check

    def call(self, call: Callable[[], _Item], is_busy: Callable[[Exception], bool], name: str) -> _Item:
        """Repeat a call until it succeeds, and report a long wait once.

        Args:
            is_busy: whether an error of the call says that waiting helps.
            name: what is waited for, for the error.

        Raises:
            SweepError: if it is busy for too long.
        """
        begun, has_reported = time.monotonic(), False
        while True:
            try:
                return call()
            except Exception as error:
                if not is_busy(error):
                    raise
                waited = time.monotonic() - begun
                if waited > self._seconds:
                    raise SweepError(
                        f"{name} was locked by another process, or did not answer, for {self._seconds:g} seconds: the "
                        "trials are kept, and the same command continues when it answers again"
                    ) from error
            if waited > SILENT_SECONDS and not has_reported:
                limit = f", for {duration(self._seconds)} at most" if math.isfinite(self._seconds) else ""
                say(f"waiting for {name}, which is locked by another process or does not answer{limit}")
                has_reported = True
            self._check()
            time.sleep(PAUSE_SECONDS)

    def lock(self, path: Path) -> KernelLock:
        """Acquire a file lock; leaving it as a context manager releases it."""
        lock = KernelLock(path)
        self.call(lambda: lock.acquire(timeout=0), lambda error: isinstance(error, Timeout), str(path))
        return lock
