"""The service's use of S3: fill channels, sync checkpoints, upload results. It accesses moto's S3 directly."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import re
import shutil
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from moto.s3.exceptions import MissingBucket
from moto.s3.models import FakeDeleteMarker, FakeKey, S3Backend, s3_backends
from moto.utilities.utils import get_partition

from lightning_modules.files import replaced_whole
from sagemaker_launch.rehearsal.iam import Access

IGNORED, UPLOADING, UPLOADED = ".sagemaker-ignore", ".sagemaker-uploading", ".sagemaker-uploaded"
"""Ends of names that AWS's uploader of checkpoints leaves out, or gives to its own files (observed 2026)."""


class DataError(Exception):
    """Input or output that S3 refuses; the message is what AWS gives as the failure reason."""


@dataclass(frozen=True)
class Uri:
    """Bucket and key of an s3:// address."""

    bucket: str
    key: str

    @classmethod
    def parse(cls, text: str) -> Uri:
        """Take an address apart.

        Raises:
            DataError: if it is not one.
        """
        found = re.fullmatch(r"s3://([^/]+)/?(.*)", text, re.DOTALL)
        if found is None:
            raise DataError(f"ClientError: S3 URI {text} is not valid")
        return cls(found[1], found[2])

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    def __truediv__(self, name: str) -> Uri:
        return Uri(self.bucket, f"{self.key.rstrip('/')}/{name}" if self.key else name)


