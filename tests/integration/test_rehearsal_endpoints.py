"""Endpoints of the stand-in for SageMaker: real serving processes, asked with boto3."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import tarfile
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, HTTPClientError

from sagemaker_launch.rehearsal.endpoints.serving_process import extract_all
from sagemaker_launch.shipping.archive import pack_model
from tests.integration.test_rehearsal import (
    PLANTED,
    ROLE,
    Rehearsal,
    command,
    failure,
    make_bucket_and_role,
    printed_variables,
    processes_of,
    rehearsal,
)
from tests.unit.lightning_modules.test_export import export, tiny_network

pytestmark = pytest.mark.usefixtures("job_images")
ARN = "arn:aws:sagemaker:us-east-1:123456789012"
INSTANCES = {"InstanceType": "ml.c5.large", "InitialInstanceCount": 1}
METRIC = "SageMakerVariantInvocationsPerInstance"
UNHEALTHY = (
    "The primary container for production variant AllTraffic did not pass the ping health check. Please check "
    "CloudWatch logs for this endpoint."
)

SCRIPT = "rehearsal.local/script"
SERVER = """
    import http.server, json, os, signal, socket, sys, time

    # As PID 1 a process without a handler is deaf to SIGTERM.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if "BROKEN" in os.environ:
        sys.exit("the model is broken")

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
                refused = None
                try:
                    open(os.path.join(MODEL, "new"), "w")
                except OSError as error:
                    refused = error.strerror
                told = {"environment": dict(os.environ), "pid": os.getpid(), "model": MODEL, "refused": refused}
                told["interfaces"] = [name for _, name in socket.if_nameindex()]
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
    with rehearsal(root, "--health-check-timeout", "120", "--max-endpoint-instances", "6", "--grace", "5") as running:
        running.client("s3").put_object(Bucket="bucket", Key="script.tar.gz", Body=archive({"code/serve.py": SERVER}))
        yield running


@pytest.fixture(scope="module")
def export_archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("export")
    return pack_model(export(tiny_network(), folder / "model"), folder / "model.tar.gz").read_bytes()


