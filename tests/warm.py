"""Programs in processes of their own that need not import PyTorch and MLflow: they are forked from one that has.

A program that starts this way is what `python -m PROGRAM` runs, with its own arguments, environment, folder, output and
signals. The processes that a program starts, such as the publisher, are forked from the same one. Each program has a
test that starts it as a person does.
"""

from __future__ import annotations

import atexit
import io
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import reduction
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
CONTEXT = multiprocessing.get_context("forkserver")
# Packages of others, and none that starts a thread while it is imported: a fork has only the thread that forks.
CONTEXT.set_forkserver_preload(
    [
        *("torch", "torchvision", "torchmetrics", "pytorch_lightning", "optuna"),
        *("mlflow", "mlflow.pyfunc", "mlflow.store.tracking.sqlalchemy_store", "matplotlib.pyplot"),
    ]
)


class WarmContext:
    """What `experiments.runs.processes.CONTEXT` is in tests: its processes are forked from the warm one."""

    Pipe = staticmethod(CONTEXT.Pipe)

    @staticmethod
    def Process(target: Callable[..., None], args: Sequence[Any], **named: Any) -> Any:
        """A process that has the environment and output of the one that starts it, as a spawned one has."""
        given = (_address(), dict(os.environ), (_Opened(1), _Opened(2)), target, args)
        return CONTEXT.Process(target=_call, args=given, **named)


class _Opened:
    """A file descriptor that a new process gets too."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _detach, (reduction.DupFd(self._number),)


def _detach(duplicate: Any) -> int:
    number: int = duplicate.detach()
    return number


_SERVER = multiprocessing.forkserver._forkserver


def _address() -> dict[str, Any]:
    """Where a process can reach the warm one."""
    _SERVER.ensure_running()
    return {name: value for name, value in vars(_SERVER).items() if name.endswith(("_address", "_authkey"))}


def _inherit(address: Mapping[str, Any]) -> None:
    """Start processes from the warm one in this process too, which was itself forked from it."""
    vars(_SERVER).update(address, ensure_running=lambda: None)
    from experiments.runs import processes

    processes.CONTEXT = WarmContext()  # type: ignore[assignment]


def _call(
    address: Mapping[str, Any],
    environment: Mapping[str, str],
    outputs: Sequence[int],
    target: Callable[..., None],
    args: Sequence[Any],
) -> None:
    _take(environment, outputs)
    _inherit(address)
    target(*args)


def _take(environment: Mapping[str, str], outputs: Sequence[int]) -> None:
    """Have another environment, standard output and standard error."""
    os.environ.clear()
    os.environ.update(environment)
    for number, opened in enumerate(outputs, 1):
        os.dup2(opened, number)
        os.close(opened)


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
        given = (_address(), program, list(arguments), folder, dict(environment), out, err)
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
    address: Mapping[str, Any],
    program: str,
    arguments: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    out: Path,
    err: Path,
) -> None:
    """Become the program."""
    _take(environment, [os.open(path, os.O_WRONLY | os.O_APPEND) for path in (out, err)])
    os.chdir(folder)
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(line_buffering=True)
    sys.argv = [program, *arguments]
    sys.path[0:0] = [str(folder)]
    # A job has its own copy of our code, and starts nothing.
    if folder == REPOSITORY or not (folder / "experiments").is_dir():
        _inherit(address)
    try:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    finally:
        # multiprocessing ends a process without them.
        atexit._run_exitfuncs()
