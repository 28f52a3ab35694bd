"""What is noticed in AWS's answers, by answers of botocore's operations as bytes, with one difference each."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from botocore.config import Config

from sagemaker_launch.aws import recording
from sagemaker_launch.aws.recording import FOLDER, Shapes, read_shapes, record
from sagemaker_launch.aws.response_shapes import Shape
from sagemaker_launch.aws.shape_differences import differences, unknown_operations

JOB: dict[str, Any] = {
    "TrainingJobName": "secret-name",
    "TrainingJobArn": "arn:aws:sagemaker:us-east-1:123456789012:training-job/secret-name",
    "TrainingJobStatus": "InProgress",
    "SecondaryStatus": "Training",
    "HyperParameters": {"a": "1", "b": "2"},
    "AlgorithmSpecification": {
        "TrainingInputMode": "File",
        "MetricDefinitions": [{"Name": "loss", "Regex": "x"}, {"Name": "accuracy", "Regex": "y"}],
    },
    "CreationTime": 1.5,
}
BUCKET = (
    '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>secret</Name><KeyCount>2</KeyCount>'
    "<Contents><Key>a</Key><Size>1</Size></Contents><Contents><Key>b</Key><Size>1</Size></Contents></ListBucketResult>"
)


class Raw:
    """The body of an answer as urllib3 has it."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    def stream(self, **_: Any) -> list[bytes]:
        return [self.body]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Shapes]:
    """Lets botocore get some answers, one after the other, and returns what was recorded of them."""
    runs = iter(range(99))

    def run(service: str, call: str, given: dict[str, Any], *answers: object, code: int = 200) -> Shapes:
        folder = tmp_path / str(next(runs))
        folder.mkdir()
        monkeypatch.setenv(FOLDER, str(folder))
        monkeypatch.setattr(recording, "_recordings", {})
        once = Config(retries={"total_max_attempts": 1})
        keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b"}
        client: Any = boto3.client(service, region_name="us-east-1", config=once, **keys)
        record(client)
        bodies = [(one if isinstance(one, str) else json.dumps(one)).encode() for one in answers]
        left = iter(bodies)

        def send(request: Any, **_: Any) -> AWSResponse:
            return AWSResponse(request.url, code, {}, Raw(next(left)))

        client.meta.events.register_last("before-send", send)
        for _ in answers:
            try:
                getattr(client, call)(**given)
            except client.exceptions.ClientError:
                assert code >= 300
        assert next(left, None) is None
        return read_shapes(folder)

    return run


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    job = copy.deepcopy(JOB)
    change(job)
    return job


def turned(job: dict[str, Any]) -> dict[str, Any]:
    return dict(reversed(job.items()))


