"""Starting a job once, whatever happens to the answers."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from experiments.config import RunConfig
from sagemaker_launch.aws.readback import ProtectionError
from sagemaker_launch.aws.resources import TRAINING, TUNING, LaunchError, UnansweredError
from sagemaker_launch.container.machines import run_folder_name
from sagemaker_launch.jobs.launch import Build, job_name, launch
from sagemaker_launch.jobs.requests import training_job
from sagemaker_launch.settings.cloud import CloudSettings, load_cloud
from tests.unit.sagemaker_launch.jobs.test_requests import BASIC, INPUTS, tune


class Service:
    """Training jobs of an account, whose answers may get lost."""

    def __init__(self, fault: Callable[[], Exception | None] = lambda: None, lose: float = 0.0) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.stopped: list[str] = []
        self.change: dict[str, Any] = {}
        self.lose_tags = False
        self._fault, self._lose = fault, lose

    def create_training_job(self, **request: Any) -> dict[str, Any]:
        fault = self._fault()
        if fault is not None and random.random() > self._lose:
            raise fault
        if request["TrainingJobName"] in self.jobs:
            raise error("ResourceInUse", 400)
        arn = f"arn:{request['TrainingJobName']}"
        state = {"TrainingJobStatus": "InProgress", "TrainingJobArn": arn, "CreationTime": datetime.now(UTC)}
        self.jobs[request["TrainingJobName"]] = {**request, **state}
        if fault is not None:
            raise fault
        return {"TrainingJobArn": arn}

    def describe_training_job(self, TrainingJobName: str) -> dict[str, Any]:
        if TrainingJobName not in self.jobs:
            raise error("ValidationException", 400)
        return self.jobs[TrainingJobName] | self.change

    def get_paginator(self, operation: str) -> Service:
        assert operation == "list_tags"
        return self

    def paginate(self, ResourceArn: str) -> list[dict[str, Any]]:
        return [{"Tags": [] if self.lose_tags else self.jobs[ResourceArn.removeprefix("arn:")]["Tags"]}]

    def stop_training_job(self, TrainingJobName: str) -> None:
        self.stopped.append(TrainingJobName)


def error(code: str, status: int) -> ClientError:
    answer = {"Error": {"Code": code, "Message": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "CreateTrainingJob")


def build(seed: int = 0, settings: CloudSettings | None = None) -> Build:
    settings = settings or load_cloud(None, BASIC)

    def request(name: str, checkpoints: str = "") -> dict[str, Any]:
        return training_job(settings, RunConfig(seed=seed), INPUTS, "image", name=name, checkpoints=checkpoints)

    return request


def checkpoints(service: Service, name: str) -> str:
    """Where a job keeps its checkpoints."""
    return str(service.jobs[name]["CheckpointConfig"]["S3Uri"])


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)


def test_the_same_work_has_the_same_name_and_other_work_another() -> None:
    assert job_name("dogs", build(1), 1) == job_name("dogs", build(1), 1)
    assert len({job_name("dogs", build(1), 1), job_name("dogs", build(2), 1), job_name("dogs", build(1), 2)}) == 3


@pytest.mark.parametrize("label", ["dogs6", "my experiment/№ 7", "-" * 40, "", "a" * 80])
def test_a_name_is_one_that_a_tuning_job_may_have(label: str) -> None:
    from sagemaker_launch.aws.resources import validate

    request = tune(load_cloud(None, BASIC))
    request["HyperParameterTuningJobName"] = job_name(label, build(), 12)
    validate("CreateHyperParameterTuningJob", request)
    assert len(request["HyperParameterTuningJobName"]) <= 32


def test_asking_twice_finds_the_job() -> None:
    service = Service()
    first = launch(service, TRAINING, "dogs", build())
    second = launch(service, TRAINING, "dogs", build())
    assert (first.found, second.found) == (False, True)
    assert first.arn == second.arn
    assert len(service.jobs) == 1


@pytest.mark.parametrize("status", ["Failed", "Stopped"])
def test_what_failed_or_was_stopped_is_tried_again_under_the_next_name(status: str) -> None:
    service = Service()
    first = launch(service, TRAINING, "dogs", build())
    service.jobs[first.name]["TrainingJobStatus"] = status
    second = launch(service, TRAINING, "dogs", build())
    assert first.name.endswith("-1")
    assert second.name.endswith("-2")
    assert checkpoints(service, second.name) == checkpoints(service, first.name), "paid for, and not lost"
    assert run_folder_name(first.name) == run_folder_name(second.name) == first.name.removesuffix("-1")


def test_again_starts_another_one_beside_a_complete_one() -> None:
    service = Service()
    first = launch(service, TRAINING, "dogs", build())
    service.jobs[first.name]["TrainingJobStatus"] = "Completed"
    assert launch(service, TRAINING, "dogs", build()).name == first.name
    second = launch(service, TRAINING, "dogs", build(), again=True)
    assert second.name != first.name
    assert checkpoints(service, second.name) != checkpoints(service, first.name), "it starts in an empty folder"
    service.jobs[second.name]["TrainingJobStatus"] = "Stopped"
    third = launch(service, TRAINING, "dogs", build(), again=True)
    assert third.name.endswith("-3")
    assert checkpoints(service, third.name) == checkpoints(service, second.name)
    service.jobs[third.name]["TrainingJobStatus"] = "Completed"
    fourth = launch(service, TRAINING, "dogs", build(), again=True)
    folders = {checkpoints(service, each.name) for each in (first, second, third, fourth)}
    assert len(folders) == 3
    assert all(folder.endswith("/") for folder in folders), "or the one of dogs-1 begins as that of dogs-10 does"


def test_without_again_the_newest_job_is_found() -> None:
    service = Service()
    first = launch(service, TRAINING, "dogs", build())
    service.jobs[first.name]["TrainingJobStatus"] = "Completed"
    second = launch(service, TRAINING, "dogs", build(), again=True)
    running = launch(service, TRAINING, "dogs", build())
    assert (running.name, running.found, running.is_running) == (second.name, True, True)
    service.jobs[second.name]["TrainingJobStatus"] = "Completed"
    ended = launch(service, TRAINING, "dogs", build())
    assert (ended.name, ended.found, ended.is_running) == (second.name, True, False)
    assert list(service.jobs) == [first.name, second.name], "nothing is paid for twice"


@pytest.mark.parametrize("status", ["Failed", "Stopped"])
def test_without_again_one_that_again_started_and_that_did_not_end_is_continued(status: str) -> None:
    service = Service()
    first = launch(service, TRAINING, "dogs", build())
    service.jobs[first.name]["TrainingJobStatus"] = "Completed"
    second = launch(service, TRAINING, "dogs", build(), again=True)
    service.jobs[second.name]["TrainingJobStatus"] = status
    third = launch(service, TRAINING, "dogs", build())
    assert third.name.endswith("-3")
    assert checkpoints(service, third.name) == checkpoints(service, second.name)


@pytest.mark.parametrize(
    "name",
    ["dogs-1", "dogs-2026-11-30-07-40-00-123", "dogs-1a2b3c4d5e-1-001-1a2b3c4d", "1a2b3c4d5e-1", "dogs-1a2b3c4d5e"],
)
def test_names_of_other_programs_and_of_tuning_jobs_are_whole_folders(name: str) -> None:
    assert run_folder_name(name) == name
    assert run_folder_name("dogs-1a2b3c4d5e-12") == "dogs-1a2b3c4d5e"


@pytest.mark.parametrize(
    "fault",
    [ReadTimeoutError(endpoint_url="http://x"), error("ThrottlingException", 400), error("InternalFailure", 500)],
    ids=["time-out", "throttled", "500"],
)
def test_a_lost_answer_starts_no_second_job(fault: Exception) -> None:
    random.seed(0)
    for lose in (0.0, 1.0):  # the request got lost, or only its answer
        faults = iter([fault, None])
        service = Service(lambda: next(faults, None), lose)  # noqa: B023
        assert not launch(service, TRAINING, "dogs", build()).found
        assert len(service.jobs) == 1


def test_fifty_launches_on_a_bad_day_leave_fifty_jobs() -> None:
    chance = random.Random(1)
    random.seed(2)
    service = Service(lambda: error("InternalFailure", 500) if chance.random() < 0.2 else None, lose=0.5)
    names = {launch(service, TRAINING, "dogs", build(seed)).name for seed in range(50)}
    assert names == set(service.jobs)
    assert len(names) == 50


def test_a_refusal_is_passed_on_and_not_tried_again() -> None:
    calls: list[int] = []

    def refuse() -> Exception:
        calls.append(1)
        return error("ResourceLimitExceeded", 400)

    with pytest.raises(LaunchError, match="ResourceLimitExceeded"):
        launch(Service(refuse), TRAINING, "dogs", build())
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("debug", "code", "offered"),
    [
        (True, "ValidationException", True),
        (False, "ValidationException", False),
        (True, "ResourceLimitExceeded", False),
    ],
)
def test_a_job_with_debugger_that_is_refused_is_offered_the_recorder(debug: bool, code: str, offered: bool) -> None:
    settings = load_cloud(None, BASIC | {"debugger.enabled": debug})
    service = Service(lambda: error(code, 400))
    with pytest.raises(LaunchError, match="AWS refuses training job") as refused:
        launch(service, TRAINING, "dogs", build(settings=settings))
    assert ("closed to new customers since 2026-07-30" in str(refused.value)) is offered
    assert ("--recorder" in str(refused.value)) is offered


def test_a_lost_answer_names_the_next_step() -> None:
    service = Service(lambda: error("InternalFailure", 500))
    with pytest.raises(UnansweredError, match="run the same command again"):
        launch(service, TRAINING, "dogs", build())


@pytest.mark.parametrize("code", ["ExpiredTokenException", "AccessDeniedException"])
def test_a_job_that_was_created_and_is_not_described_is_not_taken_for_refused(code: str) -> None:
    service, started = Service(), list[str]()
    find = service.describe_training_job

    def describe(TrainingJobName: str) -> dict[str, Any]:
        if TrainingJobName in service.jobs:
            raise error(code, 400)
        return find(TrainingJobName)

    service.describe_training_job = describe
    with pytest.raises(UnansweredError, match=rf"was created, but not described: .*{code}"):
        launch(service, TRAINING, "dogs", build(), starts=started.append)
    assert started == list(service.jobs), "the command knows the name before the job exists"


def test_a_job_that_aws_finds_some_seconds_later_is_started() -> None:
    service, looks = Service(), list[str]()
    find = service.describe_training_job

    def describe(TrainingJobName: str) -> dict[str, Any]:
        looks.append(TrainingJobName)
        if len(looks) in (2, 3):
            raise error("ValidationException", 400)
        return find(TrainingJobName)

    service.describe_training_job = describe
    assert not launch(service, TRAINING, "dogs", build()).found
    assert len(service.jobs) == 1


def test_a_job_without_a_protection_that_was_asked_for_is_stopped() -> None:
    service = Service()
    service.change = {"EnableNetworkIsolation": True}
    with pytest.raises(ProtectionError, match=r"EnableNetworkIsolation .* the job was stopped"):
        launch(service, TRAINING, "dogs", build())
    assert service.stopped == list(service.jobs)


def test_any_other_difference_is_printed_and_the_job_runs() -> None:
    service = Service()
    service.change = {"AlgorithmSpecification": {"TrainingImage": "another", "TrainingInputMode": "file"}}
    service.lose_tags = True
    launched = launch(service, TRAINING, "dogs", build())
    assert service.stopped == []
    assert any(
        "TrainingImage was sent as 'image', AWS has 'another'" in difference for difference in launched.differences
    )
    assert any(difference.startswith("tag project was sent as") for difference in launched.differences)
    assert not any("TrainingInputMode" in difference for difference in launched.differences)


def test_a_check_that_aws_does_not_answer_stops_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service()
    monkeypatch.setattr(service, "paginate", lambda **_: (_ for _ in ()).throw(error("ExpiredTokenException", 400)))
    launched = launch(service, TRAINING, "dogs", build())
    assert service.stopped == []
    assert "could not be compared with what was sent: " in launched.differences[0]


def test_both_kinds_name_operations_that_the_api_has() -> None:
    import botocore.session

    model = botocore.session.get_session().get_service_model("sagemaker")
    for job_type in (TRAINING, TUNING):
        shape = model.operation_model(job_type.create_operation).input_shape
        assert job_type.name in shape.members
