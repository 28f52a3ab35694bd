"""What a command says about what it leaves, whatever ends it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from experiments.errors import UserError
from sagemaker_launch.aws.resources import LaunchError
from sagemaker_launch.aws.running import Running, StillRunningError, end_each, keeps_running

EXPIRED = ClientError({"Error": {"Code": "ExpiredTokenException", "Message": "expired"}}, "DescribeTrainingJob")


@pytest.fixture
def running() -> Running:
    return Running(0.23, lambda name: {"to end it": f"stop {name}"})


def test_what_exists_is_named_with_its_cost_and_the_command_that_ends_it(running: Running) -> None:
    running.exists("dogs")
    with pytest.raises(StillRunningError) as left, keeps_running(running):
        raise EXPIRED
    assert str(left.value).splitlines()[1:] == [
        "dogs keeps running, for up to $0.23 an hour",
        "to end it: stop dogs",
    ]


def test_what_may_exist_is_said_to_be_uncertain(running: Running) -> None:
    running.starts("dogs", "endpoint dogs")
    with pytest.raises(StillRunningError, match="endpoint dogs may be running, for up to"), keeps_running(running):
        raise EXPIRED


def test_what_costs_nothing_is_named_too(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    running.made += ["model dogs-1", "schedule dogs"]
    with pytest.raises(KeyboardInterrupt), keeps_running(running):
        raise KeyboardInterrupt
    assert "may be left, at no cost: model dogs-1, schedule dogs" in capsys.readouterr().err


@pytest.mark.parametrize("ended", ["nothing was made", "refused", "removed"])
def test_nothing_is_said_where_nothing_is_left(ended: str, running: Running) -> None:
    error: Exception = EXPIRED
    if ended == "refused":
        running.starts("dogs")
        error = LaunchError("AWS refuses training job dogs")
    if ended == "removed":
        running.exists("dogs")
        running.made.append("model")
        running.has_ended()
    with pytest.raises(type(error)) as raised, keeps_running(running, ended_by=(LaunchError,)):
        raise error
    assert raised.value is error


def ending(**errors: Exception) -> Callable[[str], str]:
    def end(name: str) -> str:
        if name in errors:
            raise errors[name]
        return f"{name}: Stopping"

    return end


def test_one_that_does_not_end_keeps_no_other_from_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StillRunningError, match=r"may still run, and cost money: a. The same command"):
        end_each(["a", "b"], ending(a=EXPIRED))
    assert capsys.readouterr().out == "b: Stopping\n"


def test_without_a_network_all_that_follow_are_named() -> None:
    with pytest.raises(StillRunningError, match=r"may still run, and cost money: b, c. The same command"):
        end_each(["a", "b", "c"], ending(b=EndpointConnectionError(endpoint_url="x")))


def test_a_wrong_name_is_a_mistake_of_the_user() -> None:
    with pytest.raises(UserError, match="found neither"):
        end_each(["dgos"], ending(dgos=UserError("'dgos' must be a job, found neither")))


def test_after_ctrl_c_the_rest_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    def end(name: str) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        end_each(["a", "b"], end)
    assert "may still run, and cost money: a, b." in capsys.readouterr().err
