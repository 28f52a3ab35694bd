"""What goes to S3: only what is not there, and whole."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from experiments.config import load_config
from experiments.errors import UserError
from sagemaker_launch.container.entry import photo_folder
from sagemaker_launch.settings.cloud import CloudSettings, load_cloud
from sagemaker_launch.shipping.shipment import make_shipment, s3_root
from sagemaker_launch.shipping.storage import Storage, read_photo_set, weights_folder
from tests.unit.sagemaker_launch.jobs.test_requests import BASIC

SETTINGS = load_cloud(None, BASIC)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with mock_aws():
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket=str(SETTINGS.bucket))
        yield client


def keys(s3: Any) -> dict[str, bytes]:
    """Everything in the bucket."""
    found = s3.list_objects_v2(Bucket=SETTINGS.bucket).get("Contents", [])
    return {entry["Key"]: s3.get_object(Bucket=SETTINGS.bucket, Key=entry["Key"])["Body"].read() for entry in found}


def test_a_second_upload_sends_only_what_changed(s3: Any, photos: Path, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    shutil.copytree(photos, root)
    storage = Storage(s3, SETTINGS)
    storage.upload_photos(read_photo_set(root))
    first = keys(s3)
    sent: list[str] = []
    s3.meta.events.register("before-call.s3.PutObject", lambda params, **_: sent.append(params["url_path"]))
    storage.upload_photos(read_photo_set(root))
    assert sent == []
    changed = next(root.glob("train/*/*"))
    changed.write_bytes(changed.read_bytes() + b"\0")
    storage.upload_photos(read_photo_set(root))
    assert len([key for key in sent if "/objects/" in key]) == 1
    assert len(sent) == 3  # the photo, the index and the manifest
    assert first.items() <= keys(s3).items()


def test_an_interrupted_upload_names_no_data_set_and_continues(
    s3: Any, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, found = Storage(s3, SETTINGS), read_photo_set(photos)
    put, calls = storage.put, iter(range(100))

    def fail_late(key: str, content: bytes) -> None:
        if next(calls) == 20:
            raise OSError("the network is gone")
        put(key, content)

    monkeypatch.setattr(storage, "put", fail_late)
    with pytest.raises(OSError, match="network is gone"):
        storage.upload_photos(found)
    assert not any("manifest" in key for key in keys(s3))
    before = len(keys(s3))
    assert before >= 20
    monkeypatch.setattr(storage, "put", put)
    storage.upload_photos(found)
    assert len(keys(s3)) == len(found.objects) + 2


def test_what_sagemaker_copies_becomes_the_class_folders_again(s3: Any, photos: Path, tmp_path: Path) -> None:
    found = read_photo_set(photos)
    Storage(s3, SETTINGS).upload_photos(found)
    stored = keys(s3)
    (manifest,) = (json.loads(body) for key, body in stored.items() if key.endswith("manifest.json"))
    prefix = manifest[0]["prefix"].removeprefix(f"s3://{SETTINGS.bucket}/")
    channel = tmp_path / "channel"
    for name in manifest[1:]:  # as the service does with a ManifestFile
        (channel / name).parent.mkdir(parents=True, exist_ok=True)
        (channel / name).write_bytes(stored[prefix + name])
    rebuilt = photo_folder(channel, tmp_path / "scratch" / "photos")

    def contents(root: Path) -> dict[str, bytes]:
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    assert contents(rebuilt) == contents(photos)


def test_a_folder_within_a_class_is_left_out_as_at_home(photos: Path, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    shutil.copytree(photos, root)
    (root / "train" / "001.Class1" / "thumbnails").mkdir()
    assert read_photo_set(root).index == read_photo_set(photos).index


def test_a_photo_that_changes_meanwhile_is_named(s3: Any, photos: Path, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    shutil.copytree(photos, root)
    found = read_photo_set(root)
    changed = next(root.glob("train/*/*"))
    changed.write_bytes(b"something else")
    with pytest.raises(ValueError, match=f"{changed} changed while it was uploaded"):
        Storage(s3, SETTINGS).upload_photos(found)


@pytest.mark.parametrize("size", [0, 100, 8 * 2**20, 20 * 2**20], ids=["empty", "small", "one part", "several parts"])
def test_a_file_that_changes_meanwhile_is_named_and_not_stored(s3: Any, tmp_path: Path, size: int) -> None:
    path, planned, changed = tmp_path / "mine.pth", b"a" * size, b"b" * (size + 1)
    key = f"{weights_folder(hashlib.sha256(planned).hexdigest())}/weights.pth"
    path.write_bytes(changed)
    with pytest.raises(UserError, match=f"{path} changed while it was uploaded: run the command again when nothing"):
        Storage(s3, SETTINGS).upload_file(key, path)
    assert keys(s3) == {}
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=SETTINGS.bucket), "parts would be billed"
    path.write_bytes(planned)
    Storage(s3, SETTINGS).upload_file(key, path)
    assert keys(s3) == {f"{SETTINGS.prefix}/{key}": planned}


def test_a_checkpoint_and_the_code_travel_once(s3: Any, photos: Path, tmp_path: Path) -> None:
    weights = tmp_path / "mine (2).pth"
    weights.write_bytes(b"weights")
    config = load_config(None, {"data.name": "folder", "data.root": photos, "model.weights": str(weights)})
    shipment, sent = make_shipment(SETTINGS, config)
    shipment.upload(s3, SETTINGS)
    assert sent.model.weights == "weights.pth"
    names = {key.rpartition("/")[2] for key in keys(s3)}
    assert {"weights.pth", "sourcedir.tar.gz", "manifest.json"} <= names
    inputs = shipment.inputs(SETTINGS)
    for uri in (inputs.photos, inputs.code, inputs.weights):
        assert any(f"s3://{SETTINGS.bucket}/{key}".startswith(str(uri)) for key in keys(s3)), uri
    before = {entry["Key"]: entry["LastModified"] for entry in s3.list_objects_v2(Bucket=SETTINGS.bucket)["Contents"]}
    shipment.upload(s3, SETTINGS)
    assert before == {
        entry["Key"]: entry["LastModified"] for entry in s3.list_objects_v2(Bucket=SETTINGS.bucket)["Contents"]
    }


def test_photos_that_are_in_s3_are_used_as_they_are() -> None:
    config = load_config(None, {"data.name": "folder", "data.root": "s3://other-bucket/dogs"})
    assert s3_root(config) == "s3://other-bucket/dogs/"
    shipment, _ = make_shipment(SETTINGS, config)
    assert shipment.inputs(SETTINGS).photos == "s3://other-bucket/dogs/"


def test_downloaded_weights_are_refused_where_a_job_has_no_network(photos: Path) -> None:
    settings = CloudSettings(network_isolation=True)
    config = load_config(None, {"data.name": "folder", "data.root": photos})
    with pytest.raises(ValueError, match=r"model\.weights must be a file or none with cloud\.network_isolation"):
        make_shipment(settings, config)


def test_weights_that_are_missing_are_named(photos: Path) -> None:
    config = load_config(None, {"data.name": "folder", "data.root": photos, "model.weights": "none.pth"})
    with pytest.raises(UserError, match=r"model\.weights must be imagenet, none or a file, got 'none\.pth'"):
        make_shipment(SETTINGS, config)
