"""Looking through class folders, and drawing from them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_modules import folders
from lightning_modules.data import IGNORED_LABEL, ClassFolderData, PhotoDataset, ShardedSampler
from lightning_modules.folders import ClassFolders, TooManyBadImagesError, scan_class_folders
from lightning_modules.inference import Preprocessing
from tests.pictures import jpeg_bytes, make_class_folders

SMALL = Preprocessing(image_size=16, resize_size=16)


def scan(root: Path, **options: object) -> ClassFolders:
    defaults: dict[str, object] = {
        "valid_fraction": 0.25,
        "fraction": 1.0,
        "max_bad_fraction": 0.01,
        "seed": 0,
        "cache_dir": root.parent / "cache",
    }
    return scan_class_folders(root, **{**defaults, **options})  # type: ignore[arg-type]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_class_folders(tmp_path / "data", classes=3, per_class={"train": 8, "valid": 4, "test": 4}, size=16)


def test_numbered_folders_become_class_names_in_order(root: Path) -> None:
    found = scan(root)
    assert found.class_names == ("Class1", "Class2", "Class3")
    assert (len(found.train), len(found.valid)) == (24, 12)
    assert found.train.labels == tuple([0] * 8 + [1] * 8 + [2] * 8)


@pytest.mark.parametrize("name", ["valid", "validation", "val"])
def test_the_validation_folder_may_have_any_usual_name(root: Path, name: str) -> None:
    (root / "valid").rename(root / name)
    assert len(scan(root).valid) == 12


def test_without_a_valid_folder_a_seeded_stratified_part_of_train_is_cut_off(root: Path) -> None:
    shutil.rmtree(root / "valid")
    found, again, other = scan(root), scan(root), scan(root, seed=1)
    assert found.valid == again.valid
    assert found.valid != other.valid
    assert found.valid.labels == (0, 0, 1, 1, 2, 2)
    assert not set(found.valid.paths) & set(found.train.paths)
    assert len(found.train) + len(found.valid) == 24


def test_without_a_test_folder_there_is_no_test_split(root: Path) -> None:
    shutil.rmtree(root / "test")
    assert scan(root).test is None


def test_a_fraction_is_stratified(root: Path) -> None:
    assert scan(root, fraction=0.5).train.labels == (0,) * 4 + (1,) * 4 + (2,) * 4


def test_bad_files_are_named_and_left_out(root: Path) -> None:
    folder = root / "train" / "001.Class1"
    (folder / "cut.jpg").write_bytes(jpeg_bytes()[:300])
    (folder / "note.txt").write_text("no image")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / ".DS_Store").write_bytes(b"hidden files are no photos")
    found = scan(root, max_bad_fraction=0.2)
    assert len(found.train) == 24
    assert set(found.bad_files) == {f"train/001.Class1/{name}" for name in ("cut.jpg", "note.txt", "empty.jpg")}
    with pytest.raises(TooManyBadImagesError, match=r"(?s)3 of 51 files can't be read.*cut\.jpg: the image is damaged"):
        scan(root, max_bad_fraction=0.01)


def test_byte_identical_photos_in_two_splits_are_counted(root: Path) -> None:
    photo = next((root / "train" / "001.Class1").iterdir())
    shutil.copy(photo, root / "test" / "001.Class1" / "copy.jpg")
    assert scan(root).leaked == 1


def test_the_fingerprint_follows_contents_and_not_dates(root: Path) -> None:
    first = scan(root).fingerprint
    photo = next((root / "train" / "001.Class1").iterdir())
    os.utime(photo, (1, 1))
    assert scan(root).fingerprint == first
    photo.write_bytes(jpeg_bytes(seed=99))
    assert scan(root).fingerprint != first


def test_a_file_is_decoded_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = scan(root)
    monkeypatch.setattr(folders, "decode_image", lambda data: pytest.fail("decoded again"))
    assert scan(root) == first


def test_classes_that_train_lacks_are_refused(root: Path) -> None:
    shutil.copytree(root / "valid" / "001.Class1", root / "valid" / "009.New")
    with pytest.raises(ValueError, match=r"valid has classes that train lacks: 009\.New"):
        scan(root)


def test_a_missing_root_or_train_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.root must be a folder"):
        scan(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="must have a folder 'train'"):
        scan(tmp_path)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_the_shards_of_all_devices_hold_every_image_once(world_size: int) -> None:
    shards = [list(ShardedSampler(10, seed=1, shuffle=False, rank=r, world_size=world_size)) for r in range(world_size)]
    assert len({len(shard) for shard in shards}) == 1
    drawn = [draw.photo for shard in shards for draw in shard if not draw.padding]
    assert sorted(drawn) == list(range(10))


def test_order_and_augmentation_depend_on_seed_and_epoch_only(root: Path) -> None:
    found = scan(root)

    def epoch(number: int, workers: int, seed: int = 0) -> list[torch.Tensor]:
        sampler = ShardedSampler(len(found.train), seed=seed, shuffle=True)
        sampler.set_epoch(number)
        dataset = PhotoDataset(found.train, SMALL, "strong")
        loader = DataLoader(dataset, batch_size=8, sampler=sampler, num_workers=workers)  # type: ignore[arg-type, var-annotated]
        return [images for images, _ in loader]

    before = torch.random.get_rng_state()
    first = epoch(1, 0)
    second = epoch(1, 2)
    torch.random.set_rng_state(before)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert not torch.equal(first[0], epoch(2, 0)[0])
    assert not torch.equal(first[0], epoch(1, 0, seed=5)[0])


def test_padding_has_a_label_that_nothing_counts(root: Path) -> None:
    found = scan(root)
    sampler = ShardedSampler(len(found.valid), seed=0, shuffle=False, rank=4, world_size=5)
    labels = [PhotoDataset(found.valid, SMALL, "none")[draw][1] for draw in sampler]
    assert labels == [found.valid.labels[4], found.valid.labels[9], IGNORED_LABEL]


def test_batches_travel_as_bytes_and_are_normalised_on_the_device(root: Path) -> None:
    data = ClassFolderData(scan(root), preprocessing=SMALL, batch_size=4)
    images, labels = next(iter(data.val_dataloader()))
    assert images.dtype == torch.uint8
    normalised, _ = data.on_after_batch_transfer((images, labels), 0)
    assert normalised.dtype == torch.float32
    assert normalised.shape == (4, 3, 16, 16)


def test_a_folder_inside_a_class_folder_is_named_not_passed_over(root: Path) -> None:
    (root / "train" / "001.Class1" / "more").mkdir()
    found = scan(root, max_bad_fraction=0.1)
    assert found.bad_files == {"train/001.Class1/more": "the file can't be opened: Is a directory"}
