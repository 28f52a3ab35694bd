"""The inputs of a job in S3: photos, code and weights by the hash of their content. Nothing is sent twice.

What S3 has is listed each time: a lifecycle rule or a person may have removed objects, or moved them to an archive.

data/objects/SHA256.jpg         one photo, of any data set
data/sets/HASH/index.json       its photos: path below the root to object
data/sets/HASH/manifest.json    what SageMaker copies to the machine; written last, so it names nothing that is missing
code/SHA256/sourcedir.tar.gz    the bundle
initial-weights/SHA256/NAME     a local checkpoint; NAME is weights.safetensors or weights.pth, by its content
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from botocore.exceptions import ClientError

from experiments.console import progress, say
from experiments.errors import UserError
from lightning_modules.files import file_sha256, is_safetensors
from lightning_modules.listing import class_entries, list_photos, split_folders, why_no_photo
from lightning_modules.threads import map_in_order
from sagemaker_launch.aws.client import THREADS
from sagemaker_launch.settings.cloud import CloudSettings
from sagemaker_launch.shipping.bundle import Bundle

ARCHIVES = ("GLACIER", "DEEP_ARCHIVE")
"""Storage classes whose objects can't be read before they are restored (S3's user guide, read 2026-11)."""

SAID_PAGES = 100
"""Pages of 1,000 objects after which a listing says how far it is: S3 takes some 20 seconds for them."""


@dataclass(frozen=True)
class Inputs:
    """The channels of a job in S3."""

    photos: str
    """A manifest, or a prefix with class folders below it."""
    code: str
    """A prefix."""
    weights: str | None = None
    """A prefix that holds one checkpoint; None where the config names none."""


@dataclass(frozen=True)
class PhotoSet:
    """A data set's photos by content."""

    objects: dict[str, Path]
    """Name of the object to a file that holds its bytes."""
    index: dict[str, str]
    """Path below the root to name of the object."""

    @property
    def sha256(self) -> str:
        """SHA-256 over the names and contents of all photos."""
        return hashlib.sha256(json.dumps(sorted(self.index.items())).encode()).hexdigest()

    @property
    def manifest(self) -> str:
        """Key of its manifest below the project's prefix."""
        return f"data/sets/{self.sha256[:32]}/manifest.json"


def photo_files(root: Path) -> list[Path]:
    """All photos of the class folders under `root`.

    Raises:
        UserError: if there is no root or no train folder.
    """
    return [path for folder in split_folders(root).values() for path in list_photos(folder) if _is_photo(path)]


def photo_bytes(root: Path) -> int:
    """Size of all photos of the class folders under `root`.

    Raises:
        UserError: if there is no root or no train folder.
    """
    entries = (entry for folder in split_folders(root).values() for _, entry in class_entries(folder))
    return sum(path.stat().st_size for path in (Path(entry.path) for entry in entries) if _is_photo(path))


def _is_photo(path: Path) -> bool:
    # Ignored at home too: folders below a class, pipes, archives of gigabytes.
    return path.is_file() and not why_no_photo(path)


def read_photo_set(root: Path) -> PhotoSet:
    """Hash all photos of the class folders under `root`.

    Raises:
        UserError: if there is no root or no train folder.
    """
    paths = photo_files(root)
    with ThreadPoolExecutor() as pool:  # hashing releases the GIL
        hashes = list(_progress("hashing photos", map_in_order(pool, file_sha256, paths), len(paths)))
    names = [f"{digest}{path.suffix.lower()}" for digest, path in zip(hashes, paths, strict=True)]
    return PhotoSet(
        objects=dict(zip(names, paths, strict=True)),
        index={path.relative_to(root).as_posix(): name for path, name in zip(paths, names, strict=True)},
    )


