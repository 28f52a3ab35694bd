"""What one run of the tests builds once, although several processes share the tests.

A session fixture is built once per process of `pytest -n 2`. What takes long is built by `build_once` instead: in a
folder of the run, under a lock. Each builder writes its name into a ledger, and a run with a name that is there twice
fails.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from filelock import FileLock

FOLDER = "EXPERIMENTS_TEST_RUN"
"""Environment variable with the run's folder; the process that starts the run sets it for all others."""
STOP_SECONDS = 60.0


@dataclass(frozen=True)
class SharedRun:
    """One run of the tests."""

    folder: Path

    @classmethod
    def current(cls) -> SharedRun:
        """The run of this process."""
        return cls(Path(os.environ[FOLDER]))

    @property
    def alive(self) -> Path:
        """A pipe that has a writer until the run ends: a process that the run shares has it as its standard input."""
        return self.folder / "alive"

    @property
    def _ledger(self) -> Path:
        return self.folder / "built.txt"

    def note_build(self, name: str) -> None:
        """Write into the ledger that something expensive is being built."""
        with self._ledger.open("a") as file:
            file.write(f"{name}\n")

    def built(self) -> Counter[str]:
        """How often each expensive thing was built."""
        return Counter(self._ledger.read_text().splitlines() if self._ledger.exists() else [])

    def build_once(self, name: str, build: Callable[[Path], object]) -> Path:
        """The folder of that name, which the first process to ask for it fills.

        Raises:
            RuntimeError: if another process has tried and failed, or died.
        """
        folder = self.folder / name
        failed, complete = folder / "failed", folder / "complete"
        with FileLock(f"{folder}.lock"):
            if failed.exists():
                raise RuntimeError(f"{name} could not be built by another test: {failed.read_text()}")
            if not complete.exists():
                if folder.exists():
                    raise RuntimeError(f"{name} was being built by another process, which died")
                folder.mkdir()
                try:
                    build(folder)
                except BaseException as error:
                    failed.write_text(repr(error))
                    raise
                complete.touch()
        return folder

    def end_with_run(self, process: psutil.Process) -> None:
        """Note a process that has to end when the run does."""
        with (self.folder / "processes.txt").open("a") as file:
            file.write(f"{process.pid} {process.create_time()}\n")

    def faults(self) -> list[str]:
        """What is wrong when the run has ended: things built twice, processes that are left; those are killed."""
        found = [f"built {times} times in one run: {name}" for name, times in self.built().items() if times > 1]
        noted = self.folder / "processes.txt"
        for line in noted.read_text().splitlines() if noted.exists() else []:
            pid, created = line.split()
            try:
                process = psutil.Process(int(pid))
                if process.create_time() != float(created):
                    continue
                process.wait(STOP_SECONDS)
            except psutil.NoSuchProcess:
                continue
            except psutil.TimeoutExpired:
                process.kill()
                found.append(f"still running {STOP_SECONDS:.0f} s after the run: {pid}")
        return found


class Keeper:
    """Starts a run and holds it open, in the process that `pytest` itself is."""

    def __init__(self, folder: Path) -> None:
        """Make the run's folder and tell all processes that this one starts."""
        self.run = SharedRun(folder)
        folder.mkdir()
        os.environ[FOLDER] = str(folder)
        os.mkfifo(self.run.alive)
        # For reading too, or opening would wait for a reader.
        self._alive = os.open(self.run.alive, os.O_RDWR)

    def end(self) -> list[str]:
        """End the run and return what is wrong with it."""
        os.close(self._alive)
        return self.run.faults()
