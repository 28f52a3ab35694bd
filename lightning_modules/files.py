"""Writing a file or folder whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replaced_whole(path: Path, part: Path) -> Iterator[Path]:
    """Write to `part`, which is then renamed to `path`; if that fails, as on a full disk, `part` is removed.

    Raises:
        OSError: what the system says; it names `path` where the system's error names no file.
    """
    try:
        yield part
        part.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
        failure = _of_the_machine(error)
        if failure is None:
            raise
        failure.filename = failure.filename or str(path)
        raise failure from (None if failure is error else error)


def _of_the_machine(error: BaseException) -> OSError | None:
    """The system's own error, which torch and safetensors wrap into errors of theirs."""
    if isinstance(error, OSError):
        return error
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
        return error.__context__
    number = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None
