"""Search: resources by a Boolean expression over their properties.

Source: docs.aws.amazon.com/sagemaker/latest/APIReference/API_Search.html and API_Filter.html, read 2026-11.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from botocore.model import Shape

from sagemaker_launch.aws.api_model import service_model
from sagemaker_launch.rehearsal.listing import page
from sagemaker_launch.rehearsal.rules import invalid

Request = Mapping[str, Any]
Record = Mapping[str, Any]
SHAPES: Mapping[str, str] = {
    "TrainingJob": "TrainingJob",
    "HyperParameterTuningJob": "HyperParameterTuningJobSearchEntity",
    "Endpoint": "Endpoint",
}
"""Structures of botocore's model by the resource that is searched, which is also the record's name in the answer."""
ORDERED: Mapping[str, Callable[[Any, Any], bool]] = {
    "GreaterThan": operator.gt,
    "GreaterThanOrEqualTo": operator.ge,
    "LessThan": operator.lt,
    "LessThanOrEqualTo": operator.le,
}
"""Operators that texts do not have."""
METRICS = "Metrics"
"""Stands for the final metrics of a training job."""
MAX_ELEMENTS = 20
"""Filters, nested filters and expressions in one search (API reference of Search)."""


def search(records: Sequence[Record], request: Request) -> dict[str, Any]:
    """The answer to Search.

    Args:
        records: descriptions of all resources of the searched kind, with their tags.

    Raises:
        SagemakerClientError: for a property that the resource does not have, or a value that it can't be compared with.
    """
    resource, expression = request["Resource"], request.get("SearchExpression")
    shape = service_model().shape_for(SHAPES[resource])
    sort_by = request.get("SortBy", "LastModifiedTime")
    _check_property(shape, sort_by)
    if expression is not None:
        _check(shape, expression)
    shown = [{name: record[name] for name in shape.members if name in record} for record in records]
    found = [record for record in shown if expression is None or _matches(expression, record)]

    def first(record: Record) -> Any:
        return next(_values(record, sort_by), None)

    known = [record for record in found if first(record) is not None]
    unknown = [record for record in found if first(record) is None]
    descending = request.get("SortOrder", "Descending") == "Descending"
    try:
        known.sort(key=first, reverse=descending)
    except TypeError as error:
        raise invalid(f"SortBy {sort_by} can't be sorted by.") from error
    answer = page([{resource: record} for record in known + unknown], request, "Results")
    return answer | {"TotalHits": {"Value": len(found), "Relation": "EqualTo"}}


def _check(shape: Shape, expression: Request) -> None:
    """Refuse an expression that can't be evaluated, whatever there is to find."""
    filters = list(_filters(expression))
    if not filters:
        raise invalid("SearchExpression must have at least one of Filters, NestedFilters and SubExpressions.")
    if _elements(expression) > MAX_ELEMENTS:
        raise invalid(f"SearchExpression must have at most {MAX_ELEMENTS} elements.")
    for each in filters:
        _check_property(shape, each["Name"])
        kind = each.get("Operator", "Equals")
        if ("Value" in each) == (kind in ("Exists", "NotExists")):
            raise invalid(f"Filter on {each['Name']}: Value must be given, unless Operator is Exists or NotExists.")
    if sum(each.get("Operator") == "Contains" for each in filters) > 1:
        raise invalid("'CONTAINS' operator usage limit of 1 exceeded.")


def _filters(expression: Request) -> Iterator[Request]:
    yield from expression.get("Filters", ())
    for nested in expression.get("NestedFilters", ()):
        for each in nested["Filters"]:
            if not each["Name"].startswith(f"{nested['NestedPropertyName']}."):
                raise invalid(f"Nested filter {each['Name']} must begin with {nested['NestedPropertyName']}.")
            yield each
    for each in expression.get("SubExpressions", ()):
        yield from _filters(each)


def _elements(expression: Request) -> int:
    inner = expression.get("SubExpressions", ())
    own = len(expression.get("Filters", ())) + len(expression.get("NestedFilters", ()))
    return own + len(inner) + sum(map(_elements, inner))


