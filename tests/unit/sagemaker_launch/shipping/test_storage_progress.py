"""Long work with S3 says how far it is, in a log as on a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments import console
from sagemaker_launch.settings.cloud import CloudSettings
from sagemaker_launch.shipping import storage
from sagemaker_launch.shipping.storage import Storage, read_photo_set
from tests.pictures import make_class_folders


class Bucket:
    """Pages of 1,000 objects each."""

    def __init__(self, pages: int) -> None:
        self.pages = pages

    def get_paginator(self, _operation: str) -> Bucket:
        return self

    def paginate(self, *, Bucket: str, Prefix: str) -> Iterator[dict[str, Any]]:
        assert Bucket == "bucket"
        for page in range(self.pages):
            yield {"Contents": [{"Key": f"{Prefix}{page}-{number}"} for number in range(1000)]}


def test_a_long_listing_says_how_far_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "SAID_PAGES", 2)
    names = Storage(Bucket(5), CloudSettings(bucket="bucket"))._names("data/objects/", of="data/objects/")
    assert len(names) == 5000
    said = [line for line in capsys.readouterr().err.splitlines() if "objects so far" in line]
    assert [line.rpartition(": ")[2] for line in said] == ["2,000 objects so far", "4,000 objects so far"]


def test_hashing_photos_says_how_far_it_is_where_there_is_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_class_folders(tmp_path / "photos", size=8)
    monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
    monkeypatch.setattr("sys.stderr", log := io.StringIO())
    photos = read_photo_set(root)
    assert f"hashing photos: {len(photos.index)} of {len(photos.index)} photos" in log.getvalue()
