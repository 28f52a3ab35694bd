"""Which files stand in the class folders of a data set, without looking into them."""

from __future__ import annotations

import os
from pathlib import Path

from lightning_modules.errors import UserError

SPLIT_FOLDERS = {"train": ("train",), "valid": ("valid", "validation", "val"), "test": ("test",)}


def split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split that there is.

    Raises:
        UserError: if there is no root or no train folder.
    """
    if not root.is_dir():
        raise UserError(f"data.root must be a folder that holds train/CLASS/PHOTO, got {str(root)!r}")
    found = {
        split: next((root / name for name in names if (root / name).is_dir()), None)
        for split, names in SPLIT_FOLDERS.items()
    }
    if found["train"] is None:
        raise UserError(f"data.root {root} must have a folder 'train' with one folder a class")
    return {split: folder for split, folder in found.items() if folder is not None}


def list_photos(folder: Path) -> list[Path]:
    """All that stands in the class folders of a split, be it a photo or not; hidden files do not count."""
    return sorted(
        Path(entry.path)
        for class_folder in os.scandir(folder)
        if class_folder.is_dir() and not class_folder.name.startswith(".")
        for entry in os.scandir(class_folder)
        if not entry.name.startswith(".")
    )
