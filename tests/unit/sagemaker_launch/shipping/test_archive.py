"""model.tar.gz: the same bytes from the same export, and nothing unpacked that does not belong there."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import time
from pathlib import Path

import pytest
import torch

from lightning_modules.export import check_golden
from lightning_modules.inference import BadExportError
from sagemaker_launch.shipping import archive
from sagemaker_launch.shipping.archive import FILES, INT8_FILES, OPTIONAL, BadArchiveError, pack_model, unpack_model
from tests.unit.lightning_modules.test_export import export, tiny_network


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tiny_network(), tmp_path_factory.mktemp("export") / "model")


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(exported, tmp_path / "export"))


def add(packed: Path, *entries: tarfile.TarInfo, content: bytes = b"") -> Path:
    """The archive with further entries at its end."""
    with tarfile.open(packed) as old:
        kept = [(entry, old.extractfile(entry).read()) for entry in old]
    with tarfile.open(packed, "w:gz") as new:
        for entry, data in kept:
            new.addfile(entry, io.BytesIO(data))
        for entry in entries:
            entry.size = len(content)
            new.addfile(entry, io.BytesIO(content))
    return packed


def test_an_unpacked_archive_is_the_export_that_was_packed(exported: Path, tmp_path: Path) -> None:
    unpacked = unpack_model(pack_model(exported, tmp_path / "model.tar.gz"), tmp_path / "unpacked")
    assert {name: (unpacked / name).read_bytes() for name in FILES} == {
        name: (exported / name).read_bytes() for name in FILES
    }
    check_golden(unpacked)


def test_the_same_export_packs_to_the_same_bytes_whenever_and_by_whomever(folder: Path, tmp_path: Path) -> None:
    first = pack_model(folder, tmp_path / "first.tar.gz").read_bytes()
    for name in FILES:
        (folder / name).chmod(0o600)
        os.utime(folder / name, (time.time() - 9_999,) * 2)
    (folder / "notes.txt").write_text("not part of a model")
    assert pack_model(folder, tmp_path / "second.tar.gz").read_bytes() == first


def test_an_export_in_int8_is_packed_whole_and_unpacked(folder: Path, tmp_path: Path) -> None:
    (folder / "int8").mkdir()
    for name in INT8_FILES:
        (folder / name).write_bytes(name.encode())
    unpacked = unpack_model(pack_model(folder, tmp_path / "model.tar.gz"), tmp_path / "unpacked")
    assert {name: (unpacked / name).read_bytes() for name in INT8_FILES} == {name: name.encode() for name in INT8_FILES}
    for name in INT8_FILES:
        (folder / name).unlink()
        with pytest.raises(BadArchiveError, match=f"lacks {name}"):
            pack_model(folder, tmp_path / "model.tar.gz")
        (folder / name).write_bytes(b"again")


@pytest.mark.parametrize("name", [name for name in FILES if name not in OPTIONAL])
def test_an_export_that_lacks_a_file_is_not_packed(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BadArchiveError, match=f"lacks {name}"):
        pack_model(folder, tmp_path / "model.tar.gz")
    assert not (tmp_path / "model.tar.gz").exists()


def test_an_export_of_an_older_version_is_packed_as_it_is_or_made_ready_for_ray_serve(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    complete = pack_model(folder, tmp_path / "complete.tar.gz", for_ray_serve=True)
    assert complete.read_bytes() == pack_model(folder, tmp_path / "same.tar.gz").read_bytes()
    (folder / "config.yaml").unlink()
    (folder / "code" / "inference.py").write_text("# of an older version\n")
    older = unpack_model(pack_model(folder, tmp_path / "older.tar.gz"), tmp_path / "older")
    assert not (older / "config.yaml").exists()
    assert (older / "code" / "inference.py").read_text() == "# of an older version\n"
    assert not capsys.readouterr().err
    ready = pack_model(folder, tmp_path / "ready.tar.gz", for_ray_serve=True)
    assert "the archive gets one, and today's code/inference.py" in capsys.readouterr().err
    # What was exported today, it is from then on.
    assert ready.read_bytes() == complete.read_bytes()


def link(kind: bytes) -> tarfile.TarInfo:
    entry = tarfile.TarInfo("golden/image.jpg")
    entry.type, entry.linkname = kind, "/etc/passwd"
    return entry


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (tarfile.TarInfo("../evil.py"), "must stay inside its folder"),
        (tarfile.TarInfo("code/../../evil.py"), "must stay inside its folder"),
        (tarfile.TarInfo("/etc/evil"), "must stay inside its folder"),
        (link(tarfile.SYMTYPE), "is a link or a device"),
        (link(tarfile.LNKTYPE), "is a link or a device"),
        (link(tarfile.FIFOTYPE), "is a link or a device"),
        (tarfile.TarInfo("model.pth"), "is a pickle"),
        (tarfile.TarInfo("code/weights.PKL"), "is a pickle"),
        (tarfile.TarInfo("code/setup.py"), "and nothing else"),
    ],
)
def test_what_does_not_belong_there_is_refused_by_name(
    exported: Path, tmp_path: Path, entry: tarfile.TarInfo, reason: str
) -> None:
    packed = add(pack_model(exported, tmp_path / "model.tar.gz"), entry)
    with pytest.raises(BadArchiveError, match=reason) as refused:
        unpack_model(packed, tmp_path / "unpacked")
    assert repr(entry.name) in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model.tar.gz"]


def test_pickled_weights_under_the_right_name_are_not_read(folder: Path, tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, folder / "model.safetensors")
    unpacked = unpack_model(pack_model(folder, tmp_path / "model.tar.gz"), tmp_path / "unpacked")
    with pytest.raises(BadExportError, match="SHA-256"):
        check_golden(unpacked)


@pytest.mark.parametrize("size", [0, 10, 1_000, -1])
def test_half_an_archive_is_refused_and_the_older_model_stays(exported: Path, tmp_path: Path, size: int) -> None:
    packed = pack_model(exported, tmp_path / "model.tar.gz")
    unpacked = unpack_model(packed, tmp_path / "unpacked")
    packed.write_bytes(packed.read_bytes()[:size])
    with pytest.raises(BadArchiveError, match=r"whole|lacks"):
        unpack_model(packed, tmp_path / "unpacked")
    check_golden(unpacked)


def test_a_bomb_is_refused(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_BYTES", 1_000)
    with pytest.raises(BadArchiveError, match="at most 1000 bytes"):
        unpack_model(pack_model(exported, tmp_path / "model.tar.gz"), tmp_path / "unpacked")
