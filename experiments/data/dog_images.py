"""Fetch Udacity's dog photos once: resumed after a drop, checked before unpacking, safe to kill.

Files in `root`, all of them made here except an archive that a user may put there:

    dogImages/              train, valid and test; appears whole, by one rename
    dogImages.json          where the photos came from; written last
    dogImages.zip           an archive placed by hand: used instead of the network, and kept
    dogImages.zip.part      our own download, deleted at the end
    dogImages.zip.part.json what the server knows of it
    dogImages.unpacking/    photos being unpacked, never read
    dogImages.lock          held by the process at work
"""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import requests
from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]  # types-tqdm is optional

from experiments.errors import CommandError
from lightning_modules.files import replaced_whole
from lightning_modules.locks import KernelLock

DOG_IMAGES_URL = "https://s3-us-west-1.amazonaws.com/udacity-aind/dog-project/dogImages.zip"
SPLITS = ("train", "valid", "test")

TIMEOUT_SECONDS = 30.0
"""Longest silence, while connecting or between two blocks."""
ATTEMPTS = 5
FIRST_RETRY_WAIT_SECONDS = 1.0
"""Doubles with every further attempt."""
BLOCK_BYTES = 64 * 1024

DISK_FACTOR = 2.2
"""Free space to ask for, in archive sizes: the archive, its photos (JPEG hardly packs), slack."""
MAX_UNPACKED_BYTES = 8 * 1024**3
MAX_UNPACKED_RATIO = 20
"""Unpacked bytes for each archive byte; photos stay near 1, a zip bomb reaches 1000."""

_BAD_ARCHIVE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    UnicodeDecodeError,
    FileExistsError,  # One member's file is another's folder.
    NotADirectoryError,
    IsADirectoryError,
)
"""Errors of `zipfile` for an archive that is damaged or malicious."""


class DownloadError(CommandError):
    """The data set is neither cached nor downloadable; the message is one line with the next step."""


def fetch_dog_images(root: Path, *, url: str = DOG_IMAGES_URL) -> Path:
    """Return the folder of dog photos, downloading and unpacking it where it is missing.

    A folder already there is returned without touching the network, whether it was fetched earlier
    or unpacked by hand. Several processes may call this at once: one works, the others wait.

    Args:
        root: folder that holds `dogImages/`, made if missing.
        url: where `dogImages.zip` is published.

    Returns:
        `root / "dogImages"`, which holds `train`, `valid` and `test`.

    Raises:
        DownloadError: if there is no network, no disk space, or no usable archive.
    """
    folder = root / "dogImages"
    if _has_splits(folder):
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with KernelLock(root / "dogImages.lock"):
        if not _has_splits(folder):  # Asked again: another process may just have fetched it.
            _fetch(root, folder, url)
    return folder


