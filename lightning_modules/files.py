"""Writing a file or folder whole or not at all."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replaced_whole(path: Path, part: Path) -> Iterator[Path]:
    """Write to `part`, which is then renamed to `path`; where that fails, as on a full disk, `part` is removed.

    Raises:
        OSError: what the block raises; it names `path` where Python names no file.
    """
    try:
        yield part
        part.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise
