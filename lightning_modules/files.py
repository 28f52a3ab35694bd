"""Writing a file or folder whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replaced_whole(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Write a file or folder beside `path` and rename it to `path` at the end; after an error it is removed.

    A folder replaces no other folder unless that is empty.

    Args:
        shared: whether several processes may write `path` at the same time: each then writes a part of its own.

    Yields:
        Where to write. What a killed process left there is removed first.

    Raises:
        OSError: what the system says; it names `path` where the system's error names no file.
    """
    part = part_of(path) if not shared else path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        remove(part)
        yield part
        part.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            remove(part)
        failure = _of_the_machine(error)
        if failure is None:
            raise
        failure.filename = failure.filename or str(path)
        raise failure from (None if failure is error else error)


def part_of(path: Path) -> Path:
    """Where `replaced_whole` writes what becomes `path`."""
    return path.with_name(f".{path.name}.part")


def remove(path: Path) -> None:
    """Delete a file or a folder with all that is in it, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _of_the_machine(error: BaseException) -> OSError | None:
    """The system's own error, which torch and safetensors wrap into errors of theirs."""
    if isinstance(error, OSError):
        return error if error.errno else None
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
        return error.__context__
    number = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None
