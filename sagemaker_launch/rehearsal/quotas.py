"""Quotas of the account: how many instances its jobs and endpoints may have, in all and of a type."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping

from moto.sagemaker.exceptions import SagemakerClientError

Quotas = Mapping[str, int]
"""Instances by their type, of each usage; no entry for a type that has no quota of its own."""


def parse_quotas(text: str) -> Quotas:
    """Read `ml.p3.2xlarge=0,ml.g5.xlarge=1`.

    Raises:
        ValueError: naming the part that is no instance type with a number.
    """
    quotas = {}
    for pair in filter(None, text.split(",")):
        if re.fullmatch(r"ml\.[a-z0-9-]+\.[a-z0-9]+=\d+", pair) is None:
            raise ValueError(f"quotas: each must be an instance type and a number (ml.g5.xlarge=1), got {pair!r}")
        instance_type, _, number = pair.partition("=")
        quotas[instance_type] = int(number)
    return quotas


def instances_left(quotas: Quotas, total: int, used: Counter[str], instance_type: str) -> int:
    """How many more instances of a type there may be."""
    return int(min(total - used.total(), quotas.get(instance_type, math.inf) - used[instance_type]))


def check_quota(
    quotas: Quotas, total: int, used: Counter[str], wanted: Mapping[str, int], usage: str = "training job usage"
) -> None:
    """Refuse instances beyond a quota.

    Args:
        total: quota of all instances together.
        used: instances by type.
        wanted: the same, of a request.
        usage: as AWS names the quota.

    Raises:
        SagemakerClientError: with AWS's words, quota and use (text of public records of 2025).
    """
    together = (total, used.total(), sum(wanted.values()))
    for instance_type, number in wanted.items():
        own = (quotas.get(instance_type, math.inf), used[instance_type], number)
        for limit, taken, delta in (own, together):
            if delta > limit - taken:
                raise SagemakerClientError(
                    "ResourceLimitExceeded",
                    f"The account-level service limit '{instance_type} for {usage}' is {limit} Instances, with current "
                    f"utilization of {taken} Instances and a request delta of {delta} Instances. Please use AWS "
                    "Service Quotas to request an increase for this quota. If AWS Service Quotas is not available, "
                    "contact AWS support to request an increase for this quota.",
                )
