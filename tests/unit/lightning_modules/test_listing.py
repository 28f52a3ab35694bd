"""The files of class folders are counted as they are listed, but a count keeps none of them."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from pathlib import Path

from lightning_modules.listing import class_entries, count_photos, in_one_spelling, list_photos


def test_a_count_is_that_of_the_list(tmp_path: Path) -> None:
    for name in (
        "a/1.jpg",
        "a/.hidden",
        "a/Thumbs.db",
        "a/folder/2.jpg",
        "caf\u00e9/3.jpg",
        "cafe\u0301/4.jpg",
        "loose.jpg",
    ):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / name).touch()
    (tmp_path / "train/a/loop").symlink_to("loop")
    (tmp_path / "train/link").symlink_to("a")
    (tmp_path / "train/loop").symlink_to("loop")
    listed = list_photos(tmp_path / "train")
    counted = count_photos(tmp_path / "train")
    assert counted == Counter(in_one_spelling(path.parent.name) for path in listed)
    assert counted == {"a": 3, "link": 3, "caf\u00e9": 2}


def test_a_count_keeps_no_paths(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for number in range(2000):
        (tmp_path / f"a/{number}.jpg").touch()
    tracemalloc.start()
    try:
        assert count_photos(tmp_path)["a"] == sum(1 for _ in class_entries(tmp_path)) == 2000
        counting = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        assert len(list_photos(tmp_path)) == 2000
        listing = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert counting < listing / 10
