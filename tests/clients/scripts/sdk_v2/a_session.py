"""A session: its bucket, uploads and lists."""

from __future__ import annotations

import os
from pathlib import Path

import sagemaker
from sagemaker.s3 import S3Downloader, S3Uploader

from tests.clients.recording import works

# Without a name for the bucket, this SDK asks STS for the account, at AWS's address and never at AWS_ENDPOINT_URL.
session = sagemaker.Session(default_bucket="sdk-v2-default")

with works("Session.default_bucket"):
    assert session.default_bucket() == "sdk-v2-default"  # it creates the bucket

with works("Session.upload_data, list_s3_files, read_s3_file, download_data"):
    folder = Path("photos")
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    bucket = os.environ["BUCKET"]
    uri = session.upload_data("photos", bucket=bucket, key_prefix="sdk-v2/photos")
    assert uri == f"s3://{bucket}/sdk-v2/photos"
    assert session.list_s3_files(bucket, "sdk-v2/photos") == ["sdk-v2/photos/a.txt"]
    assert session.read_s3_file(bucket, "sdk-v2/photos/a.txt") == "a"
    session.download_data("back", bucket, "sdk-v2/photos/")
    assert Path("back/a.txt").read_text() == "a"

with works("S3Uploader.upload_string_as_file_body, S3Downloader.list, read_file"):
    uri = f"s3://{bucket}/sdk-v2/notes/names.json"
    S3Uploader.upload_string_as_file_body('{"a": 1}', uri, sagemaker_session=session)
    assert S3Downloader.list(f"s3://{bucket}/sdk-v2/notes", sagemaker_session=session) == [uri]
    assert S3Downloader.read_file(uri, sagemaker_session=session) == '{"a": 1}'
