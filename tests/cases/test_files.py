"""Files and folders as other people have them: each is read by a stated rule, or left out or refused by its name.

After public reports, and further instances of the same classes. `test_images.py` has the decoder's rules.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.config import load_config
from experiments.data.datasets import check_photos, open_data
from experiments.errors import UserError
from experiments.predict import Prediction, predict_photos, prediction_table
from lightning_modules import folders, listing
from lightning_modules.folders import ClassFolders
from lightning_modules.inference import decode_image
from lightning_modules.listing import MAX_FILE_BYTES
from sagemaker_launch.endpoints.query import PhotoAnswer, answer_table, read_photo
from sagemaker_launch.shipping.storage import read_photo_set
from tests.pictures import jpeg_bytes, make_class_folders


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes, 4 photos each in train, 2 in valid and test."""
    return make_class_folders(tmp_path / "photos", classes=2, per_class={"train": 4, "valid": 2, "test": 2}, size=16)


def look(root: Path, **fields: object) -> ClassFolders:
    """What every command does first: refuse what can be refused at once, then look through the photos."""
    values = {"data.name": "folder", "data.root": root, "data.cache_dir": root.parent / "cache", **fields}
    config = load_config(None, values)
    check_photos(config.data)
    return open_data(config.data, seed=0)


# What a scan remembers


