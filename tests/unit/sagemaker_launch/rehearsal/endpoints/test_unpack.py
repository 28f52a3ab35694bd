"""How the service unpacks a model, whose container runs as any user."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sagemaker_launch.rehearsal.endpoints.serving_process import unpack


@pytest.fixture
def private_umask() -> Iterator[None]:
    """Of a person who lets nobody else read new files."""
    before = os.umask(0o077)
    yield
    os.umask(before)


def packed(*names: str, folders: tuple[tuple[str, int], ...] = ()) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, mode in folders:
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, mode
            archive.addfile(folder)
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = 1, 0o644
            archive.addfile(entry, io.BytesIO(b"x"))
    return buffer.getvalue()


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}


@pytest.mark.usefixtures("private_umask")
def test_a_model_is_readable_for_any_user_whatever_the_umask_of_the_rehearsal(tmp_path: Path) -> None:
    unpack(packed("model.json", "golden/deep/image.jpg"), tmp_path, "s3://bucket/model.tar.gz")
    assert modes(tmp_path) == {
        "model.json": 0o644,
        "golden": 0o755,
        "golden/deep": 0o755,
        "golden/deep/image.jpg": 0o644,
    }


@pytest.mark.usefixtures("private_umask")
def test_a_folder_keeps_the_mode_that_its_archive_gives_it(tmp_path: Path) -> None:
    unpack(packed("code/inference.py", folders=(("./code/", 0o700),)), tmp_path, "s3://bucket/model.tar.gz")
    assert modes(tmp_path)["code"] == 0o700
