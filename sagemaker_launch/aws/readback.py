"""Compare what was sent with what AWS describes.

AWS may add fields and list entries, reorder lists, fill in defaults, change case and list tags late. A difference is a
warning, unless the field protects a person: data, account or bill.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from experiments.errors import CommandError
from sagemaker_launch.aws.resources import Request, ResourceType, tags_of

PROTECTED = frozenset(
    {
        "EnableInterContainerTrafficEncryption",
        "EnableManagedSpotTraining",
        "EnableNetworkIsolation",
        "ExecutionRoleArn",
        "KmsKeyId",
        "MaxRuntimeInSeconds",
        "MaxWaitTimeInSeconds",
        "RoleArn",
        "VolumeKmsKeyId",
        "VpcConfig",
    }
)
"""Names of fields that protect data, account or bill."""
SECOND_LOOK_SECONDS = 5.0
"""Pause before a protected field is read again: a description may be completed after the answer to the creation."""
MISSING = "nothing"
"""Stands for a value that AWS does not describe."""


class ProtectionError(CommandError):
    """AWS runs something without a protection that was asked for."""


@dataclass(frozen=True)
class Difference:
    """A field whose value in AWS differs from the request."""

    path: str
    sent: Any
    described: Any

    @property
    def is_protected(self) -> bool:
        """Whether the field protects a person."""
        return not PROTECTED.isdisjoint(self.path.replace("[", ".").split("."))

    def __str__(self) -> str:
        return f"{self.path} was sent as {self.sent!r}, AWS has {self.described!r}"


def read_back(client: Any, resource_type: ResourceType, request: Request, described: Mapping[str, Any]) -> list[str]:
    """Look for what a request said in AWS's description, and in AWS's list of tags.

    Args:
        described: AWS's description, as `create` returns it.

    Returns:
        A sentence for each difference.

    Raises:
        ProtectionError: if a protected field differs, at a second look too.
    """
    try:
        found = list(differences(request, described))
        if any(difference.is_protected for difference in found):
            time.sleep(SECOND_LOOK_SECONDS)
            found = list(differences(request, resource_type.describe(client, request[resource_type.name])))
        if protected := [difference for difference in found if difference.is_protected]:
            raise ProtectionError(
                f"{resource_type.word} {request[resource_type.name]}: {'; '.join(map(str, protected))}"
            )
        return [*map(str, found), *_missing_tags(client, resource_type, request, described)]
    except (ClientError, BotoCoreError) as error:  # it exists and is as it is: a check that fails must not hide it
        return [f"what AWS describes could not be compared with what was sent: {error}"]


def differences(request: Mapping[str, Any], described: Mapping[str, Any]) -> Iterator[Difference]:
    """Fields of a request that AWS's description lacks or has with another value. Tags are not described."""
    yield from _differences({key: value for key, value in request.items() if key != "Tags"}, described, "")


def _missing_tags(
    client: Any, resource_type: ResourceType, request: Request, described: Mapping[str, Any]
) -> list[str]:
    sent = {tag["Key"]: tag["Value"] for tag in request["Tags"]}
    listed = tags_of(
        client, described[resource_type.arn], described["CreationTime"], lambda tags: sent.items() <= tags.items()
    )
    missing = {key: value for key, value in sent.items() if listed.get(key) != value}
    return [f"tag {key} was sent as {value!r}, AWS lists {listed.get(key)!r}" for key, value in missing.items()]


def _differences(sent: Any, described: Any, path: str) -> Iterator[Difference]:
    if isinstance(sent, Mapping):
        if not isinstance(described, Mapping):
            yield Difference(path, sent, described)
            return
        for key, value in sent.items():
            field_path = f"{path}.{key}" if path else str(key)
            if key in described or (value and isinstance(value, Mapping | list)):
                yield from _differences(value, described.get(key, type(value)()), field_path)
            elif value:  # else it is a default, which may be left out
                yield Difference(field_path, value, MISSING)
    elif isinstance(sent, list):
        yield from _differences_of_lists(sent, described, path)
    elif not (_same_key(sent, described) if path.endswith("KmsKeyId") else _same(sent, described)):
        yield Difference(path, sent, described)


def _differences_of_lists(sent: list[Any], described: Any, path: str) -> Iterator[Difference]:
    """AWS may add entries and change their order; entries with a name are compared by it."""
    entries = described if isinstance(described, list) else []
    key = _naming_key(sent)
    for value in sent:
        if key is None:
            if not any(not list(_differences(value, entry, path)) for entry in entries):
                yield Difference(path, value, described)
            continue
        entry_path = f"{path}[{value[key]}]"
        entry = next((entry for entry in entries if isinstance(entry, Mapping) and entry.get(key) == value[key]), None)
        if entry is None:
            yield Difference(entry_path, value, MISSING)
        else:
            yield from _differences(value, entry, entry_path)


def _naming_key(entries: list[Any]) -> str | None:
    """The field that identifies the entries of a list, such as `ChannelName` or `Name`."""
    if not all(isinstance(entry, Mapping) for entry in entries):
        return None
    names = [key for key in (entries[0] if entries else ()) if key.endswith("Name")]
    return next((key for key in names if len({entry.get(key) for entry in entries}) == len(entries)), None)


def _same(sent: Any, described: Any) -> bool:
    """Whether two scalars are equal, regardless of case and of the format of numbers."""
    if sent == described:
        return True
    first, second = str(sent).casefold(), str(described).casefold()
    try:
        return first == second or float(first) == float(second)
    except ValueError:
        return False


def _same_key(sent: str, described: Any) -> bool:
    """Whether two names may be of one KMS key: an id, an ARN or an alias, which AWS may replace by the key's ARN."""
    first, second = sent.rpartition("/")[2], str(described).rpartition("/")[2]
    return first == second or ("alias/" in sent and bool(second) and "alias/" not in str(described))
