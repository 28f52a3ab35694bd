"""Programs in processes of their own that need not import PyTorch: they are forked from one that has.

A program that starts this way is what `python -m PROGRAM` runs, with its own arguments, environment, folder, output and
signals. Each program has a test that starts it as a person does.
"""

from __future__ import annotations

import atexit
import io
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
CONTEXT = multiprocessing.get_context("forkserver")
# Packages of others, and none that starts a thread while it is imported: a fork has only the thread that forks.
CONTEXT.set_forkserver_preload(["torch", "torchvision", "torchmetrics", "pytorch_lightning", "optuna"])


class WarmProcess:
    """A running program, with what tests use of `subprocess.Popen`."""

    def __init__(
        self,
        program: str,
        arguments: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str],
        out: Path,
        err: Path,
    ) -> None:
        """Start it.

        Args:
            environment: all of it; nothing is inherited.
            out: file of its standard output, emptied first.
            err: the same of standard error; it may be the same file.
        """
        for path in (out, err):
            path.write_bytes(b"")
        given = (program, list(arguments), folder, dict(environment), out, err)
        self._process = CONTEXT.Process(target=_run, args=given)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, negative for a signal; None before the end."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Exit code, None before the end."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end.

        Raises:
            TimeoutExpired: if it does not come.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self._process.exitcode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


def run_warm(
    program: str,
    arguments: Sequence[str] = (),
    *,
    folder: Path = REPOSITORY,
    environment: Mapping[str, str] = os.environ,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end.

    Raises:
        TimeoutExpired: if it does not end in time; it is killed then.
    """
    with tempfile.TemporaryDirectory() as outputs:
        out, err = Path(outputs) / "out", Path(outputs) / "err"
        process = WarmProcess(program, arguments, folder=folder, environment=environment, out=out, err=err)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess([program, *arguments], code, out.read_text(), err.read_text())


def _run(
    program: str, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], out: Path, err: Path
) -> None:
    """Become the program."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, path in ((1, out), (2, err)):
        opened = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(line_buffering=True)
    sys.argv = [program, *arguments]
    sys.path[0:0] = [str(folder)]
    try:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    finally:
        # multiprocessing ends a process without them.
        atexit._run_exitfuncs()
