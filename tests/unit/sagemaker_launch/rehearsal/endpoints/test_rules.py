"""What the rehearsed service refuses about endpoints, and how it shares out traffic, without a server."""

from __future__ import annotations

import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from moto import mock_aws
from moto.cloudwatch.models import cloudwatch_backends

from sagemaker_launch.rehearsal.endpoints.endpoints import Endpoint, Fleet, Resource, Variant
from sagemaker_launch.rehearsal.endpoints.rollout import RollbackError, Rollout
from sagemaker_launch.rehearsal.endpoints.rules import (
    check_config,
    check_deployment,
    check_model,
    check_scaled,
    check_serverless_model,
    shares,
)
from sagemaker_launch.rehearsal.endpoints.serving_process import unpack
from sagemaker_launch.rehearsal.jobs.schedules import due
from sagemaker_launch.rehearsal.machine.objects import DataError
from sagemaker_launch.rehearsal.machine.runner import Settings
from tests.unit.sagemaker_launch.rehearsal.test_rules import Request, change, refusal

MODEL: Request = {
    "ModelName": "dogs",
    "ExecutionRoleArn": "arn:aws:iam::123456789012:role/SageMaker",
    "PrimaryContainer": {"Image": "rehearsal.local/serving", "ModelDataUrl": "s3://bucket/model.tar.gz"},
}
VARIANT = {
    "VariantName": "AllTraffic",
    "ModelName": "dogs",
    "InstanceType": "ml.c5.large",
    "InitialInstanceCount": 4,
}
CONFIG: Request = {"EndpointConfigName": "dogs", "ProductionVariants": [VARIANT]}
SERVERLESS: Request = {
    "EndpointConfigName": "dogs",
    "ProductionVariants": [
        {
            "VariantName": "AllTraffic",
            "ModelName": "dogs",
            "ServerlessConfig": {"MemorySizeInMB": 2048, "MaxConcurrency": 5},
        }
    ],
}
CAPTURE = {
    "InitialSamplingPercentage": 100,
    "DestinationS3Uri": "s3://bucket/captured",
    "CaptureOptions": [{"CaptureMode": "Input"}],
}
ASYNC = {"OutputConfig": {"S3OutputPath": "s3://bucket/answers"}}
HALF = {"Type": "CAPACITY_PERCENT", "Value": 50}


def routing(kind: str, wait: int = 60, **sizes: Any) -> Request:
    return {"Type": kind, "WaitIntervalInSeconds": wait, **sizes}


def deployment(kind: str, wait: int = 60, **fields: Any) -> Request:
    sizes = {key: fields.pop(key) for key in ("CanarySize", "LinearStepSize") if key in fields}
    policy = {"TrafficRoutingConfiguration": routing(kind, wait, **sizes), **fields}
    return {"DeploymentConfig": {"BlueGreenUpdatePolicy": policy}}


@pytest.mark.parametrize(
    ("check", "request_body"),
    [
        (check_model, MODEL),
        (check_model, {**MODEL, "EnableNetworkIsolation": True, "Tags": [{"Key": "owner", "Value": "me"}]}),
        (check_config, CONFIG),
        (check_config, SERVERLESS),
        (check_config, {**CONFIG, "AsyncInferenceConfig": ASYNC, "DataCaptureConfig": CAPTURE, "KmsKeyId": "alias/a"}),
    ],
)
def test_what_aws_takes_is_taken(check: Callable[[Request], None], request_body: Request) -> None:
    check(request_body)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("ModelName", "under_score", "regular expression"),
        ("ExecutionRoleArn", None, "ExecutionRoleArn must be provided"),
        ("PrimaryContainer", None, "PrimaryContainer must be provided"),
        ("PrimaryContainer.Image", None, "Image must be provided"),
        ("PrimaryContainer.ModelDataUrl", "s3://bucket/model", "must be the S3 address of a .tar.gz archive"),
        ("Tags", [{"Key": "a", "Value": ""}] * 2, "Duplicate tag key"),
        ("Tags", [{"Key": str(number), "Value": ""} for number in range(51)], "less than or equal to 50"),
    ],
)
def test_a_model_that_aws_refuses_is_refused(path: str, value: object, message: str) -> None:
    assert message in refusal(check_model, change(MODEL, path, value))