class Objects:
    """The objects of one account as the service sees them."""

    def __init__(self, account: str, region: str, cache: Path) -> None:
        """Reach the account's S3.

        Args:
            cache: folder of downloaded objects, shared by all jobs.
        """
        self.delay: Callable[[], float] = lambda: 0.0
        """Seconds that S3 takes longer for a request, asked at each."""
        self.access: Access | None = None
        """Who may do what; None lets everybody do everything."""
        self._role = ""
        self.skips_file: Callable[[], bool] = lambda: False
        """Whether a file is copied later, asked at each."""
        self._region, self._cache = region, cache
        self._lock = threading.Lock()
        self._backend: S3Backend = s3_backends[account][get_partition(region)]
        cache.mkdir(parents=True, exist_ok=True)

    def acting_as(self, role: str) -> Objects:
        """The same objects, as a role may use them."""
        own = copy.copy(self)
        own._role = role
        return own

    def check_may(self, action: str, uri: Uri) -> None:
        """Refuse what the role may not do.

        Raises:
            DataError: with AWS's sentence.
        """
        if self.access is None or not self._role:
            return
        listing = action == "s3:ListBucket"
        arn = f"arn:{get_partition(self._region)}:s3:::{uri.bucket}" + ("" if listing else f"/{uri.key}")
        denial = self.access.denial(self._role, action, arn, {"s3:prefix": uri.key} if listing else {})
        if denial is not None:
            raise DataError(f"ClientError: AccessDenied (403): {denial}")

    def bucket_exists(self, name: str) -> bool:
        """Whether there is such a bucket."""
        try:
            self._backend.head_bucket(name)
        except MissingBucket:
            return False
        return True

    def below(self, uri: Uri) -> list[FakeKey]:
        """Objects whose key begins with the URI's, by key; none if there is no such bucket."""
        if not self.bucket_exists(uri.bucket):
            return []
        found = self._backend.get_bucket(uri.bucket).keys.items()
        keys = [key for name, key in found if name.startswith(uri.key) and not isinstance(key, FakeDeleteMarker)]
        return sorted(keys, key=lambda key: str(key.name))

    def get(self, uri: Uri) -> bytes:
        """Content of an object.

        Raises:
            DataError: if there is none.
        """
        self.check_may("s3:GetObject", uri)
        key = self._find(uri)
        time.sleep(self.delay())
        return bytes(key.value)

    def content_type(self, uri: Uri) -> str:
        """Content type of an object: what the uploader set, or S3's default.

        Raises:
            DataError: if there is none.
        """
        return str(self._find(uri).metadata["Content-Type"])

    def _find(self, uri: Uri) -> FakeKey:
        for key in self.below(uri):
            if key.name == uri.key:
                return key
        raise DataError(f"NoSuchKey (404): The specified key does not exist: {uri}")

    def put(self, uri: Uri, content: bytes) -> None:
        """Store an object.

        Raises:
            DataError: if there is no such bucket.
        """
        time.sleep(self.delay())
        if not self.bucket_exists(uri.bucket):
            raise DataError(
                f"ClientError: Artifact upload failed:Error 404 (NoSuchBucket): The specified bucket does not exist "
                f"({uri.bucket})"
            )
        self.check_may("s3:PutObject", uri)
        self._backend.put_object(uri.bucket, uri.key, content)

    def delete(self, uri: Uri) -> None:
        """Delete an object, if it is there."""
        time.sleep(self.delay())
        self.check_may("s3:DeleteObject", uri)
        if self.bucket_exists(uri.bucket):
            self._backend.delete_object(uri.bucket, uri.key)

    def put_archive(self, uri: Uri, folder: Path) -> None:
        """Store a .tar.gz of the contents of a folder."""
        with tempfile.NamedTemporaryFile(dir=self._cache) as file:
            # Level 1: the bytes are not kept for long here, and weights hardly shrink.
            with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as archive:
                for path in sorted(folder.iterdir()):
                    archive.add(path, arcname=path.name)
            file.flush()
            self.put(uri, Path(file.name).read_bytes())

    def fill_channel(
        self, source: Mapping[str, Any], folder: Path, role: str, share: tuple[int, int], *, copy: bool
    ) -> None:
        """Put the files of an S3DataSource into a channel's folder.

        Args:
            source: S3DataSource of the request.
            share: number of this host and count of hosts; ShardedByS3Key gives each its share.
            copy: copy files instead of linking the cached ones, where the job could change them.

        Raises:
            DataError: if something is missing.
        """
        folder.mkdir(parents=True, exist_ok=True)
        uri = Uri.parse(source["S3Uri"])
        pairs = self._manifest(uri, role) if source["S3DataType"] == "ManifestFile" else self._prefix(uri, role)
        if source.get("S3DataDistributionType") == "ShardedByS3Key":
            pairs = pairs[share[0] :: share[1]]
        for relative, key in pairs:
            target = _inside(folder, relative, uri)
            if str(key.name).endswith("/"):
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            self.check_may("s3:GetObject", Uri(str(key.bucket_name), str(key.name)))
            cached = self._cached(key)
            if copy:
                shutil.copyfile(cached, target)
            else:
                os.link(cached, target)

    def restore(self, uri: Uri, folder: Path) -> int:
        """Download everything below a prefix into a folder; return how many files that were.

        Raises:
            DataError: if a key leads out of the folder.
        """
        prefix = f"{uri.key.rstrip('/')}/" if uri.key else ""
        keys = [key for key in self.below(Uri(uri.bucket, prefix)) if not str(key.name).endswith("/")]
        self.check_may("s3:ListBucket", Uri(uri.bucket, prefix))
        for key in keys:
            self.check_may("s3:GetObject", Uri(uri.bucket, str(key.name)))
            target = _inside(folder, str(key.name).removeprefix(prefix), uri)
            target.parent.mkdir(parents=True, exist_ok=True)
            time.sleep(self.delay())
            target.write_bytes(key.value)
        return len(keys)

    def _prefix(self, uri: Uri, role: str) -> list[tuple[str, FakeKey]]:
        self.check_may("s3:ListBucket", uri)
        keys = self.below(uri)
        if not keys:
            raise DataError(
                f'ClientError: Data download failed:No S3 objects found under S3 URL "{uri}" given in input data '
                f"source. Please ensure that the bucket exists in the selected region ({self._region}), that objects "
                f'exist under that S3 prefix, and that the role "{role}" has "s3:ListBucket" permissions on bucket '
                f'"{uri.bucket}".'
            )
        return [(relative_path(uri.key, str(key.name)), key) for key in keys]

    def _manifest(self, uri: Uri, role: str) -> list[tuple[str, FakeKey]]:
        self.check_may("s3:GetObject", uri)
        found = {str(key.name): key for key in self.below(uri)}
        if uri.key not in found:
            raise DataError(f"ClientError: Data download failed:manifest {uri} does not exist")
        try:
            entries = json.loads(found[uri.key].value)
            prefix = Uri.parse(entries[0]["prefix"])
            names = [str(name) for name in entries[1:]]
        except (ValueError, LookupError, TypeError) as error:
            raise DataError(
                f'ClientError: Data download failed:manifest {uri} must be [{{"prefix": "s3://…"}}, "key", …]: {error}'
            ) from error
        available = {str(key.name): key for key in self.below(prefix)}
        pairs = []
        for name in names:
            # The prefix is put in front as it is: without its last slash the names must begin with one.
            if prefix.key + name not in available:
                raise DataError(
                    f"ClientError: Data download failed:NoSuchKey (404): The specified key does not exist: "
                    f"s3://{prefix.bucket}/{prefix.key}{name}, named by manifest {uri}"
                )
            pairs.append((name.lstrip("/"), available[prefix.key + name]))
        return pairs

    def _cached(self, key: FakeKey) -> Path:
        # moto answers from memory: the name holds what identifies the bytes, as an ETag does.
        identity = f"{key.etag} {key.size}"
        path = self._cache / hashlib.sha256(identity.encode()).hexdigest()
        # Written once: a file that another job puts in its place can't be linked in that moment.
        with self._lock:
            if not path.exists():
                time.sleep(self.delay())
                with replaced_whole(path) as part:
                    part.write_bytes(key.value)
                    part.chmod(0o444)
        return path


