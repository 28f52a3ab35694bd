"""Class folders: which photos there are, which of them can be read, and what split and class they belong to."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL

from lightning_modules.caches.array_cache import NOT_WRITABLE
from lightning_modules.errors import UserError
from lightning_modules.files import replaced_whole
from lightning_modules.inference import DECODER_VERSION, BadImageError, OutOfMemoryError, open_image
from lightning_modules.listing import (
    as_lines,
    class_folders,
    class_name,
    count_photos,
    in_one_spelling,
    list_photos,
    loose_files,
    named,
    printable,
    split_folders,
    why_no_photo,
)
from lightning_modules.process import open_threads
from lightning_modules.threads import map_in_order

_log = logging.getLogger(__name__)
Progress = Callable[[Iterable[Path], int], Iterable[Path]]
"""Wraps an iterable of known length to show its progress, as tqdm does."""


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

    def subset(self, indices: Sequence[int]) -> Split:
        """The photos with these indices, in this order."""
        return Split(
            tuple(self.paths[i] for i in indices),
            tuple(self.labels[i] for i in indices),
            tuple(self.hashes[i] for i in indices),
            tuple(self.sizes[i] for i in indices),
        )

    def sample(self, count: int) -> Split:
        """At most `count` photos of all classes, the same each time."""
        drawn = np.random.default_rng(0).permutation(len(self))[:count]
        return self.subset(sorted(drawn.tolist()))


@dataclass(frozen=True)
class ClassFolders:
    """A data set that was scanned before training."""

    root: Path
    class_names: tuple[str, ...]
    train: Split
    valid: Split
    test: Split | None
    """None where the data set has no test folder."""
    valid_is_cut: bool
    """Whether valid was split from train, because the data set has no folder with validation photos."""
    bad_files: dict[str, str]
    """Files that were left out: path relative to root, and why."""
    leaked: int
    """Number of files whose bytes are in more than one split."""
    copies: tuple[tuple[str, ...], ...]
    """Photos of the same bytes in more than one split, or of more than one class: their paths relative to root."""
    remarks: tuple[str, ...]
    """Further warnings about the folders, one sentence each."""
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
    """Scan `root/{train,valid,test}/CLASS/PHOTO`. Every file is decoded once; the result is cached by size and date.

    Without a valid folder the validation split is drawn from train with `seed`, stratified by class.

    Raises:
        UserError: if there is no root or no train folder; if a split has classes that train lacks, or too few photos.
        TooManyBadImagesError: if more than `max_bad_fraction` of the files can't be read. A single one is left out,
            unless `max_bad_fraction` is 0.
    """
    listed = {split: list_photos(folder) for split, folder in split_folders(root).items()}
    folder_names, class_names = _names(root, {split: Counter(map(_folder, paths)) for split, paths in listed.items()})
    everything = [path for paths in listed.values() for path in paths]
    facts = _scan_files(everything, root, cache_dir, progress)
    bad = {printable(path.relative_to(root)): facts[path].problem for path in everything if facts[path].problem}
    accepted = max(1.0, max_bad_fraction * len(everything)) if max_bad_fraction else 0
    if len(bad) > accepted:
        listing = as_lines([f"{name}: {why}" for name, why in bad.items()])
        raise TooManyBadImagesError(
            f"data.max_bad_fraction must be at least {len(bad) / len(everything):.4f} for {root}, got "
            f"{max_bad_fraction}: {len(bad)} of {len(everything)} files can't be read; mend or remove them, or raise it"
            f"\n{listing}"
        )
    readable = {_folder(path) for path in listed["train"] if not facts[path].problem}
    if len(readable) < len(folder_names):
        lacking = ", ".join(name for name in folder_names if name not in readable)
        raise UserError(f"data.root {root}: train has no photo that can be read of: {lacking}")
    label = {name: index for index, name in enumerate(folder_names)}
    splits = {
        split: Split(
            tuple(good),
            tuple(label[_folder(path)] for path in good),
            tuple(facts[path].sha256 for path in good),
            tuple((facts[path].height, facts[path].width) for path in good),
        )
        for split, paths in listed.items()
        if (good := [path for path in paths if not facts[path].problem])
    }
    remarks = _remarks(root, splits)
    valid_is_cut = "valid" not in splits
    if valid_is_cut:
        splits["valid"], splits["train"] = _cut(splits["train"], valid_fraction, seed)
    if fraction < 1:
        splits["train"], _ = _cut(splits["train"], fraction, seed)
    return ClassFolders(
        root=root,
        class_names=class_names,
        train=splits["train"],
        valid=splits["valid"],
        test=splits.get("test"),
        valid_is_cut=valid_is_cut,
        bad_files=bad,
        leaked=_leaked(splits),
        copies=_copies(root, splits),
        remarks=remarks,
        fingerprint=_fingerprint(root, splits),
    )


def read_class_names(root: Path) -> tuple[str, ...]:
    """The class names of a data set, in order; no file is opened.

    Raises:
        UserError: if there is no root or no train folder, or the class folders can't be used.
    """
    return _names(root, _counts(root))[1]


def check_class_sizes(root: Path, *, fraction: float) -> None:
    """Refuse a class with a single file if each class is to be split; no file is opened.

    Raises:
        UserError: naming the class.
    """
    counts = _counts(root)
    if fraction == 1 and counts.get("valid"):
        return
    for name, count in counts["train"].items():
        if count < 2:
            raise _too_few(count, name)


def _counts(root: Path) -> dict[str, Counter[str]]:
    """The files of each class folder in each split; a million of them are counted in 10 MB."""
    return {split: count_photos(folder) for split, folder in split_folders(root).items()}


def _folder(path: Path) -> str:
    return in_one_spelling(path.parent.name)


def _names(root: Path, counts: Mapping[str, Counter[str]]) -> tuple[list[str], tuple[str, ...]]:
    """The class folders of train and the names of their classes."""
    folder_names = sorted(counts["train"])
    for split, of_class in counts.items():
        extra = sorted(of_class.keys() - set(folder_names))
        if extra:
            raise UserError(f"data.root {root}: {split} has classes that train lacks: {', '.join(extra)}")
    if len(folder_names) < 2:
        raise UserError(f"data.root {root}: train must have 2 or more classes with photos, got {folder_names}")
    class_names = tuple(class_name(name) for name in folder_names)
    twice = [name for name, count in Counter(class_names).items() if count > 1]
    if twice:
        raise UserError(f"data.root {root}: two folders in train map to the same class name: {', '.join(twice)}")
    return folder_names, class_names


class _Fact(NamedTuple):
    """Result of scanning one file."""

    sha256: str
    problem: str
    height: int = 0
    width: int = 0


def _scan_files(paths: Sequence[Path], root: Path, cache_dir: Path, progress: Progress) -> dict[Path, _Fact]:
    """Hash and decode every file once; a file of the same size and date is not opened again."""
    cache = cache_dir / f"files-{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]}.json"
    known = _read_cache(cache)
    keys = {path: _file_key(path, root) for path in paths}
    new = [path for path in paths if keys[path] not in known]
    with open_threads() as pool:  # decoding and hashing release the GIL
        results = map_in_order(pool, _scan_file, new)
        for path, fact in zip(progress(new, len(new)), results, strict=True):
            known[keys[path]] = fact
    if new:
        # A result without a hash is about the machine, not about the bytes: the drive may be back, or its
        # permissions changed.
        _write_cache(cache, {key: known[key] for key in keys.values() if known[key].sha256})
    return {path: known[keys[path]] for path in paths}


_DECODER = [DECODER_VERSION, PIL.__version__]
"""Versions that decide whether the same bytes are readable."""


def _write_cache(cache: Path, facts: Mapping[str, _Fact]) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with replaced_whole(cache, shared=True) as part:
            part.write_text(json.dumps({"decoder": _DECODER, "files": facts}))
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        _log.warning(
            "data.cache_dir %s cannot be written (%s): each run looks through the photos again",
            cache.parent,
            error.strerror,
        )


def _read_cache(cache: Path) -> dict[str, _Fact]:
    """Results of earlier scans; a file that is damaged, or from another version or decoder, is ignored."""
    try:
        known = json.loads(cache.read_text())
        if known["decoder"] != _DECODER:
            return {}
        files = known["files"].items()
        return {key: _Fact(sha256, problem, height, width) for key, (sha256, problem, height, width) in files}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _file_key(path: Path, root: Path) -> str:
    try:
        status = path.stat()
    except OSError:  # a link to nowhere
        return str(path.relative_to(root))
    return f"{path.relative_to(root)}|{status.st_size}|{status.st_mtime_ns}"


class NoPhotoError(BadImageError):
    """Result for a file that is not read."""


def read_photo(path: Path) -> bytes:
    """The bytes of a photo's file.

    Raises:
        NoPhotoError: for what can't be one, such as a named pipe, which is not opened.
        OSError: if the file can't be read.
    """
    if why := why_no_photo(path):
        raise NoPhotoError(why)
    return path.read_bytes()


def _scan_file(path: Path) -> _Fact:
    """Read and decode a file. A result without a hash is not about its bytes, and is not cached."""
    try:
        data = read_photo(path)
        photo = open_image(data)
    except OSError as error:
        return _Fact("", f"the file can't be opened: {error.strerror}")
    except MemoryError:
        return _Fact("", "the file can't be read now: out of memory")
    except (NoPhotoError, OutOfMemoryError) as error:
        return _Fact("", str(error))
    except BadImageError as error:
        return _Fact(hashlib.sha256(data).hexdigest(), str(error))
    return _Fact(hashlib.sha256(data).hexdigest(), "", photo.height, photo.width)


def _cut(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Divide a split, stratified by class, into a fraction and the rest; both have at least one photo per class."""
    by_class: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(split.labels):
        by_class[label].append(index)
    drawn: set[int] = set()
    for label, indices in sorted(by_class.items()):
        if len(indices) < 2:
            raise _too_few(len(indices), split.paths[indices[0]].parent.name)
        count = min(max(1, round(fraction * len(indices))), len(indices) - 1)
        drawn |= set(np.random.default_rng([seed, label]).permutation(indices)[:count].tolist())
    selected = sorted(drawn)
    rest = [index for index in range(len(split)) if index not in drawn]
    return split.subset(selected), split.subset(rest)


