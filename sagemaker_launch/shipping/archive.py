"""`model.tar.gz`: the export folder as SageMaker takes it. Packing is reproducible, unpacking checks every entry."""

from __future__ import annotations

import gzip
import io
import shutil
import tarfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

from experiments.console import say
from experiments.errors import UserError
from lightning_modules import ray_serve
from lightning_modules.files import replaced_whole

WEIGHTS = "model.safetensors"
CODE = "code/inference.py"
FILES = (
    WEIGHTS,
    "model.json",
    "golden/image.jpg",
    "golden/scores.json",
    CODE,
    "code/requirements.txt",
    ray_serve.CONFIG_FILE,
)
"""The files of an export folder and of an archive, listed here without importing torch, so that `sync` starts fast."""
OPTIONAL = (ray_serve.CONFIG_FILE,)
"""Files that exports of 0.1.0 lack."""
_INFERENCE = Path(ray_serve.__file__).with_name("inference.py")
INT8_FILES = ("int8/model.xml", "int8/model.bin", "golden/int8.json")
"""Further files of one that has its network in int8: all of them, or none."""
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib", ".npy", ".npz")
"""Suffixes of weights that run code when they are read."""
MAX_BYTES = 8_000_000_000
"""Unpacked; torchvision's largest classifier has 2.6 GB of weights."""
LARGE = (WEIGHTS, "int8/model.bin")
"""The files of numbers."""
MAX_OTHER_BYTES = 64_000_000
"""Unpacked, of each other file."""
MAX_HEADER = 1024 * 1024
"""Bytes of the headers in front of an entry, and behind the last one. tarfile reads them at once, as long as they say
that they are; those of GNU tar and Go have some KB."""
MAX_ENTRIES = 10_000
"""tarfile keeps a KB of memory for each."""


class BadArchiveError(UserError):
    """The archive is not a model of this project; nothing of it was kept."""


def pack_model(export: Path, target: Path, *, for_ray_serve: bool = False) -> Path:
    """Write an export folder as `model.tar.gz`, which depends on names and contents only.

    Args:
        for_ray_serve: give an export that Ray Serve can't run, as it lacks `config.yaml`, that file and today's
            `code/inference.py`, by which this version reads such exports too.

    Returns:
        `target`.

    Raises:
        BadArchiveError: if a file is missing, or a link out of the folder, whose target would be sent.
    """
    missing = _missing(export)
    if missing:
        raise BadArchiveError(f"{export} must be an export folder, it lacks {', '.join(missing)}")
    contents: dict[str, Path | bytes] = {
        name: export / name for name in (*FILES, *INT8_FILES) if (export / name).is_file()
    }
    if for_ray_serve and ray_serve.CONFIG_FILE not in contents:
        say(f"{export} has no {ray_serve.CONFIG_FILE}: the archive gets one, and today's {CODE}")
        contents |= {ray_serve.CONFIG_FILE: ray_serve.CONFIG.encode(), CODE: _INFERENCE}
    links = [name for name in (*FILES, *INT8_FILES) if not (export / name).resolve().is_relative_to(export.resolve())]
    if links:
        raise BadArchiveError(f"{export} must hold its own files, but {', '.join(links)} is a link to one elsewhere")
    target.parent.mkdir(parents=True, exist_ok=True)
    # Level 1: weights hardly shrink, and higher levels take minutes for it.
    with (
        replaced_whole(target) as part,
        part.open("wb") as file,
        gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0, compresslevel=1) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, source in sorted(contents.items()):
            entry = tarfile.TarInfo(name)
            entry.size = len(source) if isinstance(source, bytes) else source.stat().st_size
            entry.mode = 0o644
            with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as content:
                archive.addfile(entry, content)
    return target


def _missing(export: Path) -> list[str]:
    needed = [name for name in FILES if name not in OPTIONAL]
    if any((export / name).exists() for name in INT8_FILES):
        needed += INT8_FILES
    return [name for name in needed if not (export / name).is_file()]