def _fetch(root: Path, folder: Path, url: str) -> None:
    if folder.exists():
        raise DownloadError(f"{folder} must hold {', '.join(SPLITS)} but does not; move it away or complete it")
    placed_by_hand = root / "dogImages.zip"
    by_hand = placed_by_hand.exists()
    archive = placed_by_hand if by_hand else _download(root, url)

    # Udacity publishes no checksum: the hash is recorded, so that later copies can be compared with this one.
    with archive.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    archive_bytes = archive.stat().st_size
    try:
        file_count = _unpack(archive, folder)
    except _BAD_ARCHIVE as error:
        if by_hand:
            raise DownloadError(f"{archive} is unusable ({error}); replace or delete it") from error
        archive.unlink()
        raise DownloadError(
            f"the archive from {url} is unusable ({error}) and was deleted; run again to refetch it"
        ) from error

    _write_json(
        root / "dogImages.json",
        {
            "url": None if by_hand else url,
            "bytes": archive_bytes,
            "sha256": sha256,
            "files": file_count,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )
    _part_file(root).unlink(missing_ok=True)
    _source_file(root).unlink(missing_ok=True)


# --- Downloading ---


@dataclass(frozen=True)
class _Source:
    """The archive on the server when its first byte was received; stored beside the part file."""

    url: str
    validator: str
    """The ETag, or Last-Modified where there is none: a resumed answer must still carry it."""
    size: int
    """Length of the whole archive, in bytes."""


def _part_file(root: Path) -> Path:
    return root / "dogImages.zip.part"


def _source_file(root: Path) -> Path:
    return root / "dogImages.zip.part.json"


def _download(root: Path, url: str) -> Path:
    """Return the whole archive, asking again from where a dropped connection stopped."""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(FIRST_RETRY_WAIT_SECONDS * 2 ** (attempt - 1))
        size_before = _size(_part_file(root))
        try:
            if _receive(root, url):
                return _part_file(root)
        except requests.RequestException as error:
            # A first attempt without any byte means that there is no network: report it without a wait.
            if attempt == 0 and _size(_part_file(root)) == size_before:
                raise _failure(root, url, _in_few_words(error, url)) from error
    raise _failure(root, url, f"the connection dropped {ATTEMPTS} times; run again to resume it")


def _receive(root: Path, url: str) -> bool:
    """Request the bytes that the part file lacks, once.

    Returns:
        Whether the part file is whole. If not, the next call continues from there, or from zero.
    """
    part, source = _part_file(root), _resumable_source(root, url)
    start = _size(part) if source else 0
    if source and start == source.size:
        return True
    # Not compressed on the way: Content-Length and Range must count the archive's own bytes.
    headers = {"Accept-Encoding": "identity"}
    if source and start:
        # If-Range: a file that changed on the server comes whole (200), so bytes never mix.
        headers |= {"Range": f"bytes={start}-", "If-Range": source.validator}

    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
        size: int | None
        if response.status_code == 200:
            start, size = 0, int(response.headers.get("Content-Length", 0)) or None
            # The part file goes before its note changes: a kill in between must not pair the two.
            part.unlink(missing_ok=True)
            _source_file(root).unlink(missing_ok=True)
            if size:
                _require_free_bytes(root, int(DISK_FACTOR * size))
                if validator := _validator(response):
                    _write_json(_source_file(root), asdict(_Source(url, validator, size)))
        elif source and start and response.status_code in (206, 416):
            if not _continues(response, source, start):
                part.unlink()
                return False
            size = source.size
            _require_free_bytes(root, int(DISK_FACTOR * size) - start)
        else:
            raise _failure(root, url, f"HTTP {response.status_code} {response.reason}")

        with part.open("ab") as file, _progress("download", size, "B", start) as advance:
            for block in response.iter_content(BLOCK_BYTES):
                advance(file.write(block))
    return size is None or _size(part) == size  # urllib3 1 does not notice an answer cut short.


def _resumable_source(root: Path, url: str) -> _Source | None:
    if not _source_file(root).exists():
        return None
    source = _Source(**json.loads(_source_file(root).read_text(encoding="utf-8")))
    return source if source.url == url else None


def _continues(response: requests.Response, source: _Source, start: int) -> bool:
    """Tell whether the body is exactly the missing rest, also of servers that ignore If-Range."""
    if response.status_code != 206:
        return False
    rest = f"bytes {start}-{source.size - 1}/{source.size}"
    # An answer to If-Range may leave Last-Modified out (RFC 9110, 15.3.7).
    unchanged = _validator(response) in (source.validator, None)
    return unchanged and response.headers.get("Content-Range") == rest


def _validator(response: requests.Response) -> str | None:
    etag = response.headers.get("ETag", "W/")
    # If-Range takes no weak ETag: it does not promise the same bytes.
    return response.headers.get("Last-Modified") if etag.startswith("W/") else etag


def _in_few_words(error: requests.RequestException, url: str) -> str:
    if isinstance(error, requests.Timeout):
        return f"no answer within {TIMEOUT_SECONDS:g} s"
    if isinstance(error, requests.exceptions.SSLError):
        return "its TLS certificate was refused"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy did not let it through"
    if isinstance(error, (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        return f"no connection to {urlsplit(url).hostname}"
    return type(error).__name__


def _failure(root: Path, url: str, why: str) -> DownloadError:
    folder = root / "dogImages"
    return DownloadError(
        f"could not fetch {url} ({why}): download it on another machine, unpack it so that "
        f"{folder / 'train'} exists, and set data.name: folder, data.root: {folder}"
    )


# --- Unpacking ---


def _unpack(archive_path: Path, folder: Path) -> int:
    """Unpack beside `folder`, rename at the end, and return the number of files."""
    scratch = folder.with_name(f"{folder.name}.unpacking")
    if scratch.exists():  # Left by a process that was killed.
        shutil.rmtree(scratch)
    try:
        with zipfile.ZipFile(archive_path) as archive:
            members = _members_to_unpack(archive, _size(archive_path))
            _require_free_bytes(folder.parent, sum(member.file_size for member in members))
            with _progress("unpack", len(members), "file") as advance:
                for member in members:
                    archive.extract(member, scratch)  # Checks the CRC.
                    advance(1)
        if not _has_splits(scratch / "dogImages"):
            raise zipfile.BadZipFile(f"it must hold {', '.join(SPLITS)} under dogImages/")
        (scratch / "dogImages").replace(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return len(members)


def _members_to_unpack(archive: zipfile.ZipFile, archive_bytes: int) -> list[zipfile.ZipInfo]:
    """List the files under `dogImages/` without what a Mac adds; any unsafe member refuses it all.

    Raises:
        zipfile.BadZipFile: if a member leaves its folder, is no plain file, overwrites another, or
            if all of them unpack to an absurd size.
    """
    chosen: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = member.orig_filename  # `filename` has lost what follows a NUL.
        path = PurePosixPath(name)
        # No colon: drive letters and NTFS streams. No backslash: Windows reads it as a slash.
        if path.is_absolute() or ".." in path.parts or set(name) & set("\\:\0"):
            raise zipfile.BadZipFile(f"member {name!r} leaves the folder it is unpacked to")
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise zipfile.BadZipFile(f"member {name!r} is a link or device, not a plain file")
        packed_plainly = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        if member.flag_bits & 1 or not packed_plainly or member.header_offset < 0:
            raise zipfile.BadZipFile(f"member {name!r} is encrypted, oddly packed or damaged")
        from_a_mac = path.name.startswith("._") or path.name == ".DS_Store"
        if member.is_dir() or from_a_mac or "dogImages" not in path.parts[:1]:  # __MACOSX/ too.
            continue
        key = str(path).casefold()  # macOS and Windows see one file in A.jpg and a.jpg.
        if key in chosen:
            raise zipfile.BadZipFile(f"member {name!r} overwrites another")
        chosen[key] = member

    unpacked_bytes = sum(member.file_size for member in chosen.values())
    limit = min(MAX_UNPACKED_BYTES, MAX_UNPACKED_RATIO * archive_bytes)
    if unpacked_bytes > limit:
        raise zipfile.BadZipFile(f"it unpacks to {unpacked_bytes:,} bytes, more than {limit:,}")
    return list(chosen.values())


# --- Small helpers ---


def _has_splits(folder: Path) -> bool:
    return all((folder / split).is_dir() for split in SPLITS)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _require_free_bytes(root: Path, needed: int) -> None:
    free = shutil.disk_usage(root).free
    if free < needed:
        raise DownloadError(
            f"{root} must have {needed / 1e9:.1f} GB free for the dog photos, got "
            f"{free / 1e9:.1f} GB; make room or choose another data.root"
        )


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    with replaced_whole(path) as part:
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _progress(task: str, total: int | None, unit: str, done: int = 0) -> Iterator[Callable[[int], object]]:
    """Show progress, as a bar on a terminal, else a line every 10 %; yields a function that takes the steps done."""
    if sys.stderr.isatty():
        with tqdm(desc=task, total=total, initial=done, unit=unit, unit_scale=unit == "B", file=sys.stderr) as bar:
            yield bar.update
        return

    def advance(steps: int) -> None:
        nonlocal done
        tenth_before, done = 10 * done // (total or 1), done + steps
        if total and 10 * done // total > tenth_before:
            print(f"{task}: {100 * done // total} % of {total:,} {unit}", file=sys.stderr)

    yield advance
