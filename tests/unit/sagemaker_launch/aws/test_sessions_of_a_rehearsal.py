"""Against a rehearsal, no client reaches anything else, whatever a user's variables and files say of AWS."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from botocore.exceptions import EndpointConnectionError

from experiments.errors import UserError
from sagemaker_launch.aws import client as aws
from sagemaker_launch.aws.sessions import rehearsal_url, session
from sagemaker_launch.settings.cloud import load_cloud
from tests.conftest import REPOSITORY
from tests.hostile_aws import FOREIGN_URL, HOSTILE_VARIABLES, Trap, hostile_files

HERE = "http://127.0.0.1:9"
SETTINGS = load_cloud(None, {"region": "us-east-1"})
SERVICES = (
    *("sagemaker", "sagemaker-runtime", "s3", "logs", "pricing", "sts", "iam", "ecr", "service-quotas", "cloudwatch"),
    *("application-autoscaling", "scheduler", "kms"),
)
KEYS = {"AWS_ACCESS_KEY_ID": "AKIAREHEARSAL", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture
def _hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**HOSTILE_VARIABLES, **hostile_files(tmp_path), **KEYS, "AWS_ENDPOINT_URL": HERE}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("_hostile")
def test_every_client_of_a_rehearsal_has_its_address_and_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with Trap(monkeypatch) as trap:
        for service in SERVICES:
            client = aws.client(service, SETTINGS)
            assert client.meta.endpoint_url == HERE
            assert aws.is_rehearsal(client)
        s3 = aws.client("s3", SETTINGS, patience_seconds=0)
        for call in (
            lambda: s3.put_object(Bucket="bucket", Key="key", Body=b""),
            aws.client("sts", SETTINGS, patience_seconds=0).get_caller_identity,
        ):
            with pytest.raises(EndpointConnectionError, match=r"http://127\.0\.0\.1:9/"):
                call()
    assert trap.foreign == []


@pytest.mark.usefixtures("_hostile")
def test_a_rehearsal_has_no_credentials_but_those_of_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    found = session().get_credentials()
    assert found is not None and found.access_key == "AKIAREHEARSAL"
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with Trap(monkeypatch) as trap:
        assert session().get_credentials() is None
    assert trap.foreign == []


@pytest.mark.parametrize("service", ["S3", "SAGEMAKER", "STS", "SAGEMAKER_RUNTIME"])
def test_a_foreign_address_of_one_service_is_refused_by_name(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", HERE)
    monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", FOREIGN_URL)
    with pytest.raises(UserError, match=f"AWS_ENDPOINT_URL_{service} must be unset or {HERE}.*got {FOREIGN_URL}"):
        aws.client("sagemaker", SETTINGS)
    monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", HERE)
    assert rehearsal_url() == HERE


@pytest.mark.parametrize("source", ["variable", "profile"])
def test_a_rehearsal_of_one_service_alone_is_refused(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    if source == "variable":
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER", HERE)
    else:
        (tmp_path / "config").write_text(f"[default]\nendpoint_url = {HERE}\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    with pytest.raises(UserError, match="the address of sagemaker must be AWS's, or AWS_ENDPOINT_URL the rehearsal's"):
        aws.client("sagemaker", SETTINGS)


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://127.0.0.1:5", True), ("http://localhost:5", True), ("http://[::1]:5/", True),
        ("https://127.0.0.1.example.com", False), ("http://me@127.0.0.1:5", False), ("", False),
        ("https://vpce-1.api.sagemaker.us-east-1.vpce.amazonaws.com", False), ("127.0.0.1:5", False),
    ],
)  # fmt: skip
def test_an_address_of_this_machine_is_a_rehearsal(url: str, here: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_ENDPOINT_URL")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    assert (rehearsal_url() is not None) is here


def test_clients_are_made_in_one_place() -> None:
    """The others are of the rehearsal itself: its bucket and roles, and its schedule."""
    rooms = ("experiments", "lightning_modules", "sagemaker_launch")
    files = [path for room in rooms for path in (REPOSITORY / room).rglob("*.py")]
    makers = [path for path in files if re.search(r"^\s*(import|from) boto3", path.read_text(), re.MULTILINE)]
    assert {str(path.relative_to(REPOSITORY / "sagemaker_launch")) for path in makers} == {
        *("aws/sessions.py", "rehearse.py", "rehearsal/server.py"),
    }
