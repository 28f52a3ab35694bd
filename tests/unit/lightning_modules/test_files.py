"""Files are written whole or not at all, and a full disk is named."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from experiments.callbacks.checkpoints import AtomicCheckpointIO
from lightning_modules.files import TEMPORARY, remove_shared, replaced_whole


def test_a_file_appears_whole_under_its_name(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("before")
    with replaced_whole(tmp_path / "kept.txt") as part:
        part.write_text("after")
        assert (tmp_path / "kept.txt").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
    assert (tmp_path / "kept.txt").read_text() == "after"


@pytest.mark.parametrize("shared", [True, False])
def test_what_a_killed_process_left_is_replaced(tmp_path: Path, shared: bool) -> None:
    left = tmp_path / (f".kept.{os.getpid()}{TEMPORARY}" if shared else f".kept{TEMPORARY}")
    (left / "old").mkdir(parents=True)
    with replaced_whole(tmp_path / "kept", shared=shared) as part:
        assert part == left
        part.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def write_half(path: Path, error: Exception, *, as_folder: bool = False) -> None:
    with replaced_whole(path) as part:
        if as_folder:
            part.mkdir()
        else:
            part.write_text("half")
        raise error


@pytest.mark.parametrize("as_folder", [True, False])
@pytest.mark.parametrize("kind", [OSError, SafetensorError])
def test_a_full_disk_is_named_and_leaves_nothing(kind: type[Exception], as_folder: bool, tmp_path: Path) -> None:
    error: Exception = OSError(errno.ENOSPC, "No space left on device")
    if kind is SafetensorError:
        error = kind("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_half(tmp_path / "kept", error, as_folder=as_folder)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "kept"))
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_fault_of_the_machine_is_raised_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="a bug"):
        write_half(tmp_path / "kept", KeyError("a bug"))
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_finds_no_room_names_the_disk_and_keeps_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch says `unexpected pos 704 vs 598` in place of the system's error."""
    checkpoint = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, checkpoint)
    open_whole = Path.open

    def full(*given: object, **options: object) -> object:
        file = open_whole(*given, **options)  # type: ignore[call-overload]

        class Full:
            def write(self, data: bytes) -> int:
                raise OSError(errno.ENOSPC, "No space left on device")

            def __enter__(self) -> Full:
                return self

            def __exit__(self, *exception: object) -> None:
                file.close()

        return Full()

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(1000)}, checkpoint)
    assert caught.value.filename == str(checkpoint)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert torch.load(checkpoint, weights_only=True) == {"epoch": 1}


@pytest.mark.parametrize("adds", [True, False])
def test_a_folder_is_removed_while_another_program_adds_and_removes_files(
    adds: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As SageMaker's uploader does beside the files that it copies."""
    folder = tmp_path / "checkpoints"
    (folder / "more").mkdir(parents=True)
    for name in ("best.ckpt", "last.ckpt", "last.ckpt.sagemaker-uploading", "more/one.ckpt"):
        (folder / name).write_bytes(b"weights")
    unlink = os.unlink

    def unlink_beside(path: str | Path) -> None:
        unlink(path)
        if str(path).endswith("ckpt"):
            (folder / "last.ckpt.sagemaker-uploading").unlink(missing_ok=True)
            if adds:
                Path(f"{path}.sagemaker-uploaded").touch()

    monkeypatch.setattr(os, "unlink", unlink_beside)
    remove_shared(folder)
    left = [path.name for path in folder.rglob("*") if path.is_file()]
    assert all(name.endswith(".sagemaker-uploaded") for name in left)
    assert folder.exists() == adds


def test_a_file_that_cannot_be_removed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "best.ckpt").touch()

    def refuse(_path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "best.ckpt"))

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(PermissionError, match="Permission denied"):
        remove_shared(tmp_path)