class FolderSync:
    """Keeps a prefix on S3 up to date with a folder, as the service does with checkpoints and Debugger's tensors.

    Files are uploaded in any state: a job that must not restore half a checkpoint writes atomically.
    """

    def __init__(
        self,
        objects: Objects,
        folder: Path,
        uri: Uri,
        *,
        unfinished: str = IGNORED,
        marks: bool = False,
        deletes: bool = True,
    ) -> None:
        """Begin with what the folder holds now.

        Args:
            unfinished: the end of names that are left out.
            marks: put empty files beside the files that are copied, as AWS's uploader of checkpoints does:
                `NAME.sagemaker-uploading` meanwhile, `NAME.sagemaker-uploaded` afterwards, which is copied too.
            deletes: delete on S3 what is deleted in the folder, which AWS documents for checkpoints only
                (docs.aws.amazon.com/sagemaker/latest/dg/model-checkpoints.html).
        """
        self._marks, self._deletes = marks, deletes
        self._objects, self._folder, self._uri = objects, folder, uri
        self._unfinished = unfinished
        self._seen = dict(_states(folder))

    def sync(self, *, whole: bool = True) -> int:
        """Upload what is new or changed since the last call, delete what is gone; return how many were uploaded.

        Args:
            whole: false may leave files for the next call.
        """
        uploaded, there = 0, dict(_states(self._folder))
        for path in self._seen.keys() - there.keys():
            if self._deletes:
                self._objects.delete(self._at(path))
            del self._seen[path]
        for path, state in there.items():
            if self._seen.get(path) == state or path.name.endswith((self._unfinished, UPLOADING)):
                continue
            if not whole and self._objects.skips_file():
                continue
            try:
                with self._marked(path):
                    self._objects.put(self._at(path), path.read_bytes())
            except FileNotFoundError:
                continue  # renamed or deleted meanwhile
            self._seen[path] = state
            uploaded += 1
        return uploaded

    @contextlib.contextmanager
    def _marked(self, path: Path) -> Iterator[None]:
        """While a file is copied."""
        if not self._marks or path.name.endswith(UPLOADED):
            yield
            return
        marker = path.with_name(f"{path.name}{UPLOADING}")
        marker.touch()
        try:
            yield
        except BaseException:
            marker.unlink(missing_ok=True)
            raise
        with contextlib.suppress(FileNotFoundError):  # the job has deleted it
            marker.rename(path.with_name(f"{path.name}{UPLOADED}"))

    def _at(self, path: Path) -> Uri:
        return self._uri / path.relative_to(self._folder).as_posix()


def _inside(folder: Path, relative: str, uri: Uri) -> Path:
    """Where an object goes in a folder: keys of S3 may be any text.

    Raises:
        DataError: if that is outside.
    """
    target = folder / relative
    if ".." in target.parts or not target.is_relative_to(folder):
        raise DataError(f"ClientError: Data download failed:{uri} would write {relative} outside its folder")
    return target


def _states(folder: Path) -> Iterator[tuple[Path, Sequence[int]]]:
    for path in sorted(folder.rglob("*")):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        if path.is_file():
            yield path, (status.st_ino, status.st_mtime_ns, status.st_size)


def relative_path(prefix: str, key: str) -> str:
    """Path of an object below a prefix in its channel.

    A prefix that names a folder (with or without the last slash) is taken off; one that names a file, or that ends
    within a name, keeps that name.
    """
    rest = key.removeprefix(prefix)
    if not prefix or prefix.endswith("/") or rest.startswith("/"):
        return rest.lstrip("/")
    return PurePosixPath(prefix).name + rest
