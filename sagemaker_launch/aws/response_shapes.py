"""What AWS's answers look like, without what they say: names of fields, types, enumerations, order, lateness.

A shape holds no value of an answer except those of enumerations, and names of entries as hashes. It is made from the
bytes of an answer, as botocore's parsers leave out what its model does not know.
"""

from __future__ import annotations

import hashlib
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

NAMES = ("Name", "Key", "MetricName", "ChannelName", "VariantName", "RuleConfigurationName")
"""Members that identify an entry of a list, whose order can be compared."""
Answer = Any
"""An answer as JSON has it."""


@dataclass
class Shape:
    """What one place in the answers of an operation looks like."""

    kinds: set[str] = field(default_factory=set)
    """Of object, map, list, text, number, boolean, null."""
    seen: int = 0
    """How many times it was there."""
    members: dict[str, Shape] = field(default_factory=dict)
    """Of an object, in order."""
    entry: Shape | None = None
    """Of all entries of a list or map."""
    values: set[str] = field(default_factory=set)
    """Of an enumeration."""
    orders: set[tuple[str, ...]] = field(default_factory=set)
    """Orders of the entries of a list: hashes of their names, or `ascending` and `descending` by CreationTime."""
    late: bool = False
    """Whether it was missing at first, and there in a later answer to the same request in the same state."""

    @property
    def always(self) -> set[str]:
        """Members that no answer lacks."""
        return {name for name, member in self.members.items() if member.seen == self.seen}

    def add(self, other: Shape) -> None:
        """Unite with what the same place looks like in other answers."""
        self.kinds |= other.kinds
        self.seen += other.seen
        self.values |= other.values
        self.orders |= other.orders
        self.late |= other.late
        for name in _merged(list(self.members), list(other.members)):
            member = self.members.pop(name, None) or Shape()
            if name in other.members:
                member.add(other.members[name])
            self.members[name] = member
        if other.entry is not None:
            self.entry = self.entry or Shape()
            self.entry.add(other.entry)

    def to_json(self) -> dict[str, Any]:
        """As JSON; what is empty is left out."""
        found: dict[str, Any] = {"kinds": sorted(self.kinds), "seen": self.seen}
        if self.members:
            found["members"] = {name: member.to_json() for name, member in self.members.items()}
        if self.entry is not None:
            found["entry"] = self.entry.to_json()
        if self.values:
            found["values"] = sorted(self.values)
        if self.orders:
            found["orders"] = sorted(map(list, self.orders))
        return found | ({"late": True} if self.late else {})

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Shape:
        """The inverse of `to_json`."""
        return cls(
            kinds=set(found["kinds"]),
            seen=found["seen"],
            members={name: cls.from_json(member) for name, member in found.get("members", {}).items()},
            entry=cls.from_json(found["entry"]) if "entry" in found else None,
            values=set(found.get("values", ())),
            orders={tuple(order) for order in found.get("orders", ())},
            late=found.get("late", False),
        )


def shape_of(answer: Answer, model: Any) -> Shape:
    """The shape of a part of one answer.

    Args:
        model: botocore's shape of it; None for what the model does not know.
    """
    found = Shape(seen=1)
    if isinstance(answer, dict) and model is not None and model.type_name == "map":
        found.kinds = {"map"}  # its keys are of the user
        _add_entries(found, answer.values(), model.value)
    elif isinstance(answer, dict):
        found.kinds = {"object"}
        known = model.members if model is not None and model.type_name == "structure" else {}
        found.members = {name: shape_of(value, known.get(name)) for name, value in answer.items()}
    elif isinstance(answer, list):
        found.kinds = {"list"}
        _add_entries(found, answer, model.member if model is not None and model.type_name == "list" else None)
        if order := _order_of(answer):
            found.orders = {order}
    else:
        found.kinds = {_kind(answer)}
        if isinstance(answer, str) and getattr(model, "enum", None):
            found.values = {answer}
    return found


def state_of(answer: Answer) -> str:
    """The state that an answer tells of, such as `InProgress Training`: answers in one state look alike."""
    if not isinstance(answer, dict):
        return ""
    return " ".join(
        value for name, value in sorted(answer.items(), reverse=True) if name.endswith("Status") and type(value) is str
    )


def parse(body: bytes, model: Any) -> Answer:
    """An answer's bytes as JSON has them; those of S3 are XML.

    Raises:
        ValueError: if they are neither.
    """
    if not body.strip():
        return {}
    if not body.lstrip().startswith(b"<"):
        return json.loads(body)
    try:
        return _from_xml(ElementTree.fromstring(body), model)
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from error


def mark_late(before: Answer, after: Answer, found: Shape) -> None:
    """Mark in the shape of an answer what an earlier answer to the same request lacked."""
    if isinstance(before, dict) and isinstance(after, dict) and "object" in found.kinds:
        for name, member in found.members.items():
            if name not in before:
                member.late = True
            else:
                mark_late(before[name], after[name], member)
    elif isinstance(before, list) and isinstance(after, list):
        found.late |= len(before) < len(after)


def _add_entries(found: Shape, entries: Iterable[Answer], model: Any) -> None:
    for entry in entries:
        found.entry = found.entry or Shape()
        found.entry.add(shape_of(entry, model))


def _order_of(entries: list[Answer]) -> tuple[str, ...]:
    """The order of a list's entries, if they have names or times."""
    if len(entries) < 2 or not all(isinstance(entry, dict) for entry in entries):
        return ()
    name = next((name for name in NAMES if all(isinstance(entry.get(name), str) for entry in entries)), None)
    if name is not None:
        return tuple(hashlib.sha256(entry[name].encode()).hexdigest()[:8] for entry in entries)
    times = [entry.get("CreationTime") for entry in entries]
    if not all(isinstance(time, int | float) for time in times) or len(set(times)) < len(times):
        return ()
    by_time = {tuple(sorted(times)): "ascending", tuple(sorted(times, reverse=True)): "descending"}
    return (by_time[tuple(times)],) if tuple(times) in by_time else ()


def _kind(value: Answer) -> str:
    if value is None:
        return "null"
    return {bool: "boolean", str: "text"}.get(type(value), "number")


def _merged(ours: list[str], theirs: list[str]) -> list[str]:
    """Names of both, in an order that agrees with both where they agree."""
    merged: list[str] = []
    rest = list(ours)
    for name in theirs:
        if name in rest:
            cut = rest.index(name) + 1
            merged, rest = merged + rest[:cut], rest[cut:]
        elif name not in merged:
            merged.append(name)
    return merged + rest


def _from_xml(element: ElementTree.Element, model: Any) -> Answer:
    """XML as JSON would have it, by botocore's shape, which says what is a list."""
    if model is not None and model.type_name == "list":
        return [_from_xml(child, model.member) for child in element]
    if not len(element):
        return element.text or ""
    lists: dict[str, Any] = {}
    names: dict[str, tuple[str, Any]] = {}
    if model is not None and model.type_name == "structure":
        for name, member in model.members.items():
            flat = member.type_name == "list" and member.serialization.get("flattened")
            inner = member.member.serialization.get("name") if flat else None
            names[inner or member.serialization.get("name", name)] = (name, member.member if flat else member)
            if flat:
                lists[name] = []
    found: dict[str, Any] = {}
    for child in element:
        tag = child.tag.rpartition("}")[2]
        name, member = names.get(tag, (tag, None))
        value = _from_xml(child, member)
        if name in lists:
            lists[name].append(value)
            found[name] = lists[name]
        else:
            found[name] = value
    return found
