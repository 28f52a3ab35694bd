"""Write a file or a folder atomically."""

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
        shared: whether several processes may write `path` at the same time: each then writes its own temporary file.

    Yields:
        The temporary path to write to. Leftovers of a killed process are removed first.

    Raises:
        OSError: the system's error; it names `path` if the system's error names no file.
    """
    part = part_path(path) if not shared else path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        remove(part)
        yield part
        part.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            remove(part)
        failure = _machine_error(error)
        if failure is None:
            raise
        failure.filename = failure.filename or str(path)
        raise failure from (None if failure is error else error)


def part_path(path: Path) -> Path:
    """The temporary path that `replaced_whole` renames to `path`."""
    return path.with_name(f".{path.name}.part")


def remove(path: Path) -> None:
    """Delete a file or a folder with its content, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _machine_error(error: BaseException) -> OSError | None:
    """The system's own error, which torch and safetensors wrap into their own errors."""
    if isinstance(error, OSError):
        return error if error.errno else None
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
        return error.__context__
    number = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None