@pytest.mark.parametrize(
    ("base", "path", "value", "message"),
    [
        (CONFIG, "ProductionVariants", [], "greater than or equal to 1"),
        (CONFIG, "ProductionVariants", [VARIANT, VARIANT], "must be unique"),
        (CONFIG, "ProductionVariants.0.InstanceType", "ml.c5.huge", "enum value set"),
        (CONFIG, "ProductionVariants.0.InstanceType", None, "InstanceType and InitialInstanceCount, or"),
        (CONFIG, "ProductionVariants.0.ModelName", None, "ModelName must be provided"),
        (CONFIG, "ProductionVariants.0.InitialVariantWeight", 0.0, "a weight above 0"),
        (CONFIG, "AsyncInferenceConfig", {"OutputConfig": {}}, "S3OutputPath must be provided"),
        (CONFIG, "DataCaptureConfig", {**CAPTURE, "InitialSamplingPercentage": 101}, "less than or equal to 100"),
        (SERVERLESS, "ProductionVariants.0.InstanceType", "ml.c5.large", "and not both"),
        (SERVERLESS, "ProductionVariants.0.ServerlessConfig.MemorySizeInMB", 1500, "MemorySizeInMB must be one of"),
        (SERVERLESS, "ProductionVariants.0.ServerlessConfig.MemorySizeInMB", 8192, "less than or equal to 6144"),
        (SERVERLESS, "ProductionVariants.0.ServerlessConfig.MaxConcurrency", 201, "less than or equal to 200"),
        (SERVERLESS, "ProductionVariants.0.ServerlessConfig.ProvisionedConcurrency", 6, "less than or equal to Max"),
        (SERVERLESS, "ProductionVariants.0.VolumeSizeInGB", 10, "not supported for serverless"),
        (SERVERLESS, "DataCaptureConfig", CAPTURE, "not supported for serverless"),
        (SERVERLESS, "AsyncInferenceConfig", ASYNC, "not supported for serverless"),
    ],
)
def test_a_config_that_aws_refuses_is_refused(base: Request, path: str, value: object, message: str) -> None:
    assert message in refusal(check_config, change(base, path, value))


@pytest.mark.parametrize("field", ["VpcConfig", "EnableNetworkIsolation"])
def test_a_serverless_model_has_no_network_of_its_own(field: str) -> None:
    assert field in refusal(check_serverless_model, {**MODEL, field: {"Subnets": ["subnet-1"]}})


@pytest.mark.parametrize(
    ("request_body", "new", "message"),
    [
        (deployment("CANARY"), CONFIG, "CanarySize must be provided"),
        (deployment("ALL_AT_ONCE", CanarySize=HALF), CONFIG, "and for no other"),
        (deployment("CANARY", CanarySize={**HALF, "Value": 51}), CONFIG, "0% to 50%"),
        (deployment("LINEAR", LinearStepSize={**HALF, "Value": 9}), CONFIG, "10% to 50%"),
        (deployment("CANARY", CanarySize={"Type": "INSTANCE_COUNT", "Value": 3}), CONFIG, "got 75%"),
        (
            deployment("LINEAR", 600, LinearStepSize={**HALF, "Value": 20}, MaximumExecutionTimeoutInSeconds=3000),
            CONFIG,
            "larger than all waits together, 3000",
        ),
        (deployment("ALL_AT_ONCE"), change(CONFIG, "ProductionVariants.0.VariantName", "Other"), "same variant names"),
        ({"RetainAllVariantProperties": True}, CONFIG, "not rehearsed"),
        ({}, SERVERLESS, "between serverless and instances"),
        ({}, {**CONFIG, "AsyncInferenceConfig": ASYNC}, "between real-time and asynchronous"),
    ],
)
def test_an_update_that_cannot_be_rolled_out_is_refused(request_body: Request, new: Request, message: str) -> None:
    assert message in refusal(lambda body: check_deployment(body, CONFIG, new), request_body)


def test_a_serverless_endpoint_has_no_deployment_guardrails() -> None:
    check_deployment({}, SERVERLESS, SERVERLESS)
    refused = refusal(lambda body: check_deployment(body, SERVERLESS, SERVERLESS), deployment("ALL_AT_ONCE"))
    assert "not supported for serverless" in refused


def test_a_scaled_variant_keeps_its_instances() -> None:
    other = change(CONFIG, "ProductionVariants.0.InstanceType", "ml.c5.xlarge")
    check_scaled(set(), CONFIG, other)
    check_scaled({"AllTraffic"}, CONFIG, change(CONFIG, "ProductionVariants.0.ModelName", "cats"))
    message = refusal(lambda _: check_scaled({"AllTraffic"}, CONFIG, other), {})
    assert 'The variant(s) "AllTraffic" must be deregistered' in message


