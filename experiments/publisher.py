"""The process that publishes runs to MLflow beside the one that trains, as that one sees it.

MLflow is imported over there only: a trial waits neither for it nor for a picture.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

from experiments.config import RunConfig
from experiments.errors import EXIT_INTERRUPTED, InterruptedRunError, TrackingError

MAX_DEATHS = 3
"""How often the process may be killed before the run gives up."""


class Publisher:
    """Publishes run folders as long as it is entered, and all of them to their end when it is left.

    Args:
        runs: a run folder, or a glob pattern such as trials/*.
        lock: of two publishers of the same folders one works and the other waits.
        parent: run folder of the study that they belong to.

    Raises:
        TrackingError: from `check`, and from leaving it, if MLflow does not answer or stays away for
            `tracking.flush_timeout_seconds`. Nothing is lost: the same command sends the rest.
    """

    def __init__(self, config: RunConfig, runs: Path, *, lock: Path, parent: Path | None = None) -> None:
        self._arguments = (config, runs, lock, parent)
        self._deaths = 0

    def __enter__(self) -> Publisher:
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        word = "interrupted" if isinstance(error, InterruptedRunError) else "finish"
        message = self._finish(word)
        while message is None and error is None:
            self._restart()
            message = self._finish(word)
        self._process.join()
        if message and error is None:
            raise TrackingError(message)

    def check(self) -> None:
        """Start another process if this one was killed. Costs microseconds.

        Raises:
            TrackingError: if it gave up, or keeps being killed.
        """
        if self._connection.poll():  # its first word, its last one, or its end
            message = self._receive()
            if message is None:
                self._restart()
            elif message:
                raise TrackingError(message)
            self._greeted = message == ""

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # threads do not survive a fork
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_main, args=(*self._arguments, theirs), name="publisher")
        self._process.start()
        theirs.close()
        self._greeted = False

    def _restart(self) -> None:
        self._deaths += 1
        if self._deaths > MAX_DEATHS:
            raise TrackingError(f"the process that writes to MLflow keeps dying (exit code {self._process.exitcode})")
        self._start()

    def _finish(self, word: str) -> str | None:
        if not self._greeted and (message := self._receive()):
            return message
        with contextlib.suppress(BrokenPipeError):  # it is gone: did it say why?
            self._connection.send(word)
        return self._receive()

    def _receive(self) -> str | None:
        """Its next word: empty if all went well, else what went wrong; None if it was killed."""
        try:
            return str(self._connection.recv())
        except (EOFError, ConnectionResetError):
            return None


def die_with_parent() -> None:
    """Leave when the process that started this one is gone, however it went: nobody else could stop us any more."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(EXIT_INTERRUPTED)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def _main(config: RunConfig, runs: Path, lock: Path, parent: Path | None, connection: Connection) -> None:
    die_with_parent()
    from experiments.publish import publish  # MLflow takes seconds to import

    publish(config, runs, lock, parent, connection)
