"""YAML as people write it: by the core schema of YAML 1.2, in which `1e-5` is a number, and `no` and `12:30` are text.

PyYAML knows YAML 1.1 only. Reading and writing share the rules, so text that looks like a number is written in quotes.
Source: YAML 1.2.2, 10.3.2.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError

from experiments.errors import UserError

MAX_BYTES = 1_000_000
"""Of a file: presets and search spaces have a few thousand."""
MAX_NODES = 100_000
"""Of a file with its aliases written out: nine lines of aliases can stand for a billion values."""

_CORE_SCHEMA = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),  # not in YAML 1.2, but in people's presets
}
"""The type of a plain word to its form and to the letters that it begins with."""


class _Loader(yaml.SafeLoader):
    """Reads the core schema, and refuses a duplicate key, of which PyYAML silently keeps the last value."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  # none of YAML 1.1

    def __init__(self, stream: str | bytes) -> None:
        super().__init__(stream)
        self._nodes, self._sizes = 0, dict[str, int]()

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Build a node, and count the nodes that its aliases stand for."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        is_alias, before = isinstance(event, yaml.AliasEvent), self._nodes
        if is_alias and event.anchor in self.anchors and event.anchor not in self._sizes:
            raise ComposerError(None, None, f"*{event.anchor} is within its own value", event.start_mark)
        self._nodes += 1 + (self._sizes.get(event.anchor, 0) if is_alias else 0)
        if self._nodes > MAX_NODES:
            raise ComposerError(None, None, f"it has more than {MAX_NODES:,} values", event.start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        if event.anchor is not None and not is_alias:
            self._sizes[event.anchor] = self._nodes - before
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        """Build a mapping from its node."""
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := [key for key, count in counts.items() if count > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} is a duplicate key", node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_whole_number(self, node: yaml.ScalarNode) -> int:
        """Build an int: `010` is ten, as in YAML 1.2."""
        text = self.construct_scalar(node)
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as another type."""


for _kind, (_form, _letters) in _CORE_SCHEMA.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_form})$"), _letters)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole_number)


def read_yaml(path: Path, option: str) -> object:
    """Read a YAML file.

    Args:
        option: the option or field that names it.

    Raises:
        UserError: if it can't be read, is too large, is not YAML, or names a key twice.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise UserError(f"{option} must name a file of at most {MAX_BYTES:,} bytes, got {str(path)!r}")
        return parse_yaml(text)
    except OSError as error:
        raise UserError(f"{option} must name a YAML file, got {str(path)!r}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{option} {path} is not YAML: {' '.join(str(error).split())}") from error


def parse_yaml(text: str | bytes) -> object:
    """Read YAML.

    Raises:
        YAMLError: if it is not YAML, names a key twice, or stands for too many values.
    """
    try:
        return yaml.load(text, _Loader)
    except ValueError as error:  # bytes of another encoding, a date that does not exist, a number of 5,000 digits
        raise yaml.YAMLError(str(error)) from error
    except RecursionError as error:
        raise yaml.YAMLError("its values are nested too deeply") from error


def dump_yaml(value: object) -> str:
    """Write a value as YAML that `parse_yaml` reads back, the keys in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)
