"""What depends on the account: roles that SageMaker can assume, quotas of instance types."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from moto.iam.models import iam_backends
from moto.sagemaker.exceptions import SagemakerClientError

from sagemaker_launch.rehearsal.quotas import check_quota, instances_left, parse_quotas
from sagemaker_launch.rehearsal.roles import check_role

ACCOUNT = "111122223333"


def trust(service: str, *, listed: bool = True, **statement: Any) -> str:
    one = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole", **statement}
    return json.dumps({"Version": "2012-10-17", "Statement": [one] if listed else one})


@pytest.fixture(autouse=True)
def _roles() -> Iterator[None]:
    iam = iam_backends[ACCOUNT]["aws"]
    for name, path, policy in (
        ("training", "/", trust("sagemaker.amazonaws.com")),
        ("filed", "/service-role/", trust("sagemaker.amazonaws.com")),
        ("single", "/", trust("sagemaker.amazonaws.com", listed=False)),
        ("lambda", "/", trust("lambda.amazonaws.com")),
        ("denied", "/", trust("sagemaker.amazonaws.com", Effect="Deny")),
    ):
        iam.create_role(name, policy, path, None, "", [], 3600)
    yield
    iam.reset()


@pytest.mark.parametrize("role", ["training", "service-role/filed", "single"])
def test_a_role_of_the_account_that_trusts_sagemaker_is_assumed(role: str) -> None:
    check_role(f"arn:aws:iam::{ACCOUNT}:role/{role}", ACCOUNT, "eu-west-1")


@pytest.mark.parametrize("role", ["missing", "filed", "other/training", "lambda", "denied"])
def test_another_role_cannot_be_assumed(role: str) -> None:
    with pytest.raises(
        SagemakerClientError, match=f"Could not assume role .*:role/{role}. Please ensure that"
    ) as error:
        check_role(f"arn:aws:iam::{ACCOUNT}:role/{role}", ACCOUNT, "eu-west-1")
    assert error.value.code == "ValidationException"


def test_a_role_of_another_account_may_not_be_passed() -> None:
    with pytest.raises(SagemakerClientError, match="Cross-account pass role is not allowed"):
        check_role("arn:aws:iam::999999999999:role/training", ACCOUNT, "eu-west-1")


def test_a_type_has_a_quota_of_its_own() -> None:
    quotas = parse_quotas("ml.p3.2xlarge=0,ml.g5.xlarge=2")
    used = Counter({"ml.g5.xlarge": 1, "ml.m5.large": 17})
    assert [instances_left(quotas, 20, used, kind) for kind in ("ml.p3.2xlarge", "ml.g5.xlarge", "ml.m5.large")] == [
        *(0, 1, 2)
    ]
    check_quota(quotas, 20, used, {"ml.g5.xlarge": 1})
    for wanted, said in (
        ({"ml.p3.2xlarge": 1}, "'ml.p3.2xlarge for training job usage' is 0 Instances, with current utilization of 0 "),
        ({"ml.g5.xlarge": 2}, "is 2 Instances, with current utilization of 1 Instances and a request delta of 2 "),
        ({"ml.m5.large": 3}, "is 20 Instances, with current utilization of 18 Instances and a request delta of 3 "),
    ):
        with pytest.raises(SagemakerClientError, match=said) as error:
            check_quota(quotas, 20, used, wanted)
        assert error.value.code == "ResourceLimitExceeded"


def test_instances_of_several_types_count_together() -> None:
    used, wanted = Counter({"ml.g5.xlarge": 1}), {"ml.g5.xlarge": 2, "ml.m5.large": 2}
    check_quota({}, 5, used, wanted)
    said = "is 4 Instances, with current utilization of 1 Instances and a request delta of 4 "
    with pytest.raises(SagemakerClientError, match=said):
        check_quota({}, 4, used, wanted)


@pytest.mark.parametrize("text", ["ml.g5.xlarge", "g5.xlarge=1", "ml.g5.xlarge=many", "ml.g5.xlarge=-1"])
def test_quotas_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"quotas: each must be an instance type and a number .*, got"):
        parse_quotas(text)