def _too_few(count: int, name: str) -> UserError:
    return UserError(
        "data.root must have 2 or more photos of each class in train to take a part of them (data.fraction, or a "
        f"validation split), got {count} of {name}: add photos, or take the class out"
    )


def _leaked(splits: dict[str, Split]) -> int:
    """Number of photos with the same bytes in two splits, counted once per split beyond the first."""
    splits_of = Counter(digest for split in splits.values() for digest in set(split.hashes))
    return sum(count - 1 for count in splits_of.values())


def _copies(root: Path, splits: dict[str, Split]) -> tuple[tuple[str, ...], ...]:
    """Photos of the same bytes that are in two splits or two classes."""
    found: dict[str, list[tuple[str, int, str]]] = defaultdict(list)
    for name, split in splits.items():
        for path, label, digest in zip(split.paths, split.labels, split.hashes, strict=True):
            found[digest].append((name, label, path.relative_to(root).as_posix()))
    return tuple(
        tuple(path for _, _, path in group)
        for group in found.values()
        if len({name for name, _, _ in group}) > 1 or len({label for _, label, _ in group}) > 1
    )


def _remarks(root: Path, splits: Mapping[str, Split]) -> tuple[str, ...]:
    """Warnings about folders that are valid but rarely intended."""
    remarks, empty = [], []
    if "test" not in (found := split_folders(root)):
        remarks.append(f"data.root {root} has no test folder: this run has no test score")
    for split, folder in found.items():
        photos = Counter(map(_folder, splits[split].paths)) if split in splits else Counter()
        if not photos:
            instead = "this run has no test score" if split == "test" else "a part of train is taken instead"
            remarks.append(f"data.root {root}: {folder.name} has no photo in class folders: {instead}")
            continue
        empty += [
            f"{folder.name}/{path.name}" for path in class_folders(folder) if not photos[in_one_spelling(path.name)]
        ]
        if single := [name for name, count in photos.items() if count == 1 and split == "train"]:
            remarks.append(f"data.root {root}: classes in train with a single photo: {named(single)}")
        if loose := [printable(path.name) for path in loose_files(folder)]:
            remarks.append(
                f"data.root {root}: {folder.name} has files outside of class folders, left out: {named(loose)}"
            )
    if empty:
        remarks.append(f"data.root {root}: class folders without a photo: {named(empty)}")
    return tuple(remarks)


def _fingerprint(root: Path, splits: dict[str, Split]) -> str:
    digest = hashlib.sha256()
    for name, split in sorted(splits.items()):
        for path, sha256 in zip(split.paths, split.hashes, strict=True):
            digest.update(f"{name}|{in_one_spelling(path.relative_to(root).as_posix())}|{sha256}\n".encode())
    return digest.hexdigest()
