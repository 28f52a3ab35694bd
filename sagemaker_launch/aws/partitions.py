"""AWS's partitions (`aws`, `aws-cn`, `aws-us-gov`, …), by botocore's data: names of hosts and ARNs differ by them."""

from __future__ import annotations

import functools
import re
from typing import Any

import botocore.loaders

from experiments.errors import UserError


def partition(region: str) -> str:
    """The partition of a region, which is the second part of its ARNs.

    Raises:
        UserError: if botocore knows no partition with such a region.
    """
    return str(_partition(region)["id"])


def dns_suffix(region: str) -> str:
    """The end of the host names of AWS's services in a region.

    Raises:
        UserError: if botocore knows no partition with such a region.
    """
    return str(_partition(region)["outputs"]["dnsSuffix"])


def _partition(region: str) -> dict[str, Any]:
    for known in _partitions():
        if region in known["regions"] or re.match(known["regionRegex"], region):
            return known
    raise UserError(f"cloud.region must be a region of AWS such as us-east-1, got {region!r}")


@functools.cache
def _partitions() -> list[dict[str, Any]]:
    # Not by a session, which asks the user's profile where data is, and fails for a profile that is not there.
    partitions: list[dict[str, Any]] = botocore.loaders.Loader().load_data("partitions")["partitions"]
    return partitions
