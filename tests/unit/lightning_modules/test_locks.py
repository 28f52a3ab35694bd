"""Locks on file systems that have none, such as NFS without lockd."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest
from filelock import Timeout

from experiments.preflight import check_locks
from lightning_modules.errors import UserError
from lightning_modules.locks import KernelLock


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def without_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_a_second_holder_waits_and_the_file_stays(tmp_path: Path) -> None:
    with KernelLock(tmp_path / "lock"), pytest.raises(Timeout):
        KernelLock(tmp_path / "lock").acquire(timeout=0)
    with KernelLock(tmp_path / "lock").acquire(timeout=0):
        assert (tmp_path / "lock").is_file()


@pytest.mark.usefixtures("without_locks")
def test_a_folder_without_locks_is_named_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"on a file system with locks, got '{tmp_path}': .*NFS: lockd.*local_lock"):
        KernelLock(tmp_path / "lock").acquire()


@pytest.mark.usefixtures("without_locks")
def test_it_is_refused_before_a_photo_is_opened_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="on a file system with locks"):
        check_locks(tmp_path / "runs" / "of" / "dogs")
    assert list(tmp_path.iterdir()) == []


def test_another_error_of_a_lock_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="Input/output error"):
        KernelLock(tmp_path / "lock").acquire()
