"""Whatever AWS answers after something was created, a command ends by saying what is running, and deletes nothing
healthy."""

from __future__ import annotations

import re
import shlex

import pytest

from sagemaker_launch.cli import main
from tests.bad_days import DENIED, EXPIRED, Fault, on_a_bad_day
from tests.cloud import Cloud

pytestmark = pytest.mark.slow

AFTER_A_START = {
    "expired token": Fault("SageMaker.DescribeTrainingJob", first=4, **EXPIRED),
    "no right to the log": Fault("Logs_20140328.DescribeLogStreams", **DENIED),
    "no right to describe": Fault("SageMaker.DescribeTrainingJob", first=3, **DENIED),
}


@pytest.mark.parametrize("fault", AFTER_A_START.values(), ids=AFTER_A_START)
def test_a_job_that_is_watched_no_more_is_accounted_for(
    flow: Cloud, fault: Fault, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = f"--seed={1000 + list(AFTER_A_START.values()).index(fault)}"
    with flow.in_reach():
        with on_a_bad_day(fault) as day:
            code = flow.run("train", seed)
        err = capsys.readouterr().err
        assert day.hits >= 1
        assert code == 1, err
        last = err.splitlines()[-3:]
        assert re.search(r"keeps running, for up to \$[\d.]+ an hour$", last[0])
        assert "Traceback" not in err
        stop = shlex.split(last[2].partition("to end it: ")[2])
        assert main(stop[stop.index("sagemaker_launch") + 1 :]) == 0, "the printed command works as it is"


BEARABLE = {
    "tags not found": Fault(
        "SageMaker.ListTags", last=1, status=400, code="ValidationException", message="Could not find resource"
    ),
    "tags late": Fault("SageMaker.ListTags", last=3, body=b'{"Tags": []}'),
    "503": Fault("SageMaker.DescribeTrainingJob", first=3, last=8, status=503, code="ServiceUnavailable"),
    "answer lost": Fault("SageMaker.CreateTrainingJob", last=1, lost="answer"),
    "connection lost": Fault("Logs_20140328.GetLogEvents", last=2, lost="request"),
}


@pytest.mark.parametrize("fault", BEARABLE.values(), ids=BEARABLE)
def test_a_job_is_watched_to_its_end_all_the_same(
    flow: Cloud, fault: Fault, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = f"--seed={2000 + list(BEARABLE.values()).index(fault)}"
    with flow.in_reach(), on_a_bad_day(fault) as day:
        code = flow.run("train", seed)
    assert day.hits >= 1
    assert code == 0, capsys.readouterr().err
