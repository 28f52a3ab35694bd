"""Class folders are looked through once and honestly; batches depend on seed and epoch only."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from experiments.errors import UserError
from lightning_modules import folders
from lightning_modules.caches.photos import PhotoFiles
from lightning_modules.data import (
    IGNORED_LABEL,
    ClassFolderData,
    PhotoBatch,
    PhotoBatches,
    ShardedSampler,
    batch_sizes,
    seed_draws,
    step_seed,
)
from lightning_modules.folders import ClassFolders, Split, TooManyBadImagesError, scan_class_folders
from lightning_modules.inference import Preprocessing, decode_image
from tests.pictures import encoded, jpeg_bytes, make_class_folders, smooth_picture

PREPROCESSING = Preprocessing(image_size=16, resize_size=16)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_class_folders(tmp_path / "photos", size=16)


@pytest.fixture
def root_without_valid(tmp_path: Path) -> Path:
    return make_class_folders(tmp_path / "photos", per_class={"train": 8, "test": 2}, size=16)


def scan(root: Path, **options: object) -> ClassFolders:
    given: dict[str, object] = {
        "valid_fraction": 0.25,
        "fraction": 1.0,
        "max_bad_fraction": 0.0,
        "seed": 0,
        "cache_dir": root.parent / "cache",
    }
    return scan_class_folders(root, **{**given, **options})


def labels_by_folder(split: Split) -> set[tuple[str, int]]:
    return {(path.parent.name, label) for path, label in zip(split.paths, split.labels, strict=True)}


# Splits and classes


def test_every_photo_is_found_once_and_in_order(root: Path) -> None:
    found = scan(root)
    assert found.test is not None
    assert [len(found.train), len(found.valid), len(found.test)] == [24, 12, 12]
    for split in (found.train, found.valid, found.test):
        assert list(split.paths) == sorted(split.paths)
    assert set(found.train.paths + found.valid.paths + found.test.paths) == set(root.rglob("*.jpg"))
    assert found.bad_files == {}
    assert found.leaked == 0
    assert found.root == root


def test_numbers_of_dog_images_are_no_part_of_the_class_names(tmp_path: Path) -> None:
    for name in ("001.Affenpinscher", "002.Afghan_hound", "010.Anatolian.dog"):
        (tmp_path / "photos" / "train" / name).mkdir(parents=True)
        for index in range(4):
            (tmp_path / "photos" / "train" / name / f"{index}.jpg").write_bytes(jpeg_bytes(seed=index))
    found = scan(tmp_path / "photos")
    assert found.class_names == ("Affenpinscher", "Afghan_hound", "Anatolian.dog")
    assert labels_by_folder(found.train) == {
        ("001.Affenpinscher", 0),
        ("002.Afghan_hound", 1),
        ("010.Anatolian.dog", 2),
    }


@pytest.mark.parametrize("names", [("cats", "dogs"), ("3", "7"), ("2021 cats", "v1.dogs")])
def test_other_folder_names_stay_as_they_are(names: tuple[str, str], root: Path) -> None:
    for split in ("train", "valid", "test"):
        shutil.rmtree(root / split / "003.Class3")
        for index, name in enumerate(names):
            (root / split / f"00{index + 1}.Class{index + 1}").rename(root / split / name)
    assert scan(root).class_names == names


def test_two_folders_that_come_to_one_class_name_are_refused(root: Path) -> None:
    for split in ("train", "valid", "test"):
        (root / split / "002.Class2").rename(root / split / "002.Class1")
    with pytest.raises(ValueError, match="Class1"):
        scan(root)


@pytest.mark.parametrize("name", ["valid", "validation", "val"])
def test_validation_folder_goes_by_three_names(name: str, root: Path) -> None:
    (root / "valid").rename(root / name)
    found = scan(root)
    assert len(found.train) == 24
    assert {path.parent.parent.name for path in found.valid.paths} == {name}


def test_class_that_a_split_lacks_is_no_error(root: Path) -> None:
    shutil.rmtree(root / "valid" / "002.Class2")
    assert set(scan(root).valid.labels) == {0, 2}


@pytest.mark.parametrize("split", ["valid", "test"])
def test_class_that_train_lacks_is_refused_by_name(split: str, root: Path) -> None:
    shutil.copytree(root / split / "001.Class1", root / split / "004.Stranger")
    with pytest.raises(ValueError, match=rf"{split} has classes that train lacks: 004\.Stranger"):
        scan(root)


def test_no_test_folder_means_no_test_split(root: Path) -> None:
    shutil.rmtree(root / "test")
    assert scan(root).test is None


def test_missing_root_and_missing_train_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.root must be a folder .*absent"):
        scan(tmp_path / "absent")
    (tmp_path / "photos" / "valid").mkdir(parents=True)
    with pytest.raises(UserError, match=r"data\.root .*photos must have a folder 'train'"):
        scan(tmp_path / "photos")


def test_one_class_is_too_few(tmp_path: Path) -> None:
    root = make_class_folders(tmp_path / "photos", classes=1, size=16)
    with pytest.raises(ValueError, match=r"data\.root .*: train must have 2 or more classes"):
        scan(root)


# A validation split cut from train, and a fraction of train


def test_without_valid_a_stratified_part_of_train_is_cut_off(root_without_valid: Path) -> None:
    found = scan(root_without_valid)
    assert Counter(found.valid.labels) == {0: 2, 1: 2, 2: 2}
    assert Counter(found.train.labels) == {0: 6, 1: 6, 2: 6}
    assert not set(found.train.paths) & set(found.valid.paths)
    assert labels_by_folder(found.valid) == labels_by_folder(found.train)


def test_cut_depends_on_the_seed_only(root_without_valid: Path, tmp_path: Path) -> None:
    first = scan(root_without_valid)
    assert scan(root_without_valid, cache_dir=tmp_path / "elsewhere") == first
    assert scan(root_without_valid, seed=1).valid != first.valid


@pytest.mark.parametrize(("valid_fraction", "count"), [(0.01, 1), (0.5, 4), (0.99, 7)])
def test_cut_leaves_photos_of_every_class_on_both_sides(
    valid_fraction: float, count: int, root_without_valid: Path
) -> None:
    found = scan(root_without_valid, valid_fraction=valid_fraction)
    assert Counter(found.valid.labels) == dict.fromkeys(range(3), count)
    assert Counter(found.train.labels) == dict.fromkeys(range(3), 8 - count)


def test_class_too_small_for_a_cut_is_named(root_without_valid: Path) -> None:
    for index in range(1, 8):
        (root_without_valid / "train" / "002.Class2" / f"photo_{index}.jpg").unlink()
    with pytest.raises(ValueError, match=r"data\.root must have 2 or more photos of each class.*got 1 of 002\."):
        scan(root_without_valid)


def test_fraction_keeps_a_stratified_part_of_train_only(root: Path) -> None:
    found, whole = scan(root, fraction=0.5), scan(root)
    assert Counter(found.train.labels) == {0: 4, 1: 4, 2: 4}
    assert set(found.train.paths) < set(whole.train.paths)
    assert found.valid == whole.valid
    assert found.test == whole.test
    assert scan(root, fraction=0.5) == found
    assert scan(root, fraction=0.5, seed=1).train != found.train


def test_fraction_does_not_move_photos_into_the_validation_cut(root_without_valid: Path) -> None:
    found, whole = scan(root_without_valid, fraction=0.5), scan(root_without_valid)
    assert found.valid == whole.valid
    assert set(found.train.paths) < set(whole.train.paths)


# Files that are no photos


def plant_bad_files(folder: Path) -> set[str]:
    """One of each kind of bad file; returns their names."""
    bad = {
        "cut.jpg": jpeg_bytes()[:200],
        "cut.png": encoded(smooth_picture(), "PNG")[:100],
        "notes.txt": b"not a picture",
        "empty.jpg": b"",
        "random.jpg": np.random.default_rng(0).bytes(500),
    }
    for name, data in bad.items():
        (folder / name).write_bytes(data)
    return set(bad)


def test_bad_files_are_listed_with_reasons_and_left_out(root: Path) -> None:
    names = plant_bad_files(root / "train" / "001.Class1")
    found = scan(root, max_bad_fraction=0.2)
    assert set(found.bad_files) == {f"train/001.Class1/{name}" for name in names}
    assert "damaged" in found.bad_files["train/001.Class1/cut.jpg"]
    assert "JPEG" in found.bad_files["train/001.Class1/notes.txt"]
    assert all(found.bad_files.values())
    assert len(found.train) == 24
    assert not {path.name for path in found.train.paths} & names


def test_too_many_bad_files_are_refused_with_the_whole_list(root: Path) -> None:
    names = plant_bad_files(root / "valid" / "002.Class2")
    with pytest.raises(TooManyBadImagesError, match=r"data\.max_bad_fraction must be at least 0\.09") as caught:
        scan(root, max_bad_fraction=0.05)
    message = str(caught.value)
    assert "5 of 53 files" in message
    for name in names:
        assert f"valid/002.Class2/{name}: the " in message


def test_bad_fraction_may_be_as_large_as_allowed(root: Path) -> None:
    for path in sorted((root / "train" / "001.Class1").iterdir())[:6]:
        path.write_bytes(b"")
    assert len(scan(root, max_bad_fraction=6 / 48).bad_files) == 6
    with pytest.raises(TooManyBadImagesError):
        scan(root, max_bad_fraction=6 / 48 - 1e-6)


def test_picture_with_too_many_pixels_is_a_bad_file(root: Path) -> None:
    bomb = encoded(Image.new("1", (8_000, 6_000)), "PNG")
    (root / "train" / "001.Class1" / "bomb.png").write_bytes(bomb)
    assert "8000x6000" in scan(root, max_bad_fraction=0.1).bad_files["train/001.Class1/bomb.png"]


def test_hidden_files_and_folders_are_ignored(root: Path) -> None:
    whole = scan(root)
    for name in (".DS_Store", "._photo_0.jpg"):
        (root / "train" / "001.Class1" / name).write_bytes(b"no photo")
    (root / "train" / ".ipynb_checkpoints").mkdir()
    (root / "train" / ".ipynb_checkpoints" / "photo.jpg").write_bytes(jpeg_bytes())
    assert scan(root) == whole


def test_a_folder_inside_a_class_folder_is_named_not_passed_over(root: Path) -> None:
    (root / "train" / "001.Class1" / "more").mkdir()
    found = scan(root, max_bad_fraction=0.1)
    assert found.bad_files == {"train/001.Class1/more": "the file can't be opened: Is a directory"}


def test_a_photo_that_could_not_be_opened_once_is_looked_at_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Path.read_bytes
    photo = next((photos / "train" / "001.Class1").iterdir())

    def fail_for_it(path: Path) -> bytes:
        if path.name == photo.name and "train" in path.parts:
            raise OSError(5, "Input/output error")
        return read(path)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", fail_for_it)
        away = scan(photos, cache_dir=tmp_path, max_bad_fraction=0.5)
    assert str(photo.relative_to(photos)) in away.bad_files
    back = scan(photos, cache_dir=tmp_path)
    assert (back.bad_files, len(back.train)) == ({}, 24)
    assert back.fingerprint != away.fingerprint


def test_dangling_link_is_a_bad_file(root: Path) -> None:
    (root / "train" / "001.Class1" / "link.jpg").symlink_to(root / "nowhere.jpg")
    assert set(scan(root, max_bad_fraction=0.1).bad_files) == {"train/001.Class1/link.jpg"}


def test_linked_photos_are_photos(root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.jpg").write_bytes(jpeg_bytes(seed=77))
    (root / "train" / "001.Class1" / "link.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    assert len(scan(root).train) == 25


@pytest.mark.parametrize("classes", [["001.Class1"], ["001.Class1", "002.Class2", "003.Class3"]], ids=["one", "all"])
def test_class_without_a_readable_training_photo_is_refused(classes: list[str], root: Path) -> None:
    for name in classes:
        for path in (root / "train" / name).iterdir():
            path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"Class1|train"):
        scan(root, max_bad_fraction=1.0)


# What a scan remembers


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "open_image", lambda data: pytest.fail("a known file was decoded again"))


def count_decoding(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    decoded: list[bytes] = []
    decode = folders.open_image

    def counted(data: bytes) -> Image.Image:
        decoded.append(data)
        return decode(data)

    monkeypatch.setattr(folders, "open_image", counted)
    return decoded


def test_second_scan_decodes_nothing_and_finds_the_same(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_bad_files(root / "train" / "001.Class1")
    first = scan(root, max_bad_fraction=0.2)
    forbid_decoding(monkeypatch)
    assert scan(root, max_bad_fraction=0.2) == first


def test_only_changed_and_new_files_are_looked_at_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan(root)
    decoded = count_decoding(monkeypatch)
    changed, new = jpeg_bytes(size=20, seed=5), jpeg_bytes(seed=6)
    (root / "train" / "001.Class1" / "photo_0.jpg").write_bytes(changed)
    (root / "train" / "001.Class1" / "photo_new.jpg").write_bytes(new)
    assert len(scan(root).train) == 25
    assert sorted(decoded) == sorted([changed, new])


def test_file_that_was_mended_is_no_longer_bad(root: Path) -> None:
    path = root / "train" / "001.Class1" / "photo_0.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    assert len(scan(root, max_bad_fraction=0.1).bad_files) == 1
    path.write_bytes(whole)
    assert scan(root).bad_files == {}


@pytest.mark.parametrize("text", ["", '{"train/001.Class1/pho', "[]", "null", '{"a": 3}', "\x00"])
def test_torn_memory_is_made_anew(text: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = scan(root)
    (cache,) = (root.parent / "cache").iterdir()
    cache.write_text(text)
    assert scan(root) == first
    forbid_decoding(monkeypatch)
    assert scan(root) == first


def test_memory_with_rows_of_another_form_is_made_anew(root: Path) -> None:
    first = scan(root)
    (cache,) = (root.parent / "cache").iterdir()
    cache.write_text(json.dumps({key: ["only one value"] for key in json.loads(cache.read_text())}))
    assert scan(root) == first


def test_data_sets_with_one_cache_folder_do_not_mix(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_root = make_class_folders(tmp_path / "other", size=16, seed=1)
    first, other = scan(root), scan(other_root)
    assert first.fingerprint != other.fingerprint
    forbid_decoding(monkeypatch)
    assert scan(root) == first
    assert scan(other_root) == other


def test_progress_sees_every_new_file(root: Path) -> None:
    seen: list[tuple[int, int]] = []

    def progress(paths: object, total: int) -> list[Path]:
        listed = list(paths)  # type: ignore[call-overload]
        seen.append((len(listed), total))
        return listed

    scan(root, progress=progress)
    assert seen == [(48, 48)]


# Leakage and fingerprint


def test_photos_in_two_splits_are_counted(root: Path) -> None:
    train = root / "train" / "001.Class1"
    shutil.copy(train / "photo_0.jpg", root / "valid" / "001.Class1" / "copy.jpg")
    shutil.copy(train / "photo_1.jpg", root / "valid" / "002.Class2" / "under_another_class.jpg")
    shutil.copy(train / "photo_1.jpg", root / "test" / "001.Class1" / "copy.jpg")
    shutil.copy(train / "photo_2.jpg", train / "copy_in_the_same_split.jpg")
    assert scan(root).leaked == 3


def test_fingerprint_does_not_know_dates_and_places(root: Path, tmp_path: Path) -> None:
    first = scan(root).fingerprint
    for path in root.rglob("*.jpg"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    assert scan(root).fingerprint == first
    moved = Path(shutil.copytree(root, tmp_path / "moved"))
    assert scan(moved).fingerprint == first


def test_fingerprint_knows_every_byte_class_split_and_name(root: Path) -> None:
    photo = root / "train" / "001.Class1" / "photo_0.jpg"
    whole = photo.read_bytes()
    fingerprints = [scan(root).fingerprint]
    photo.write_bytes(whole + b"\0")
    fingerprints.append(scan(root).fingerprint)
    photo.write_bytes(whole)
    for moved_to in ("train/002.Class2/photo_x.jpg", "valid/001.Class1/photo_x.jpg", "train/001.Class1/photo_x.jpg"):
        photo.rename(root / moved_to)
        fingerprints.append(scan(root).fingerprint)
        (root / moved_to).rename(photo)
    assert len(set(fingerprints)) == 5
    assert scan(root).fingerprint == fingerprints[0]


# Sampling


def drawn(length: int, *, seed: int = 0, epoch: int = 0, shuffle: bool = True, **share: int) -> list[list[int]]:
    """Places, seeds and padding of one process's share of an epoch."""
    sampler = ShardedSampler(length, seed=seed, shuffle=shuffle, **share)
    sampler.set_epoch(epoch)
    assert len(sampler) == len(sampler.draws()[0])
    return [tensor.tolist() for tensor in sampler.draws()]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("length", [1, 2, 7, 12])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_shards_cover_everything_once_and_are_equally_long(world_size: int, length: int, shuffle: bool) -> None:
    shards = [drawn(length, seed=3, shuffle=shuffle, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert {len(indices) for indices, _, _ in shards} == {-(-length // world_size)}
    together = [
        (index, filler) for indices, _, padding in shards for index, filler in zip(indices, padding, strict=True)
    ]
    assert {index for index, _ in together} == set(range(length))
    assert shuffle or sorted(index for index, filler in together if not filler) == list(range(length))


def test_training_has_no_padding() -> None:
    # A last batch of padding alone has no mean loss: its NaN would reach every weight through the gradients.
    shards = [drawn(17, rank=rank, world_size=2) for rank in range(2)]
    assert not any(any(padding) for _, _, padding in shards)
    assert max(Counter(index for indices, _, _ in shards for index in indices).values()) <= 2


def test_order_depends_on_seed_and_epoch_only() -> None:
    first = drawn(50)
    torch.manual_seed(99)
    assert drawn(50) == first
    assert drawn(50, seed=1) != first
    assert drawn(50, epoch=1)[0] != first[0]


def test_drawing_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    drawn(10)
    assert torch.equal(torch.get_rng_state(), before)


def test_unshuffled_order_is_that_of_the_paths() -> None:
    assert drawn(9, seed=5, shuffle=False)[0] == list(range(9))


def test_augmentation_of_a_photo_does_not_depend_on_the_number_of_devices() -> None:
    def seeds(world_size: int) -> dict[int, int]:
        shards = [drawn(12, rank=rank, world_size=world_size) for rank in range(world_size)]
        return {index: seed for indices, own, _ in shards for index, seed in zip(indices, own, strict=True)}

    assert seeds(1) == seeds(3)


# Batches


def batches(loader: PhotoBatches, epoch: int = 0) -> list[PhotoBatch]:
    loader.sampler.set_epoch(epoch)
    return list(loader)


def data_module(root: Path, *, num_threads: int = 0, seed: int = 0, batch_size: int = 5) -> ClassFolderData:
    return ClassFolderData(
        scan(root),
        preprocessing=PREPROCESSING,
        batch_size=batch_size,
        num_threads=num_threads,
        augment="strong",
        seed=seed,
    )


def test_batches_do_not_depend_on_the_number_of_threads(root: Path) -> None:
    first, three = (data_module(root, num_threads=count).train_dataloader() for count in (1, 3))
    for epoch in (0, 1):
        for batch, other in zip(batches(first, epoch), batches(three, epoch), strict=True):
            assert all(torch.equal(*pair) for pair in zip(batch, other, strict=True))


def test_what_is_drawn_for_a_photo_does_not_depend_on_the_batch_size(root: Path) -> None:
    small, large = (batches(data_module(root, batch_size=size).train_dataloader()) for size in (5, 24))
    assert torch.equal(torch.cat([batch.draws for batch in small]), large[0].draws)


def test_training_batches_depend_on_seed_and_epoch_only(root: Path) -> None:
    def seen(seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        loaded = batches(data_module(root, seed=seed).train_dataloader(), epoch)
        return torch.cat([batch.labels for batch in loaded]), torch.cat([batch.draws for batch in loaded])

    labels, draws = seen(0, 0)
    assert Counter(labels.tolist()) == {0: 8, 1: 8, 2: 8}
    assert all(torch.equal(*pair) for pair in zip(seen(0, 0), (labels, draws), strict=True))
    for other in (seen(0, 1), seen(1, 0)):
        assert not torch.equal(other[0], labels)
        assert not torch.equal(other[1], draws)


def test_batches_resume_within_an_epoch_where_earlier_ones_stopped(root: Path) -> None:
    whole = data_module(root).train_dataloader()
    cut = iter(whole)
    first = [next(cut), next(cut)]
    resumed = data_module(root).train_dataloader()
    resumed.load_state_dict(whole.state_dict())
    assert len(resumed) == len(whole) == 5
    rest = batches(resumed)
    assert resumed.state_dict() == {"batches": 5}
    for batch, other in zip([*first, *rest], batches(whole), strict=True):
        assert all(torch.equal(*pair) for pair in zip(batch, other, strict=True))
    assert len(batches(resumed, epoch=1)) == 5


@pytest.mark.parametrize(
    ("images", "batch_size", "sizes"),
    [
        (1257, 157, [157] * 7 + [158]),
        (9, 8, [9]),
        (9, 4, [4, 5]),
        (9, 2, [2, 2, 2, 3]),
        (10, 4, [4, 4, 2]),
        (8, 4, [4, 4]),
        (1, 4, [1]),
        (3, 1, [1, 1, 1]),
    ],
)
def test_a_last_image_joins_the_batch_before_it(images: int, batch_size: int, sizes: list[int]) -> None:
    assert batch_sizes(images, batch_size, no_single=True) == sizes
    assert sum(batch_sizes(images, batch_size)) == images
    assert max(batch_sizes(images, batch_size)) <= batch_size


@pytest.mark.parametrize("no_single_image", [True, False])
def test_training_batches_have_the_same_images_in_the_same_order(no_single_image: bool, root: Path) -> None:
    data = ClassFolderData(
        scan(root), preprocessing=PREPROCESSING, batch_size=23, augment="light", no_single_image=no_single_image
    )
    plain = ClassFolderData(scan(root), preprocessing=PREPROCESSING, batch_size=24, augment="light")
    loaded, [whole] = batches(data.train_dataloader()), batches(plain.train_dataloader())
    assert [len(batch.labels) for batch in loaded] == ([24] if no_single_image else [23, 1])
    assert len(data.train_dataloader()) == len(loaded)
    assert torch.equal(torch.cat([batch.labels for batch in loaded]), whole.labels)
    assert torch.equal(torch.cat([batch.draws for batch in loaded]), whole.draws)
    data.batch_size = 11
    assert [len(batch.labels) for batch in batches(data.val_dataloader())] == [11, 1], "validation has no statistics"


def test_a_resumed_epoch_has_the_joined_batch(root: Path) -> None:
    (root / "train" / "001.Class1" / "photo_0.jpg").unlink()

    def loader() -> PhotoBatches:
        data = ClassFolderData(scan(root), preprocessing=PREPROCESSING, batch_size=11, no_single_image=True)
        return data.train_dataloader()

    whole = batches(loader())
    assert [len(batch.labels) for batch in whole] == [11, 12]
    resumed = loader()
    resumed.load_state_dict({"batches": 1})
    [rest] = batches(resumed)
    assert torch.equal(rest.labels, whole[1].labels)


def test_photos_of_different_shapes_stand_in_the_upper_left_corner(root: Path) -> None:
    for index, (width, height) in enumerate([(40, 20), (20, 40), (30, 30)]):
        smooth_picture(width, height).save(root / "train" / "001.Class1" / f"photo_{index}.jpg", quality=95)
    data = data_module(root, batch_size=3)
    photos = data.files(data.folders.train, augmented=True)
    loader = PhotoBatches(
        photos,
        data.folders.train.labels,
        3,
        ShardedSampler(24, seed=0, shuffle=False),
        augmented=True,
        threads=1,
    )
    batch = next(iter(loader))
    assert batch.sizes.tolist() == [[18, 27], [27, 18], [18, 18]]  # 1.15 times 16, at most 1.5 times as long
    assert batch.pixels.shape == (3, 27, 27, 3)
    for slot, index in zip(batch.pixels, range(3), strict=True):
        photo = photos[index]
        assert np.array_equal(slot[: photo.shape[0], : photo.shape[1]], photo)


def test_a_photo_that_is_gone_is_named_and_the_threads_end(root: Path) -> None:
    data = data_module(root)
    gone = data.folders.train.paths[7]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=gone.name):
        batches(data.train_dataloader())


def test_validation_batches_are_in_order_and_never_augmented(root: Path) -> None:
    data = data_module(root)
    first, *rest = batches(data.val_dataloader())
    assert first.labels.tolist() == list(data.folders.valid.labels[:5])
    assert first.draws.shape == (5, 0)
    shown = PREPROCESSING.crop(decode_image(data.folders.valid.paths[0].read_bytes()))
    assert torch.equal(first.pixels[0].permute(2, 0, 1), shown)
    assert sum(len(batch.labels) for batch in [first, *rest]) == 12


def test_padding_has_a_label_that_nothing_counts(root: Path) -> None:
    data = data_module(root)
    sampler = ShardedSampler(12, seed=0, shuffle=False, rank=4, world_size=5)
    photos = data.files(data.folders.valid)
    loaded = batches(PhotoBatches(photos, data.folders.valid.labels, 5, sampler, augmented=False, threads=1))
    assert [batch.labels.tolist() for batch in loaded] == [[data.folders.valid.labels[4], 2, IGNORED_LABEL]]


def test_photo_without_augmentation_is_what_the_network_sees_when_it_serves(root: Path) -> None:
    split = scan(root).valid
    preprocessing = Preprocessing(image_size=8, resize_size=12)
    photo = PhotoFiles(split, preprocessing, augmented=False)[2]
    served = preprocessing.crop(decode_image(split.paths[2].read_bytes()))
    assert np.array_equal(photo, served.permute(1, 2, 0))


def test_batches_are_normalised_after_they_travelled(root: Path) -> None:
    data = data_module(root)
    batch = batches(data.val_dataloader())[0]
    assert batch.pixels.dtype == torch.uint8
    images, labels = data.transfer_batch_to_device(batch, torch.device("cpu"), 0)
    assert torch.equal(images, PREPROCESSING.normalise(batch.pixels.permute(0, 3, 1, 2)))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(labels, batch.labels)


def test_views_of_the_training_photos_differ_and_can_be_made_again(root: Path) -> None:
    def views(seed: int, batch_size: int) -> Tensor:
        made = data_module(root, seed=seed, batch_size=batch_size).training_views(torch.device("cpu"), 3)
        return torch.cat([torch.stack(list(own)) for own in made], dim=1)

    first = views(0, 24)
    assert first.shape == (3, 24, 3, 16, 16)
    assert torch.equal(views(0, 7), first)
    assert not torch.equal(views(1, 24), first)
    assert all((first[0] != first[view]).flatten(1).any(dim=1).all() for view in (1, 2))


# Mixing


class Step:
    """What mixing asks of a trainer."""

    global_rank = 0

    def __init__(self, step: int) -> None:
        self.global_step = step


def mixed(root: Path, step: int, augment: str = "strong") -> tuple[Tensor, Tensor, Tensor]:
    """Images and labels of a training batch at a step, and its labels before."""
    data = ClassFolderData(scan(root), preprocessing=PREPROCESSING, batch_size=12, augment=augment)
    batch = batches(data.train_dataloader())[0]
    data.trainer = Step(step)  # type: ignore[assignment]
    images, labels = data.transfer_batch_to_device(batch, torch.device("cpu"), 0)
    return images, labels, batch.labels


def test_strong_mixes_about_half_of_the_batches_and_says_so_in_the_labels(root: Path) -> None:
    dimensions = []
    plain = mixed(root, 0, "light")[2]
    for step in range(40):
        images, labels, before = mixed(root, step)
        assert torch.equal(before, plain)
        assert images.is_contiguous(memory_format=torch.channels_last)
        dimensions.append(labels.ndim)
        if labels.ndim == 2:
            assert labels.shape == (12, 3)
            assert torch.allclose(labels.sum(dim=1), torch.ones(12))
            # Each image keeps a share of its own class; the other share is its neighbour's.
            assert (labels.gather(1, before[:, None]) > 0).all()
        else:
            assert torch.equal(labels, before)
    assert 10 < dimensions.count(2) < 30


def test_mixing_depends_on_the_step_only(root: Path) -> None:
    before = torch.get_rng_state()
    first = mixed(root, 7)
    torch.manual_seed(3)
    again = mixed(root, 7)
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    torch.set_rng_state(before)
    mixed(root, 8)
    assert torch.equal(torch.get_rng_state(), before)


def test_light_and_validation_are_never_mixed(root: Path) -> None:
    assert all(mixed(root, step, "light")[1].ndim == 1 for step in range(20))
    data = data_module(root)
    batch = batches(data.val_dataloader())[0]
    data.trainer = Step(0)  # type: ignore[assignment]
    assert data.transfer_batch_to_device(batch, torch.device("cpu"), 0)[1].ndim == 1


def test_seeding_for_the_cpu_draws_what_torch_would() -> None:
    seed_draws(step_seed(3, 5), torch.device("cpu"))
    drawn = torch.rand(4)
    torch.manual_seed(step_seed(3, 5))
    assert torch.equal(torch.rand(4), drawn)
