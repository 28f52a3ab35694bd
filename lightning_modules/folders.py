"""Class folders: which photos there are, which of them can be read, and what split and class they belong to."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lightning_modules.errors import UserError
from lightning_modules.inference import BadImageError, open_image
from lightning_modules.listing import list_photos, split_folders
from lightning_modules.threads import open_threads

Progress = Callable[[Iterable[Path], int], Iterable[Path]]
"""Wraps an iterable of known length to show how far it is, as tqdm does."""


class TooManyBadImagesError(UserError):
    """More files than `data.max_bad_fraction` allows can't be read; the message lists them."""


@dataclass(frozen=True)
class Split:
    """The photos of one split, in the order of their paths."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    hashes: tuple[str, ...]
    """SHA-256 of each file."""
    sizes: tuple[tuple[int, int], ...]
    """Height and width of each photo, upright, in pixels."""

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class ClassFolders:
    """A data set that was looked through before training."""

    root: Path
    class_names: tuple[str, ...]
    train: Split
    valid: Split
    test: Split | None
    """None where the data set has no test folder."""
    bad_files: dict[str, str]
    """Files that were left out: path relative to root, and why."""
    leaked: int
    """Files whose exact bytes stand in more than one split."""
    fingerprint: str
    """SHA-256 over the names and contents of all photos used."""


def scan_class_folders(
    root: Path,
    *,
    valid_fraction: float,
    fraction: float,
    max_bad_fraction: float,
    seed: int,
    cache_dir: Path,
    progress: Progress = lambda paths, _: paths,
) -> ClassFolders:
    """Look through `root/{train,valid,test}/CLASS/PHOTO`; every file is decoded once, and remembered by size and date.

    Without a valid folder a stratified part of train, drawn with `seed`, takes its place.

    Raises:
        UserError: if there is no root or no train folder; if a split has classes that train lacks, or too few photos.
        TooManyBadImagesError: if more than `max_bad_fraction` of the files can't be read.
    """
    listed = {split: list_photos(folder) for split, folder in split_folders(root).items()}
    folder_names, class_names = _names(root, listed)
    everything = [path for paths in listed.values() for path in paths]
    facts = _look_at(everything, root, cache_dir, progress)
    bad = {str(path.relative_to(root)): facts[path].problem for path in everything if facts[path].problem}
    if len(bad) > max_bad_fraction * len(everything):
        listing = "\n".join(f"  {name}: {why}" for name, why in bad.items())
        raise TooManyBadImagesError(
            f"data.max_bad_fraction must be at least {len(bad) / len(everything):.4f} for {root}, got "
            f"{max_bad_fraction}: {len(bad)} of {len(everything)} files can't be read; mend or remove them, or raise it"
            f"\n{listing}"
        )
    readable = {path.parent.name for path in listed["train"] if not facts[path].problem}
    if len(readable) < len(folder_names):
        lacking = ", ".join(name for name in folder_names if name not in readable)
        raise UserError(f"data.root {root}: train has no photo that can be read of: {lacking}")
    label = {name: index for index, name in enumerate(folder_names)}
    splits = {
        split: Split(
            tuple(good),
            tuple(label[path.parent.name] for path in good),
            tuple(facts[path].sha256 for path in good),
            tuple((facts[path].height, facts[path].width) for path in good),
        )
        for split, paths in listed.items()
        if (good := [path for path in paths if not facts[path].problem])
    }
    if "valid" not in splits:
        splits["valid"], splits["train"] = _cut(splits["train"], valid_fraction, seed)
    if fraction < 1:
        splits["train"], _ = _cut(splits["train"], fraction, seed)
    return ClassFolders(
        root=root,
        class_names=class_names,
        train=splits["train"],
        valid=splits["valid"],
        test=splits.get("test"),
        bad_files=bad,
        leaked=_leaked(splits),
        fingerprint=_fingerprint(root, splits),
    )


def read_class_names(root: Path) -> tuple[str, ...]:
    """The class names of a data set, in order, without a look into its files.

    Raises:
        UserError: if there is no root or no train folder, or the class folders can't be used.
    """
    return _names(root, {split: list_photos(folder) for split, folder in split_folders(root).items()})[1]


def _names(root: Path, listed: Mapping[str, Sequence[Path]]) -> tuple[list[str], tuple[str, ...]]:
    """The class folders of train and the names of their classes."""
    folder_names = sorted({path.parent.name for path in listed["train"]})
    for split, paths in listed.items():
        extra = sorted({path.parent.name for path in paths} - set(folder_names))
        if extra:
            raise UserError(f"data.root {root}: {split} has classes that train lacks: {', '.join(extra)}")
    if len(folder_names) < 2:
        raise UserError(f"data.root {root}: train must have 2 or more classes with photos, got {folder_names}")
    class_names = tuple(_class_name(name) for name in folder_names)
    twice = [name for name, count in Counter(class_names).items() if count > 1]
    if twice:
        raise UserError(f"data.root {root}: two folders in train map to the same class name: {', '.join(twice)}")
    return folder_names, class_names


class _Fact(NamedTuple):
    """What one look at a file found."""

    sha256: str
    problem: str
    height: int = 0
    width: int = 0


def _look_at(paths: Sequence[Path], root: Path, cache_dir: Path, progress: Progress) -> dict[Path, _Fact]:
    """Hash and decode every file once; a file of the same size and date is not looked at again."""
    cache = cache_dir / f"files-{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]}.json"
    known = _read_cache(cache)
    keys = {path: _file_key(path, root) for path in paths}
    new = [path for path in paths if keys[path] not in known]
    with open_threads() as pool:  # decoding and hashing release the GIL
        looks = pool.map(_look, new)
        for path, fact in zip(progress(new, len(new)), looks, strict=True):
            known[keys[path]] = fact
    if new:
        cache_dir.mkdir(parents=True, exist_ok=True)
        part = cache.with_suffix(f".{os.getpid()}.tmp")
        # A file that could not be opened is looked at again: the drive may be back, or its permissions changed.
        part.write_text(json.dumps({key: known[key] for key in keys.values() if known[key].sha256}))
        part.replace(cache)
    return {path: known[keys[path]] for path in paths}


def _read_cache(cache: Path) -> dict[str, _Fact]:
    """What earlier scans found; a file that is torn or of another form is made anew."""
    try:
        known = json.loads(cache.read_text()).items()
        return {key: _Fact(sha256, problem, height, width) for key, (sha256, problem, height, width) in known}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _file_key(path: Path, root: Path) -> str:
    try:
        status = path.stat()
    except OSError:  # a link to nowhere
        return str(path.relative_to(root))
    return f"{path.relative_to(root)}|{status.st_size}|{status.st_mtime_ns}"


def _look(path: Path) -> _Fact:
    try:
        data = path.read_bytes()
    except OSError as error:
        return _Fact("", f"the file can't be opened: {error.strerror}")
    try:
        width, height = open_image(data).size
    except BadImageError as error:
        return _Fact(hashlib.sha256(data).hexdigest(), str(error))
    return _Fact(hashlib.sha256(data).hexdigest(), "", height, width)


def _cut(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Cut a stratified part off a split: (the part, the rest), at least one photo a class in either."""
    by_class: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(split.labels):
        by_class[label].append(index)
    taken: set[int] = set()
    for label, indices in sorted(by_class.items()):
        if len(indices) < 2:
            name = split.paths[indices[0]].parent.name
            raise UserError(
                "data.root must have 2 or more photos of each class in train to take a part of them (data.fraction, or "
                f"a validation split), got {len(indices)} of {name}: add photos, or take the class out"
            )
        count = min(max(1, round(fraction * len(indices))), len(indices) - 1)
        taken |= set(np.random.default_rng([seed, label]).permutation(indices)[:count].tolist())
    part = sorted(taken)
    rest = [index for index in range(len(split)) if index not in taken]
    return _select(split, part), _select(split, rest)


def _select(split: Split, indices: Sequence[int]) -> Split:
    return Split(
        tuple(split.paths[i] for i in indices),
        tuple(split.labels[i] for i in indices),
        tuple(split.hashes[i] for i in indices),
        tuple(split.sizes[i] for i in indices),
    )


def _class_name(folder: str) -> str:
    """DogImages numbers its folders: `001.Affenpinscher` is class 1, `Affenpinscher`."""
    return re.sub(r"^\d+\.", "", folder)


def _leaked(splits: dict[str, Split]) -> int:
    """Photos that stand, byte for byte, in two splits: counted once for each split beyond the first."""
    splits_of = Counter(digest for split in splits.values() for digest in set(split.hashes))
    return sum(count - 1 for count in splits_of.values())


def _fingerprint(root: Path, splits: dict[str, Split]) -> str:
    digest = hashlib.sha256()
    for name, split in sorted(splits.items()):
        for path, sha256 in zip(split.paths, split.hashes, strict=True):
            digest.update(f"{name}|{path.relative_to(root).as_posix()}|{sha256}\n".encode())
    return digest.hexdigest()
