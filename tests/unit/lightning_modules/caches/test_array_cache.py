"""Arrays on disk: computed once, checked, bounded, and whole whatever was killed."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from numpy.typing import NDArray

from lightning_modules.caches import array_cache
from lightning_modules.caches.array_cache import ARRAY_FILE, MANIFEST_FILE, CacheError, CacheTooSmallError, open_array
from lightning_modules.files import file_sha256, part_path
from tests.conftest import REPOSITORY


class Filler:
    """Counts how often it had to compute."""

    def __init__(self, value: float = 1.0) -> None:
        self.value, self.calls = value, 0

    def __call__(self, values: NDArray[Any]) -> None:
        self.calls += 1
        values[:] = self.value


def open_one(folder: Path, fill: Filler, key: object = "a", *, rows: int = 10, max_gb: float = 1.0) -> NDArray[Any]:
    return open_array(folder, {"key": key}, shape=(rows, 4), dtype="float32", fill=fill, max_gb=max_gb)


def entries(folder: Path) -> list[Path]:
    return [path.parent for path in folder.glob(f"*/{MANIFEST_FILE}")]


def test_an_array_is_computed_once_and_read_from_disk_afterwards(tmp_path: Path) -> None:
    fill = Filler(2.5)
    first = open_one(tmp_path, fill)
    again = open_one(tmp_path, fill)
    assert fill.calls == 1
    assert isinstance(again, np.memmap)
    assert np.array_equal(first, np.full((10, 4), 2.5, "float32"))
    assert np.array_equal(first, again)


def test_another_key_is_another_array(tmp_path: Path) -> None:
    fill = Filler()
    open_one(tmp_path, fill, {"seed": 0})
    open_one(tmp_path, fill, {"seed": 1})
    assert fill.calls == 2


def test_what_is_written_to_it_stays_in_the_process(tmp_path: Path) -> None:
    fill = Filler(1.0)
    open_one(tmp_path, fill)[:] = 7
    assert float(open_one(tmp_path, fill).max()) == 1.0
    assert fill.calls == 1


@pytest.mark.parametrize("file", [ARRAY_FILE, MANIFEST_FILE])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_a_damaged_entry_is_reported_and_computed_again(
    tmp_path: Path, file: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    fill = Filler(3.0)
    open_one(tmp_path, fill)
    [entry] = entries(tmp_path)
    path = entry / file
    content = bytearray(path.read_bytes())
    content[-20] ^= 255
    path.unlink()
    if damage != "gone":
        path.write_bytes({"flip": bytes(content), "cut": bytes(content[:-9]), "empty": b""}[damage])
    assert float(open_one(tmp_path, fill).min()) == 3.0
    assert "is damaged and is computed again" in caplog.text or (file, damage) == (MANIFEST_FILE, "flip")
    assert float(open_one(tmp_path, fill).min()) == 3.0
    assert fill.calls <= 2


def test_a_kill_while_it_is_computed_leaves_nothing_in_use(tmp_path: Path) -> None:
    def killed(values: NDArray[Any]) -> None:
        values[:5] = 9
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_array(tmp_path, {"key": "a"}, shape=(10, 4), dtype="float32", fill=killed, max_gb=1.0)
    assert entries(tmp_path) == []
    assert float(open_one(tmp_path, Filler(1.0)).max()) == 1.0
    assert not list(tmp_path.glob(".*.part.sagemaker-ignore"))


def test_two_at_once_compute_it_once(tmp_path: Path) -> None:
    fill = Filler()
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: open_one(tmp_path, fill), range(8)))
    assert fill.calls == 1
    assert all(np.array_equal(array, opened[0]) for array in opened)


def test_the_entry_that_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    fill, room = Filler(), 3.5 * 1000 * 4 * 4 / 10**9
    for age, key in ((300, "a"), (200, "b"), (100, "c")):
        before = set(entries(tmp_path))
        opened = open_one(tmp_path, fill, key, rows=1000, max_gb=room)
        [entry] = set(entries(tmp_path)) - before
        os.utime(entry / MANIFEST_FILE, (time.time() - age, time.time() - age))
    open_one(tmp_path, fill, "a", rows=1000, max_gb=room)  # used again: b is the oldest now
    open_one(tmp_path, fill, "d", rows=1000, max_gb=room)
    for key in "acd":
        open_one(tmp_path, fill, key, rows=1000, max_gb=room)
    assert fill.calls == 4, "a, c and d are still there"
    for key in "bef":
        open_one(tmp_path, fill, key, rows=1000, max_gb=room)
    assert fill.calls == 7
    assert float(opened.max()) == 1.0, "who has an entry open keeps it"


ROOM_FOR_ONE = 1.5 * 10 * 4 * 4 / 10**9
"""Value of `data.cache_max_gb`, for arrays of `open_one`."""


def test_an_entry_that_another_process_opens_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill = Filler()
    open_one(tmp_path, fill, "a")
    [entry] = entries(tmp_path)
    os.utime(entry / MANIFEST_FILE, (1, 1))
    with ThreadPoolExecutor(1) as pool:

        def hash_while_another_needs_room(path: Path) -> str:
            monkeypatch.setattr(array_cache, "file_sha256", file_sha256)
            assert (entry / MANIFEST_FILE).stat().st_mtime > 1, "its use is noted first"
            found = file_sha256(path)
            pool.submit(open_one, tmp_path, fill, "b", max_gb=ROOM_FOR_ONE).result(20)
            return found

        monkeypatch.setattr(array_cache, "file_sha256", hash_while_another_needs_room)
        opened = open_one(tmp_path, fill, "a")
    assert float(opened.min()) == 1.0
    assert (fill.calls, len(entries(tmp_path))) == (2, 2)
    open_one(tmp_path, fill, "c", max_gb=ROOM_FOR_ONE)
    assert len(entries(tmp_path)) == 1, "nobody opens the others now"


def test_another_process_may_make_room_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill = Filler()
    for key in "ab":
        open_one(tmp_path, fill, key)
    first, second = entries(tmp_path)
    (first / ARRAY_FILE).unlink()  # as where the other process has come so far
    remove = shutil.rmtree

    def remove_after_another(path: Path, **options: object) -> None:
        if path == second:
            remove(path)
        remove(path, **options)

    monkeypatch.setattr(array_cache.shutil, "rmtree", remove_after_another)
    opened = open_one(tmp_path, fill, "c", max_gb=ROOM_FOR_ONE)
    assert float(opened.min()) == 1.0
    assert f"{second} goes" in caplog.text


def test_an_entry_that_another_process_is_writing_is_not_removed(tmp_path: Path) -> None:
    fill = Filler()
    open_one(tmp_path, fill, "a")
    [entry] = entries(tmp_path)
    entry.rename(part_path(entry))
    open_one(tmp_path, fill, "b", max_gb=ROOM_FOR_ONE)
    assert (part_path(entry) / ARRAY_FILE).exists()


def test_an_array_larger_than_the_cache_is_refused_and_nothing_is_removed(tmp_path: Path) -> None:
    open_one(tmp_path, Filler(), "small", max_gb=1e-6)
    with pytest.raises(CacheTooSmallError, match=r"data\.cache_max_gb must be at least 1\.6e-06 .*got 1e-06"):
        open_one(tmp_path, Filler(), "large", rows=100, max_gb=1e-6)
    assert len(entries(tmp_path)) == 1


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("has_fallocate", [True, False])
def test_a_disk_that_fills_up_is_named_and_nothing_is_left(
    error: int, has_fallocate: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write through a memory map would kill the process with SIGBUS."""
    fill = Filler()
    with monkeypatch.context() as patched:
        full = Mock(side_effect=OSError(error, os.strerror(error)))
        patched.setattr(os, "posix_fallocate", full)
        if not has_fallocate:
            patched.delattr(os, "posix_fallocate")  # macOS
            patched.setattr(os, "fsync", full)
        rule = rf"data\.cache_dir {tmp_path} must have .* GB free: {os.strerror(error)}"
        with pytest.raises(CacheTooSmallError, match=rule):
            open_one(tmp_path, fill)
    assert fill.calls == 0
    assert not list(tmp_path.glob(".*.part.sagemaker-ignore"))
    open_one(tmp_path, fill)
    assert fill.calls == 1


