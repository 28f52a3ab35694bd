"""What is sent to make an endpoint: valid by botocore's own models, and nothing configured gets lost."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any

import botocore.session
import pytest
from botocore.validate import ParamValidator

from sagemaker_launch.endpoints.lease import Lease, new_lease
from sagemaker_launch.endpoints.requests import (
    create_endpoint,
    deployment,
    fixed_instances,
    scalable_target,
    scaling_policy,
    schedule,
    update_alarms,
    update_endpoint,
    wake_alarm,
    wake_policy,
)
from sagemaker_launch.settings.cloud import load_cloud
from sagemaker_launch.settings.endpoint import EndpointSettings
from tests.unit.sagemaker_launch.jobs.test_requests import BASIC, EVERYTHING, ROLE

LEASE = Lease("anna", datetime(2026, 12, 1, 12, 0, tzinfo=UTC))
SCALING = {"endpoint.max_instances": 4, "endpoint.schedule_role_arn": ROLE, "endpoint.max_latency_ms": 500}
KINDS: dict[str, dict[str, object]] = {
    "realtime": BASIC | SCALING | {"endpoint.data_capture_percent": 20, "endpoint.alarms": ["mine"]},
    "everything": {key: value for key, value in EVERYTHING.items() if "warm" not in key} | SCALING,
    "serverless": BASIC | {"endpoint.kind": "serverless", "endpoint.schedule_role_arn": ROLE},
    "async": BASIC | SCALING | {"endpoint.kind": "async", "endpoint.min_instances": 0},
}


def requests(values: dict[str, object]) -> dict[tuple[str, str], Any]:
    """Everything that may be sent for an endpoint, by service and operation."""
    settings = load_cloud(None, values)
    version = deployment(settings, "dogs", "image", "s3://my-bucket/model.tar.gz")
    return {
        ("sagemaker", "CreateModel"): version.model,
        ("sagemaker", "CreateEndpointConfig"): version.config,
        ("sagemaker", "CreateEndpoint"): create_endpoint(settings, "dogs", version.config_name, LEASE),
        ("sagemaker", "UpdateEndpoint"): update_endpoint(settings, "dogs", version.config_name),
        ("sagemaker", "UpdateEndpointWeightsAndCapacities"): fixed_instances(settings.endpoint, "dogs"),
        ("application-autoscaling", "RegisterScalableTarget"): scalable_target(settings.endpoint, "dogs"),
        ("application-autoscaling", "PutScalingPolicy"): scaling_policy(settings.endpoint, "dogs"),
        ("application-autoscaling", "PutScalingPolicy "): wake_policy("dogs"),
        ("cloudwatch", "PutMetricAlarm"): wake_alarm(settings, "dogs", "arn:aws:autoscaling:x"),
        **{
            ("cloudwatch", "PutMetricAlarm" + " " * number): alarm
            for number, alarm in enumerate(update_alarms(settings, "dogs"), start=1)
        },
        ("scheduler", "CreateSchedule"): schedule(settings, "dogs", datetime(2026, 12, 1, tzinfo=UTC)),
    }


@pytest.mark.parametrize("values", KINDS.values(), ids=KINDS)
def test_requests_are_valid_by_the_models_of_their_services(values: dict[str, object]) -> None:
    session = botocore.session.get_session()
    for (service, operation), request in requests(values).items():
        model = session.get_service_model(service).operation_model(operation.strip())
        if operation == "CreateSchedule" and "endpoint.schedule_role_arn" not in values:
            continue  # it is not sent without a role
        report = ParamValidator().validate(request, model.input_shape)
        assert not report.has_errors(), f"{operation}: {report.generate_report()}"
        json.dumps(request)


OTHER = {
    "kind": "async",
    "image_uri": None,
    "instance_type": "ml.m5.large",
    "precision": "int8",
    "min_instances": 2,
    "max_instances": 9,
    "scale_target": 7.0,
    "memory_mb": 2048,
    "max_concurrency": 50,
    "startup_timeout_seconds": 100,
    "environment": {"SERVING_MAX_BATCH": "4"},
    "data_capture_percent": 3,
    "rollout": "linear",
    "rollout_percent": 20,
    "rollout_wait_seconds": 7,
    "max_latency_ms": 9.0,
    "alarms": ["other"],
    "schedule_role_arn": f"{ROLE}2",
    "inference_ami": "al2-ami-sagemaker-inference-gpu-3-1",
}
"""Another value for every field of an endpoint that goes to AWS."""


def test_every_setting_of_an_endpoint_changes_what_is_sent() -> None:
    at_home = {"image", "image_uri", "owner", "budget_usd_per_hour"}  # which URI, which tag, and what is allowed
    assert {field.name for field in fields(EndpointSettings)} - at_home == set(OTHER) - at_home
    for name, value in OTHER.items():
        kind = "serverless" if name in ("memory_mb", "max_concurrency") else "realtime"
        base = KINDS[kind]
        values = base | {f"endpoint.{name}": value}
        if name == "kind":
            values["endpoint.data_capture_percent"] = 0
        if name not in at_home:
            assert requests(values) != requests(base), name


def test_the_wire_has_what_a_person_set() -> None:
    sent = requests(KINDS["everything"])
    model, config = sent["sagemaker", "CreateModel"], sent["sagemaker", "CreateEndpointConfig"]
    assert model["EnableNetworkIsolation"] is True
    assert model["VpcConfig"] == {"Subnets": ["subnet-1", "subnet-2"], "SecurityGroupIds": ["sg-1"]}
    assert config["KmsKeyId"] == EVERYTHING["volume_kms_key"]
    for request in (model, config, sent["sagemaker", "CreateEndpoint"]):
        tags = {tag["Key"]: tag["Value"] for tag in request["Tags"]}
        assert tags["team"] == "vision" and tags["endpoint"] == "dogs"
    tags = {tag["Key"]: tag["Value"] for tag in sent["sagemaker", "CreateEndpoint"]["Tags"]}
    assert tags["owner"] == "anna" and tags["expires"] == "2026-12-01T12:00:00Z"


def test_the_same_model_and_settings_have_the_same_names_and_others_have_others() -> None:
    def names(values: dict[str, object], uri: str = "s3://b/m") -> tuple[str, str]:
        made = deployment(load_cloud(None, values), "dogs", "image", uri)
        return made.model_name, made.config_name

    first = names(BASIC)
    assert names(BASIC) == first
    assert all(name.startswith("dogs-") for name in first)
    other_model = names(BASIC, "s3://b/other")
    assert other_model[0] != first[0] and other_model[1] != first[1]
    other_machine = names(BASIC | {"endpoint.instance_type": "ml.m5.large"})
    assert other_machine[0] == first[0] and other_machine[1] != first[1]


@pytest.mark.parametrize("name", ["", "-dogs", "dogs-", "do_gs", "dogs--2", "döner", "d" * 53, "dogs/x"])
def test_a_name_that_aws_would_refuse_is_refused_at_once(name: str) -> None:
    with pytest.raises(ValueError, match="NAME must be at most 52"):
        deployment(load_cloud(None, BASIC), name, "image", "s3://b/m")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"endpoint.min_instances": 0}, "min_instances must be >= 1 for kind realtime"),
        ({"endpoint.min_instances": 3}, "max_instances must be >= 3"),
        ({"endpoint.kind": "serverless", "endpoint.max_instances": 2}, "max_instances must be 1 for kind serverless"),
        ({"endpoint.kind": "async", "endpoint.data_capture_percent": 1}, "data_capture_percent must be 0 unless"),
        ({"endpoint.rollout": "linear", "endpoint.rollout_percent": 5}, "rollout_percent must be 10..50 for linear"),
        ({"endpoint.kind": "serverless", "network_isolation": True}, "not be serverless with subnets or network"),
        ({"endpoint.knd": "x"}, "did you mean endpoint.kind"),
    ],
)
def test_settings_that_no_endpoint_can_have_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_cloud(None, BASIC | values)


@pytest.mark.parametrize(("ttl", "span"), [("30m", 1800), ("4h", 14_400), ("2d", 172_800)])
def test_a_lease_is_over_when_its_time_is(ttl: str, span: int) -> None:
    lease = new_lease(load_cloud(None, BASIC | {"endpoint.owner": "Anna B."}), ttl)
    assert lease.expires is not None
    assert abs((lease.expires - datetime.now(UTC)).total_seconds() - span) < 5
    assert lease.owner == "Anna-B."
    assert not lease.has_expired()
    assert lease.has_expired(lease.expires + timedelta(seconds=1))
    assert Lease.read(lease.tags) == lease


def test_a_lease_is_no_shorter_than_the_start_of_its_endpoint() -> None:
    slow = BASIC | {"endpoint.startup_timeout_seconds": 1200}
    assert new_lease(load_cloud(None, slow), "20m").expires
    with pytest.raises(ValueError, match=r"--ttl must be at least .* got '19m' and .*startup_timeout_seconds 1200"):
        new_lease(load_cloud(None, slow), "19m")
    assert new_lease(load_cloud(None, slow | {"endpoint.kind": "serverless"}), "19m").expires, "it has no instance"


def test_a_lease_without_an_end_must_be_typed() -> None:
    settings = load_cloud(None, BASIC)
    lease = new_lease(settings, "none")
    assert Lease.read(lease.tags) == lease and not lease.has_expired()
    for wrong in ("", "4", "h", "0h", "-1h", "4 h", "4w", "None", "999999h"):
        with pytest.raises(ValueError, match="--ttl must be a whole number and m, h or d"):
            new_lease(settings, wrong)


@pytest.mark.parametrize("error", [KeyError("getpwuid(): uid not found: 12345"), OSError("No username set")])
def test_an_endpoint_has_an_owner_where_the_user_has_no_name(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def no_user() -> str:
        raise error  # Python's own, before and since 3.13

    monkeypatch.setattr("getpass.getuser", no_user)
    assert new_lease(load_cloud(None, BASIC), "1h").owner == f"uid-{os.getuid()}"
