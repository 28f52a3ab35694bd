"""What is waited out, against botocore's own client and a server that answers as AWS does on a bad day."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from sagemaker_launch.aws import client as aws
from sagemaker_launch.aws import sessions
from sagemaker_launch.aws.retries import AT_START_SECONDS, WHILE_RUNNING_SECONDS
from sagemaker_launch.settings.cloud import load_cloud
from tests.campaign.clock import Clock

SETTINGS = load_cloud(None, {"region": "us-east-1"})
OK = (200, {"TrainingJobName": "job"})
Answers = list[tuple[int, dict[str, str]]]


@contextmanager
def answering(
    answers: Answers, first: tuple[bytes, dict[str, str]] | None = None, *, always: bool = False
) -> Iterator[tuple[str, list[str]]]:
    """A server that gives these answers, the last one for ever; yields its address and the keys that signed.

    Args:
        first: body and headers of the first answer.
        always: of all answers.
    """
    signed: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            signed.append(self.headers["Authorization"].partition("Credential=")[2].partition("/")[0])
            status, answer = answers[min(len(signed), len(answers)) - 1]
            body = json.dumps(answer).encode()
            headers = {"Content-Length": str(len(body))}
            if first is not None and (always or len(signed) == 1):
                body, headers = first
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "__type" in answer:
                self.send_header("x-amzn-ErrorType", answer["__type"])
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", signed
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A credentials file, as other programs write it, and no other credentials."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "credentials"
    write_key(path, "FIRST")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with Clock().installed():
        yield path


def write_key(path: Path, key: str) -> None:
    path.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = secret\n")


def describe(
    address: str, monkeypatch: pytest.MonkeyPatch, patience_seconds: float = AT_START_SECONDS
) -> dict[str, object]:
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    client = aws.client("sagemaker", SETTINGS, patience_seconds=patience_seconds)
    found: dict[str, object] = client.describe_training_job(TrainingJobName="job")
    return found


def error(code: str) -> tuple[int, dict[str, str]]:
    return 400, {"__type": code, "message": code}


@pytest.mark.parametrize("code", ["ExpiredTokenException", "ExpiredToken", "UnrecognizedClientException"])
def test_credentials_that_another_program_has_renewed_are_read_again(
    code: str, credentials: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering([OK, error(code), OK]) as (address, signed):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        client = aws.client("sagemaker", SETTINGS)
        client.describe_training_job(TrainingJobName="job")
        write_key(credentials, "SECOND")
        assert client.describe_training_job(TrainingJobName="job")["TrainingJobName"] == "job"
    assert signed == ["FIRST", "FIRST", "SECOND"]


def test_credentials_that_stay_expired_are_refused_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering([error("ExpiredTokenException")]) as (address, signed), pytest.raises(ClientError, match="Expired"):
        describe(address, monkeypatch, WHILE_RUNNING_SECONDS)
    assert signed == ["FIRST"]


def test_all_clients_of_a_command_share_one_reading_of_the_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    sessions._session.cache_clear()
    read: list[int] = []
    real = sessions._read_chain
    monkeypatch.setattr(sessions, "_read_chain", lambda: read.append(1) or real())
    for service in ("sagemaker", "s3", "logs", "pricing"):
        aws.client(service, SETTINGS)
    assert read == [1]


def test_other_variables_make_another_session(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sessions.session()
    assert sessions.session() is before
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "THIRD")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    found = sessions.credentials_of(sessions.session())
    assert found is not None
    assert found.access_key == "THIRD"


@pytest.mark.parametrize("bad", [(503, {}), (500, {}), error("ThrottlingException")])
def test_a_patient_client_waits_for_minutes_and_says_so_once(
    bad: tuple[int, dict[str, str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering([*[bad] * 15, OK]) as (address, signed):
        assert describe(address, monkeypatch, WHILE_RUNNING_SECONDS)["TrainingJobName"] == "job"
    assert len(signed) == 16
    assert capsys.readouterr().err.count("AWS (sagemaker) does not answer yet (") == 1


def test_at_the_beginning_of_a_command_some_seconds_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    with answering([(503, {})]) as (address, _), pytest.raises(ClientError):
        describe(address, monkeypatch)
    assert AT_START_SECONDS <= time.monotonic() - began < 2 * AT_START_SECONDS


def test_a_second_outage_is_waited_out_like_the_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # botocore's own quota of retries would be used up.
    with answering([*[*[(503, {})] * 12, OK] * 4]) as (address, signed):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        client = aws.client("sagemaker", SETTINGS, patience_seconds=WHILE_RUNNING_SECONDS)
        for _ in range(4):
            client.describe_training_job(TrainingJobName="job")
    assert len(signed) == 52


PAGE = b"<!DOCTYPE html><html><body>Sign in to the guest network</body></html>"


@pytest.mark.parametrize("body", [PAGE, b'{"TrainingJobName": "jo'], ids=["web page", "cut"])
def test_an_answer_that_is_not_aws_s_or_not_whole_is_no_answer(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    length = {"Content-Length": str(len(body) + (not body.endswith(b">")))}
    with answering([(200, {}), OK], first=(body, length)) as (address, signed):
        assert describe(address, monkeypatch)["TrainingJobName"] == "job"
    assert len(signed) == 2
    broken = answering([(200, {})], first=(body, length), always=True)
    refused = pytest.raises(BotoCoreError, match=r"no whole answer to DescribeTrainingJob|Connection")
    with broken as (address, _), refused:
        describe(address, monkeypatch)


def test_a_serverless_endpoint_that_is_not_ready_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    not_ready = (429, {"__type": "ModelNotReadyException", "message": "wait and try again"})
    with answering([*[not_ready] * 5, (200, {})]) as (address, signed):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        aws.client("sagemaker-runtime", SETTINGS).invoke_endpoint(EndpointName="dogs", Body=b"x")
    assert len(signed) == 6


def test_the_region_of_other_sdks_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    monkeypatch.setenv("AWS_REGION", "eu-west-3")
    assert aws.region(load_cloud(None, {})) == "eu-west-3"
    assert aws.region(SETTINGS) == "us-east-1"