@pytest.mark.parametrize("lacking", [errno.EINVAL, errno.EOPNOTSUPP])
def test_where_the_file_system_reserves_nothing_zeros_are_written(
    lacking: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", Mock(side_effect=OSError(lacking, os.strerror(lacking))), raising=False)
    blocks: list[int] = []

    def fill(values: NDArray[Any]) -> None:
        [file] = tmp_path.glob(".*.part.sagemaker-ignore/array.npy")
        blocks.append(file.stat().st_blocks)
        values[:] = 7

    opened = open_array(tmp_path, {"key": "a"}, shape=(600, 1024), dtype="float32", fill=fill, max_gb=1.0)
    assert blocks[0] * 512 >= opened.nbytes
    assert (opened == 7).all()


@pytest.mark.skipif(shutil.which("unshare") is None or os.geteuid() != 0, reason="mounts a small tmpfs, as root")
def test_a_full_tmpfs_ends_in_one_line_and_not_in_a_signal(tmp_path: Path) -> None:
    code = """
import shutil, types
from pathlib import Path
from lightning_modules.caches.array_cache import CacheTooSmallError, open_array

shutil.disk_usage = lambda folder: types.SimpleNamespace(free=10**12)  # somebody else fills it meanwhile
try:
    open_array(Path("small/arrays"), {}, shape=(2**22,), dtype="uint8", max_gb=1, fill=lambda values: values.fill(1))
except CacheTooSmallError as error:
    print(error, list(Path("small/arrays").glob(".*.part.sagemaker-ignore")))
"""
    (tmp_path / "small").mkdir()
    mount = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=1m none small && exec "$@"', "-"]
    done = subprocess.run(
        [*mount, sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    if "permission denied" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    assert done.stdout == "data.cache_dir small/arrays must have 0.00419 GB free: No space left on device []\n"


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_an_entry_that_can_not_be_read_now_is_kept_and_named(
    error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = Filler()
    open_one(tmp_path, fill)
    [entry] = entries(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(array_cache, "file_sha256", Mock(side_effect=error))
        with pytest.raises(OSError, match=error.strerror) as caught:
            open_one(tmp_path, fill)
    assert caught.value.filename == str(entry)
    open_one(tmp_path, fill)
    assert fill.calls == 1


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill = Filler()
    monkeypatch.setattr(array_cache.shutil, "disk_usage", lambda folder: SimpleNamespace(free=159))
    with pytest.raises(CacheTooSmallError, match=r"data\.cache_dir .* must have 1\.6e-07 GB free, has 1\.59e-07"):
        open_one(tmp_path, fill)
    assert fill.calls == 0
    monkeypatch.setattr(array_cache.shutil, "disk_usage", lambda folder: SimpleNamespace(free=160))
    open_one(tmp_path, fill)
    assert fill.calls == 1


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache on a disk that is mounted read-only; root may write into a folder whatever its permissions say."""

    def refuse(*arguments: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(array_cache.KernelLock, "acquire", refuse)


def test_an_array_is_read_from_a_cache_that_may_only_be_read(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    fill = Filler(2.0)
    open_one(tmp_path, fill)
    request.getfixturevalue("read_only")
    assert float(open_one(tmp_path, fill).min()) == 2.0
    assert fill.calls == 1


@pytest.mark.parametrize("is_hashed", [False, True])
def test_an_array_that_its_owner_removes_while_it_is_read_is_refused_by_name(
    is_hashed: bool, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_one(tmp_path, Filler())
    request.getfixturevalue("read_only")

    def hash_while_it_goes(path: Path) -> str:
        found = file_sha256(path)
        shutil.rmtree(path.parent)
        return found if is_hashed else file_sha256(path)

    monkeypatch.setattr(array_cache, "file_sha256", hash_while_it_goes)
    with pytest.raises(CacheError, match=r"data\.cache_dir must be .*have all that this run reads"):
        open_one(tmp_path, Filler())


@pytest.mark.usefixtures("read_only")
def test_an_array_that_such_a_cache_lacks_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"data\.cache_dir must be a folder that can be written.*Read-only"):
        open_one(tmp_path, Filler())


def test_the_use_of_another_users_array_is_not_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill = Filler()
    open_one(tmp_path, fill)

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))

    monkeypatch.setattr(array_cache.os, "utime", refuse)
    open_one(tmp_path, fill)
    assert fill.calls == 1


def no_room(*arguments: object) -> None:
    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


def test_a_quota_is_met_before_the_array_is_mapped_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = Filler()
    monkeypatch.setattr(array_cache.os, "posix_fallocate", no_room)
    with pytest.raises(CacheTooSmallError, match=r"data\.cache_dir .* must have 1\.6e-07 GB free: .*quota"):
        open_one(tmp_path, fill)
    assert fill.calls == 0
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_a_disk_that_is_full_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CacheTooSmallError, match=r"must have .* GB free: "):
        open_array(tmp_path, {"key": "a"}, shape=(10, 4), dtype="float32", fill=no_room, max_gb=1.0)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


@pytest.mark.parametrize("answer", [None, errno.EOPNOTSUPP, errno.EINVAL])
def test_space_is_reserved_where_the_system_has_no_call_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: int | None
) -> None:
    if answer is None:  # as on macOS
        monkeypatch.delattr(array_cache.os, "posix_fallocate", raising=False)
    else:

        def refuse(*arguments: object) -> None:
            raise OSError(answer, os.strerror(answer))

        monkeypatch.setattr(array_cache.os, "posix_fallocate", refuse)
    blocks: list[int] = []

    def look(values: NDArray[Any]) -> None:
        [part] = tmp_path.glob(f".*.part.sagemaker-ignore/{ARRAY_FILE}")
        blocks.append(part.stat().st_blocks * 512)
        values[:] = 5

    opened = open_array(tmp_path, {"key": "a"}, shape=(3000, 1000), dtype="float32", fill=look, max_gb=1.0)
    assert blocks[0] >= 12_000_000
    assert float(opened.min()) == float(opened.max()) == 5
