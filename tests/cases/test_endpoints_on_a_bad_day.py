"""Endpoints on days on which AWS does not answer while they come up (`f07`)."""

from __future__ import annotations

from pathlib import Path

import boto3
import pytest

from tests.bad_days import EXPIRED, Fault, on_a_bad_day
from tests.e2e.conftest import service_environment  # noqa: F401  # fixture
from tests.e2e.test_endpoints import SCRIPT, Rehearsal, cloud, first, scripted, second  # noqa: F401  # fixtures
from tests.hostile_aws import HOSTILE_VARIABLES, Trap, hostile_files, proxy_trap

pytestmark = pytest.mark.slow


def test_an_endpoint_that_comes_up_unwatched_is_named_with_its_commands(
    cloud: Rehearsal,  # noqa: F811
    scripted: tuple[Path, Path],  # noqa: F811
) -> None:
    expired = Fault("SageMaker.DescribeEndpoint", after="SageMaker.CreateEndpoint", first=2, **EXPIRED)
    with on_a_bad_day(expired) as day:
        code, _, err = cloud.run("deploy", "exp", "--model", str(scripted[0]), SCRIPT)
    assert day.hits >= 1
    assert code == 1 and "endpoint exp keeps running, for up to $" in err
    assert "to delete it: " in err.splitlines()[-1]
    assert "1 endpoints run" in cloud.done("status")
    boto3.client("sagemaker", region_name="us-east-1").get_waiter("endpoint_in_service").wait(EndpointName="exp")
    cloud.done("delete", "exp")


def test_a_minute_of_503_leaves_the_endpoint_alone(
    cloud: Rehearsal,  # noqa: F811
    scripted: tuple[Path, Path],  # noqa: F811
) -> None:
    for name, operation in (("blip", "SageMaker.DescribeEndpoint"), ("blop", "SageMaker.(DescribeEndpoint|ListTags)")):
        unavailable = Fault(operation, after="SageMaker.CreateEndpoint", last=6, status=503, code="ServiceUnavailable")
        with on_a_bad_day(unavailable) as day:
            cloud.done("deploy", name, "--model", str(scripted[0]), SCRIPT)
        assert day.hits >= 6
        cloud.done("delete", name)
    assert cloud.left() == []


def test_no_command_about_endpoints_calls_anything_but_the_rehearsal(
    cloud: Rehearsal,  # noqa: F811
    scripted: tuple[Path, Path],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with proxy_trap() as (proxies, asked):
        for name, value in {**HOSTILE_VARIABLES, **hostile_files(tmp_path), **proxies}.items():
            monkeypatch.setenv(name, value)
        with Trap(monkeypatch) as trap:
            cloud.done("deploy", "trapped", "--model", str(scripted[0]), SCRIPT)
            cloud.done("query", "trapped", str(scripted[0] / "golden" / "image.jpg"))
            cloud.done("status")
            cloud.done("delete", "trapped")
            cloud.done("delete", "--expired")
    assert trap.foreign == []
    assert asked == []
