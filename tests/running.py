"""A command of `experiments` that runs while a test looks at it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.conftest import own_flags
from tests.warm import REPOSITORY, WarmProcess


class Running:
    """A command in a process of its own, with what it says."""

    def __init__(self, log: Path, name: str, *words: str, values: Mapping[str, object]) -> None:
        """Start it.

        Args:
            log: file of its output and errors.
            values: fields of its config.
        """
        self._log = log
        fields = own_flags(name, (f"--{field}={value}" for field, value in values.items()))
        self.process = WarmProcess(
            "experiments", [name, *words, *fields], folder=REPOSITORY, environment=os.environ, out=log, err=log
        )

    @property
    def text(self) -> str:
        """What it has said."""
        return self._log.read_text()

    def wait_for(self, condition: Callable[[str], object]) -> None:
        """Wait until it has said something."""
        deadline = time.monotonic() + 120
        while not condition(self.text):
            assert self.process.poll() is None, self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.02)

    def end(self, timeout: float = 60.0) -> str:
        """Wait for its end.

        Returns:
            What it has said.
        """
        try:
            self.process.wait(timeout)
        finally:
            self.process.kill()
        return self.text