@pytest.mark.parametrize(
    ("what", "name", "fail"),
    [
        (folders, "open_image", OSError(24, "Too many open files")),
        (Path, "read_bytes", OSError(116, "Stale file handle")),
        (Path, "read_bytes", MemoryError()),
        (Image, "open", MemoryError()),
        (Image.Image, "load", OSError("out of memory when reading image file")),
    ],
    ids=["files", "stale", "memory for the file", "memory for the header", "memory for the pixels"],
)
def test_what_failed_for_a_moment_is_looked_at_again(
    what: object, name: str, fail: BaseException, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not shown in any report: other errors, and other places, than those of `cached_verdicts.py`."""
    with monkeypatch.context() as patched:
        works, calls = getattr(what, name), []

        def fail_once(*given: object, **options: object) -> object:
            calls.append(given)
            if len(calls) == 1:
                raise fail
            return works(*given, **options)

        patched.setattr(what, name, fail_once)
        away = look(root)
    assert len(away.bad_files) == 1
    assert look(root).bad_files == {}


def test_what_another_decoder_called_damaged_is_looked_at_again(root: Path) -> None:
    look(root)
    [cache] = (root.parent / "cache").iterdir()
    known = json.loads(cache.read_text())
    first = next(iter(known["files"]))
    known["files"][first][1] = "the image is damaged, said an older version"
    cache.write_text(json.dumps(known))
    assert len(look(root).bad_files) == 1, "it is remembered"
    known["decoder"][1] = "9.5.0"
    cache.write_text(json.dumps(known))
    assert look(root).bad_files == {}


def test_a_disk_that_is_full_is_named_and_no_part_is_left(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_text

    def half(path: Path, text: str) -> int:
        write(path, text[: len(text) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", half)
        with pytest.raises(OSError, match=r"No space left on device: .*files-.*\.json") as caught:
            look(root)
    assert caught.value.filename.startswith(str(root.parent / "cache" / "files-"))
    assert list((root.parent / "cache").iterdir()) == []
    assert len(look(root).train) == 8


# Odd files


def pipe(path: Path) -> str:
    os.mkfifo(path)
    return "a named pipe"


def unix_socket(path: Path) -> str:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    return "a socket"


def endless_device(path: Path) -> str:
    path.symlink_to("/dev/zero")
    return "a device"


def linked_pipe(path: Path) -> str:
    os.mkfifo("pipe")
    path.symlink_to(Path("pipe").absolute())
    return "a named pipe"


def large_archive(path: Path) -> str:
    with path.open("wb") as file:
        file.write(b"PK\3\4")
        file.truncate(12 * 10**9)  # of which the disk holds 4 kB
    return f"the file has 12000000000 bytes; a photo has at most {MAX_FILE_BYTES}"


def dangling_link(path: Path) -> str:
    path.symlink_to("nowhere.jpg")
    return "the file can't be opened: No such file or directory"


def link_to_itself(path: Path) -> str:
    path.symlink_to(path.name)
    return "the file can't be opened: Too many levels of symbolic links"


def text(path: Path) -> str:
    path.write_text("labels: ...")
    return "the bytes are not a JPEG"


@pytest.mark.parametrize(
    "make", [pipe, unix_socket, endless_device, linked_pipe, large_archive, dangling_link, link_to_itself, text]
)
def test_one_odd_file_is_named_and_blocks_nothing(
    make: Callable[[Path], str], root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root.parent)  # the path of a socket has at most 108 characters
    why = make(Path("photos/train/001.Class1/odd.jpg"))
    found = look(root)
    assert len(found.train) == 8
    assert list(found.bad_files) == ["train/001.Class1/odd.jpg"]
    assert why in found.bad_files["train/001.Class1/odd.jpg"]
    assert "train/001.Class1/odd.jpg" in caplog.text
    with pytest.raises(UserError, match=r"data\.max_bad_fraction must be at least .*got 0\.0"):
        look(root, **{"data.max_bad_fraction": 0})


def test_the_look_at_a_large_archive_reads_nothing_of_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large_archive(root / "train" / "001.Class1" / "all.zip")
    read, seen = Path.read_bytes, []
    monkeypatch.setattr(Path, "read_bytes", lambda path: seen.append(path.name) or read(path))
    look(root)
    assert "all.zip" not in seen
    assert len(seen) == 16


@pytest.mark.parametrize("make", [pipe, endless_device, large_archive])
def test_an_odd_file_blocks_no_other_command(
    make: Callable[[Path], str], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = root / "train" / "001.Class1" / "odd.jpg"
    why = make(path)
    monkeypatch.setattr("experiments.predict.load_export", lambda export: None)  # the model is not asked
    assert why in predict_photos([path], root, top_k=1)[0].error
    with pytest.raises(UserError, match=re.escape(why)):
        read_photo(path)
    assert "train/001.Class1/odd.jpg" not in read_photo_set(root).index
    assert len(read_photo_set(root).index) == 16


def test_a_large_photo_is_sent_to_an_endpoint_as_the_decoder_reads_it(
    root: Path,
) -> None:
    levels = np.tile(np.linspace(0, 30_000, 64), (48, 1)).astype("uint16")  # which Pillow's own conversion shows white
    Image.fromarray(levels).save(root / "deep.png")
    data, content_type = read_photo(root / "deep.png", max_body=100)
    assert content_type == "image/jpeg"
    sent, meant = (decode_image(image).float() for image in (data, (root / "deep.png").read_bytes()))
    assert (sent - meant).abs().mean() < 2


def test_names_that_are_not_utf8_can_be_printed() -> None:
    name = Path(os.fsdecode(b"caf\xe9.jpg"))
    assert prediction_table([Prediction(name, (), "why")]) == r"caf\xe9.jpg: why"
    assert r"caf\xe9.jpg" in answer_table([PhotoAnswer(name, error="why")])


@pytest.mark.parametrize("name", ["Thumbs.db", "desktop.ini", "Icon\r", ".DS_Store"])
def test_what_systems_put_beside_photos_does_not_count(name: str, root: Path) -> None:
    for folder in sorted(root.glob("*/*")):
        (folder / name).write_bytes(b"\xd0\xcf\x11\xe0")
    for system in ("__MACOSX", "@eaDir"):
        (root / "train" / system / "001.Class1").mkdir(parents=True)
        (root / "train" / "001.Class1" / system / "photo_0.jpg").mkdir(parents=True)
    found = look(root, **{"data.max_bad_fraction": 0})
    assert (found.class_names, len(found.train), found.remarks) == (("Class1", "Class2"), 8, ())


def test_of_many_unreadable_files_some_are_named(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(60):
        (root / "train" / "001.Class1" / f"web_{number:02}.jpg").write_text("<html>")
    with pytest.raises(UserError, match=r"60 of 76 files can't be read") as caught:
        look(root)
    assert str(caught.value).count("\n") == 51
    assert str(caught.value).endswith("\n  and 10 more")
    look(root, **{"data.max_bad_fraction": 0.9})
    assert "  and 10 more" in caplog.text


# Names


def test_a_name_in_two_spellings_of_unicode_is_one_class(root: Path, tmp_path: Path) -> None:
    accented = "Épagneul"
    mac, other = (unicodedata.normalize(form, accented) for form in ("NFD", "NFC"))
    assert mac != other
    (root / "train" / "001.Class1").rename(root / "train" / mac)
    (root / "valid" / "001.Class1").rename(root / "valid" / other)
    (root / "test" / "001.Class1").rename(root / "test" / other)
    # Unpacked on both systems, one over the other.
    (root / "train" / other).mkdir()
    shutil.move(root / "train" / mac / "photo_0.jpg", root / "train" / other)
    found = look(root)
    assert found.class_names == ("Class2", other)
    assert [found.train.labels.count(label) for label in (0, 1)] == [4, 4]
    elsewhere = tmp_path / "elsewhere" / "photos"
    for path in root.rglob("*.jpg"):
        copy = elsewhere / unicodedata.normalize("NFC", str(path.relative_to(root)))
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    copied = look(elsewhere)
    assert copied.fingerprint == found.fingerprint
    assert copied.train.labels == found.train.labels


def test_a_photo_whose_name_is_not_utf8_is_named(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    Path(os.fsdecode(os.fsencode(root / "train" / "001.Class1") + b"/caf\xe9.jpg")).write_bytes(jpeg_bytes(seed=9))
    assert look(root).bad_files == {r"train/001.Class1/caf\xe9.jpg": "the file's name is not in UTF-8; rename it"}
    assert r"caf\xe9.jpg" in caplog.text


def test_a_class_or_root_whose_name_is_not_utf8_is_refused_by_name(root: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(root / "train") + b"/B\xe4rhund"))
    shutil.copytree(root / "train" / "001.Class1", odd)
    with pytest.raises(UserError, match=r"data\.root .*in train must have names in UTF-8, got B\\xe4rhund: rename it"):
        look(root)
    shutil.rmtree(odd)
    moved = root.rename(os.fsdecode(os.fsencode(root.parent) + b"/H\xfcnde"))
    with pytest.raises(UserError, match=r"data\.root must have a name in UTF-8, got .*H\\xfcnde: rename it"):
        look(moved)


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (("0.5", "1.5"), ("0.5", "1.5")),
        (("1.25", "2.75 mm"), ("1.25", "2.75 mm")),
        (("1.", "2.x"), ("1.", "x")),
        (("001.7", "002.8"), ("7", "8")),
        (("1.Beagle", "12.Poodle"), ("Beagle", "Poodle")),
    ],
)
def test_a_number_before_a_name_does_not_count_but_a_decimal_does(
    names: tuple[str, str], classes: tuple[str, str], root: Path
) -> None:
    for split in ("train", "valid", "test"):
        for number, name in enumerate(names, start=1):
            (root / split / f"00{number}.Class{number}").rename(root / split / name)
    assert look(root).class_names == classes


# Folders


def without_photos(root: Path) -> None:
    for split in ("train", "valid", "test"):
        (root / split / "Corgi").mkdir()


def single_photo(root: Path) -> None:
    for photo in sorted((root / "train" / "002.Class2").iterdir())[1:]:
        photo.unlink()


def flat_test(root: Path) -> None:
    for photo in sorted((root / "test").rglob("*.jpg")):
        photo.rename(root / "test" / f"{photo.parent.name}_{photo.name}")
    shutil.rmtree(root / "test" / "001.Class1")
    shutil.rmtree(root / "test" / "002.Class2")


def empty_valid(root: Path) -> None:
    shutil.rmtree(root / "valid")
    (root / "valid").mkdir()


def table_beside_the_classes(root: Path) -> None:
    (root / "train" / "labels.csv").write_text("photo,class")


@pytest.mark.parametrize(
    ("make", "remark"),
    [
        (without_photos, "class folders without a photo: train/Corgi, valid/Corgi, test/Corgi"),
        (single_photo, "classes in train with a single photo: 002.Class2"),
        (flat_test, "test has no photo in class folders: this run has no test score"),
        (empty_valid, "valid has no photo in class folders: a part of train is taken instead"),
        (table_beside_the_classes, "train has files outside of class folders, left out: labels.csv"),
    ],
)
def test_what_is_hardly_meant_is_said(
    make: Callable[[Path], None], remark: str, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(root)
    look(root)
    assert [record.message for record in caplog.records] == [f"data.root {root}: {remark}"]


def nested(root: Path) -> None:
    for split in ("train", "test"):
        (root / split).rename(root / "moved")
        (root / split).mkdir()
        (root / "moved").rename(root / split / split)


def grouped(root: Path) -> None:
    (root / "train" / "dogs").mkdir()
    (root / "train" / "001.Class1").rename(root / "train" / "dogs" / "001.Class1")


def two_valid(root: Path) -> None:
    shutil.copytree(root / "valid", root / "val")


def other_split_names(root: Path) -> None:
    (root / "train").rename(root / "Training")


def no_valid_and_single_photo(root: Path) -> None:
    shutil.rmtree(root / "valid")
    single_photo(root)


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (nested, r"train/train must hold photos, got only folders, such as 001\.Class1: .* move them there"),
        (grouped, r"train/dogs must hold photos, got only folders, such as 001\.Class1"),
        (two_valid, r"must have one folder for the valid split, got valid and val: merge them"),
        (other_split_names, r"must have a folder 'train' with one folder a class, got Training, test, valid"),
        (no_valid_and_single_photo, r"2 or more photos of each class .* got 1 of 002\.Class2: add photos"),
    ],
)
def test_folders_of_no_use_are_refused_before_a_photo_is_opened(
    make: Callable[[Path], None], rule: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "read_photo", lambda path: pytest.fail("a photo was opened"))
    make(root)
    with pytest.raises(UserError, match=rf"^data\.root .*{rule}"):
        look(root)


# The same photo twice


def test_copies_are_named_and_many_are_listed_in_a_file(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, valid, test = (root / split / "001.Class1" for split in ("train", "valid", "test"))
    shutil.copy(train / "photo_0.jpg", valid / "again.jpg")
    shutil.copy(train / "photo_0.jpg", test / "again.jpg")
    shutil.copy(train / "photo_1.jpg", root / "train" / "002.Class2" / "other_class.jpg")
    shutil.copy(train / "photo_2.jpg", train / "same_class.jpg")
    pairs = [
        "train/001.Class1/photo_0.jpg = valid/001.Class1/again.jpg = test/001.Class1/again.jpg",
        "train/001.Class1/photo_1.jpg = train/002.Class2/other_class.jpg",
    ]
    assert look(root).copies == tuple(tuple(pair.split(" = ")) for pair in pairs)
    assert all(pair in caplog.text for pair in pairs)
    assert "same_class" not in caplog.text
    monkeypatch.setattr(listing, "MAX_LINES", 1)
    caplog.clear()
    look(root)
    [path] = (root.parent / "cache").glob("copies-*.txt")
    assert f"and 1 more; all of them are listed in {path}" in caplog.text
    assert path.read_text().splitlines() == pairs
