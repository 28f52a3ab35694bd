"""Arrays that are computed once and then read from disk: memory-mapped, checked by their hash, bounded in size.

An entry is a folder with the array and a manifest. It is written under a temporary name and a lock, then renamed: two
processes never compute the same array, and a kill leaves no incomplete entry.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lightning_modules.errors import UserError
from lightning_modules.files import file_sha256, part_path, remove, replaced_whole
from lightning_modules.locks import KernelLock

ARRAY_FILE = "array.npy"
MANIFEST_FILE = "manifest.json"
GB = 10**9

NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors of a folder that may only be read, such as a cache of another user."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_log = logging.getLogger(__name__)


class CacheError(UserError):
    """The cache cannot keep what a run needs."""


class CacheTooSmallError(CacheError):
    """The array is larger than `data.cache_max_gb`, or than the free disk space."""


def open_array(
    folder: Path,
    key: Mapping[str, object],
    *,
    shape: tuple[int, ...],
    dtype: DTypeLike,
    fill: Callable[[NDArray[Any]], None],
    max_gb: float,
) -> NDArray[Any]:
    """The array of a key, computed by `fill` unless the cache has it.

    Args:
        folder: folder of all entries; when it is full, the least recently used entries are removed.
        key: everything that the values depend on, as JSON can hold it.
        fill: writes the values into an array of `shape` and `dtype`.
        max_gb: how large all entries together may become, in 10^9 bytes.

    Returns:
        A private memory map: writes to it are visible in this process only.

    Raises:
        CacheTooSmallError: if the array alone is larger than `max_gb`, than what the disk has free, or than a quota.
        CacheError: if it is not in the cache and the cache may only be read.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size > max_gb * GB:
        raise CacheTooSmallError(f"data.cache_max_gb must be at least {size / GB:.3g} for this data, got {max_gb}")
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    entry = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(entry).acquire()
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        with contextlib.suppress(FileNotFoundError):  # its owner makes room meanwhile
            if _is_whole(entry):
                return _open(entry)
        raise CacheError(
            f"data.cache_dir must be a folder that can be written, or have all that this run reads, got {folder} "
            f"({error.strerror}): choose another data.cache_dir, or set data.cache none"
        ) from error
    with lock:
        # Before the hash, which takes seconds per GB. Of another user's entry only the owner may note the use.
        with contextlib.suppress(FileNotFoundError, PermissionError):
            os.utime(entry / MANIFEST_FILE)
        if not _is_whole(entry):
            shutil.rmtree(entry, ignore_errors=True)
            remove(part_path(entry))
            _make_room(folder, size, max_gb)
            if (free := shutil.disk_usage(folder).free) < size:
                raise CacheTooSmallError(
                    f"data.cache_dir {folder} must have {size / GB:.3g} GB free, has {free / GB:.3g}"
                )
            try:
                with replaced_whole(entry) as part:
                    part.mkdir()
                    values = np.lib.format.open_memmap(part / ARRAY_FILE, mode="w+", dtype=np.dtype(dtype), shape=shape)
                    _reserve(part / ARRAY_FILE, values.offset)
                    fill(values)
                    values.flush()
                    manifest = {"sha256": file_sha256(part / ARRAY_FILE), "key": dict(key)}
                    (part / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1))
            except OSError as error:
                # An error of `fill` about a photo is not an error of this disk.
                if error.errno not in NO_ROOM:
                    raise
                raise CacheTooSmallError(
                    f"data.cache_dir {folder} must have {size / GB:.3g} GB free: {error.strerror}"
                ) from error
        return _open(entry)


def _lock(entry: Path) -> KernelLock:
    return KernelLock(entry.with_name(f".{entry.name}.lock"))


def _open(entry: Path) -> NDArray[Any]:
    opened: NDArray[Any] = np.load(entry / ARRAY_FILE, mmap_mode="c", allow_pickle=False)
    return opened


def _reserve(path: Path, start: int) -> None:
    """Reserve the disk space of a new file: on a full disk a write through a memory map kills the process.

    Args:
        start: where the file's zeros begin.

    Raises:
        OSError: if the disk is full, or a quota is used up.
    """
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        if hasattr(os, "posix_fallocate"):  # macOS lacks it
            try:
                os.posix_fallocate(file.fileno(), 0, size)
                return
            except OSError as error:
                if error.errno not in (
                    errno.EINVAL,
                    errno.EOPNOTSUPP,
                    errno.ENOSYS,
                ):  # the errors of file systems without it
                    raise
        zeros = bytes(2**20)
        for offset in range(start, size, len(zeros)):
            file.seek(offset)
            file.write(zeros[: size - offset])
        file.flush()
        os.fsync(file.fileno())  # a full network drive reports its error only now


def _is_whole(entry: Path) -> bool:
    if not entry.is_dir():
        return False
    try:
        expected = json.loads((entry / MANIFEST_FILE).read_text())["sha256"]
        is_whole = expected == file_sha256(entry / ARRAY_FILE)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        is_whole = False
    except OSError as error:  # maybe temporary, or for this user only: keep the entry, which may have taken hours
        error.filename = error.filename or str(entry)
        raise
    if not is_whole:
        _log.warning("%s is damaged and is computed again", entry)
    return is_whole


def _make_room(folder: Path, needed: int, max_gb: float) -> None:
    """Remove the least recently used entries. A process that has one open can use it until it ends.

    An entry that a process is opening stays, even if the cache is then larger than `max_gb` for a while.
    """
    entries = []
    for manifest in folder.glob(f"[!.]*/{MANIFEST_FILE}"):  # not those that are being written, with temporary names
        with contextlib.suppress(FileNotFoundError):  # another process makes room, too
            size = (manifest.parent / ARRAY_FILE).stat().st_size
            entries.append((manifest.stat().st_mtime, manifest.parent, size))
    total = sum(size for _, _, size in entries)
    for _, entry, size in sorted(entries):
        if total + needed <= max_gb * GB:
            return
        lock = _lock(entry)
        if not lock.try_acquire():
            continue
        try:
            _log.warning("data.cache_max_gb %s is full: %s goes, it was not used for longest", max_gb, entry)
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(entry)
        finally:
            lock.release()
        total -= size
