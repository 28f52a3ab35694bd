"""IAM in the rehearsal: what a call needs is asked for, and the printed policies allow that and nothing beyond."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from moto.iam.policy_validation import IAMPolicyDocumentValidator

from sagemaker_launch.account.permissions import CALLS, Caller
from sagemaker_launch.rehearsal.authorization import checks
from sagemaker_launch.rehearsal.iam import decide
from tests.iam_calls import ALLOWED, ALLOWED_CALLS, DENIED_CALLS, POLICIES, Account
from tests.unsent import operation_model

CALLERS = get_args(Caller)
NOT_REHEARSED = {"launcher": ("pricing",), "role": ("ecr", "ec2", "kms"), "schedule_role": (), "image": ("ecr",)}
"""Services of a caller's calls that are compared without a request, as no rehearsal answers for them."""


def allows(policy: dict[str, Any], caller: Caller) -> bool:
    """Whether a policy allows all that the calls of a caller need."""
    return all(decide([policy], one.action, one.resource, one.context) == "allowed" for one in ALLOWED[caller])


def reduced(policy: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The policy without one of its statements, actions or resources."""
    for number, statement in enumerate(policy["Statement"]):
        for element in ("Action", "Resource"):
            for left_out in statement[element]:
                less = copy.deepcopy(policy)
                less["Statement"][number][element].remove(left_out)
                yield f"{statement['Action']}: {left_out}", less


@pytest.mark.parametrize("caller", CALLERS)
def test_a_policy_allows_each_call_and_needs_each_of_its_actions_and_resources(caller: Caller) -> None:
    assert allows(POLICIES[caller], caller)
    found = list(reduced(POLICIES[caller]))
    assert len(found) >= 6
    for name, less in found:
        assert not allows(less, caller), f"the {caller} can do without {name}"


@pytest.mark.parametrize("caller", CALLERS)
def test_every_call_of_the_table_is_tried(caller: Caller) -> None:
    tried = {(one.service, one.operation) for one in ALLOWED_CALLS[caller]}
    known = {(one.service, one.operation) for one in CALLS if caller in one.callers}
    assert tried == {name for name in known if name[0] not in NOT_REHEARSED[caller] or name in tried}


@pytest.mark.parametrize("caller", ["launcher", "role", "schedule_role"])
def test_calls_beyond_the_project_are_refused(caller: Caller) -> None:
    for one in DENIED_CALLS[caller]:
        asked = checks(one, Account())
        assert asked, one
        decisions = {decide([POLICIES[caller]], each.action, each.resource, each.context) for each in asked}
        assert "implicitDeny" in decisions, one


def test_the_requests_are_ones_of_awss_api() -> None:
    for one in [*ALLOWED_CALLS["launcher"], *ALLOWED_CALLS["role"]]:
        shape = operation_model(one.service, one.operation).input_shape
        assert shape is None or one.parameters.keys() <= shape.members.keys(), one


def test_iam_takes_the_policies() -> None:
    for caller in CALLERS:
        IAMPolicyDocumentValidator(json.dumps(POLICIES[caller])).validate()


def test_a_decision_takes_less_than_a_millisecond() -> None:
    calls = [*ALLOWED_CALLS["launcher"], *DENIED_CALLS["launcher"]]
    fastest = float("inf")
    for _ in range(5):
        began = time.process_time()
        for one in calls:
            for each in checks(one, Account()):
                decide([POLICIES["launcher"]], each.action, each.resource, each.context)
        fastest = min(fastest, (time.process_time() - began) / len(calls))
    assert fastest < 1e-3, f"{1e3 * fastest:.2f} ms a call"


@pytest.mark.parametrize(
    ("statement", "context", "decision"),
    [
        ({"Effect": "Deny", "Action": "s3:*", "Resource": "*"}, {}, "explicitDeny"),
        ({"Effect": "Deny", "NotAction": "s3:GetObject", "Resource": "*"}, {}, "allowed"),
        ({"Effect": "Deny", "Action": "*", "NotResource": "arn:aws:s3:::a/*"}, {}, "allowed"),
        ({"Effect": "Deny", "Action": "*", "Resource": "*", "Condition": {"Null": {"k": "true"}}}, {}, "explicitDeny"),
        ({"Effect": "Deny", "Action": "*", "Resource": "*", "Condition": {"Null": {"k": True}}}, {"k": "1"}, "allowed"),
        (
            {"Effect": "Deny", "Action": "*", "Resource": "*", "Condition": {"StringNotEquals": {"k": ["1", "2"]}}},
            {"k": "2"},
            "allowed",
        ),
        (
            {"Effect": "Deny", "Action": "*", "Resource": "*", "Condition": {"StringNotLike": {"k": "a*"}}},
            {},
            "explicitDeny",
        ),
    ],
)
def test_a_deny_wins_over_an_allow(statement: dict[str, Any], context: dict[str, str], decision: str) -> None:
    allow = {"Effect": "Allow", "Action": ["S3:Get*"], "Resource": "arn:aws:s3:::a/?"}
    policies = [{"Statement": allow}, {"Statement": [statement]}]
    assert decide(policies, "s3:GetObject", "arn:aws:s3:::a/b", context) == decision


def test_an_operator_that_is_not_known_is_no_allow() -> None:
    condition = {"NumericLessThan": {"s3:max-keys": "10"}}
    policy = {"Statement": {"Effect": "Allow", "Action": "*", "Resource": "*", "Condition": condition}}
    with pytest.raises(NotImplementedError, match="NumericLessThan in a policy works on AWS, but is not rehearsed"):
        decide([policy], "s3:ListBucket", "*", {"s3:max-keys": "3"})
