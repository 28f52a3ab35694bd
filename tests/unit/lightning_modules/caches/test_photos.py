"""Photos from files and from the cache of decoded ones: the same pixels, decoded once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from lightning_modules.caches import photos
from lightning_modules.caches.array_cache import CacheTooSmallError
from lightning_modules.caches.photos import DecodedPhotos, PhotoFiles, open_decoded
from lightning_modules.folders import Split
from lightning_modules.inference import BadImageError, Interpolation, Preprocessing
from tests.pictures import encoded, smooth_picture

SHAPES = [(100, 80), (80, 100), (64, 64), (30, 20), (400, 60), (90, 300)]
"""Width and height."""


@pytest.fixture
def split(tmp_path: Path) -> Split:
    paths = []
    for index, (width, height) in enumerate(SHAPES):
        path = tmp_path / f"{index}.jpg"
        path.write_bytes(encoded(smooth_picture(width, height), "JPEG", quality=95))
        paths.append(path)
    sizes = tuple((height, width) for width, height in SHAPES)
    return Split(tuple(paths), (0,) * len(paths), tuple(str(index) for index in range(len(paths))), sizes)


def files(split: Split, *, augmented: bool = True, image_size: int = 40) -> PhotoFiles:
    return PhotoFiles(split, Preprocessing(image_size, image_size + 6), augmented=augmented)


class Passes:
    """Counts the photos of each pass that was made."""

    def __init__(self) -> None:
        self.done: list[int] = []

    @contextlib.contextmanager
    def __call__(self, description: str, total: int) -> Iterator[Callable[[int], object]]:
        self.done.append(0)

        def advance(count: int) -> None:
            self.done[-1] += count

        yield advance
        assert self.done[-1] == total


def open_split(files: PhotoFiles, folder: Path, passes: Passes, max_gb: float = 1.0) -> DecodedPhotos:
    [decoded] = open_decoded([files], cache_dir=folder, max_gb=max_gb, progress=passes)
    return decoded


def test_a_photo_to_be_augmented_is_scaled_down_and_never_up(split: Split) -> None:
    photo_files = files(split)  # short side 1.15 * 40 = 46
    shapes = [tuple(photo_files[index].shape) for index in range(len(SHAPES))]
    assert shapes == [(46, 57, 3), (57, 46, 3), (46, 46, 3), (20, 30, 3), (46, 69, 3), (69, 46, 3)]
    assert [photo_files.size(index) for index in range(len(SHAPES))] == [shape[:2] for shape in shapes]


def test_scaling_leaves_the_picture_as_it_is(split: Split) -> None:
    wanted = np.array(smooth_picture(57, 46), dtype=int)
    assert np.abs(files(split)[0] - wanted).max() < 6


@pytest.mark.parametrize("augmented", [True, False])
def test_decoded_photos_are_those_of_the_files(split: Split, tmp_path: Path, augmented: bool) -> None:
    photo_files, passes = files(split, augmented=augmented), Passes()
    for _ in range(2):
        decoded = open_split(photo_files, tmp_path / "cache", passes)
        assert len(decoded) == len(photo_files) == len(SHAPES)
        assert all(np.array_equal(decoded[index], photo_files[index]) for index in range(len(SHAPES)))
    assert passes.done == [len(SHAPES)], "they are decoded once"


def test_another_size_purpose_or_interpolation_is_another_entry(split: Split, tmp_path: Path) -> None:
    passes = Passes()
    cubic = Preprocessing(40, 46, interpolation=Interpolation.BICUBIC)
    others = [PhotoFiles(split, cubic, augmented=augmented) for augmented in (True, False)]
    for photo_files in (files(split), files(split, augmented=False), files(split, image_size=44), *others):
        open_split(photo_files, tmp_path / "cache", passes)
    assert len(passes.done) == 5


def test_reading_is_a_view_and_copies_nothing(split: Split, tmp_path: Path) -> None:
    decoded = open_split(files(split), tmp_path / "cache", Passes())
    assert np.shares_memory(decoded[3], decoded.pixels)


def test_too_little_room_says_what_all_splits_need_together(split: Split, tmp_path: Path) -> None:
    both = [files(split), files(split, augmented=False)]
    needed = (
        3
        * sum(height * width for photo_files in both for height, width in map(photo_files.size, range(len(SHAPES))))
        / 1e9
    )
    open_decoded(both, cache_dir=tmp_path / "a", max_gb=needed * 1.01, progress=Passes())
    with pytest.raises(CacheTooSmallError, match=r"data\.cache_max_gb must be at least .* for the decoded photos"):
        open_decoded(both, cache_dir=tmp_path / "b", max_gb=needed * 0.99, progress=Passes())
    assert not (tmp_path / "b").exists()


def test_a_file_that_changed_is_named_and_leaves_nothing_in_use(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split.paths[2].write_bytes(b"no photo any more")
    with pytest.raises(BadImageError, match=r"2\.jpg: the bytes are not a JPEG"):
        open_split(files(split), tmp_path / "cache", Passes())
    split.paths[2].write_bytes(split.paths[1].read_bytes())
    decoded = open_split(files(split), tmp_path / "cache", Passes())
    assert tuple(decoded[2].shape) == (46, 46, 3)
    monkeypatch.setattr(photos, "open_image", lambda *args, **named: pytest.fail("decoded again"))
    open_split(files(split), tmp_path / "cache", Passes())
