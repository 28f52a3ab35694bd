"""YAML as people write it: by the core schema of YAML 1.2, in which `1e-5` is a number, and `no` and `12:30` are text.

PyYAML knows YAML 1.1 only. Reading and writing share the rules, so text that looks like a number is written in quotes.
Source: YAML 1.2.2, 10.3.2.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path

import yaml

from experiments.errors import UserError

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

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        """Build a mapping from its node."""
        keys = [key.value for key, _ in node.value]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
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
        UserError: if it can't be read, is not YAML, or names a key twice.
    """
    try:
        return parse_yaml(path.read_bytes())
    except OSError as error:
        raise UserError(f"{option} must name a YAML file, got {str(path)!r}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{option} {path} is not YAML: {' '.join(str(error).split())}") from error


def parse_yaml(text: str | bytes) -> object:
    """Read YAML.

    Raises:
        YAMLError, UnicodeDecodeError: if it is not YAML, or names a key twice.
    """
    return yaml.load(text, _Loader)


def dump_yaml(value: object) -> str:
    """Write a value as YAML that `parse_yaml` reads back, the keys in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)
