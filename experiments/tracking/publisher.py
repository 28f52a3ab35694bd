"""The publisher, as the training process sees it: a process that sends runs to MLflow.

Only that process imports MLflow, so a trial waits neither for MLflow nor for a picture. MLflow cannot delay the end of
a command either: the command kills the publisher after a time limit.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

from experiments.config import RunConfig, tracking_uri
from experiments.console import guard_output, say
from experiments.errors import STOP_SIGNALS, InterruptedRunError, TrackingError
from experiments.runs.folder import RunFolder
from experiments.runs.processes import die_with_parent, pipe, start_process

MAX_DEATHS = 3
"""How often the publisher may be killed before the command fails."""
INTERRUPTED_SECONDS = 5.0
"""How long an interrupted command waits for MLflow at most."""
EXTRA_SECONDS = 1.0
"""Additional seconds before the publisher is killed: its own message about a time-out says more."""
POLL_SECONDS = 0.1
LOCK_FILE = "publisher.lock"
"""Lock file of a publisher: of two publishers of the same runs, one works and the other waits."""


class Phase(Enum):
    """Phase of the publisher process. It starts with FOLLOW, and is told the other phases."""

    FOLLOW = "follow"
    """Send new metrics every few seconds, while other processes train."""
    FINISH = "finish"
    """Publish all runs that have ended, then end."""
    INTERRUPTED = "interrupted"
    """Publish complete runs, mark the others as killed, then end: the same command continues them."""


@dataclass(frozen=True)
class Publication:
    """The runs of a publisher."""

    config: RunConfig
    runs: Path
    """A run folder, or a glob pattern such as trials/*."""
    lock: Path
    parent: Path | None = None
    """Run folder of the study that the runs belong to."""
    registers: bool = False
    """Whether the model of the run, when it is complete, is registered too."""


@dataclass(frozen=True)
class RunGroup:
    """Run folders that one publisher publishes."""

    lock: Path
    runs: tuple[RunFolder, ...]
    parent: RunFolder | None = None


def run_groups(config: RunConfig) -> Iterator[RunGroup]:
    """The runs below `output_dir` that have ended and belong to the experiment of the config."""

    def ended(pattern: str, home: Path) -> tuple[RunFolder, ...]:
        folders = [RunFolder(path.parent) for path in sorted(home.glob(f"{pattern}/run.json"))]
        return tuple(
            folder
            for folder in folders
            if folder.outcome is not None
            and folder.read().params.get("tracking.experiment") == config.tracking.experiment
        )

    for study in sorted(config.output_dir.glob("studies/*/study/run.json")):
        home = study.parent.parent
        yield RunGroup(home / LOCK_FILE, ended("trials/*", home), RunFolder(study.parent))
    for run in (*ended("train/*", config.output_dir), *ended("parity/*/*", config.output_dir)):
        yield RunGroup(run.path / LOCK_FILE, (run,))


class Publisher:
    """A context manager: publishes run folders while it is entered, and completes all of them on exit.

    Args:
        raise_if_interrupted: called while it waits for MLflow.

    Raises:
        TrackingError: on exit, if MLflow does not answer within `tracking.flush_timeout_seconds` or refuses a
            run. Nothing is lost: the same command sends the rest.
        InterruptedRunError: on exit, if `raise_if_interrupted` raises it.
    """

    def __init__(self, publication: Publication, raise_if_interrupted: Callable[[], None] = lambda: None) -> None:
        self._publication, self._raise_if_interrupted = publication, raise_if_interrupted
        self._deaths = 0

    def __enter__(self) -> Publisher:
        self._start()
        return self

    def __exit__(
        self, exception_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if isinstance(error, InterruptedRunError):
                self._interrupt()
            elif error is None:
                self._finish()
            else:  # the error that stopped the command says more than an error of MLflow
                try:
                    self._finish()
                except TrackingError as second:
                    say(str(second))
        except InterruptedRunError:
            self._interrupt()
            raise
        finally:
            self._process.join(EXTRA_SECONDS)  # it has sent its last message
            self._process.kill()
            self._process.join()
            self._connection.close()

    def check(self) -> None:
        """Start another process if this one was killed. Costs microseconds.

        Raises:
            TrackingError: if it keeps being killed.
        """
        while self._connection.poll():
            message = self._receive()
            if message is None:
                self._restart()

    def _start(self) -> None:
        self._connection, theirs = pipe()
        self._process = start_process(_main, (self._publication, theirs), name="publisher")
        theirs.close()
        self._allowed = math.inf  # it imports MLflow first

    def _restart(self) -> None:
        self._deaths += 1
        if self._deaths > MAX_DEATHS:
            raise TrackingError(f"the process that writes to MLflow keeps dying (exit code {self._process.exitcode})")
        self._connection.close()
        self._start()

    def _finish(self) -> None:
        message = self._end(Phase.FINISH, math.inf)
        while message is None:
            self._restart()
            message = self._end(Phase.FINISH, math.inf)
        if message:
            raise TrackingError(message)

    def _interrupt(self) -> None:
        self._raise_if_interrupted = lambda: None
        seconds = min(INTERRUPTED_SECONDS, self._publication.config.tracking.flush_timeout_seconds)
        if message := self._end(Phase.INTERRUPTED, seconds):
            say(message)

    def _end(self, phase: Phase, seconds: float) -> str | None:
        """Tell the process its last phase and wait for its end.

        Args:
            seconds: how long to wait in all; each call to MLflow has the limit that the process announces.

        Returns:
            Empty if all went well, else what went wrong; None if the process was killed.
        """
        with contextlib.suppress(BrokenPipeError):  # it has ended: did it send a reason?
            self._connection.send(phase)
        begun = asked = time.monotonic()
        while True:
            if self._connection.poll(POLL_SECONDS):
                message = self._receive()
                if not isinstance(message, float):
                    return message
                asked = time.monotonic()
            for limit, begin, extra in ((self._allowed, asked, EXTRA_SECONDS), (seconds, begun, 0.0)):
                if time.monotonic() - begin > limit + extra:
                    self._process.kill()
                    config = self._publication.config
                    return (
                        f"tracking.uri {tracking_uri(config)} gave no answer within {limit:g} seconds: "
                        f"what has run is whole in {config.output_dir} and is sent when the same command runs again"
                    )
            self._raise_if_interrupted()

    def _receive(self) -> str | float | None:
        """The next message of the process: a time limit, or its last message; None if the process was killed."""
        try:
            message: str | float = self._connection.recv()
        except (EOFError, ConnectionResetError):
            return None
        if isinstance(message, float):
            self._allowed = message
        return message


def _main(publication: Publication, connection: Connection) -> None:
    die_with_parent()
    guard_output()
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the training process handles them
    from experiments.tracking.publish import publish  # MLflow takes seconds to import

    publish(publication, connection)