@dataclass(frozen=True)
class Shipment:
    """The files that a job gets from this machine."""

    photos: PhotoSet | str
    """Photos to upload, or the s3:// URI of class folders that are there already."""
    bundle: Bundle
    weights: Path | str | None
    """A local checkpoint to upload, or the s3:// URI of a folder that holds one."""
    weights_sha256: str = ""

    def inputs(self, settings: CloudSettings) -> Inputs:
        """The channels of a job."""
        photos = self.photos if isinstance(self.photos, str) else f"{settings.uri}/{self.photos.manifest}"
        weights = f"{settings.uri}/{self._weights_folder}/" if isinstance(self.weights, Path) else self.weights
        return Inputs(photos, f"{settings.uri}/{self._code_folder}/", weights)

    def upload(self, client: Any, settings: CloudSettings) -> None:
        """Upload the files that S3 lacks; after an interruption the next call uploads the rest.

        Raises:
            UserError: if a bucket is in another region, a photo or the checkpoint changed since it was hashed, or
                photos of another job are gone.
        """
        storage = Storage(client, settings)
        storage.require_region()
        if isinstance(self.photos, PhotoSet):
            storage.upload_photos(self.photos)
        elif self.photos.startswith(f"{settings.uri}/") and self.photos.endswith("/manifest.json"):
            storage.require_photos(self.photos)
        else:
            require_bucket_region(client, self.photos.split("/")[2], "data.root")
        archive = f"{self._code_folder}/sourcedir.tar.gz"
        if not storage.exists(archive):
            storage.put(archive, self.bundle.archive)
        if isinstance(self.weights, Path):
            storage.upload_file(f"{self._weights_folder}/{weights_name(self.weights)}", self.weights)

    @property
    def _code_folder(self) -> str:
        return f"code/{self.bundle.sha256[:32]}"

    @property
    def _weights_folder(self) -> str:
        return weights_folder(self.weights_sha256)


