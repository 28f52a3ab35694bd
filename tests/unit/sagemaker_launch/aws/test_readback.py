"""What AWS describes is compared with what was sent, as AWS's own records show it."""

from __future__ import annotations

import copy
import json
import random
from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import given, settings, strategies

from sagemaker_launch.aws.readback import PROTECTED, ProtectionError, differences, read_back
from sagemaker_launch.aws.resources import TAG_PAUSES, TUNING
from sagemaker_launch.endpoints.requests import deployment
from sagemaker_launch.settings.cloud import load_cloud
from tests.unit.sagemaker_launch.jobs.test_requests import BASIC, EVERYTHING, train, tune

ALL = load_cloud(None, EVERYTHING)


def requests() -> list[dict[str, Any]]:
    """A request of each kind whose description is compared."""
    version = deployment(load_cloud(None, BASIC), "dogs", "image", "s3://b/m")
    return [tune(ALL), train(ALL), version.model, version.config]


def as_aws_describes(request: dict[str, Any], chance: random.Random) -> Any:
    """A description with what AWS's records differ in: more fields, more entries, another order, case and defaults."""

    def changed(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            items = [(key, changed(inner, key)) for key, inner in value.items() if inner not in (False, {}, [])]
            chance.shuffle(items)
            return {**dict(items), "FieldOfNextYear": {"Enabled": True}}
        if isinstance(value, list):
            entries = [changed(entry, key) for entry in value]
            if key == "MetricDefinitions":
                entries.append({"Name": "ObjectiveMetric", "Regex": "val_loss=([0-9.]+)"})
            chance.shuffle(entries)
            return entries
        if key in ("TrainingInputMode", "S3DataType", "CompressionType"):
            return value.upper()
        return value

    described = changed({key: value for key, value in request.items() if key != "Tags"})
    described.get("OutputDataConfig", {}).setdefault("KmsKeyId", "")
    if "TrainingJobDefinition" in described:
        hyperparameters = described["TrainingJobDefinition"]["StaticHyperParameters"]
        hyperparameters["_tuning_objective_metric"] = json.dumps("val_loss")
    return described


@given(seed=strategies.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_what_aws_adds_reorders_or_fills_in_is_no_difference(seed: int) -> None:
    for request in requests():
        described = as_aws_describes(request, random.Random(seed))
        assert list(differences(request, described)) == []


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values in a request."""
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in leaves(inner, (*path, key))]
    if isinstance(value, list):
        return [leaf for index, inner in enumerate(value) for leaf in leaves(inner, (*path, index))]
    return [path]


@pytest.mark.parametrize("lost", [True, False], ids=["lost", "changed"])
def test_each_value_that_aws_lost_or_changed_is_named(lost: bool) -> None:
    count = 0
    for request in requests():
        sent = {key: value for key, value in request.items() if key != "Tags"}
        for path in leaves(sent):
            described = copy.deepcopy(sent)
            where: Any = described
            for key in path[:-1]:
                where = where[key]
            if lost and where[path[-1]] in (False, 0, "", None):
                continue  # a default that AWS may leave out
            if lost:
                del where[path[-1]]
            else:
                where[path[-1]] = "something else"
            found = list(differences(request, described))
            named = [str(key) for key in path if not isinstance(key, int)]
            assert found, path
            assert any(key in found[0].path for key in named), (path, found)
            assert found[0].is_protected == (not PROTECTED.isdisjoint(path)), (path, found)
            count += 1
    assert count > 150


@pytest.mark.parametrize(
    ("sent", "described", "is_same"),
    [
        ("alias/mine", "arn:aws:kms:us-east-1:123456789012:key/1", True),
        ("key-1", "arn:aws:kms:us-east-1:123456789012:key/key-1", True),
        ("key-1", "arn:aws:kms:us-east-1:123456789012:key/key-2", False),
        ("alias/mine", "", False),
        ("alias/mine", "alias/theirs", False),
    ],
)
def test_names_of_a_key_are_compared_as_aws_writes_them(sent: str, described: str, is_same: bool) -> None:
    request = {"OutputDataConfig": {"KmsKeyId": sent}, "Tags": []}
    found = list(differences(request, {"OutputDataConfig": {"KmsKeyId": described}}))
    assert (not found) is is_same


def test_a_number_may_be_written_otherwise() -> None:
    assert list(differences({"MinValue": "1e-05", "Tags": []}, {"MinValue": "0.00001"})) == []
    assert len(list(differences({"MinValue": "1e-05", "Tags": []}, {"MinValue": "0.0001"}))) == 1


class Account:
    """SageMaker with one tuning job, whose description and tags become complete after some looks."""

    def __init__(self, request: dict[str, Any], *, late_tags: int = 0, late_fields: int = 0) -> None:
        self.request, self.late_tags, self.late_fields = request, late_tags, late_fields
        self.looks = 0

    def describe_hyper_parameter_tuning_job(self, HyperParameterTuningJobName: str) -> dict[str, Any]:
        self.late_fields -= 1
        described = copy.deepcopy(self.request) | {
            "HyperParameterTuningJobArn": "arn",
            "CreationTime": datetime.now(UTC),
        }
        if self.late_fields >= 0:
            del described["TrainingJobDefinition"]["VpcConfig"]
        return described

    def get_paginator(self, operation: str) -> Account:
        return self

    def paginate(self, ResourceArn: str) -> list[dict[str, Any]]:
        self.looks += 1
        return [{"Tags": self.request["Tags"] if self.looks > self.late_tags else []}]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    made: list[float] = []
    monkeypatch.setattr("time.sleep", made.append)
    return made


def test_late_tags_are_read_again(pauses: list[float]) -> None:
    account = Account(tune(ALL), late_tags=3)
    described = account.describe_hyper_parameter_tuning_job("job")
    assert read_back(account, TUNING, account.request, described) == []
    assert tuple(pauses) == TAG_PAUSES[:3]


def test_tags_that_stay_away_are_named(pauses: list[float]) -> None:
    account = Account(tune(ALL), late_tags=99)
    described = account.describe_hyper_parameter_tuning_job("job")
    warnings = read_back(account, TUNING, account.request, described)
    assert "tag team was sent as 'vision', AWS lists None" in warnings
    assert tuple(pauses) == TAG_PAUSES


def test_a_protection_that_a_second_look_finds_is_there(pauses: list[float]) -> None:
    account = Account(tune(ALL), late_fields=1)
    described = account.describe_hyper_parameter_tuning_job("job")
    assert "VpcConfig" not in described["TrainingJobDefinition"]
    assert read_back(account, TUNING, account.request, described) == []


def test_a_protection_that_is_missing_twice_is_an_error(pauses: list[float]) -> None:
    account = Account(tune(ALL), late_fields=2)
    described = account.describe_hyper_parameter_tuning_job("job")
    with pytest.raises(ProtectionError, match=r"VpcConfig\.Subnets.* was sent as .*AWS has"):
        read_back(account, TUNING, account.request, described)


def test_an_error_of_the_check_is_told(pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    account = Account(tune(ALL))
    described = account.describe_hyper_parameter_tuning_job("job")
    denied = ClientError({"Error": {"Code": "AccessDeniedException", "Message": "no ListTags"}}, "ListTags")

    def refuse(ResourceArn: str) -> list[dict[str, Any]]:
        raise denied

    monkeypatch.setattr(account, "paginate", refuse)
    assert "no ListTags" in read_back(account, TUNING, account.request, described)[0]
