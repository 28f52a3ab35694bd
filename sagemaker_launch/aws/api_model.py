"""What AWS's APIs take, offline, by botocore's models of them."""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import regex
from botocore.model import ServiceModel, Shape

from experiments.config import require
from experiments.fields import fields_of
from sagemaker_launch.aws.sessions import hermetic_session
from sagemaker_launch.settings.cloud import CloudSettings

TYPES: Mapping[str, tuple[type, ...]] = {
    "structure": (Mapping,),
    "map": (Mapping,),
    "list": (list, tuple),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "long": (int,),
    "float": (int, float),
    "double": (int, float),
}
"""Python's types of the model's; those of time and content may be several."""
SURROGATES = (r"\uD800\uDC00-\uDBFF\uDFFF", r"\U00010000-\U0010FFFF")
"""The characters above U+FFFF as Java's patterns write them, and as Python's do."""


@functools.cache
def service_model(service: str = "sagemaker") -> ServiceModel:
    """A service as botocore describes it."""
    return hermetic_session().get_service_model(service)


def violations(operation: str, request: Mapping[str, Any], service: str = "sagemaker") -> list[str]:
    """What AWS would refuse of a request by its model: types, lengths, limits, enumerations and patterns."""
    shape = service_model(service).operation_model(operation).input_shape
    assert shape is not None
    return list(_violations(shape, request, ""))


def require_limits(settings: CloudSettings, *commands: str) -> None:
    """Refuse settings outside the limits of the API, which their fields name by its shapes.

    Args:
        commands: whose settings are checked.

    Raises:
        UserError: naming the first setting, its limits and its value.
    """
    for name, field in fields_of(CloudSettings).items():
        value: Any = functools.reduce(getattr, name.split("."), settings)
        if field.shape is None or not field.is_used_by(commands) or value in (None, [], {}):
            continue  # no shape, or not sent
        shape, setting = service_model().shape_for(field.shape), "cloud." + name
        require(not list(_violations(shape, value, name)), setting, _rule(shape, value), value)


def _rule(shape: Shape, value: Any) -> str:
    """The limits of a shape, after "must"."""
    limits, known = shape.metadata, list(getattr(shape, "enum", ()))
    if known:
        near = difflib.get_close_matches(value, known, 3, cutoff=0.5) or known[:3]
        return f"be one that SageMaker has by the botocore installed here, such as {', '.join(near)}"
    if shape.type_name == "list":
        return f"have at most {limits['max']} entries, each of which must {_rule(shape.member, '')}"
    if shape.type_name == "map":
        rules = f"each name must {_rule(shape.key, '')} and each value {_rule(shape.value, '')}"
        return f"have at most {limits['max']} entries, of which {rules}"
    if shape.type_name == "string":
        return f"match {limits.get('pattern', '.*')} and have at most {limits['max']} characters"
    return f"be {limits['min']}..{limits['max']}" if "max" in limits else f"be >= {limits['min']}"


def _violations(shape: Shape, value: Any, path: str) -> Iterator[str]:
    type_name, limits = shape.type_name, shape.metadata
    if type_name in TYPES and (
        not isinstance(value, TYPES[type_name]) or (isinstance(value, bool) and type_name != "boolean")
    ):
        yield f"Value '{value}' at '{path}' failed to satisfy constraint: Member must be a {type_name}"
        return
    if type_name == "structure":
        for name in shape.required_members:
            if value.get(name) is None:
                yield f"Value at '{_join(path, name)}' failed to satisfy constraint: Member must not be null"
        for name, item in value.items():
            if name not in shape.members:
                yield f"{_join(path, name)} is not a field that botocore here knows: update botocore"
            elif item is not None:
                yield from _violations(shape.members[name], item, _join(path, name))
        return
    if type_name == "list":
        for number, item in enumerate(value, start=1):
            yield from _violations(shape.member, item, f"{path}.{number}.member")
    elif type_name == "map":
        for key, item in value.items():
            yield from _violations(shape.key, key, f"{path}.{key}.key")
            yield from _violations(shape.value, item, f"{path}.{key}.member")
    if type_name in ("string", "list", "map"):
        size, measure = len(value), "length"
    elif type_name in ("integer", "long", "float", "double"):
        size, measure = value, "value"
    else:
        return
    shown = f"Value '{value}' at '{path}' failed to satisfy constraint: Member must"
    if size > limits.get("max", math.inf):
        yield f"{shown} have {measure} less than or equal to {limits['max']}"
    if size < limits.get("min", -math.inf):
        yield f"{shown} have {measure} greater than or equal to {limits['min']}"
    if "enum" in limits and value not in limits["enum"]:
        yield f"{shown} satisfy enum value set: [{', '.join(limits['enum'])}]"
    if "pattern" in limits and regex.fullmatch(limits["pattern"].replace(*SURROGATES), value) is None:
        yield f"{shown} satisfy regular expression pattern: {limits['pattern']}"


def _join(path: str, name: str) -> str:
    name = name[0].lower() + name[1:]
    return f"{path}.{name}" if path else name