class Storage:
    """The part of a bucket that belongs to this project."""

    def __init__(self, client: Any, settings: CloudSettings) -> None:
        assert settings.bucket is not None, "checked by require_for_jobs"
        self._client, self._bucket, self._prefix = client, settings.bucket, settings.prefix
        self._uri, self._encryption = settings.uri, encryption(settings)

    def require_region(self) -> None:
        """Refuse a bucket in another region than the client's.

        Raises:
            UserError: naming both regions.
        """
        require_bucket_region(self._client, self._bucket, "cloud.bucket")

    def upload_photos(self, photos: PhotoSet) -> None:
        """Upload the photos of a data set that S3 lacks; two listings find them.

        Raises:
            UserError: if a photo changed while it was read.
        """
        uploaded = self._names("data/objects/", of="data/objects/")
        missing = [name for name in photos.objects if name not in uploaded]
        with ThreadPoolExecutor(THREADS) as pool:
            sent = map_in_order(pool, lambda name: self._upload_photo(name, photos.objects[name]), missing)
            for _ in _progress("uploading photos", sent, len(missing)):
                pass
        manifest, folder = photos.manifest, f"{photos.manifest.rpartition('/')[0]}/"
        if {"index.json", "manifest.json"} <= self._names(folder, of=folder):
            return
        index = f"{folder}index.json"
        self.put(index, json.dumps(photos.index, sort_keys=True).encode())
        # On the instance all objects are in one folder; the index has their original paths.
        listed = [*(f"objects/{name}" for name in sorted(photos.objects)), index.removeprefix("data/")]
        self.put(manifest, json.dumps([{"prefix": f"{self._uri}/data/"}, *listed]).encode())

    def require_photos(self, manifest: str) -> None:
        """Check that S3 has what the manifest of another job names.

        Args:
            manifest: its URI, below this prefix.

        Raises:
            UserError: naming what is gone.
        """
        key = manifest.removeprefix(f"{self._uri}/")
        remedy = "run the command that started the first job with these photos again: it sends what is missing"
        stored = self._names(f"{key.rpartition('/')[0]}/", of="data/")
        if key.removeprefix("data/") not in stored:
            raise UserError(f"the photos of that job must be in S3, {manifest} is gone: {remedy}")
        content = self._client.get_object(Bucket=self._bucket, Key=f"{self._prefix}/{key}")["Body"].read()
        _, *named = json.loads(content)
        stored |= self._names("data/objects/", of="data/")
        if gone := [name for name in named if name not in stored]:
            raise UserError(
                f"the photos of that job must be in S3, {len(gone)} of {len(named)} objects are gone that {manifest} "
                f"names, such as {gone[0]}: {remedy}"
            )

    def upload_file(self, key: str, path: Path) -> None:
        """Upload a file of up to 80 GB, once.

        Args:
            key: its folder is named by the file's SHA-256, or by the beginning of it.

        Raises:
            UserError: if the file has changed since it was hashed; nothing is stored.
        """
        if self.exists(key):
            return
        size, sha256 = path.stat().st_size, key.split("/")[-2]
        with progress(f"uploading {path.name}", size, "byte") as advance, path.open("rb") as file:
            self._client.upload_fileobj(
                _Unchanged(file, path, sha256),
                self._bucket,
                f"{self._prefix}/{key}",
                ExtraArgs=self._encryption,
                Callback=advance,
            )

    def _upload_photo(self, name: str, path: Path) -> None:
        content = path.read_bytes()
        if not name.startswith(hashlib.sha256(content).hexdigest()):
            raise _changed(path)
        self.put(f"data/objects/{name}", content)

    def put(self, key: str, content: bytes) -> None:
        """Write an object with a checksum: S3 refuses damaged content."""
        checksum = base64.b64encode(hashlib.sha256(content).digest()).decode()
        self._client.put_object(
            Bucket=self._bucket,
            Key=f"{self._prefix}/{key}",
            Body=content,
            ChecksumSHA256=checksum,
            **self._encryption,
        )

    def exists(self, key: str) -> bool:
        """Whether an object exists."""
        # Not by HeadObject: with the right to list only this prefix, S3 answers 403 for a missing object.
        return key.rpartition("/")[2] in self._names(key, of=f"{key.rpartition('/')[0]}/")

    def _names(self, start: str, *, of: str) -> set[str]:
        """Names, below the folder `of`, of the readable objects whose keys begin with `start`."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=f"{self._prefix}/{start}"
        )
        names: set[str] = set()
        for number, page in enumerate(pages, start=1):
            readable = (entry for entry in page.get("Contents", ()) if entry.get("StorageClass") not in ARCHIVES)
            names |= {entry["Key"].removeprefix(f"{self._prefix}/{of}") for entry in readable}
            if number % SAID_PAGES == 0:
                say(f"listing {self._uri}/{start}: {len(names):,} objects so far")
        return names


class _Unchanged:
    """A file that is read once, from its beginning. An error at its end keeps S3 from storing another content.

    boto3 reads a file that can't seek to its end before it sends all of it, and sends the bytes that it has read.
    """

    def __init__(self, file: BinaryIO, path: Path, sha256: str) -> None:
        self._file, self._path, self._expected = file, path, sha256
        self._hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        self._hash.update(content)
        if (size < 0 or len(content) < size) and not self._hash.hexdigest().startswith(self._expected):
            raise _changed(self._path)
        return content


def _changed(path: Path) -> UserError:
    return UserError(f"{path} changed while it was uploaded: run the command again when nothing writes to it")


def require_bucket_region(client: Any, bucket: str, setting: str) -> None:
    """Refuse a bucket that does not exist, or is in another region than jobs and endpoints.

    S3 takes uploads from everywhere. SageMaker refuses the job afterwards, when gigabytes are sent.

    Args:
        client: boto3's client of S3 in the region of jobs and endpoints.
        setting: that names the bucket.

    Raises:
        UserError: naming both regions.

    Source: API_HeadBucket: S3 names the region of a bucket whatever the rights of its caller, 2026.
    """
    try:
        answer = client.head_bucket(Bucket=bucket)
    except ClientError as error:
        answer = error.response  # the next call says what is wrong, unless the answer does
    metadata, region = answer.get("ResponseMetadata", {}), client.meta.region_name
    if metadata.get("HTTPStatusCode") == 404:
        raise UserError(f"{setting} must be a bucket that exists, got {bucket!r}: create it in {region}")
    found = answer.get("BucketRegion") or metadata.get("HTTPHeaders", {}).get("x-amz-bucket-region", region)
    if found != region:
        raise UserError(
            f"{setting} must be a bucket in {region}, where jobs and endpoints run, got {bucket!r} in {found}: name "
            f"another bucket, or set cloud.region {found}"
        )


def encryption(settings: CloudSettings) -> dict[str, str]:
    """The fields of an upload that a bucket may require by its policy.

    Source: docs.aws.amazon.com/AmazonS3/latest/userguide/UsingKMSEncryption.html, "Require server-side encryption",
    2026.
    """
    key = settings.output_kms_key
    return {} if key is None else {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key}


def weights_folder(sha256: str) -> str:
    """The key of a checkpoint below the project's prefix, by its hash."""
    return f"initial-weights/{sha256[:32]}"


def weights_name(weights: Path) -> str:
    """The name of a checkpoint in its folder, whatever it is called here: one content has one name."""
    return "weights.safetensors" if is_safetensors(weights) else "weights.pth"


def _progress(description: str, items: Iterable[Any], total: int) -> Iterable[Any]:
    if not total:
        return
    with progress(description, total, "photo") as advance:
        for item in items:
            advance(1)
            yield item