@pytest.mark.parametrize(
    ("request_body", "expected"),
    [
        ({}, [1.0]),
        (routing("ALL_AT_ONCE"), [1.0]),
        (routing("CANARY", CanarySize={"Type": "INSTANCE_COUNT", "Value": 1}), [0.25, 1.0]),
        (routing("LINEAR", LinearStepSize=HALF), [0.5, 1.0]),
        (routing("LINEAR", LinearStepSize={**HALF, "Value": 30}), [0.3, 0.6, 0.9, 1.0]),
        (routing("LINEAR", LinearStepSize={**HALF, "Value": 10}), [number / 10 for number in range(1, 11)]),
    ],
)
def test_traffic_shifts_in_the_steps_that_were_asked_for(request_body: Request, expected: list[float]) -> None:
    assert shares(request_body, 4) == pytest.approx(expected)


def fleet(name: str, weights: dict[str, float]) -> Fleet:
    config = Resource("EndpointConfig", f"arn:{name}", {**CONFIG, "EndpointConfigName": name})
    process: Any = None  # nothing is asked here
    variants = [
        Variant({**VARIANT, "VariantName": each}, MODEL["PrimaryContainer"], process, weight, 2)
        for each, weight in weights.items()
    ]
    return Fleet(config, variants)


def test_requests_go_where_the_shares_and_weights_say() -> None:
    endpoint = Endpoint("arn:e", "e", [], fleet("new", {"green": 1.0}))
    with endpoint.routed(None) as none:
        assert none is None
    endpoint.blue, endpoint.green = fleet("old", {"a": 3.0, "b": 1.0, "c": 0.0}), endpoint.green
    assert endpoint.green is not None
    endpoint.blue.share, endpoint.green.share = 0.5, 0.5
    names = []
    for _ in range(4000):
        with endpoint.routed(None) as variant:
            assert variant is not None and variant.running == 1
            names.append(variant.name)
    counts = {name: names.count(name) for name in "abc"}
    assert counts["c"] == 0
    assert 1300 < counts["a"] < 1700 and 380 < counts["b"] < 620
    endpoint.blue.share, endpoint.green.share = 1.0, 0.0
    with endpoint.routed("c") as wanted, endpoint.routed("green") as absent:
        assert wanted is not None and (wanted.name, absent) == ("c", None)


@pytest.fixture
def alarm() -> Iterator[Callable[[str], None]]:
    with mock_aws():
        cloudwatch = cloudwatch_backends["123456789012"]["us-east-1"]
        cloudwatch.put_metric_alarm(
            "errors", "AWS/SageMaker", "Errors", "GreaterThanThreshold", 1, 60, 1.0, "Sum", "", [], []
        )
        yield lambda state: cloudwatch.set_alarm_state("errors", "rehearsed", "{}", state)


@pytest.mark.parametrize("at", [0, 2, 99])
def test_an_alarm_at_any_time_of_the_rollout_goes_back(alarm: Callable[[str], None], tmp_path: Path, at: int) -> None:
    blue, green = fleet("old", {"a": 1.0}), fleet("new", {"a": 1.0})
    policy = {
        **deployment("LINEAR", 60, LinearStepSize=HALF)["DeploymentConfig"],
        "AutoRollbackConfiguration": {"Alarms": [{"AlarmName": "errors"}]},
    }
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == at:
            alarm("ALARM")
        threading.Event().wait(0.02)

    if at == 0:
        alarm("ALARM")
    settings = Settings(root=tmp_path, rollout_speed=600)
    rollout = Rollout(policy, blue, green, settings, "us-east-1", pause)
    if at == 99:
        rollout.run()
        assert (blue.share, green.share) == (0.0, 1.0)
    else:
        with pytest.raises(RollbackError, match="alarm errors is in ALARM"):
            rollout.run()
        assert green.share == (0.0 if at == 0 else 0.5)


def packed(name: str, kind: bytes = tarfile.REGTYPE) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, "/etc/passwd"
        archive.addfile(entry)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"text", packed("a")[:-20], packed("../evil"), packed("link", tarfile.SYMTYPE)],
    ids=["empty", "text", "cut off", "above", "link"],  # a packed archive has other bytes in each process
)
def test_an_archive_that_is_broken_or_leaves_its_folder_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Failed to extract model data archive"):
        unpack(content, tmp_path / "model", "s3://bucket/model.tar.gz")
    assert not (tmp_path / "evil").exists()


def test_a_schedule_has_one_time_in_its_zone() -> None:
    assert due("at(2026-01-01T10:00:00)", None) == datetime(2026, 1, 1, 10, tzinfo=UTC)
    assert due("at(2026-01-01T10:00:00)", "Europe/Berlin") == datetime(2026, 1, 1, 10, tzinfo=ZoneInfo("Europe/Berlin"))
    for expression in ("rate(1 hour)", "at(tomorrow)"):
        with pytest.raises(ValueError, match=r"hour|tomorrow"):
            due(expression, None)
