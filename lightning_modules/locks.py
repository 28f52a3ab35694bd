"""File locks that the kernel releases when their holder dies."""

from __future__ import annotations

import errno
from pathlib import Path

from filelock import FileLock, Timeout

from lightning_modules.errors import UserError

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
"""Errors of a file system without locks, such as NFS without lockd."""


class KernelLock(FileLock):
    """A lock on a file.

    Args:
        path: the file. It is kept when the lock is released.
        timeout: seconds to wait for another holder; -1 waits without a limit, after which `filelock.Timeout` is raised.

    Raises:
        UserError: from acquiring it, on a file system without locks.
    """

    def __init__(self, path: Path, timeout: float = -1) -> None:
        # Not a soft lock: its file remains when the holder is killed, and other processes wait forever.
        super().__init__(path, timeout, is_singleton=False, fallback_to_soft=False)

    def try_acquire(self) -> bool:
        """Acquire it unless another process holds it."""
        try:
            self.acquire(timeout=0)
        except Timeout:
            return False
        return True

    def _acquire(self) -> None:
        try:
            super()._acquire()
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            folder = Path(self.lock_file).absolute().parent
            raise UserError(
                f"output_dir and data.cache_dir must be on a file system with locks, got {str(folder)!r}: "
                f"{error.strerror}. Choose another folder, or mount this one with locks (NFS: lockd, or the mount "
                "option local_lock=flock where one machine uses it)"
            ) from error
