"""Write a file or a folder atomically, and tell files apart."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

TEMPORARY = ".part.sagemaker-ignore"
"""End of the name of each temporary file. SageMaker, which copies a job's checkpoint folder to S3 at any moment, leaves
out names with this end (its guide on checkpoints, read 2026-11)."""
MARKERS = (".sagemaker-uploading", ".sagemaker-uploaded")
"""Ends of the names of empty files that SageMaker's uploader puts beside the files that it copies. They come and go,
and some of them are copied too."""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    part = part_path(path) if not shared else path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
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
    return path.with_name(f".{path.name}{TEMPORARY}")


def is_own_file(name: str) -> bool:
    """Whether a relative path names a finished file of ours: neither a temporary one nor a marker of SageMaker's."""
    return not any(part.startswith(".") or part.endswith(MARKERS) for part in name.split("/"))


def remove(path: Path) -> None:
    """Delete a file or a folder with its content, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as those of safetensors do: with the length of a header, and the header, which is JSON."""
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def remove_shared(folder: Path) -> None:
    """Delete a folder with its content. What another program adds meanwhile stays.

    Raises:
        OSError: if a file can't be deleted.
    """
    for path in sorted([folder, *folder.rglob("*")], reverse=True):  # the content of a folder before the folder
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
            continue
        try:
            path.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def _machine_error(error: BaseException) -> OSError | None:
    """The system's own error, which torch and safetensors wrap into their own errors."""
    if isinstance(error, OSError):
        return error if error.errno else None
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
        return error.__context__
    number = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None
