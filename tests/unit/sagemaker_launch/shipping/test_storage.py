"""What uploads send to S3, as boto3 puts it on the wire."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse

from experiments.errors import UserError
from lightning_modules.files import file_sha256
from sagemaker_launch.endpoints import query
from sagemaker_launch.settings.cloud import CloudSettings, load_cloud
from sagemaker_launch.shipping.bundle import Bundle
from sagemaker_launch.shipping.storage import Shipment, Storage, require_bucket_region
from tests.unit.sagemaker_launch.jobs.test_requests import BASIC

KEY = "arn:aws:kms:us-east-1:123456789012:key/1234abcd"
STARTED = b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
MULTIPART = 9 * 1024 * 1024
"""Bytes from which boto3 sends a file in parts."""


def s3_client(sent: list[AWSPreparedRequest]) -> Any:
    """boto3's client of S3, whose requests end up in a list."""

    def answer(request: AWSPreparedRequest, **_: object) -> AWSResponse:
        sent.append(request)
        response = AWSResponse(request.url, 200, {"ETag": '"e"'}, None)
        response._content = STARTED if request.url.endswith("?uploads") else b""
        return response

    client = boto3.client("s3", region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
    client.meta.events.register("before-send", answer)
    return client


def put(client: Any, settings: CloudSettings, path: Path) -> None:
    Storage(client, settings).put("code/x", b"content")


def upload(client: Any, settings: CloudSettings, path: Path) -> None:
    storage = Storage(client, settings)
    storage.exists = lambda key: False
    storage.upload_file(f"weights/{file_sha256(path)[:32]}/x", path)


def ask(client: Any, settings: CloudSettings, path: Path) -> None:
    class Runtime:
        def invoke_endpoint_async(self, **_: object) -> dict[str, str]:
            raise InterruptedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(query.aws, "client", lambda service, *_, **__: client if service == "s3" else Runtime())
        target = query.open_target(settings, "dogs", "async")
        with pytest.raises(InterruptedError):
            target.ask(b"photo", "image/jpeg")


def client_that_answers(status: int, **headers: str) -> Any:
    """boto3's client in us-east-1, to which S3 answers with headers and no body, as it does to HeadBucket."""
    client = boto3.client("s3", region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")

    def answer(request: AWSPreparedRequest, **_: object) -> AWSResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        assert request.method == "HEAD", "nothing is sent before"
        response = AWSResponse(request.url, status, named, None)
        response._content = b""
        return response

    client.meta.events.register("before-send", answer)
    return client


@pytest.mark.parametrize("status", [200, 403, 400])
def test_a_bucket_in_another_region_is_refused_before_anything_is_sent(status: int) -> None:
    shipment = Shipment("s3://x/y/", Bundle(b"code", "c" * 64), None)
    with pytest.raises(UserError, match=r"cloud\.bucket must be a bucket in us-east-1, .* 'my-bucket' in eu-central-1"):
        shipment.upload(client_that_answers(status, x_amz_bucket_region="eu-central-1"), load_cloud(None, BASIC))


def test_a_bucket_that_does_not_exist_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(UserError, match=r"data\.root must be a bucket that exists, got 'none': create it in us-east-1"):
        require_bucket_region(client_that_answers(404), "none", "data.root")


@pytest.mark.parametrize(("status", "headers"), [(200, {"x_amz_bucket_region": "us-east-1"}), (403, {}), (200, {})])
def test_a_bucket_whose_region_is_right_or_not_told_is_taken(status: int, headers: dict[str, str]) -> None:
    require_bucket_region(client_that_answers(status, **headers), "my-bucket", "cloud.bucket")


@pytest.mark.parametrize(
    ("send", "size", "operation"), [(put, 0, "PUT"), (upload, 1, "PUT"), (upload, MULTIPART, "POST"), (ask, 0, "PUT")]
)
def test_every_upload_names_the_key_that_the_bucket_requires(
    send: Callable[[Any, CloudSettings, Path], None], size: int, operation: str, tmp_path: Path
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(size))
    for key in (None, KEY):
        sent: list[AWSPreparedRequest] = []
        send(s3_client(sent), load_cloud(None, BASIC | ({"output_kms_key": key} if key else {})), path)
        first = sent[0]
        assert first.method == operation
        # A part and the end of an upload name none: the key is the one of its beginning.
        assert first.headers.get("x-amz-server-side-encryption") == (b"aws:kms" if key else None)
        named = first.headers.get("x-amz-server-side-encryption-aws-kms-key-id")
        assert (named.decode() if named else None) == key
