"""The fields of a settings dataclass: their names, types, defaults, the commands that use them, and their help.

A field declares its commands in its metadata. A field that declares none has those of its section.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from experiments.errors import UserError

COMMANDS = "commands"
"""The entry of a field's metadata that names its commands; those of `sagemaker_launch` begin with `cloud `."""
EVERY_COMMAND = ("*",)
HELP_WIDTH = 100
"""Columns of the help on a wide terminal: longer lines are hard to read."""
Value = TypeVar("Value")


def used_by(default: Value, *commands: str) -> Value:
    """The default of a field or section that these commands use, as a dataclass takes it."""
    field: Any = dataclasses.field(default=default, metadata={COMMANDS: commands})
    return field  # type: ignore[no-any-return]


def used_by_each(make: Callable[[], Value], *commands: str) -> Value:
    """`used_by` for a default that is made for each instance, such as a list."""
    field: Any = dataclasses.field(default_factory=make, metadata={COMMANDS: commands})
    return field  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Field:
    """What is known of one field."""

    hint: Any
    """Its type."""
    default: object
    commands: tuple[str, ...]
    """The commands that use it."""

    def is_used_by(self, commands: Sequence[str]) -> bool:
        """Whether one of these commands uses it."""
        return self.commands == EVERY_COMMAND or not set(self.commands).isdisjoint(commands)

    @property
    def metavar(self) -> str:
        """What stands for its value in the help."""
        return _described(self.hint)[0]

    @property
    def rule(self) -> str:
        """Which values it takes, after "must"."""
        return _described(self.hint)[1]


@functools.cache
def fields_of(kind: type, prefix: str = "", commands: tuple[str, ...] = ()) -> Mapping[str, Field]:
    """The fields of a dataclass and of its sections by their dotted names, in the order a person reads them."""
    found: dict[str, Field] = {}
    hints = get_type_hints(kind)
    for one in dataclasses.fields(kind):
        own, hint = one.metadata.get(COMMANDS, commands), hints[one.name]
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            found |= fields_of(hint, f"{prefix}{one.name}.", own)
        else:
            default = one.default if one.default is not dataclasses.MISSING else None
            found[prefix + one.name] = Field(hint, default, own)
    return found


def unknown_field(name: str, kind: type, *, where: str = "", prefix: str = "", command: str = "sweep") -> UserError:
    """The error for a name that is no field: says which field was meant.

    Args:
        where: the file that names it.
        prefix: what stands before the names of `kind` on the command line.
        command: whose help lists the fields.
    """
    known = list(fields_of(kind))
    typed = name.removeprefix(prefix)
    near = [one for one in known if _abbreviates(typed, one)] or difflib.get_close_matches(typed, known, 1, cutoff=0.5)
    hint = f"did you mean {prefix}{near[0]}?" if near else f"`{command} --help` lists options and fields"
    return UserError(f"{where}{': ' if where else ''}{name} must be the name of a field, got {name!r}; {hint}")


def _abbreviates(typed: str, name: str) -> bool:
    """Whether `typed` is the field without its section, or each of its words shortened, like optimizer.lr."""
    section, _, last = typed.rpartition(".")
    words = name.rpartition(".")[2].split("_")
    # learning -> l(?:e(?:a(?:r ...)?)?)?
    shortened = [word[0] + "".join(f"(?:{letter}" for letter in word[1:]) + ")?" * (len(word) - 1) for word in words]
    return section in ("", name.rpartition(".")[0]) and re.fullmatch("_?".join(shortened), last) is not None


def fields_help(kind: type, commands: Sequence[str], prefix: str = "") -> str:
    """The fields of some commands by section, with their values, defaults and docstrings.

    Args:
        commands: the first one's own section comes first.
        prefix: what stands before a field's name on the command line.
    """
    own = f"{commands[0]}."
    sections = sorted(_sections(kind), key=lambda section: section[0] != own)
    listed = [(title, list(_lines(kind, path, section, commands, prefix))) for path, title, section in sections]
    return "\n".join("\n".join([f"{title}:", *lines, ""]) for title, lines in listed if lines)


def _sections(kind: type, path: str = "") -> Iterator[tuple[str, str, type]]:
    """A dataclass and those in its fields: dotted path, what they are about, type."""
    yield path, re.split(r"[.;](?:\s|$)", str(kind.__doc__))[0], kind
    for name, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            yield from _sections(hint, f"{path}{name}.")


def _lines(kind: type, path: str, section: type, commands: Sequence[str], prefix: str) -> Iterator[str]:
    """The lines about the fields of one section."""
    from docstring_parser import parse_from_object  # only help reads docstrings

    texts = {one.arg_name: " ".join((one.description or "").split()) for one in parse_from_object(section).params}
    width = min(shutil.get_terminal_size().columns, HELP_WIDTH)
    for name, field in fields_of(kind).items():
        above, _, last = name.rpartition(".")
        if path.rstrip(".") == above and field.is_used_by(commands):
            default = "" if field.default in (None, "") else f" (default: {_shown(field.default)})"
            option, text = f"  --{prefix}{name} {field.metavar}", texts[last] + default
            if len(option) + len(text) + 2 <= width:
                yield f"{option}  {text}"
            else:
                yield option
                yield from textwrap.wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)


def _shown(default: object) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)


def _described(hint: Any) -> tuple[str, str]:
    """What stands for a value of this type in the help, and which values it takes."""
    options = [one for one in get_args(hint) if one is not type(None)]
    if get_origin(hint) in (Union, UnionType):
        described = [_described(one) for one in options]
        metavar = "|".join(one for one, _ in described)
        rule = " or ".join(one.removeprefix("be ") for _, one in described)
        return metavar, f"be {rule}{' or null' if type(None) in get_args(hint) else ''}"
    if get_origin(hint) is Literal:
        words = [str(one) for one in options]
        return "|".join(words), f"be one of {', '.join(words)}" if len(words) > 1 else f"be {words[0]}"
    return _PLAIN[get_origin(hint) or hint]


_PLAIN: Mapping[Any, tuple[str, str]] = {
    bool: ("true|false", "be true or false"),
    int: ("N", "be a whole number"),
    float: ("NUMBER", "be a number"),
    str: ("TEXT", "be text, in quotes where YAML reads something else"),
    Path: ("PATH", "be a path"),
    list: ('["A", "B"]', 'be a list of texts such as ["a", "b"]'),
    dict: ('{"A": "B"}', 'be a mapping of texts such as {"a": "b"}'),
}