def archive(files: Mapping[str, str | bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as packed:
        for name, given in files.items():
            content = given if isinstance(given, bytes) else textwrap.dedent(given).encode()
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
    server.client("sagemaker").create_endpoint_config(
        EndpointConfigName=name,
        ProductionVariants=[{"VariantName": "AllTraffic", "ModelName": model_name, **(variant or INSTANCES)}],
        **fields,
    )


def deploy(
    server: Rehearsal, name: str, variant: dict[str, Any] | None = None, environment: Any = None, **fields: Any
) -> dict[str, Any]:
    """A model, a config and an endpoint of one name; the endpoint when it is no longer being made."""
    model(server, name, VERSION=name, **(environment or {}))
    config(server, name, name, variant, **fields)
    server.client("sagemaker").create_endpoint(EndpointName=name, EndpointConfigName=name)
    return wait(server, name)


def wait(
    server: Rehearsal, name: str, while_in: tuple[str, ...] = ("Creating", "Updating"), seconds: float = 150
) -> dict[str, Any]:
    client, until = server.client("sagemaker"), time.monotonic() + seconds
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


def code_of(server: Rehearsal, name: str, body: bytes = JPEG) -> str:
    """How an invocation ends: the error's code, or the custom attributes of the answer."""
    try:
        return str(invoke(server, name, body).get("CustomAttributes"))
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    except HTTPClientError:
        return "lost"


def update(server: Rehearsal, name: str, new: str, environment: Any = None, **deployment: Any) -> None:
    """Begin an update to a new model of the same endpoint."""
    model(server, new, VERSION=new, **(environment or {}))
    config(server, new, new)
    server.client("sagemaker").update_endpoint(
        EndpointName=name, EndpointConfigName=new, **({"DeploymentConfig": deployment} if deployment else {})
    )


def blue_green(kind: str, wait_seconds: int, **fields: Any) -> dict[str, Any]:
    routing = {"Type": kind, "WaitIntervalInSeconds": wait_seconds, **fields}
    return {"TrafficRoutingConfiguration": routing, "TerminationWaitInSeconds": 60}


def keys(server: Rehearsal, prefix: str) -> list[str]:
    found = server.client("s3").list_objects_v2(Bucket="bucket", Prefix=prefix)
    return [entry["Key"] for entry in found.get("Contents", [])]


def read(server: Rehearsal, uri: str) -> bytes:
    client, until = server.client("s3"), time.monotonic() + 20
    while not keys(server, uri.removeprefix("s3://bucket/")):
        assert time.monotonic() < until, f"{uri} never came"
        time.sleep(0.05)
    content: bytes = client.get_object(Bucket="bucket", Key=uri.removeprefix("s3://bucket/"))["Body"].read()
    return content


def lines(server: Rehearsal, name: str) -> list[str]:
    client, group = server.client("logs"), f"/aws/sagemaker/Endpoints/{name}"
    return [
        event["message"]
        for stream in client.describe_log_streams(logGroupName=group)["logStreams"]
        for event in client.get_log_events(logGroupName=group, logStreamName=stream["logStreamName"])["events"]
    ]


def until_printed(server: Rehearsal, name: str, expected: list[str]) -> None:
    until = time.monotonic() + 10
    while (printed := lines(server, name)) != expected:
        assert time.monotonic() < until, printed
        time.sleep(0.05)


def test_bytes_pass_unchanged_and_nothing_is_left(server: Rehearsal) -> None:
    told = deploy(server, "whole", environment={"MINE": "yes"}, Tags=[{"Key": "owner", "Value": "me"}])
    assert told["EndpointStatus"] == "InService", told.get("FailureReason")
    [variant] = told["ProductionVariants"]
    assert (variant["CurrentWeight"], variant["DesiredInstanceCount"]) == (1.0, 1)
    assert variant["DeployedImages"][0]["SpecifiedImage"] == SCRIPT
    answer = invoke(server, "whole", CustomAttributes="top_k=3")
    assert answer["Body"].read() == JPEG
    assert answer["ContentType"] == "image/jpeg"
    assert answer["InvokedProductionVariant"] == "AllTraffic"
    assert answer["CustomAttributes"] == "whole"
    assert invoke(server, "whole", Accept="application/json")["ContentType"] == "application/json"
    form = {"EndpointName": "whole", "Body": b"a=b&c=\xff", "ContentType": "application/x-www-form-urlencoded"}
    assert server.client("sagemaker-runtime").invoke_endpoint(**form)["Body"].read() == b"a=b&c=\xff"

    seen = json.loads(invoke(server, "whole", CustomAttributes="info=1")["Body"].read())
    assert (seen["pid"], seen["model"], seen["refused"]) == (1, "/opt/ml/model", "Read-only file system")
    assert seen["environment"]["MINE"] == "yes"
    assert PLANTED not in seen["environment"].values()
    until_printed(server, "whole", ["listening"])

    delete(server, "whole")
    assert processes_of("endpoints/us-east-1/whole") == []
    code, message = failure(invoke, server=server, name="whole")
    assert (code, message) == ("ValidationError", "Endpoint whole of account 123456789012 not found.")


@pytest.mark.slow
def test_the_server_of_this_project_scores_a_photo_as_the_trainer_did(
    server: Rehearsal, tmp_path: Path, export_archive: bytes
) -> None:
    s3 = server.client("s3")
    s3.put_object(Bucket="bucket", Key="export.tar.gz", Body=export_archive)
    with tarfile.open(fileobj=io.BytesIO(export_archive)) as packed:
        extract_all(packed, tmp_path)
        damaged = {name: (tmp_path / name).read_bytes() for name in packed.getnames()}
    model(server, "photos", "rehearsal.local/serving:1", "export.tar.gz", SERVING_MAX_BATCH="2")
    config(server, "photos", "photos")
    damaged["model.safetensors"] = damaged["model.safetensors"][:-1] + b"x"
    s3.put_object(Bucket="bucket", Key="damaged.tar.gz", Body=archive(damaged))
    model(server, "damaged", "rehearsal.local/serving:1", "damaged.tar.gz")
    config(server, "damaged", "damaged")
    client = server.client("sagemaker")
    for name in ("photos", "damaged"):
        client.create_endpoint(EndpointName=name, EndpointConfigName=name)

    assert wait(server, "photos")["EndpointStatus"] == "InService", lines(server, "photos")
    [scores] = json.loads(invoke(server, "photos", damaged["golden/image.jpg"])["Body"].read())
    assert scores == pytest.approx(json.loads(damaged["golden/scores.json"])["logits"], abs=1e-4)
    with pytest.raises(ClientError) as error:
        invoke(server, "photos", JPEG)
    assert error.value.response["OriginalStatusCode"] == 400

    failed = wait(server, "damaged")
    assert failed["EndpointStatus"] == "Failed"
    assert failed["FailureReason"] == UNHEALTHY
    assert any("SHA-256" in line or "sha256" in line for line in lines(server, "damaged")), lines(server, "damaged")
    code, message = failure(invoke, server=server, name="damaged")
    assert (code, message) == ("ValidationError", "Endpoint damaged of account 123456789012 not found.")
    for name in ("photos", "damaged"):
        delete(server, name)


def test_what_is_no_archive_fails_the_endpoint(server: Rehearsal) -> None:
    server.client("s3").put_object(Bucket="bucket", Key="text.tar.gz", Body=b"no archive")
    model(server, "text", key="text.tar.gz")
    config(server, "text", "text")
    server.client("sagemaker").create_endpoint(EndpointName="text", EndpointConfigName="text")
    told = wait(server, "text")
    assert told["EndpointStatus"] == "Failed"
    assert told["FailureReason"].startswith("Failed to extract model data archive for container")
    code, message = failure(update, server=server, name="text", new="text-2")
    assert code == "ValidationException" and "can only be deleted" in message
    delete(server, "text")


def test_an_image_of_aws_without_its_environment_fails_with_the_option_to_give(server: Rehearsal) -> None:
    for name, image in (("ray", "ray:serve-ml-sagemaker-cpu-v1"), ("torchserve", "pytorch-inference:2.6.0-cpu-py312")):
        model(server, name, f"763104351884.dkr.ecr.us-east-1.amazonaws.com/{image}")
        config(server, name, name)
        server.client("sagemaker").create_endpoint(EndpointName=name, EndpointConfigName=name)
        assert "--inference-images DIR" in wait(server, name)["FailureReason"]
        delete(server, name)


def test_errors_of_the_container_reach_the_client_and_a_dead_one_starts_anew(server: Rehearsal) -> None:
    deploy(server, "errors")
    for status, side in ((400, "client"), (503, "server")):
        with pytest.raises(ClientError) as error:
            invoke(server, "errors", b"why", CustomAttributes=f"status={status}")
        answer = error.value.response
        assert answer["Error"]["Code"] == "ModelError"
        assert answer["ResponseMetadata"]["HTTPStatusCode"] == 424
        assert (answer["OriginalStatusCode"], answer["OriginalMessage"]) == (status, "why")
        said = f'Received {side} error ({status}) from primary with message "why". See https://us-east-1.console.aws'
        assert answer["Error"]["Message"].startswith(said)
    code, message = failure(invoke, server=server, name="errors", body=bytes(6 * 1024 * 1024 + 1))
    assert (code, message) == ("413", "HTTP content length exceeded 6291456 bytes.")
    assert len(invoke(server, "errors", bytes(6 * 1024 * 1024))["Body"].read()) == 6 * 1024 * 1024

    with pytest.raises(ClientError) as error:
        invoke(server, "errors", CustomAttributes="die=1")
    assert error.value.response["OriginalStatusCode"] == 503
    until = time.monotonic() + 20
    while code_of(server, "errors") == "ModelError":
        assert time.monotonic() < until
        time.sleep(0.1)
    assert invoke(server, "errors")["Body"].read() == JPEG
    until_printed(server, "errors", ["listening"] * 2)
    delete(server, "errors")


@pytest.mark.parametrize(
    ("kind", "wait_seconds"),
    [
        pytest.param("CANARY", 900, marks=pytest.mark.slow),
        ("LINEAR", 900),
        pytest.param("ALL_AT_ONCE", 300, marks=pytest.mark.slow),
    ],
)
def test_an_update_answers_every_request_while_traffic_shifts(server: Rehearsal, kind: str, wait_seconds: int) -> None:
    name = f"shift-{kind.lower().replace('_', '-')}"
    deploy(server, name)
    share = {"Type": "CAPACITY_PERCENT", "Value": 50}
    size = {"CANARY": {"CanarySize": share}, "LINEAR": {"LinearStepSize": share}, "ALL_AT_ONCE": {}}[kind]
    done = threading.Event()

    def ask(seconds: float) -> list[str]:
        client, versions = server.client("sagemaker-runtime", retries=1), []
        while not done.is_set():
            answer = client.invoke_endpoint(EndpointName=name, Body=JPEG, CustomAttributes=f"sleep={seconds}")
            versions.append(answer["CustomAttributes"])
        return versions

    with ThreadPoolExecutor(4) as pool:
        # Three ask for what takes longer than the old fleet is kept for when traffic shifts at once.
        askers = [pool.submit(ask, seconds) for seconds in (0.02, 1.0, 1.0, 1.0)]
        update(server, name, f"{name}-2", BlueGreenUpdatePolicy=blue_green(kind, wait_seconds, **size))
        client = server.client("sagemaker")
        told = client.describe_endpoint(EndpointName=name)
        assert (told["EndpointStatus"], told["EndpointConfigName"]) == ("Updating", name)
        assert told["PendingDeploymentSummary"]["EndpointConfigName"] == f"{name}-2"
        for call in (client.delete_endpoint, client.update_endpoint):
            more = {"EndpointConfigName": name} if call == client.update_endpoint else {}
            code, message = failure(call, EndpointName=name, **more)
            assert (code, message) == (
                "ValidationException",
                f'Cannot update in-progress endpoint "{told["EndpointArn"]}".',
            )
        told = wait(server, name)
        done.set()
        versions, *_ = [asker.result() for asker in askers]  # raises what failed
    assert (told["EndpointStatus"], told["EndpointConfigName"]) == ("InService", f"{name}-2")
    assert "PendingDeploymentSummary" not in told
    assert told["LastDeploymentConfig"]["BlueGreenUpdatePolicy"]["TrafficRoutingConfiguration"]["Type"] == kind
    assert set(versions) == {name, f"{name}-2"}
    both = versions[versions.index(f"{name}-2") :]
    # While both share the traffic the old one still answers; at once, never again.
    assert (name in both) == (kind != "ALL_AT_ONCE")
    assert len(processes_of(f"endpoints/us-east-1/{name}/")) == 1
    delete(server, name)


def test_an_update_that_never_gets_healthy_goes_back(server: Rehearsal) -> None:
    deploy(server, "broken")
    update(server, "broken", "broken-2", {"BROKEN": "1"})
    told = wait(server, "broken")
    assert (told["EndpointStatus"], told["EndpointConfigName"]) == ("InService", "broken")
    assert told["FailureReason"] == UNHEALTHY
    assert invoke(server, "broken")["CustomAttributes"] == "broken"
    assert "the model is broken" in lines(server, "broken")
    client = server.client("sagemaker")
    client.delete_endpoint_config(EndpointConfigName="broken")
    # As AWS, which has to know what to go back to.
    code, message = failure(client.update_endpoint, EndpointName="broken", EndpointConfigName="broken-2")
    assert code == "ValidationException"
    assert message == f'Could not find endpoint configuration "{ARN}:endpoint-config/broken".'
    config(server, "broken", "broken")
    delete(server, "broken")


def test_an_alarm_during_the_shift_goes_back(server: Rehearsal) -> None:
    cloudwatch = server.client("cloudwatch")
    alarm: dict[str, Any] = {"MetricName": "Invocation5XXErrors", "Namespace": "AWS/SageMaker", "Statistic": "Sum"}
    cloudwatch.put_metric_alarm(
        AlarmName="errors",
        ComparisonOperator="GreaterThanThreshold",
        EvaluationPeriods=1,
        Period=60,
        Threshold=1,
        **alarm,
    )
    deploy(server, "alarmed")
    rollback = {"Alarms": [{"AlarmName": "errors"}]}
    size = {"Type": "CAPACITY_PERCENT", "Value": 10}
    policy = blue_green("CANARY", 3600, CanarySize=size)
    code, message = failure(
        update,
        server=server,
        name="alarmed",
        new="alarmed-1",
        BlueGreenUpdatePolicy=policy,
        AutoRollbackConfiguration={"Alarms": [{"AlarmName": "unknown"}]},
    )
    assert code == "ValidationException" and "Could not find CloudWatch alarm unknown" in message
    update(server, "alarmed", "alarmed-2", BlueGreenUpdatePolicy=policy, AutoRollbackConfiguration=rollback)
    client, until = server.client("sagemaker"), time.monotonic() + 20
    stage = ""
    while stage != "Baking":
        assert time.monotonic() < until
        [variant] = client.describe_endpoint(EndpointName="alarmed")["PendingDeploymentSummary"]["ProductionVariants"]
        stage = variant["VariantStatus"][0]["Status"]
    cloudwatch.set_alarm_state(AlarmName="errors", StateValue="ALARM", StateReason="rehearsed")
    told = wait(server, "alarmed")
    assert (told["EndpointStatus"], told["EndpointConfigName"]) == ("InService", "alarmed")
    assert "alarm errors is in ALARM" in told["FailureReason"]
    assert {invoke(server, "alarmed")["CustomAttributes"] for _ in range(20)} == {"alarmed"}
    delete(server, "alarmed")


def test_variants_share_the_traffic_by_weight(server: Rehearsal) -> None:
    client = server.client("sagemaker")
    variants = []
    for name, weight in (("first", 1.0), ("second", 0.0)):
        model(server, name, VERSION=name)
        variants.append({"VariantName": name, "ModelName": name, "InitialVariantWeight": weight, **INSTANCES})
    client.create_endpoint_config(EndpointConfigName="both", ProductionVariants=variants)
    client.create_endpoint(EndpointName="both", EndpointConfigName="both")
    assert wait(server, "both")["EndpointStatus"] == "InService"
    assert {invoke(server, "both")["InvokedProductionVariant"] for _ in range(20)} == {"first"}
    assert invoke(server, "both", TargetVariant="second")["CustomAttributes"] == "second"
    desired = [{"VariantName": "first", "DesiredWeight": 1.0}, {"VariantName": "second", "DesiredWeight": 1.0}]
    desired[1]["DesiredInstanceCount"] = 2
    client.update_endpoint_weights_and_capacities(EndpointName="both", DesiredWeightsAndCapacities=desired)
    told = wait(server, "both")["ProductionVariants"]
    assert [(one["DesiredWeight"], one["CurrentInstanceCount"]) for one in told] == [(1.0, 1), (1.0, 2)]
    assert {invoke(server, "both")["InvokedProductionVariant"] for _ in range(40)} == {"first", "second"}
    code, message = failure(invoke, server=server, name="both", TargetVariant="third")
    assert code == "ValidationError" and "third" in message
    client.delete_endpoint(EndpointName="both")


def test_an_asynchronous_endpoint_answers_into_s3(server: Rehearsal) -> None:
    output = {"S3OutputPath": "s3://bucket/answers/", "S3FailurePath": "s3://bucket/failures"}
    client_config = {"MaxConcurrentInvocationsPerInstance": 2}
    told = deploy(server, "later", AsyncInferenceConfig={"OutputConfig": output, "ClientConfig": client_config})
    assert told["AsyncInferenceConfig"] == {"OutputConfig": output, "ClientConfig": client_config}
    server.client("s3").put_object(Bucket="bucket", Key="photos/1.jpg", Body=JPEG)
    runtime = server.client("sagemaker-runtime")
    request = {"EndpointName": "later", "InputLocation": "s3://bucket/photos/1.jpg", "ContentType": "image/jpeg"}
    started = time.monotonic()
    answers = [runtime.invoke_endpoint_async(**request, CustomAttributes="sleep=0.3") for _ in range(4)]
    assert answers[0]["ResponseMetadata"]["HTTPStatusCode"] == 202
    for answer in answers:
        assert answer["OutputLocation"].startswith("s3://bucket/answers/")
        assert read(server, answer["OutputLocation"]) == JPEG
    # Two at a time.
    assert time.monotonic() - started > 0.6
    named = runtime.invoke_endpoint_async(EndpointName="later", Body=b"inline", InferenceId="mine")
    assert named["InferenceId"] == "mine"
    assert read(server, named["OutputLocation"]) == b"inline"
    failed = runtime.invoke_endpoint_async(**request, CustomAttributes="status=400")
    assert b"Received client error (400) from primary" in read(server, failed["FailureLocation"])
    missing = runtime.invoke_endpoint_async(EndpointName="later", InputLocation="s3://bucket/photos/2.jpg")
    assert b"NoSuchKey" in read(server, missing["FailureLocation"])
    code, message = failure(invoke, server=server, name="later")
    assert code == "ValidationError" and "InvokeEndpointAsync" in message
    delete(server, "later")


def test_a_serverless_endpoint_throttles_and_takes_four_megabytes(server: Rehearsal) -> None:
    told = deploy(server, "server-less", {"ServerlessConfig": {"MemorySizeInMB": 2048, "MaxConcurrency": 1}})
    [variant] = told["ProductionVariants"]
    assert variant["CurrentServerlessConfig"] == {"MemorySizeInMB": 2048, "MaxConcurrency": 1}
    assert invoke(server, "server-less")["Body"].read() == JPEG
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(invoke, server, "server-less", CustomAttributes="sleep=1")
        time.sleep(0.4)
        with pytest.raises(ClientError) as error:
            invoke(server, "server-less")
        assert error.value.response["Error"]["Code"] == "ThrottlingException"
        assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 429
        assert slow.result()["Body"].read() == JPEG
    code, message = failure(invoke, server=server, name="server-less", body=bytes(4 * 1024 * 1024 + 1))
    assert code == "ValidationError" and message.endswith("has oversize body.")
    delete(server, "server-less")


def test_requests_and_answers_are_captured(server: Rehearsal) -> None:
    capture = {
        "InitialSamplingPercentage": 100,
        "DestinationS3Uri": "s3://bucket/captured",
        "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
        "CaptureContentTypeHeader": {"JsonContentTypes": ["application/json"]},
    }
    told = deploy(server, "capture", DataCaptureConfig=capture)
    assert told["DataCaptureConfig"]["CaptureStatus"] == "Started"
    invoke(server, "capture", JPEG, InferenceId="mine")
    runtime = server.client("sagemaker-runtime")
    runtime.invoke_endpoint(EndpointName="capture", Body=b"[1]", ContentType="application/json")
    found = sorted(keys(server, "captured/"))
    assert all(
        re.fullmatch(r"captured/capture/AllTraffic/\d{4}(/\d\d){3}/\d\d-\d\d-\d{3}-[0-9a-f-]+\.jsonl", key)
        for key in found
    )
    records = [json.loads(read(server, f"s3://bucket/{key}")) for key in found]
    [photo] = [record for record in records if record["eventMetadata"].get("inferenceId") == "mine"]
    entry = photo["captureData"]["endpointInput"]
    assert (entry["observedContentType"], entry["mode"], entry["encoding"]) == ("image/jpeg", "INPUT", "BASE64")
    assert base64.b64decode(entry["data"]) == JPEG
    [text] = [record for record in records if record != photo]
    assert text["captureData"]["endpointOutput"]["data"] == "[1]"
    assert text["captureData"]["endpointOutput"]["encoding"] == "JSON"
    delete(server, "capture")


def test_names_are_unique_and_lists_tell_them(server: Rehearsal) -> None:
    client = server.client("sagemaker")
    code, message = failure(model, server=server, name="lost", key="nothing.tar.gz")
    assert (code, message) == ("ValidationException", "Could not find model data at s3://bucket/nothing.tar.gz.")
    code, message = failure(config, server=server, name="lost", model_name="nothing")
    assert (code, message) == ("ValidationException", f'Could not find model "{ARN}:model/nothing".')
    code, message = failure(client.create_endpoint, EndpointName="lost", EndpointConfigName="nothing")
    assert message == f'Could not find endpoint configuration "{ARN}:endpoint-config/nothing".'
    for call in (client.describe_endpoint, client.delete_endpoint):
        code, message = failure(call, EndpointName="lost")
        assert (code, message) == ("ValidationException", f'Could not find endpoint "{ARN}:endpoint/lost".')

    tags = [{"Key": "owner", "Value": "me"}]
    for number in range(3):
        model(server, f"listed-{number}")
    config(server, "listed", "listed-0", Tags=tags, KmsKeyId="alias/mine")
    code, message = failure(model, server=server, name="listed-0")
    assert (code, message) == ("ValidationException", f'Cannot create already existing model "{ARN}:model/listed-0".')
    code, message = failure(config, server=server, name="listed", model_name="listed-0")
    assert message == f'Cannot create already existing endpoint configuration "{ARN}:endpoint-config/listed".'
    told = client.describe_endpoint_config(EndpointConfigName="listed")
    assert told["KmsKeyId"] == "alias/mine"
    assert told["ProductionVariants"][0] == {"VariantName": "AllTraffic", "ModelName": "listed-0", **INSTANCES}
    assert client.describe_model(ModelName="listed-0")["PrimaryContainer"]["Image"] == SCRIPT
    pages = client.get_paginator("list_models").paginate(NameContains="listed", PaginationConfig={"PageSize": 2})
    assert [[one["ModelName"] for one in page["Models"]] for page in pages] == [["listed-2", "listed-1"], ["listed-0"]]

    client.create_endpoint(EndpointName="listed", EndpointConfigName="listed", Tags=tags)
    code, message = failure(client.create_endpoint, EndpointName="listed", EndpointConfigName="listed")
    assert (code, message) == (
        "ValidationException",
        f'Cannot create already existing endpoint "{ARN}:endpoint/listed".',
    )
    wait(server, "listed")
    listed = client.list_endpoints(StatusEquals="InService", NameContains="LISTED")["Endpoints"]
    assert [one["EndpointName"] for one in listed] == ["listed"]
    for kind in ("endpoint-config", "endpoint"):
        arn = f"{ARN}:{kind}/listed"
        assert client.list_tags(ResourceArn=arn)["Tags"] == tags
        client.add_tags(ResourceArn=arn, Tags=[{"Key": "expiry", "Value": "now"}])
        client.delete_tags(ResourceArn=arn, TagKeys=["owner"])
        assert client.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "expiry", "Value": "now"}]
        many = [{"Key": str(number), "Value": ""} for number in range(50)]
        assert failure(client.add_tags, ResourceArn=arn, Tags=many)[0] == "ValidationException"
    client.delete_endpoint(EndpointName="listed")


