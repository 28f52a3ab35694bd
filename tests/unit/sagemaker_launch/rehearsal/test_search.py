"""Search and the lists of the rehearsal: filters, order and pages, by the API reference in botocore's model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from moto.core.utils import camelcase_to_underscores
from moto.sagemaker.exceptions import SagemakerClientError

from sagemaker_launch.rehearsal.listing import page, select
from sagemaker_launch.rehearsal.search import search
from sagemaker_launch.rehearsal.service import Service
from tests.unsent import operation_model

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)


def job(number: int, *, status: str = "Completed", accuracy: float | None = None) -> dict[str, Any]:
    metrics = [] if accuracy is None else [{"MetricName": "val_accuracy", "Value": accuracy, "Timestamp": NOON}]
    return {
        "TrainingJobName": f"dogs-{number}",
        "TrainingJobStatus": status,
        "HyperParameters": {"learning_rate": f"0.{number}", "backbone": "resnet18", "data.name": "dogs"},
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": number},
        "EnableManagedSpotTraining": number > 2,
        "InputDataConfig": [
            {"ChannelName": "code", "DataSource": {"S3DataSource": {"S3Uri": f"s3://code/{number}"}}},
            {"ChannelName": "data", "DataSource": {"S3DataSource": {"S3Uri": "s3://photos/dogs"}}},
        ],
        "FinalMetricDataList": metrics,
        "LastModifiedTime": NOON + timedelta(minutes=number),
        "CreationTime": NOON - timedelta(minutes=number),
        "Tags": [{"Key": "project", "Value": "dogs" if number % 2 else "cats"}, {"Key": "a.b", "Value": "c"}],
        "StatusOfNoInterest": "left out",
    }


JOBS = [job(1, accuracy=0.5), job(2, accuracy=0.9), job(3, status="Failed")]


def found(*filters: Mapping[str, Any], **rest: Any) -> list[int]:
    """Numbers of the jobs that a search finds, newest first."""
    request = {"Resource": "TrainingJob", "SearchExpression": {"Filters": list(filters), **rest}}
    answer = search(JOBS, request)
    names = [each["TrainingJob"]["TrainingJobName"] for each in answer["Results"]]
    assert answer["TotalHits"] == {"Value": len(names), "Relation": "EqualTo"}
    return [int(name.removeprefix("dogs-")) for name in names]


def one(name: str, value: str | None = None, operator: str | None = None) -> dict[str, str]:
    given = {"Name": name, "Operator": operator, "Value": value}
    return {key: each for key, each in given.items() if each is not None}


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        (one("TrainingJobName", "dogs-2"), [2]),
        (one("TrainingJobName", "dogs-2", "NotEquals"), [3, 1]),
        (one("TrainingJobName", "gs-", "Contains"), [3, 2, 1]),
        (one("TrainingJobName", "dogs-1, dogs-3", "In"), [3, 1]),
        (one("TrainingJobStatus", "Failed"), [3]),
        (one("Tags.project", "dogs"), [3, 1]),
        (one("Tags.a.b", "c"), [3, 2, 1]),
        (one("Tags.owner", operator="NotExists"), [3, 2, 1]),
        (one("Metrics.val_accuracy", "0.6", "GreaterThan"), [2]),
        (one("Metrics.val_accuracy", operator="Exists"), [2, 1]),
        (one("HyperParameters.learning_rate", "0.2", "LessThanOrEqualTo"), [2, 1]),
        (one("HyperParameters.learning_rate", "0.20"), [2]),
        (one("HyperParameters.learning_rate", "0"), [3, 2, 1]),  # compared as integers
        (one("HyperParameters.data.name", "dogs"), [3, 2, 1]),
        (one("HyperParameters.backbone", "resnet18"), [3, 2, 1]),
        (one("ResourceConfig.InstanceCount", "2", "GreaterThanOrEqualTo"), [3, 2]),
        (one("ResourceConfig.InstanceCount", "2.0"), [2]),
        (one("EnableManagedSpotTraining", "True"), [3]),
        (one("CreationTime", "2026-11-30T11:58:00", "GreaterThanOrEqualTo"), [2, 1]),
        (one("LastModifiedTime", "2026-11-30T12:01:00"), [1]),
        (one("InputDataConfig.ChannelName", "code"), [3, 2, 1]),
        (one("FailureReason", operator="Exists"), []),
    ],
)
def test_a_filter_finds_what_the_reference_says(wanted: Mapping[str, str], numbers: list[int]) -> None:
    assert found(wanted) == numbers


def test_expressions_are_combined() -> None:
    cats, failed = one("Tags.project", "cats"), one("TrainingJobStatus", "Failed")
    assert found(cats, failed) == []
    assert found(cats, failed, Operator="Or") == [3, 2]
    assert found(SubExpressions=[{"Filters": [cats, failed], "Operator": "Or"}, {"Filters": [failed]}]) == [3]


def test_a_nested_filter_is_satisfied_by_a_single_object() -> None:
    def nested(channel: str) -> dict[str, Any]:
        uri = one("InputDataConfig.DataSource.S3DataSource.S3Uri", "s3://code/2", "Equals")
        return {
            "NestedPropertyName": "InputDataConfig",
            "Filters": [one("InputDataConfig.ChannelName", channel), uri],
        }

    assert found(NestedFilters=[nested("code")]) == [2]
    assert found(NestedFilters=[nested("data")]) == []


def test_results_are_sorted_and_come_in_pages() -> None:
    def names(**request: Any) -> list[str]:
        answer = search(JOBS, {"Resource": "TrainingJob", **request})
        assert answer["TotalHits"]["Value"] == 3, "of all pages"
        return [each["TrainingJob"]["TrainingJobName"] for each in answer["Results"]] + [answer.get("NextToken", "")]

    assert names() == ["dogs-3", "dogs-2", "dogs-1", ""], "the last modified first"
    assert names(SortBy="CreationTime", SortOrder="Ascending")[:3] == ["dogs-3", "dogs-2", "dogs-1"]
    assert names(SortBy="Metrics.val_accuracy") == ["dogs-2", "dogs-1", "dogs-3", ""], "those without it last"
    *first, token = names(MaxResults=2)
    assert first == ["dogs-3", "dogs-2"] and names(MaxResults=2, NextToken=token) == ["dogs-1", ""]


def test_a_metric_of_zero_is_sorted_by_its_value() -> None:
    jobs = [job(1, accuracy=0.0), job(2, accuracy=1.0), job(3), job(4, accuracy=-1.0)]
    request = {"Resource": "TrainingJob", "SortBy": "Metrics.val_accuracy", "SortOrder": "Ascending"}
    names = [each["TrainingJob"]["TrainingJobName"] for each in search(jobs, request)["Results"]]
    assert names == ["dogs-4", "dogs-1", "dogs-2", "dogs-3"]


def test_a_record_has_the_fields_of_the_model_and_its_tags() -> None:
    [record, *_] = search(JOBS, {"Resource": "TrainingJob"})["Results"]
    assert record["TrainingJob"]["Tags"] and "StatusOfNoInterest" not in record["TrainingJob"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (one("TrainingJobNames", "x"), "TrainingJobNames is not a property"),
        (one("ResourceConfig.Machine", "x"), "ResourceConfig.Machine is not a property"),
        (one("TrainingJobName", "x", "GreaterThan"), "GreaterThan is not supported for text"),
        (one("ResourceConfig.InstanceCount", "many"), "Value must be a number, got many"),
        (one("ResourceConfig.InstanceCount", "1", "Contains"), "only supported for text"),
        (one("CreationTime", "yesterday", "LessThan"), "YYYY-mm-ddTHH:MM:SS, got yesterday"),
        (one("TrainingJobName"), "Value must be given"),
        (one("TrainingJobName", "x", "Exists"), "unless Operator is Exists"),
    ],
)
def test_a_filter_that_makes_no_sense_is_refused(wanted: Mapping[str, str], message: str) -> None:
    with pytest.raises(SagemakerClientError, match=re.escape(message)):
        found(wanted)


def test_an_empty_and_an_overlong_expression_are_refused() -> None:
    for expression, message in (({}, "at least one"), ({"Filters": [one("Tags.a", "x")] * 21}, "at most 20")):
        with pytest.raises(SagemakerClientError, match=message):
            search(JOBS, {"Resource": "TrainingJob", "SearchExpression": expression})
    twice = [one("TrainingJobName", "a", "Contains")] * 2
    with pytest.raises(SagemakerClientError, match="'CONTAINS' operator usage limit of 1 exceeded"):
        found(*twice)


@dataclass
class Listed:
    name: str
    minute: int
    status: str = "Completed"

    @property
    def created(self) -> datetime:
        return NOON + timedelta(minutes=self.minute)

    @property
    def modified(self) -> datetime:
        return NOON + timedelta(minutes=10 - self.minute)

    def summary(self) -> str:
        return self.name


THREE = [Listed("b", 1), Listed("c", 2, "Failed"), Listed("a", 3)]


def listed(operation: str, request: Mapping[str, Any]) -> list[str]:
    """Names that a list operation answers with, from what it lists."""
    machine: Any = None  # nothing runs
    service = Service("us-east-1", machine)
    hosting: Any = service.hosting
    kept: list[Any] = [service.training_jobs, service.tuning_jobs, hosting.endpoints, *hosting._resources.values()]
    for each in kept:
        each.update({one.name: one for one in THREE})
    method = camelcase_to_underscores(operation)
    answer = getattr(service if hasattr(service, method) else hosting, method)(request)
    [names] = [value for key, value in answer.items() if key != "NextToken"]
    return list(names)


@pytest.mark.parametrize(
    "operation",
    ["ListTrainingJobs", "ListHyperParameterTuningJobs", "ListModels", "ListEndpointConfigs", "ListEndpoints"],
)
def test_a_list_has_the_order_and_the_filters_that_its_reference_says(operation: str) -> None:
    shape = operation_model("sagemaker", operation).input_shape
    assert shape is not None
    said = {name: re.sub("<[^>]+>", "", member.documentation) for name, member in shape.members.items()}
    by = re.search(r"default is (\w+)", said["SortBy"])
    order = re.search(r"default is (\w+)", said["SortOrder"])
    assert by is not None and order is not None
    expected = sorted(THREE, key=lambda each: each.name if by[1] == "Name" else each.minute)
    names = [each.name for each in (reversed(expected) if order[1] == "Descending" else expected)]
    assert listed(operation, {}) == names
    assert listed(operation, {"SortBy": "Name", "SortOrder": "Ascending"}) == ["a", "b", "c"]
    assert listed(operation, {"NameContains": "c"}) == ["c"]
    from_second = {"CreationTimeAfter": (NOON + timedelta(minutes=2)).timestamp()}
    inclusive = "greater than or equal" in said["CreationTimeAfter"]
    assert sorted(listed(operation, from_second)) == (["a", "c"] if inclusive else ["a"])
    assert sorted(listed(operation, {"CreationTimeBefore": from_second["CreationTimeAfter"]})) == ["b"]
    if "LastModifiedTimeAfter" in said:
        assert listed(operation, {"LastModifiedTimeAfter": (NOON + timedelta(minutes=8)).timestamp()}) == ["b"]
        assert listed(operation, {"StatusEquals": "Failed"}) == ["c"]


def test_pages_end_and_refuse_tokens_of_somebody_else() -> None:
    assert select(THREE, {"MaxResults": 1}) == THREE, "pages are cut afterwards"
    first = page([{"n": 1}, {"n": 2}], {"MaxResults": 1}, "Jobs")
    assert page([{"n": 1}, {"n": 2}], {"MaxResults": 1, "NextToken": first["NextToken"]}, "Jobs") == {
        "Jobs": [{"n": 2}]
    }
    for token in ("x", "LTU="):  # -5
        with pytest.raises(SagemakerClientError, match="Invalid NextToken"):
            page([], {"NextToken": token}, "Jobs")
