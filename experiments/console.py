"""Output of a command. An output that fails never ends the command."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_modules.redaction import Revealed, redact

LINE_SECONDS = 10.0
"""Seconds between two progress lines without a terminal."""


def say(text: str) -> None:
    """Print a line above any progress bar, on standard error: results go to standard output. Secrets are redacted."""
    from tqdm import tqdm  # `--help` does not need it

    with contextlib.suppress(OSError):  # of a stream that is not this module's, such as a notebook's
        tqdm.write(redact(text), file=sys.stderr)


class _Output(io.FileIO):
    """A standard stream that drops what it can't write: its reader has left, its terminal is gone, its disk is full."""

    def write(self, data: Any, /) -> int:
        """Write, or drop the text."""
        try:
            written = super().write(data)
        except OSError:
            written = None
        return memoryview(data).nbytes if written is None else written


class _RedactedText(io.TextIOWrapper):
    """A standard stream without secrets, whoever writes to it: commands, warnings, tracebacks, loggers, libraries."""

    def write(self, text: str, /) -> int:
        """Write a text that was finished, such as the argument of a `print`."""
        super().write(text if isinstance(text, Revealed) else redact(text))
        return len(text)


def guard_output() -> None:
    """Keep secrets out of the output of this process, and let it continue when its output is closed.

    An output closes by `train 2>&1 | head` or an ended ssh session. A character that a terminal's encoding lacks is
    written as an escape.
    """
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:  # it was closed by the shell, and the next file to be opened would get its number
            setattr(sys, name, io.TextIOWrapper(io.FileIO(os.devnull, "w")))
            continue
        with contextlib.suppress(OSError):
            stream.flush()
        guarded = _RedactedText(
            io.BufferedWriter(_Output(number, "wb", closefd=False)),
            encoding=stream.encoding,
            errors="backslashreplace" if stream.errors == "strict" else stream.errors,
            line_buffering=stream.line_buffering or stream.write_through,
        )
        setattr(sys, name, guarded)


@contextmanager
def progress(what: str, total: int, unit: str) -> Iterator[Callable[[int], object]]:
    """Show the progress of long work: a bar on a terminal, a line now and then elsewhere.

    Args:
        unit: one of what `total` counts.

    Yields:
        A function that takes how many more are done.
    """
    if sys.stderr.isatty():
        from tqdm import tqdm  # `--help` does not need it

        with tqdm(total=total, desc=what, unit=unit, unit_scale=unit == "byte") as bar:
            yield bar.update
        return
    done, started = 0, time.monotonic()
    due = started + LINE_SECONDS

    def advance(more: int) -> None:
        nonlocal done, due
        done, now = done + more, time.monotonic()
        if now >= due and done:
            due = now + LINE_SECONDS
            to_go = duration((now - started) / done * (total - done))
            say(f"{what}: {done:,} of {total:,} {unit}s, {to_go} to go")

    yield advance


def invocation(module: str, *words: str) -> str:
    """The command that runs a module of ours with this Python: `python`, if that is what a shell would find."""
    found = shutil.which("python")
    interpreter = Path(sys.executable)
    if found and Path(found).absolute() == interpreter:
        name = "python"
    elif interpreter.is_relative_to(Path.cwd()):
        name = str(interpreter.relative_to(Path.cwd()))
    else:
        name = str(interpreter)
    return shlex.join([name, "-m", module, *words])


def duration(seconds: float, *, exact: bool = False) -> str:
    """Seconds in words: 45 s, 3 min, 1 h 20 min.

    Args:
        exact: with one digit more, for tables that are compared: 45.0 s, 3 min 12 s, 1 h 20 min.
    """
    if exact:
        if seconds < 60:
            return f"{seconds:.1f} s"
        minutes, whole_seconds = divmod(round(seconds), 60)
        return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {whole_seconds} s"
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def quiet_libraries() -> None:
    """Leave out what the libraries say about themselves."""
    root = logging.getLogger()
    if not root.handlers:  # a handler of the caller, such as a notebook's, shows what its owner wants
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
        # Lightning and Optuna set the level of their own loggers when they are imported: the handler's own decides.
        root.handlers[0].setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
    # Frozen parts are in eval mode on purpose.
    warnings.filterwarnings("ignore", "Found .* in eval mode at the start of training.*")
    # tqdm in a notebook without ipywidgets: progress is said in lines there.
    warnings.filterwarnings("ignore", "IProgress not found.*")
    # A warning on login nodes of Slurm.
    warnings.filterwarnings("ignore", "The `srun` command is available on your system but is not used.*")
    # A resumed run writes its checkpoints where the first part did.
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