def test_scaling_is_booked_and_goes_with_its_endpoint(server: Rehearsal) -> None:
    deploy(server, "scaled")
    scaling, cloudwatch = server.client("application-autoscaling"), server.client("cloudwatch")
    target = {"ServiceNamespace": "sagemaker", "ScalableDimension": "sagemaker:variant:DesiredInstanceCount"}
    resource = {**target, "ResourceId": "endpoint/scaled/variant/AllTraffic"}
    code, message = failure(scaling.register_scalable_target, **resource, MinCapacity=0, MaxCapacity=2)
    assert code == "ValidationException" and "at least 1" in message
    unknown = {**target, "ResourceId": "endpoint/nothing/variant/AllTraffic"}
    assert (
        failure(scaling.register_scalable_target, **unknown, MinCapacity=1, MaxCapacity=2)[0] == "ValidationException"
    )
    tracking = {"TargetValue": 70.0, "PredefinedMetricSpecification": {"PredefinedMetricType": METRIC}}
    policy = {"PolicyName": "track", "PolicyType": "TargetTrackingScaling"}
    policy["TargetTrackingScalingPolicyConfiguration"] = tracking  # type: ignore[assignment]
    assert failure(scaling.put_scaling_policy, **resource, **policy)[0] == "ObjectNotFoundException"
    scaling.register_scalable_target(**resource, MinCapacity=2, MaxCapacity=3)
    client = server.client("sagemaker")
    assert client.describe_endpoint(EndpointName="scaled")["ProductionVariants"][0]["DesiredInstanceCount"] == 2
    alarms = scaling.put_scaling_policy(**resource, **policy)["Alarms"]
    assert len(cloudwatch.describe_alarms(AlarmNames=[alarm["AlarmName"] for alarm in alarms])["MetricAlarms"]) == 2
    config(server, "scaled-2", "scaled", {"InstanceType": "ml.c5.xlarge", "InitialInstanceCount": 1})
    code, message = failure(client.update_endpoint, EndpointName="scaled", EndpointConfigName="scaled-2")
    assert code == "ValidationException" and "must be deregistered as scalable targets" in message
    delete(server, "scaled")
    names = {"ServiceNamespace": "sagemaker", "ResourceIds": [resource["ResourceId"]]}
    assert scaling.describe_scalable_targets(**names)["ScalableTargets"] == []
    assert scaling.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"] == []
    assert cloudwatch.describe_alarms(AlarmNames=[alarm["AlarmName"] for alarm in alarms])["MetricAlarms"] == []


