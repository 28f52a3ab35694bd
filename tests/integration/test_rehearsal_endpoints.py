"""Endpoints of the stand-in for SageMaker: real serving processes, asked with boto3."""

from __future__ import annotations

import io
import json
import tarfile
import textwrap
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.test_rehearsal import ROLE, Rehearsal, failure, processes_of, rehearsal

SCRIPT = "rehearsal.local/script"
SERVER = """
    import http.server, json, os, time

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer(int(os.environ.get("PING", "200")), b"", {})

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            wish = dict(pair.split("=") for pair in self.headers.get(ATTRIBUTES, "").split(",") if "=" in pair)
            time.sleep(float(wish.get("sleep", 0)))
            if "die" in wish:
                os._exit(3)
            if "info" in wish:
                with open(os.path.join(MODEL, "code", "serve.py")) as script:
                    script.read()
                try:
                    open(os.path.join(MODEL, "new"), "w")
                except OSError as error:
                    refused = error.strerror
                told = {"environment": dict(os.environ), "pid": os.getpid(), "model": MODEL, "refused": refused}
                body = json.dumps(told).encode()
            kind = self.headers.get("Accept") or self.headers["Content-Type"]
            headers = {"Content-Type": kind, ATTRIBUTES: os.environ.get("VERSION", "1")}
            self.answer(int(wish.get("status", 200)), body, headers)

        def answer(self, status, body, headers):
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
    MODEL = os.path.join(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"), "model")
    print("listening", flush=True)
    http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["SAGEMAKER_BIND_TO_PORT"])), Handler).serve_forever()
"""
JPEG = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    root = tmp_path_factory.mktemp("rehearsal")
    with rehearsal(root, "--health-check-timeout", "20", "--max-endpoint-instances", "6", "--grace", "5") as running:
        running.client("s3").put_object(Bucket="bucket", Key="script.tar.gz", Body=archive({"code/serve.py": SERVER}))
        yield running


def archive(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as packed:
        for name, text in files.items():
            content = textwrap.dedent(text).encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            packed.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def model(server: Rehearsal, name: str, image: str = SCRIPT, key: str = "script.tar.gz", **environment: str) -> None:
    server.client("sagemaker").create_model(
        ModelName=name,
        ExecutionRoleArn=ROLE,
        PrimaryContainer={"Image": image, "ModelDataUrl": f"s3://bucket/{key}", "Environment": environment},
    )


def config(server: Rehearsal, name: str, model_name: str, variant: dict[str, Any] | None = None, **fields: Any) -> None:
    instances = {"InstanceType": "ml.c5.large", "InitialInstanceCount": 1}
    server.client("sagemaker").create_endpoint_config(
        EndpointConfigName=name,
        ProductionVariants=[{"VariantName": "AllTraffic", "ModelName": model_name, **(variant or instances)}],
        **fields,
    )


def deploy(server: Rehearsal, name: str, variant: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """A model, a config and an endpoint of one name; the endpoint when it is no longer being made."""
    model(server, name, VERSION=name)
    config(server, name, name, variant, **fields)
    server.client("sagemaker").create_endpoint(EndpointName=name, EndpointConfigName=name)
    return wait(server, name)


def wait(server: Rehearsal, name: str, while_in: tuple[str, ...] = ("Creating", "Updating")) -> dict[str, Any]:
    client, until = server.client("sagemaker"), time.monotonic() + 40
    while time.monotonic() < until:
        told: dict[str, Any] = client.describe_endpoint(EndpointName=name)
        if told["EndpointStatus"] not in while_in:
            return told
        time.sleep(0.05)
    raise TimeoutError(f"{name} is {told['EndpointStatus']}")


def delete(server: Rehearsal, name: str) -> None:
    client, until = server.client("sagemaker"), time.monotonic() + 20
    client.delete_endpoint(EndpointName=name)
    while client.list_endpoints(NameContains=name)["Endpoints"]:
        assert time.monotonic() < until, f"{name} is still there"
        time.sleep(0.05)
    client.delete_endpoint_config(EndpointConfigName=name)
    client.delete_model(ModelName=name)


def invoke(server: Rehearsal, name: str, body: bytes = JPEG, **fields: Any) -> Any:
    return server.client("sagemaker-runtime", retries=1).invoke_endpoint(
        EndpointName=name, Body=body, ContentType="image/jpeg", **fields
    )


def lines(server: Rehearsal, name: str) -> list[str]:
    client, group = server.client("logs"), f"/aws/sagemaker/Endpoints/{name}"
    return [
        event["message"]
        for stream in client.describe_log_streams(logGroupName=group)["logStreams"]
        for event in client.get_log_events(logGroupName=group, logStreamName=stream["logStreamName"])["events"]
    ]


def test_bytes_pass_unchanged_and_nothing_is_left(server: Rehearsal) -> None:
    told = deploy(server, "whole")
    assert told["EndpointStatus"] == "InService", told.get("FailureReason")
    answer = invoke(server, "whole", CustomAttributes="top_k=3")
    assert answer["Body"].read() == JPEG
    assert answer["ContentType"] == "image/jpeg"
    assert answer["InvokedProductionVariant"] == "AllTraffic"
    assert answer["CustomAttributes"] == "whole"
    seen = json.loads(invoke(server, "whole", CustomAttributes="info=1")["Body"].read())
    assert seen["refused"] == "Read-only file system"
    assert seen["model"] == "/opt/ml/model"
    assert seen["pid"] == 1
    delete(server, "whole")
    assert processes_of("endpoints/us-east-1/whole") == []  # type: ignore[arg-type]
    client = server.client("sagemaker-runtime")
    code, message = failure(client.invoke_endpoint, EndpointName="whole", Body=JPEG)
    assert (code, message) == ("ValidationError", "Endpoint whole of account 123456789012 not found.")
