"""The files in the class folders of a data set; no file is opened."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning_modules.errors import UserError

SPLIT_FOLDERS = {"train": ("train",), "valid": ("valid", "validation", "val"), "test": ("test",)}
SYSTEM_NAMES = frozenset({"__macosx", "@eadir", "$recycle.bin", "thumbs.db", "desktop.ini", "icon\r"})
"""Files that macOS, Windows, cloud drives and network drives add to folders, in lower case; ignored."""
MAX_FILE_BYTES = 512 * 1024 * 1024
"""Largest size of a photo: above that of 40 million pixels in any format."""

MAX_LINES = 50
"""Longest list that is printed on a terminal."""

_FILE_TYPES = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def split_folders(root: Path) -> dict[str, Path]:
    """The folders of the splits that exist.

    Raises:
        UserError: if there is no root or no train folder, or two folders for one split.
    """
    if not root.is_dir():
        raise UserError(f"data.root must be a folder that holds train/CLASS/PHOTO, got {printable(root)!r}")
    if not _is_text(str(root)):
        raise UserError(f"data.root must have a name in UTF-8, got {printable(root)}: rename it")
    found = {split: [root / name for name in names if (root / name).is_dir()] for split, names in SPLIT_FOLDERS.items()}
    for split, folders in found.items():
        if len(folders) > 1:
            names = " and ".join(folder.name for folder in folders)
            raise UserError(f"data.root {root} must have one folder for the {split} split, got {names}: merge them")
    if not found["train"]:
        inside = sorted(printable(path.name) for path in root.iterdir() if path.is_dir() and not _is_ignored(path.name))
        raise UserError(
            f"data.root {root} must have a folder 'train' with one folder a class, got {named(inside) or 'no folder'}"
        )
    return {split: folders[0] for split, folders in found.items() if folders}


def class_folders(folder: Path) -> list[Path]:
    """The class folders of a split, whether there are photos in them or not; hidden ones do not count.

    Raises:
        UserError: for a name that is not in UTF-8, which no file of results could hold.
    """
    found = sorted(Path(entry.path) for entry in _entries(folder) if _is_folder(entry))
    for path in found:
        if not _is_text(path.name):
            raise UserError(
                f"data.root {folder.parent}: class folders in {folder.name} must have names in UTF-8, got "
                f"{printable(path.name)}: rename it"
            )
    return found


def photos_below(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """The photos in a folder and in the folders below it, by the ends of their names; hidden ones do not count.

    Args:
        suffixes: such as `.jpg`, in lower case.
    """
    below = (path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    return sorted(path for path in below if not any(map(_is_ignored, path.relative_to(folder).parts)))


def find_photos(paths: Sequence[Path], suffixes: Sequence[str]) -> list[Path]:
    """Files as they are, missing ones too, and all photos below folders.

    Args:
        suffixes: ends of the names of photos in folders, such as `.jpg`, in lower case.

    Raises:
        UserError: if a folder has no photo.
    """
    found: list[Path] = []
    for path in paths:
        photos = photos_below(path, suffixes) if path.is_dir() else [path]
        if not photos:
            raise UserError(
                f"PHOTO must be a file or a folder with photos ({', '.join(suffixes)}), got {printable(path)!r}"
            )
        found += photos
    return found


def class_entries(folder: Path) -> Iterator[tuple[Path, os.DirEntry[str]]]:
    """All files in the class folders of a split, photos or not, except hidden files; in no order, and none is kept.

    Yields:
        The class folder and the file.

    Raises:
        UserError: as `class_folders`, and for a class folder that holds folders only.
    """
    for class_folder in class_folders(folder):
        has_file, first = False, ""
        for entry in _entries(class_folder):
            if not has_file:
                has_file, first = not _is_folder(entry), min(first or entry.name, entry.name)
            yield class_folder, entry
        if first and not has_file:
            raise UserError(
                f"data.root {folder.parent}: {folder.name}/{class_folder.name} must hold photos, got only folders, "
                f"such as {printable(first)}: class folders stand directly in {folder.name}, move them there"
            )


def count_photos(folder: Path) -> Counter[str]:
    """How many files each class folder of a split has: those of `list_photos`, without a list of them.

    Raises:
        UserError: as `class_entries`.
    """
    return Counter(in_one_spelling(class_folder.name) for class_folder, _ in class_entries(folder))


def list_photos(folder: Path) -> list[Path]:
    """All files in the class folders of a split, photos or not, except hidden files.

    Raises:
        UserError: as `class_entries`.
    """
    found = [
        (in_one_spelling(class_folder.name), in_one_spelling(entry.name), class_folder / entry.name)
        for class_folder, entry in class_entries(folder)
    ]
    return [path for _, _, path in sorted(found)]  # the same on a Mac, as the order decides what is trained


def loose_files(folder: Path) -> list[Path]:
    """Files in a split outside of its class folders, which are never used as photos."""
    return [Path(entry.path) for entry in _entries(folder) if not _is_folder(entry)]


def in_one_spelling(name: str) -> str:
    """A name as NFC: a Mac writes é as two characters (NFD), other systems as one."""
    return unicodedata.normalize("NFC", name)


def class_name(folder: str) -> str:
    """Name of the class of a folder: `001.Affenpinscher` is class 1, `Affenpinscher`, but `1.25` is a name."""
    return re.sub(r"^(\d{3,}\.(?=.)|\d+\.(?=\D))", "", folder)


def why_no_photo(path: Path) -> str:
    """Why a file can't be a photo, by its type and size; reading a pipe would wait forever.

    Returns:
        An empty string if it may be one.

    Raises:
        OSError: if the file system does not answer, or the file is gone.
    """
    status = path.stat()
    if file_type := _FILE_TYPES.get(stat.S_IFMT(status.st_mode)):
        return f"the file is {file_type}, not a photo"
    if status.st_size > MAX_FILE_BYTES:
        return f"the file has {status.st_size} bytes; a photo has at most {MAX_FILE_BYTES}"
    if not _is_text(path.name):
        return "the file's name is not in UTF-8; rename it"
    return ""


def printable(name: object) -> str:
    r"""A name or path as text that every file and terminal takes: bytes that are not UTF-8 as `\xe9`."""
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if not _is_ignored(entry.name):
                yield entry


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # The file system has said what an entry is, but for links. Some of them lead to themselves, which only Path takes.
    return Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir()


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def _is_text(name: str) -> bool:
    return printable(name) == name


def named(names: Sequence[str], most: int = 10) -> str:
    """Some names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def as_lines(lines: Sequence[str], where: str = "") -> str:
    """Indented lines; after `MAX_LINES` lines the number of the others, and `where` they are."""
    more = [f"and {len(lines) - MAX_LINES} more{where}"] if len(lines) > MAX_LINES else []
    return "\n".join(f"  {line}" for line in [*lines[:MAX_LINES], *more])
