"""Which endpoints are ours, and which have expired, where AWS's tags and its index of tags are late."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError

from experiments.errors import UserError
from sagemaker_launch.aws.resources import CONFIG, ENDPOINT, MODEL, TAG_PAUSES
from sagemaker_launch.endpoints.fleet import (
    Services,
    delete_expired,
    expired_endpoints,
    find_endpoint,
    project_endpoints,
    versions,
)
from sagemaker_launch.settings.cloud import load_cloud

SETTINGS = load_cloud(None, {"region": "us-east-1", "project": "ours"})
YOUNG, OLD = timedelta(seconds=2), timedelta(hours=2)
PAST, FUTURE = "2026-01-01T00:00:00Z", "2126-01-01T00:00:00Z"
NOT_FOUND = ClientError({"Error": {"Code": "ValidationException", "Message": "Could not find it."}}, "DescribeEndpoint")


class Account:
    """SageMaker and the index of tags, for `Services`.

    Args:
        late_looks: how often no tags are listed of a resource at first.
    """

    def __init__(self, late_looks: int = 0) -> None:
        self.late_looks = late_looks
        self.looks: dict[str, int] = {}
        self.made: dict[str, tuple[Mapping[str, str], datetime]] = {}
        self.index: dict[str, Mapping[str, str]] = {}
        self.deleted: list[str] = []

    def add(self, resource: str, age: timedelta, **tags: str) -> None:
        """Make a resource, such as `endpoint/dogs`."""
        arn = f"arn:aws:sagemaker:us-east-1:123456789012:{resource}"
        self.made[arn] = (tags, datetime.now(UTC) - age)
        if age > timedelta(minutes=1):
            self.index[arn] = tags

    def describe_endpoint(self, EndpointName: str) -> dict[str, Any]:
        for arn, (_, created) in self.made.items():
            if arn.endswith(f":endpoint/{EndpointName}"):
                return {"EndpointArn": arn, "EndpointStatus": "InService", "CreationTime": created}
        raise NOT_FOUND

    def get_paginator(self, operation: str) -> Any:
        pages: Mapping[str, Callable[..., dict[str, Any]]] = {
            "list_tags": self._tags,
            "get_resources": self._indexed,
            "list_endpoints": lambda **_: {"Endpoints": self._summaries("endpoint", ENDPOINT.name, ENDPOINT.arn)},
            "list_endpoint_configs": lambda **_: {
                "EndpointConfigs": self._summaries("endpoint-config", CONFIG.name, CONFIG.arn)
            },
            "list_models": lambda **_: {"Models": self._summaries("model", MODEL.name, MODEL.arn)},
        }

        class Paginator:
            def paginate(self, **asked: Any) -> Sequence[dict[str, Any]]:
                return [pages[operation](**asked)]

        return Paginator()

    def _tags(self, ResourceArn: str) -> dict[str, Any]:
        self.looks[ResourceArn] = self.looks.get(ResourceArn, 0) + 1
        tags = self.made[ResourceArn][0] if self.looks[ResourceArn] > self.late_looks else {}
        return {"Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}

    def _indexed(self, ResourceTypeFilters: Sequence[str], **_: Any) -> dict[str, Any]:
        found = [
            {"ResourceARN": arn, "Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}
            for arn, tags in self.index.items()
            if f"sagemaker:{arn.split(':')[5].partition('/')[0]}" in ResourceTypeFilters
        ]
        return {"ResourceTagMappingList": found}

    def _summaries(self, kind: str, name: str, arn_key: str) -> list[dict[str, Any]]:
        return [
            {name: arn.rpartition("/")[2], arn_key: arn, "CreationTime": created}
            for arn, (_, created) in self.made.items()
            if f":{kind}/" in arn
        ]


def services(account: Account) -> Services:
    return Services(account, None, None, None, account)


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    made: list[float] = []
    monkeypatch.setattr("time.sleep", made.append)
    return made


def test_a_young_endpoint_whose_tags_are_late_is_ours(pauses: list[float]) -> None:
    account = Account(late_looks=3)
    account.add("endpoint/dogs", YOUNG, project="ours", owner="me", expires=FUTURE)
    found = find_endpoint(services(account), SETTINGS, "dogs")
    assert found is not None and found.lease.owner == "me"
    assert tuple(pauses) == TAG_PAUSES[:3]


@pytest.mark.parametrize(("age", "tags"), [(OLD, {}), (YOUNG, {"project": "theirs"}), (YOUNG, {"team": "vision"})])
def test_an_endpoint_of_others_is_refused_at_once(age: timedelta, tags: dict[str, str], pauses: list[float]) -> None:
    account = Account()
    account.add("endpoint/dogs", age, **tags)
    with pytest.raises(UserError, match="must carry the tag project=ours"):
        find_endpoint(services(account), SETTINGS, "dogs")
    assert pauses == []


def test_a_young_endpoint_that_never_gets_tags_is_not_ours(pauses: list[float]) -> None:
    account = Account(late_looks=99)
    account.add("endpoint/dogs", YOUNG)
    with pytest.raises(UserError, match="must carry the tag project=ours"):
        find_endpoint(services(account), SETTINGS, "dogs")
    assert YOUNG.total_seconds() + sum(pauses) >= sum(TAG_PAUSES)


def test_lists_have_what_is_young_and_whose_tags_are_late() -> None:
    account = Account(late_looks=2)
    account.add("endpoint/dogs", YOUNG, project="ours", endpoint="dogs")
    account.add("endpoint-config/dogs-1", YOUNG, project="ours", endpoint="dogs")
    account.add("model/dogs-1", YOUNG, project="ours", endpoint="dogs")
    account.add("model/dogs-cats-1", YOUNG, project="ours", endpoint="dogs-cats")
    assert [endpoint.name for endpoint in project_endpoints(services(account), SETTINGS)] == ["dogs"]
    found = [resource_type for resource_type, _ in versions(services(account), SETTINGS, "dogs")]
    assert found == [CONFIG, MODEL]


def expiring() -> Account:
    account = Account()
    account.add("endpoint/over", OLD, project="ours", endpoint="over", expires=PAST)
    account.add("endpoint/lives", OLD, project="ours", endpoint="lives", expires=FUTURE)
    account.add("endpoint/changed", OLD, project="ours", endpoint="changed", expires="tomorrow")
    account.add("model/lives-1", OLD, project="ours", endpoint="lives")
    account.add("model/gone-1", OLD, project="ours", endpoint="gone")
    account.add("endpoint-config/half-1", OLD, project="ours", endpoint="half")
    account.add("model/half-2", YOUNG, project="ours", endpoint="half")
    return account


def test_one_call_names_what_has_expired_first_and_what_was_left_then() -> None:
    account = expiring()
    assert expired_endpoints(services(account), SETTINGS) == ["over", "gone", "half"]
    assert account.looks == {}


def test_only_what_has_expired_is_deleted_though_the_index_of_tags_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sagemaker_launch.endpoints.fleet.delete_endpoint", lambda _services, _settings, name: [f"endpoint {name}"]
    )
    account = expiring()
    names = expired_endpoints(services(account), SETTINGS)
    account.add("endpoint/new", OLD, project="ours", endpoint="new", expires=PAST)
    renewed = {"project": "ours", "endpoint": "new", "expires": FUTURE}
    (arn,) = (arn for arn in account.made if arn.endswith("/new"))
    account.made[arn] = (renewed, account.made[arn][1])
    deleted = {name: delete_expired(services(account), SETTINGS, name) for name in [*names, "new"]}
    assert deleted == {"over": ["endpoint over"], "gone": ["endpoint gone"], "half": [], "new": []}


def test_a_lease_whose_tag_was_changed_hides_no_other_and_says_so() -> None:
    account = expiring()
    texts = {one.name: one.lease.text() for one in project_endpoints(services(account), SETTINGS)}
    assert texts["changed"] == "stays until it is deleted: its tag expires is 'tomorrow', which is no time"
    assert texts["over"].startswith("expired ")
