"""What an endpoint's thread does when a container does not start, without a process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from sagemaker_launch.rehearsal.endpoints import runner
from sagemaker_launch.rehearsal.endpoints.endpoints import Endpoint, Fleet, Resource, Variant
from sagemaker_launch.rehearsal.endpoints.runner import EndpointRunner
from sagemaker_launch.rehearsal.machine.objects import DataError
from tests.unit.sagemaker_launch.rehearsal.endpoints.test_rules import CONFIG, MODEL, VARIANT


class Container:
    """A ServingProcess whose starts raise the errors that it is given, one after the other."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.running, self.ended = False, 0

    def prepare(self) -> None:
        pass

    def start(self) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.running = True

    def wait_until_healthy(self, timeout_seconds: float, give_up: Callable[[], bool]) -> None:
        pass

    def end(self) -> None:
        self.running = False
        self.ended += 1

    def stop(self, grace_seconds: float) -> None:
        self.end()


def fleet(container: Any) -> Fleet:
    variant = Variant(VARIANT, MODEL["PrimaryContainer"], container, 1.0, 1)
    return Fleet(Resource("EndpointConfig", "arn:dogs", CONFIG), [variant])


@pytest.fixture
def container() -> Container:
    return Container()


@pytest.fixture
def endpoint(container: Container) -> Endpoint:
    return Endpoint("arn:dogs", "dogs", [], fleet(container))


@pytest.fixture
def thread(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> Iterator[EndpointRunner]:
    """The thread of the endpoint, which looks at its container and restarts it without a pause."""
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(runner, "RESTART_SECONDS", 0.0)
    machine: Any = SimpleNamespace(shutdown=threading.Event(), settings=SimpleNamespace(grace_seconds=0.0))
    made = EndpointRunner(endpoint, "us-east-1", machine, lambda _: None)
    yield made
    machine.shutdown.set()
    made.join()


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("error", [OSError("no space left"), DataError("no Java")])
def test_a_container_that_does_not_restart_is_restarted_again_and_its_endpoint_can_be_deleted(
    endpoint: Endpoint, container: Container, thread: EndpointRunner, error: Exception
) -> None:
    thread.start()
    wait_until(lambda: endpoint.status == "InService")
    container.errors, container.running = [error, error], False
    wait_until(lambda: container.running)
    assert (endpoint.status, container.errors) == ("InService", [])
    container.errors, container.running = [error] * 10_000, False
    wait_until(lambda: len(container.errors) < 10_000)
    thread.delete()
    thread.join(5)
    assert not thread.is_alive()


def test_a_bug_in_the_watch_fails_the_endpoint_which_can_be_deleted(
    endpoint: Endpoint, container: Container, thread: EndpointRunner
) -> None:
    thread.start()
    wait_until(lambda: endpoint.status == "InService")
    container.errors, container.running = [ZeroDivisionError("bug")], False
    wait_until(lambda: endpoint.status == "Failed")
    assert endpoint.failure_reason == "Request to service failed. (ZeroDivisionError('bug'))"
    thread.delete()
    thread.join(5)
    assert not thread.is_alive()


def test_an_endpoint_whose_first_container_can_not_be_started_fails_and_leaves_no_process(
    endpoint: Endpoint, container: Container, thread: EndpointRunner
) -> None:
    container.errors = [OSError("no space left")]
    thread.start()
    wait_until(lambda: endpoint.status == "Failed")
    assert (endpoint.failure_reason, container.ended) == ("no space left", 1)


def test_an_update_whose_container_can_not_be_started_keeps_the_old_one(
    endpoint: Endpoint, container: Container, thread: EndpointRunner
) -> None:
    thread.start()
    wait_until(lambda: endpoint.status == "InService")
    old, new = endpoint.blue, Container()
    new.errors = [OSError("no space left")]
    endpoint.green = fleet(new)
    endpoint.begin("Updating")
    thread.update({})
    wait_until(lambda: endpoint.status == "InService")
    assert (endpoint.failure_reason, endpoint.blue, endpoint.green) == ("no space left", old, None)
    assert container.running and new.ended == 1
