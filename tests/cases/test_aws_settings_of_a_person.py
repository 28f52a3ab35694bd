"""AWS's settings as people have them (`asked`), and an endpoint that AWS says to ask again (`notready`)."""

from __future__ import annotations

import io
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from sagemaker_launch.aws import client as aws
from sagemaker_launch.aws import sessions
from sagemaker_launch.endpoints.query import EndpointTarget
from sagemaker_launch.settings.cloud import load_cloud
from tests.conftest import REPOSITORY
from tests.unit.sagemaker_launch.aws.test_retries import answering

EXAMPLE = REPOSITORY / "conf" / "cloud" / "example.yaml"
ONE_COMMAND = {
    "tune": ("pricing", "s3", "sagemaker", "sagemaker", "logs"),
    "deploy": ("pricing", "s3", "sagemaker", "sagemaker-runtime", "cloudwatch", "scheduler"),
}
"""What commands open."""
CREDENTIALS = {
    **{"Version": 1, "AccessKeyId": "AKIDEXAMPLE", "SecretAccessKey": "none", "SessionToken": "t"},
    "Expiration": "2099-01-01T00:00:00Z",
}


@pytest.mark.parametrize("command", ONE_COMMAND)
def test_a_program_that_asks_for_mfa_is_called_once_per_command(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "credentials.sh"
    program.write_text(f"#!/bin/sh\necho asked >> '{tmp_path}/asked'\necho '{json.dumps(CREDENTIALS)}'\n")
    program.chmod(stat.S_IRWXU)
    (tmp_path / "config").write_text(f"[default]\nregion = us-east-1\ncredential_process = {program}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    sessions._session.cache_clear()
    settings = load_cloud(EXAMPLE)
    for service in ONE_COMMAND[command]:
        aws.client(service, settings)
    assert (tmp_path / "asked").read_text().splitlines() == ["asked"]


@pytest.mark.parametrize("refusals", [2, 7])
def test_an_endpoint_that_is_not_ready_yet_is_asked_again(refusals: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With boto3's own client: only botocore's handlers see the answer before it becomes an error."""
    not_ready = (429, {"__type": "ModelNotReadyException", "message": "not ready"})
    monkeypatch.setattr("time.sleep", lambda _: None)
    for name, value in (("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b"), ("AWS_PROFILE", "")):
        monkeypatch.setenv(name, value)
    with answering([*[not_ready] * refusals, (200, {"scores": "all"})]) as (address, signed):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        runtime = aws.client("sagemaker-runtime", load_cloud(EXAMPLE))
        answer = EndpointTarget(runtime, "dogs").ask(b"x", "image/jpeg")
    assert answer.content == {"scores": "all"}
    assert len(signed) == refusals + 1


def test_a_client_without_our_handlers_asks_again_too(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Runtime:
        def invoke_endpoint(self, **request: Any) -> dict[str, Any]:
            calls.append(request["EndpointName"])
            if len(calls) < 3:
                error = {"Error": {"Code": "ModelNotReadyException", "Message": "not ready"}}
                raise ClientError(error, "InvokeEndpoint")
            return {"Body": io.BytesIO(b"[[1.0]]")}

    monkeypatch.setattr("time.sleep", lambda _: None)
    assert EndpointTarget(Runtime(), "dogs").ask(b"x", "image/jpeg").content == [[1.0]]
    assert calls == ["dogs"] * 3
