"""A clock that pauses move on: retries, polls and waits of a command take no time, and as many calls as ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

REAL_SECONDS = 0.004
"""What a pause takes, so that the service's threads run."""


class Clock:
    """The time of a command."""

    def __init__(self) -> None:
        self.passed = 0.0
        """Seconds that were slept."""
        self._sleep, self._monotonic = time.sleep, time.monotonic

    def sleep(self, seconds: float) -> None:
        """Stands for `time.sleep`."""
        if threading.current_thread() is threading.main_thread():
            self.passed += seconds
        self._sleep(min(seconds, REAL_SECONDS))

    def wait(self, seconds: float) -> None:
        """Sleep in fact."""
        self._sleep(seconds)

    def real(self) -> float:
        """The time without pauses of a command."""
        return self._monotonic()

    def monotonic(self) -> float:
        """Stands for `time.monotonic`."""
        return self._monotonic() + self.passed

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Within it, this process has this clock."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(time, "sleep", self.sleep)
            patch.setattr(time, "monotonic", self.monotonic)
            yield
