"""Whatever AWS answers while an endpoint comes up, `deploy` says what is running, and deletes nothing healthy."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from sagemaker_launch.cli import main
from tests.bad_days import DENIED, EXPIRED, Fault, on_a_bad_day
from tests.e2e.test_endpoints import SCRIPT, Rehearsal, cloud, first, scripted, second  # noqa: F401  # fixtures

pytestmark = pytest.mark.slow

CREATED = "SageMaker.CreateEndpoint"
AFTER_AN_ENDPOINT = {
    "expired token": Fault("SageMaker.DescribeEndpoint", after=CREATED, **EXPIRED),
    "no right to describe": Fault("SageMaker.DescribeEndpoint", after=CREATED, first=2, **DENIED),
    "no right to invoke": Fault("sagemaker.POST /endpoints/.*", **DENIED),
}


@pytest.mark.parametrize("fault", AFTER_AN_ENDPOINT.values(), ids=AFTER_AN_ENDPOINT)
def test_a_healthy_endpoint_stays_and_is_accounted_for(
    cloud: Rehearsal,  # noqa: F811
    scripted: tuple[Path, Path],  # noqa: F811
    fault: Fault,
) -> None:
    with on_a_bad_day(fault) as day:
        code, _, err = cloud.run("deploy", "exp", "--model", str(scripted[0]), SCRIPT)
    assert day.hits >= 1
    assert code == 1, err
    runs = "may be" if fault is AFTER_AN_ENDPOINT["expired token"] else "keeps"  # AWS has never described it
    assert f"endpoint exp {runs} running, for up to $0.12 an hour" in err.splitlines()[-2]
    assert "1 endpoints run" in cloud.done("status")
    cloud.done("deploy", "exp", "--model", str(scripted[0]), SCRIPT)
    delete = shlex.split(err.splitlines()[-1].partition("to delete it: ")[2])
    assert main(delete[delete.index("sagemaker_launch") + 1 :]) == 0, "the printed command works as it is"
    assert cloud.left() == []


def test_a_minute_of_503_does_not_delete_an_endpoint(
    cloud: Rehearsal,  # noqa: F811
    scripted: tuple[Path, Path],  # noqa: F811
) -> None:
    unavailable = Fault("SageMaker.DescribeEndpoint", after=CREATED, last=9, status=503, code="ServiceUnavailable")
    with on_a_bad_day(unavailable) as day:
        said = cloud.done("deploy", "blip", "--model", str(scripted[0]), SCRIPT)
    assert day.hits == 9
    assert "AWS (sagemaker) does not answer yet" in said
    cloud.done("delete", "blip")
    assert cloud.left() == []