def unpack_model(archive: Path, folder: Path) -> Path:
    """Unpack a `model.tar.gz` as an export folder; loading it checks the hash of the weights.

    Returns:
        `folder`, which is complete or absent.

    Raises:
        BadArchiveError: naming the wrong entry and the reason.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replaced_whole(folder) as part:
        part.mkdir()
        with refusing_damaged(archive):
            _extract(archive, part)
        missing = _missing(part)
        if missing:
            raise BadArchiveError(f"{archive} must hold a whole export, it lacks {', '.join(missing)}")
        shutil.rmtree(folder, ignore_errors=True)
    return folder


def fetch_model(s3: Any, uri: str, folder: Path) -> Path:
    """Download a job's `model.tar.gz` and unpack it as an export folder.

    Raises:
        BadArchiveError: if it has a wrong entry.
    """
    url = urlsplit(uri)
    folder.parent.mkdir(parents=True, exist_ok=True)
    archive = folder.with_name(f".{folder.name}.tar.gz")
    say(f"fetching {uri}")
    try:
        s3.download_file(url.netloc, url.path.lstrip("/"), str(archive))
        return unpack_model(archive, folder)
    finally:
        archive.unlink(missing_ok=True)


@contextmanager
def refusing_damaged(archive: Path) -> Iterator[None]:
    """While entries and their content are read.

    Raises:
        BadArchiveError: for what is damaged.
    """
    try:
        yield
    except (tarfile.TarError, EOFError, OSError, zlib.error, RecursionError) as error:
        raise BadArchiveError(f"{archive} is no whole .tar.gz: {error}") from error


def read_entries(archive: Path) -> Generator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """The entries of a `.tar.gz`, and the content of plain files, to be read before the next entry is asked for.

    Raises:
        BadArchiveError: if it would take much memory or time.
        TarError, EOFError, OSError, zlib.error, RecursionError: if it is damaged.
    """
    with gzip.open(archive) as zipped:
        limited = _Limited(zipped, archive)
        with tarfile.open(fileobj=limited, mode="r:") as opened:  # type: ignore[call-overload]
            for count, entry in enumerate(opened):
                if count == MAX_ENTRIES:
                    raise BadArchiveError(f"{archive} must have at most {MAX_ENTRIES} entries")
                if is_plain(entry):
                    limited.left = entry.size
                    yield entry, opened.extractfile(entry) or io.BytesIO()
                else:
                    yield entry, io.BytesIO()
                limited.left = MAX_HEADER
        while limited.read(1 << 16):  # the checksum is at the end
            pass


def is_plain(entry: tarfile.TarInfo) -> bool:
    """Whether an entry is a file whose bytes are all in the archive."""
    return entry.isreg() and not entry.issparse()


class _Limited:
    """A file of which tarfile may read a limited number of bytes. It reads a header as long as that says that it is."""

    def __init__(self, file: gzip.GzipFile, archive: Path) -> None:
        self._file, self._archive = file, archive
        self.left = MAX_HEADER
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        """Read, if this is not too much."""
        data = self._file.read(min(size, self.left + 1))
        self.left -= len(data)
        if self.left < 0:
            raise BadArchiveError(f"{self._archive} must have headers of at most {MAX_HEADER} bytes")
        return data


def _extract(archive: Path, folder: Path) -> None:
    for entry, content in read_entries(archive):
        name = PurePosixPath(entry.name)
        if name.is_absolute() or ".." in name.parts:
            raise BadArchiveError(f"{archive} must stay inside its folder, but holds {entry.name!r}")
        if entry.isdir():
            continue
        if not is_plain(entry):
            raise BadArchiveError(f"{archive} must hold plain files, but {entry.name!r} is a link or a device")
        is_known = str(name) in FILES + INT8_FILES
        if name.suffix.lower() in PICKLES and not is_known:
            raise BadArchiveError(
                f"{archive} must hold its weights as {WEIGHTS}: {entry.name!r} is a pickle, which runs code when "
                "it is read"
            )
        if not is_known:
            raise BadArchiveError(f"{archive} must hold {', '.join(FILES)} and nothing else, but has {entry.name!r}")
        most = MAX_BYTES if str(name) in LARGE else MAX_OTHER_BYTES
        if entry.size > most:
            raise BadArchiveError(f"{archive} must unpack to files of at most {most} bytes, got {name!s}")
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        with target.open("wb") as file:
            shutil.copyfileobj(content, file)
