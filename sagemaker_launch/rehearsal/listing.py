"""What all list operations share: filters, order and pages; and names of resources."""

from __future__ import annotations

import base64
import binascii
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from moto.utilities.utils import get_partition

from sagemaker_launch.rehearsal.rules import invalid

Request = Mapping[str, Any]
Answer = dict[str, Any]


class Listed(Protocol):
    """What a list operation can filter and sort."""

    name: str
    status: Any
    created: datetime
    modified: datetime


def arn(region: str, account: str, kind: str, name: str) -> str:
    """The ARN of a resource."""
    return f"arn:{get_partition(region)}:sagemaker:{region}:{account}:{kind}/{name}"


def select(
    jobs: Sequence[Any], request: Request, *, sort_by: str = "CreationTime", order: str = "Ascending"
) -> list[Any]:
    """Filter and sort as the list operations do.

    Args:
        sort_by: what the operation sorts by unless the request says otherwise, by its API reference.
        order: the operation's default order. The operations that begin with the newest take CreationTimeAfter
            inclusively.
    """
    sort_by = request.get("SortBy", sort_by)
    keys: dict[str, Callable[[Listed], Any]] = {
        "CreationTime": lambda job: job.created,
        "Name": lambda job: job.name,
        "Status": lambda job: job.status,
    }
    created_after = operator.ge if order == "Descending" else operator.gt
    found = [job for job in jobs if _matches(job, request, created_after)]
    return sorted(found, key=keys[sort_by], reverse=request.get("SortOrder", order) == "Descending")


def _matches(job: Listed, request: Request, created_after: Callable[[float, float], bool]) -> bool:
    times = (("CreationTime", job.created), ("LastModifiedTime", job.modified))
    return (
        job.status == request.get("StatusEquals", job.status)
        and request.get("NameContains", "").lower() in job.name.lower()
        and created_after(job.created.timestamp(), request.get("CreationTimeAfter", -math.inf))
        and job.modified.timestamp() > request.get("LastModifiedTimeAfter", -math.inf)
        and all(time.timestamp() < request.get(f"{field}Before", math.inf) for field, time in times)
    )


def page(entries: Sequence[Answer], request: Request, field: str) -> Answer:
    """One page of entries, with a token for the next."""
    try:
        start = int(base64.b64decode(request.get("NextToken", "MA=="), validate=True))
    except (binascii.Error, ValueError) as error:
        raise invalid("Invalid NextToken.") from error
    if start < 0:
        raise invalid("Invalid NextToken.")
    # 10 per page by default (AWS API reference of the list operations, 2025).
    end = start + request.get("MaxResults", 10)
    answer: Answer = {field: entries[start:end]}
    if end < len(entries):
        answer["NextToken"] = base64.b64encode(str(end).encode()).decode()
    return answer