DESCRIBE = ("sagemaker", "describe_training_job", {"TrainingJobName": "secret-name"})
CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "missing": (lambda job: job.pop("CreationTime"), ".CreationTime"),
    "missing within": (lambda job: job["AlgorithmSpecification"]["MetricDefinitions"][0].pop("Regex"), ".Regex"),
    "extra": (lambda job: job.update(NewField="x"), ".NewField"),
    "null": (lambda job: job.update(CreationTime=None), ".CreationTime"),
    "type": (lambda job: job.update(CreationTime="1.5"), ".CreationTime"),
    "case": (lambda job: job.update(creationTime=job.pop("CreationTime")), ".CreationTime"),
    "case of a value": (lambda job: job.update(TrainingJobStatus="INPROGRESS"), ".TrainingJobStatus"),
    "enumeration": (lambda job: job.update(SecondaryStatus="Warming"), ".SecondaryStatus"),
    "order": (lambda job: job["AlgorithmSpecification"]["MetricDefinitions"].reverse(), ".MetricDefinitions"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_one_difference_is_named_once_with_its_place_and_kind(ask: Callable[..., Shapes], name: str) -> None:
    change, place = CHANGES[name]
    expected, found = ask(*DESCRIBE, JOB), ask(*DESCRIBE, changed(change))
    assert differences(expected, expected) == []
    (difference,) = differences(expected, found)
    assert difference.kind == name.split()[0]
    assert difference.path.endswith(place)
    assert difference.operation == "sagemaker.DescribeTrainingJob"


def test_another_order_of_members_is_one_difference(ask: Callable[..., Shapes]) -> None:
    (difference,) = differences(ask(*DESCRIBE, JOB), ask(*DESCRIBE, turned(JOB)))
    assert (difference.kind, difference.path) == ("order", "")


def test_what_is_late_is_named_where_it_never_was(ask: Callable[..., Shapes]) -> None:
    tags = ("sagemaker", "list_tags", {"ResourceArn": "arn:aws:sagemaker:us-east-1:123456789012:model/m"})
    whole: dict[str, Any] = {"Tags": [{"Key": "a", "Value": "b"}]}
    expected = ask(*tags, whole, whole)
    (difference,) = differences(expected, ask(*tags, {"Tags": []}, whole))
    assert (difference.kind, difference.path) == ("late", ".Tags")
    assert differences(ask(*tags, {"Tags": []}, whole), ask(*tags, {"Tags": []}, whole)) == []


def test_keys_of_the_user_are_no_names_of_fields(ask: Callable[..., Shapes]) -> None:
    other = changed(lambda job: job.update(HyperParameters={"c": "3"}))
    assert differences(ask(*DESCRIBE, JOB), ask(*DESCRIBE, other)) == []


def test_a_field_that_comes_with_one_state_alone_is_not_missing_in_another(ask: Callable[..., Shapes]) -> None:
    done = changed(
        lambda job: job.update(TrainingJobStatus="Completed", SecondaryStatus="Completed", ModelArtifacts={})
    )
    assert differences(ask(*DESCRIBE, JOB, done), ask(*DESCRIBE, JOB)) == []
    (difference,) = differences(
        ask(*DESCRIBE, JOB, done), ask(*DESCRIBE, {key: done[key] for key in done if key != "ModelArtifacts"})
    )
    assert (difference.kind, difference.path) == ("missing", ".ModelArtifacts")


def test_xml_is_compared_like_json(ask: Callable[..., Shapes]) -> None:
    listing = ("s3", "list_objects_v2", {"Bucket": "secret"})
    expected = ask(*listing, BUCKET)
    assert expected["s3.ListObjectsV2"][""].members["Contents"].kinds == {"list"}
    one = BUCKET.replace("<Contents><Key>b</Key><Size>1</Size></Contents>", "<Contents><Key>b</Key></Contents>")
    (difference,) = differences(expected, ask(*listing, one))
    assert (difference.kind, difference.path) == ("missing", ".Contents[].Size")
    (difference,) = differences(expected, ask(*listing, BUCKET.replace("KeyCount>", "keyCount>")))
    assert (difference.kind, difference.path) == ("case", ".KeyCount")


def test_a_refusal_is_a_difference_and_a_busy_service_is_not(ask: Callable[..., Shapes]) -> None:
    expected = ask(*DESCRIBE, JOB)
    refused = ask(*DESCRIBE, {"__type": "com.amazonaws#AccessDeniedException", "message": "secret"}, code=400)
    assert [one.line() for one in differences(expected, refused)] == [
        "sagemaker.DescribeTrainingJob: refusal: AWS answers 400 AccessDeniedException"
    ]
    busy = ask(*DESCRIBE, {"__type": "ThrottlingException"}, code=400)
    assert differences(expected, busy) == []
    assert unknown_operations({}, busy) == ["sagemaker.DescribeTrainingJob"]


def test_nothing_that_an_answer_says_is_recorded(ask: Callable[..., Shapes], tmp_path: Path) -> None:
    ask(*DESCRIBE, JOB, JOB)
    ask("s3", "list_objects_v2", {"Bucket": "secret"}, BUCKET)
    files = list(tmp_path.glob("*/*.jsonl"))
    assert len(files) == 2
    for file in files:
        text = file.read_text()
        assert "secret" not in text and "123456789012" not in text and "arn:" not in text


def test_a_shape_is_read_as_it_was_written(ask: Callable[..., Shapes]) -> None:
    (states,) = ask(*DESCRIBE, JOB, changed(lambda job: job.update(CreationTime=None))).values()
    for shape in states.values():
        assert Shape.from_json(json.loads(json.dumps(shape.to_json()))) == shape
        assert list(Shape.from_json(shape.to_json()).members) == list(shape.members)