def test_a_schedule_deletes_an_endpoint_when_its_time_has_come(server: Rehearsal) -> None:
    deploy(server, "leased")
    schedules = server.client("scheduler")
    due = datetime.now(UTC) + timedelta(seconds=2)
    target = {"Arn": "arn:aws:scheduler:::aws-sdk:sagemaker:deleteEndpoint", "RoleArn": ROLE}
    target["Input"] = json.dumps({"EndpointName": "leased"})
    request: dict[str, Any] = {"FlexibleTimeWindow": {"Mode": "OFF"}, "ActionAfterCompletion": "DELETE"}
    code, message = failure(
        schedules.create_schedule, Name="often", ScheduleExpression="rate(1 hour)", Target=target, **request
    )
    assert code == "ValidationException" and "only at(" in message
    schedules.create_schedule(
        Name="leased", ScheduleExpression=f"at({due:%Y-%m-%dT%H:%M:%S})", Target=target, **request
    )
    assert schedules.get_schedule(Name="leased")["Target"]["Input"] == target["Input"]
    assert [one["Name"] for one in schedules.list_schedules(NamePrefix="lea")["Schedules"]] == ["leased"]
    client, until = server.client("sagemaker"), time.monotonic() + 20
    while client.list_endpoints(NameContains="leased")["Endpoints"]:
        assert time.monotonic() < until
        time.sleep(0.1)
    assert datetime.now(UTC) >= due - timedelta(seconds=1)
    assert schedules.list_schedules()["Schedules"] == []
    schedules.create_schedule(Name="never", ScheduleExpression="at(2099-01-01T00:00:00)", Target=target, **request)
    schedules.delete_schedule(Name="never")


