"""Where the photos are: the embedded digits, a folder of the user, or the dogImages download."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from experiments.config import DataConfig, require_folder
from experiments.console import progress, say
from experiments.errors import UserError
from lightning_modules import listing
from lightning_modules.files import replaced_whole
from lightning_modules.folders import ClassFolders, check_class_sizes, read_class_names, scan_class_folders
from lightning_modules.locks import KernelLock

_log = logging.getLogger(__name__)


def open_data(config: DataConfig, *, seed: int) -> ClassFolders:
    """Open a data set, scan it, and report its problems.

    Raises:
        UserError: as `scan_class_folders`.
        DownloadError: if dogImages is neither cached nor downloadable.
    """
    folders = scan_class_folders(
        locate_photos(config),
        valid_fraction=config.valid_fraction,
        fraction=config.fraction,
        max_bad_fraction=config.max_bad_fraction,
        seed=seed,
        cache_dir=config.cache_dir,
        progress=_progress,
    )
    if folders.bad_files:
        bad = listing.as_lines([f"{name}: {why}" for name, why in folders.bad_files.items()])
        _log.warning("%d files can't be read and are left out:\n%s", len(folders.bad_files), bad)
    if folders.leaked:
        _log.warning(
            "%d photos stand byte for byte in more than one split: validation and test flatter the model",
            folders.leaked,
        )
    if folders.copies:
        _log.warning("the same photo in two splits or classes:\n%s", _list_copies(folders, config.cache_dir))
    for remark in folders.remarks:
        _log.warning("%s", remark)
    return folders


def _list_copies(folders: ClassFolders, cache_dir: Path) -> str:
    """Report duplicate photos; many of them are listed in a file."""
    lines, location = [" = ".join(group) for group in folders.copies], ""
    if len(lines) > listing.MAX_LINES:
        path = cache_dir / f"copies-{folders.fingerprint[:16]}.txt"
        try:
            path.write_text("\n".join(lines) + "\n")
            location = f"; all of them are listed in {path}"
        except OSError as error:  # a cache that may only be read
            location = f"; {path} can't be written: {error.strerror}"
    return listing.as_lines(lines, location)


def check_photos(config: DataConfig) -> None:
    """Refuse a data root that does not exist, or whose class folders can't be used. No photo is opened."""
    root = config.own_root if config.name == "folder" else config.root
    if root is None:
        return
    if str(root).startswith("s3:/"):
        raise UserError(
            f"data.root must be a folder on this machine, got 's3://{str(root)[4:].lstrip('/')}': photos in S3 are for "
            "`python -m sagemaker_launch` only"
        )
    if config.name == "folder":
        read_class_names(root)
        check_class_sizes(root, fraction=config.fraction)
    else:
        require_folder("data.root", root)


def photo_root(config: DataConfig) -> Path:
    """The folder with the splits, which may not exist yet."""
    if config.name == "folder":
        return config.own_root
    if config.name == "dog_images":
        return (config.root or Path("data")) / "dogImages"
    return config.root or config.cache_dir / "digits"


def locate_photos(config: DataConfig) -> Path:
    """The folder with the splits; missing ones are written or downloaded."""
    root = photo_root(config)
    if config.name == "folder":
        return root
    if config.name == "dog_images":
        from experiments.data.dog_images import fetch_dog_images

        return fetch_dog_images(root.parent)
    if root.is_dir():
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with KernelLock(Path(f"{root}.lock")):
        if not root.is_dir():
            write_digits(root)
    return root


def write_digits(root: Path) -> None:
    """Write scikit-learn's 1,797 handwritten digits (8x8 pixels) as PNG class folders, split 70/15/15 by class.

    Source: E. Alpaydin, C. Kaynak, UCI Machine Learning Repository 1998, doi:10.24432/C50P49 (its test part).
    """
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    pixels = (images.reshape(-1, 8, 8) * (255 / 16)).astype("uint8")
    rows = range(len(labels))
    train, rest = train_test_split(rows, test_size=0.3, stratify=labels, random_state=0)
    valid, test = train_test_split(rest, test_size=0.5, stratify=labels[rest], random_state=0)
    with replaced_whole(root) as part:
        for split, members in (("train", train), ("valid", valid), ("test", test)):
            for index in members:
                folder = part / split / f"{labels[index] + 1:03d}.{labels[index]}"
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels[index]).save(folder / f"digit_{index:04d}.png")


def _progress(paths: Iterable[Path], total: int) -> Iterable[Path]:
    if not total:
        return
    say(f"looking through {total:,} files, once for this data set")
    with progress("looking through the photos", total, "file") as advance:
        for path in paths:
            yield path
            advance(1)
