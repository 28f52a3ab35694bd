"""Differences between the shapes of AWS's answers and those that were expected, by kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sagemaker_launch.aws.api_model import service_model
from sagemaker_launch.aws.recording import Shapes
from sagemaker_launch.aws.response_shapes import Shape

PASSING = ("Throttl", "TooManyRequests", "SlowDown", "RequestTimeout", "Unavailable", "Internal")
"""Parts of AWS's codes of refusals that say nothing but that AWS was busy."""


@dataclass(frozen=True, order=True)
class Difference:
    """One difference; nothing in it comes from a value of an answer, but enumerations do."""

    operation: str
    path: str
    kind: str
    """missing, extra, null, type, case, order, enumeration, late or refusal."""
    text: str

    def line(self) -> str:
        """As one line."""
        return f"{self.operation}{self.path}: {self.kind}: {self.text}"


def differences(expected: Shapes, found: Shapes) -> list[Difference]:
    """All differences of operations that both have."""
    every: set[Difference] = set()
    for name in found.keys() & expected.keys():
        own = set(_operation(name, expected[name], found[name]))
        # Without its status, answers in several states look like one in which much comes late.
        lacks_state = any(one.path.endswith("Status") and one.kind in ("missing", "null", "type") for one in own)
        every |= {one for one in own if not (lacks_state and one.kind == "late")}
    return sorted(every)


def unknown_operations(expected: Shapes, found: Shapes) -> list[str]:
    """Operations of which nothing is known."""
    return sorted(found.keys() - expected.keys())


def _operation(name: str, expected: dict[str, Shape], found: dict[str, Shape]) -> Iterator[Difference]:
    any_state, model = Shape(), operation_model(name).output_shape
    for state, shape in expected.items():
        if not _is_refusal(state):
            any_state.add(shape)
    for state, shape in found.items():
        if not _is_refusal(state):
            yield from _Comparison(name, "", expected.get(state, any_state), any_state, model).compare(shape)
        elif state not in expected and state[0] == "4" and not any(part in state for part in PASSING):
            yield Difference(name, "", "refusal", f"AWS answers {state}")


@dataclass(frozen=True)
class _Comparison:
    operation: str
    path: str
    expected: Shape
    """In the same state of the resource."""
    any_state: Shape
    model: Any

    def compare(self, found: Shape) -> Iterator[Difference]:
        """The differences of what was found here."""
        for kind in sorted(found.kinds - self.expected.kinds - self.any_state.kinds):
            if kind == "null":
                yield self._difference("null", "is null")
            elif self.any_state.kinds:
                yield self._difference("type", f"is {kind} in place of {' or '.join(sorted(self.any_state.kinds))}")
        yield from self._members(found)
        yield from self._values(found)
        yield from self._order(found)
        if found.late and not self.any_state.late:
            yield self._difference("late", "was not there at first")
        if found.entry is not None and self.any_state.entry is not None:
            yield from self._within("[]", self.expected.entry or Shape(), self.any_state.entry).compare(found.entry)

    def _members(self, found: Shape) -> Iterator[Difference]:
        if "object" not in found.kinds:
            return
        renamed: set[str] = set()
        for name in found.members.keys() - self.any_state.members.keys():
            alike = [known for known in self.any_state.members if known.casefold() == name.casefold()]
            renamed |= set(alike)
            kind, text = ("case", f"is written {name}") if alike else ("extra", "is new")
            yield Difference(self.operation, f"{self.path}.{alike[0] if alike else name}", kind, text)
        for name in self.expected.always - found.always - renamed:
            yield Difference(self.operation, f"{self.path}.{name}", "missing", "is not there")
        known = [name for name in self.any_state.members if name in found.members]
        if [name for name in found.members if name in known] != known:
            yield self._difference("order", "has its members in another order")
        for name in found.members.keys() & self.any_state.members.keys():
            expected = self.expected.members.get(name, Shape())
            yield from self._within(f".{name}", expected, self.any_state.members[name]).compare(found.members[name])

    def _values(self, found: Shape) -> Iterator[Difference]:
        known = self.any_state.values | set(getattr(self.model, "enum", ()))
        for value in sorted(found.values - known):
            alike = [one for one in sorted(known) if one.casefold() == value.casefold()]
            if alike:
                yield self._difference("case", f"has the value {value} in place of {alike[0]}")
            else:
                yield self._difference("enumeration", f"has the value {value}, which botocore's model does not have")

    def _order(self, found: Shape) -> Iterator[Difference]:
        for order in found.orders:
            shared = [
                (pair, [name for name in order if name in known])
                for known in self.any_state.orders
                if len(pair := [name for name in known if name in order]) > 1
            ]
            turned = order in {("ascending",), ("descending",)} and order not in self.any_state.orders
            if (shared and all(ours != theirs for ours, theirs in shared)) or (turned and self.any_state.orders):
                yield self._difference("order", "has its entries in another order")

    def _within(self, step: str, expected: Shape, any_state: Shape) -> _Comparison:
        model = self.model
        if step == "[]":
            inner = getattr(model, "member", None) or getattr(model, "value", None)
        else:
            inner = (getattr(model, "members", None) or {}).get(step[1:])
        return _Comparison(self.operation, f"{self.path}{step}", expected, any_state, inner)

    def _difference(self, kind: str, text: str) -> Difference:
        return Difference(self.operation, self.path, kind, text)


def _is_refusal(state: str) -> bool:
    return state[:3].isdigit()


def operation_model(name: str) -> Any:
    """Botocore's model of an operation."""
    service, _, operation = name.partition(".")
    return service_model(service).operation_model(operation)