def test_an_isolated_container_is_reached_and_reaches_nothing(server: Rehearsal) -> None:
    container = {"Image": SCRIPT, "ModelDataUrl": "s3://bucket/script.tar.gz"}
    client = server.client("sagemaker")
    client.create_model(
        ModelName="alone", ExecutionRoleArn=ROLE, PrimaryContainer=container, EnableNetworkIsolation=True
    )
    config(server, "alone", "alone")
    client.create_endpoint(EndpointName="alone", EndpointConfigName="alone")
    assert wait(server, "alone")["EndpointStatus"] == "InService"
    seen = json.loads(invoke(server, "alone", CustomAttributes="info=1")["Body"].read())
    assert seen["interfaces"] == ["lo"]
    assert "AWS_ENDPOINT_URL" not in seen["environment"]
    delete(server, "alone")


def test_faults_reach_invocations(server: Rehearsal) -> None:
    deploy(server, "faulty")
    server.post("faults?rate=0.6&seed=0&slow_seconds=0")
    try:
        outcomes = {code_of(server, "faulty") for _ in range(20)}
    finally:
        server.post("faults?rate=0")
    assert outcomes == {"faulty", "ThrottlingException", "InternalFailure", "lost"}
    delete(server, "faulty")


@pytest.mark.slow
def test_without_namespaces_and_quota_and_answer(tmp_path: Path) -> None:
    options = ("--no-namespaces", "--max-endpoint-instances", "1", "--health-check-timeout", "2", "--grace", "1")
    with rehearsal(tmp_path, *options) as server:
        server.client("s3").put_object(Bucket="bucket", Key="script.tar.gz", Body=archive({"code/serve.py": SERVER}))
        told = deploy(server, "never", environment={"PING": "503"})
        assert (told["EndpointStatus"], told["FailureReason"]) == ("Failed", UNHEALTHY)
        deploy(server, "relocated")
        seen = json.loads(invoke(server, "relocated", CustomAttributes="info=1")["Body"].read())
        assert Path(seen["model"]).resolve().is_relative_to(tmp_path)  # by a short link
        code, message = failure(deploy, server=server, name="toomany")
        assert code == "ResourceLimitExceeded"
        assert "'ml.c5.large for endpoint usage' is 1 Instances, with current utilization of 1 Instances" in message
        assert len(processes_of(str(tmp_path / "endpoints"))) == 1
    # Leaving stops the server with an endpoint in service; `rehearsal` checks that nothing is left.


def test_a_killed_server_takes_its_endpoints_along(tmp_path: Path) -> None:
    process = subprocess.Popen(command(tmp_path), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        server = Rehearsal(printed_variables(process), process)
        make_bucket_and_role(server)
        server.client("s3").put_object(Bucket="bucket", Key="script.tar.gz", Body=archive({"code/serve.py": SERVER}))
        deploy(server, "orphan")
        assert processes_of(str(tmp_path / "endpoints"))
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()
    until = time.monotonic() + 10
    while processes_of(str(tmp_path / "endpoints")):
        assert time.monotonic() < until
        time.sleep(0.05)