def _check_property(shape: Shape, name: str) -> None:
    """Refuse a property that the resource does not have."""
    first, _, rest = name.partition(".")
    if first in ("Tags", METRICS) and rest and (first == "Tags" or "FinalMetricDataList" in shape.members):
        return
    at = shape
    for part in name.split("."):
        while at.type_name == "list":
            at = at.member
        if at.type_name == "map":
            return  # its keys may have any name, with dots, too
        if at.type_name != "structure" or part not in at.members:
            raise invalid(f"{name} is not a property of {shape.name} that can be searched.")
        at = at.members[part]


def _matches(expression: Request, record: Record) -> bool:
    found = [_passes(each, _values(record, each["Name"])) for each in expression.get("Filters", ())]
    found += [_nested(each, record) for each in expression.get("NestedFilters", ())]
    found += [_matches(each, record) for each in expression.get("SubExpressions", ())]
    return any(found) if expression.get("Operator") == "Or" else all(found)


def _nested(nested: Request, record: Record) -> bool:
    """Whether a single object in a list satisfies all filters."""
    prefix = nested["NestedPropertyName"]
    return any(
        all(_passes(each, _values(item, each["Name"].removeprefix(f"{prefix}."))) for each in nested["Filters"])
        for item in _values(record, prefix)
    )


def _values(record: Any, name: str) -> Iterator[Any]:
    """The values of a property; those of all items where it is in a list."""
    first, _, rest = name.partition(".")
    if isinstance(record, list):
        for item in record:
            yield from _values(item, name)
    elif first == "Tags" and rest:
        yield from (tag["Value"] for tag in record["Tags"] if tag["Key"] == rest)
    elif first == METRICS and rest:
        yield from (each["Value"] for each in record["FinalMetricDataList"] if each["MetricName"] == rest)
    elif name in record:
        found = record[name]
        yield from found if isinstance(found, list) else [found]
    elif first in record and rest:
        yield from _values(record[first], rest)


def _passes(each: Request, values: Iterator[Any]) -> bool:
    found, kind, wanted = list(values), each.get("Operator", "Equals"), each.get("Value")
    if kind == "Exists":
        return bool(found)
    if kind == "NotExists":
        return not found
    if kind == "NotEquals":
        return not any(_same(each, value) for value in found)
    if kind == "Equals":
        return any(_same(each, value) for value in found)
    assert isinstance(wanted, str)
    if kind in ORDERED:
        return any(ORDERED[kind](*_comparable(each, value)) for value in found)
    if any(not isinstance(value, str) for value in found):
        raise invalid(f"Filter on {each['Name']}: {kind} is only supported for text properties.")
    if kind == "In":
        return any(value in [part.strip() for part in wanted.split(",")] for value in found)
    return any(wanted in value for value in found)


def _same(each: Request, value: Any) -> bool:
    wanted: str = each["Value"]
    if isinstance(value, bool):
        return str(value).lower() == wanted.lower()
    if isinstance(value, str) and not (each["Name"].startswith("HyperParameters.") and _number(value) is not None):
        return value == wanted
    one, other = _comparable(each, value)
    return bool(one == other)


def _comparable(each: Request, value: Any) -> tuple[Any, Any]:
    """A property's value and the filter's, as what can be compared."""
    name, wanted = each["Name"], each["Value"]
    if isinstance(value, datetime):
        try:
            at = datetime.fromisoformat(wanted)
        except ValueError as error:
            raise invalid(f"Filter on {name}: Value must be YYYY-mm-ddTHH:MM:SS, got {wanted}.") from error
        return value, at.replace(tzinfo=at.tzinfo or UTC)
    number = _number(value) if name.startswith("HyperParameters.") or not isinstance(value, str) else None
    if number is None:
        raise invalid(f"Filter on {name}: {each.get('Operator', 'Equals')} is not supported for text properties.")
    limit = _number(wanted)
    if limit is None:
        raise invalid(f"Filter on {name}: Value must be a number, got {wanted}.")
    # A decimal hyperparameter is an integer where it is compared with one.
    whole = isinstance(value, str) and "." not in wanted and "e" not in wanted.lower()
    return (float(int(number)) if whole else number), limit


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
