"""The fields of a settings dataclass: their names, types, defaults, roles, the commands that use them, and their help.

A field declares role and commands in its metadata. A field that declares no commands has those of its section.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import itertools
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from experiments.errors import UserError

COMMANDS = "commands"
"""The entry of a field's metadata that names its commands; those of `sagemaker_launch` begin with `cloud `."""
ROLE = "role"
"""The entry of a field's metadata that says what the field is for."""
Role = Literal["result", "photos", "place", "speed", "watch", "study"]
"""The purpose of a field of a run.

| role | the field decides | may change within a study | in a report's command | sent to a job |
|---|---|---|---|---|
| result | the metrics of a run | no | yes | yes |
| photos | where the photos are; their fingerprint says whether they are the same | yes | yes | no |
| place | where something is kept | yes | no | no |
| speed | how fast a run is, and what an interruption costs; metrics change by rounding only | yes | no | yes |
| watch | what else is measured | yes | no | yes |
| study | how a study or a command proceeds | yes | no | no |

The predicates in `config.py` read it.
"""
SENT_ROLES = ("result", "speed", "watch")
EVERY_COMMAND = ("*",)
HELP_WIDTH = 100
"""Columns of the help on a wide terminal: longer lines are hard to read."""
Value = TypeVar("Value")


def field(
    default: Value,
    role: Role,
    *,
    used_by: tuple[str, ...] = (),
    tunable: bool = True,
    sent: bool | None = None,
    own_in_job: bool = False,
    secret: bool = False,
) -> Value:
    """Declare a field of a run in a dataclass.

    Args:
        role: what it is for; see `Role`.
        used_by: the commands that use it; by default those of its section.
        tunable: whether a search may draw it, where it decides the result.
        sent: whether the hyperparameters of a job contain it; None for what its role says.
        own_in_job: whether a job has its own value of it, as always for photos.
        secret: whether it may hold a password.
    """
    metadata: dict[str, Any] = {COMMANDS: used_by} if used_by else {}
    metadata |= {
        ROLE: role,
        "tunable": tunable,
        "sent": role in SENT_ROLES if sent is None else sent,
        "own_in_job": own_in_job or role == "photos",
        "secret": secret,
    }
    declared: Any = dataclasses.field(default=default, metadata=metadata)
    return declared  # type: ignore[no-any-return]


def used_by(default: Value, *commands: str, sent: bool = True, shape: str | None = None) -> Value:
    """Declare a section, or a field that is no field of a run, with the commands that use it.

    Args:
        commands: by default those of its section.
        sent: whether a request to AWS contains it.
        shape: of botocore's model of SageMaker, which limits its values.
    """
    metadata: dict[str, Any] = {COMMANDS: commands} if commands else {}
    declared: Any = dataclasses.field(default=default, metadata=metadata | {"sent": sent, "shape": shape})
    return declared  # type: ignore[no-any-return]


def used_by_each(make: Callable[[], Value], *commands: str, shape: str | None = None) -> Value:
    """`used_by` for a default that is made for each instance, such as a list."""
    declared: Any = dataclasses.field(default_factory=make, metadata={COMMANDS: commands, "shape": shape})
    return declared  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Field:
    """A field of a settings dataclass."""

    hint: Any
    """Type hint of the field."""
    default: object
    commands: tuple[str, ...]
    """The commands that use it."""
    role: Role | None = None
    """None for a setting that is no field of a run."""
    tunable: bool = False
    sent: bool = True
    own_in_job: bool = False
    secret: bool = False
    shape: str | None = None
    """Shape of botocore's model of SageMaker that limits its values."""

    def is_used_by(self, commands: Sequence[str]) -> bool:
        """Whether one of these commands uses it."""
        return self.commands == EVERY_COMMAND or not set(self.commands).isdisjoint(commands)

    @property
    def metavar(self) -> str:
        """Placeholder of its value in the help."""
        return _described(self.hint)[0]

    @property
    def rule(self) -> str:
        """Which values it takes, after "must"."""
        return _described(self.hint)[1]


@functools.cache
def fields_of(settings_type: type, prefix: str = "", commands: tuple[str, ...] = ()) -> Mapping[str, Field]:
    """The fields of a dataclass and of its sections by their dotted names, in the order a person reads them."""
    found: dict[str, Field] = {}
    hints = get_type_hints(settings_type)
    for field in dataclasses.fields(settings_type):
        field_commands, hint = field.metadata.get(COMMANDS, commands), hints[field.name]
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            found |= fields_of(hint, f"{prefix}{field.name}.", field_commands)
        else:
            default = field.default if field.default is not dataclasses.MISSING else None
            declared = {name: value for name, value in field.metadata.items() if name != COMMANDS}
            found[prefix + field.name] = Field(hint, default, field_commands, **declared)
    return found


def unknown_field(
    name: str, settings_type: type, *, source: str = "", prefix: str = "", command: str = "sweep"
) -> UserError:
    """The error for a name that is no field, with the field that was probably meant.

    Args:
        source: the file that names it.
        prefix: prefix of the fields of `settings_type` on the command line.
        command: whose help lists the fields.
    """
    known = list(fields_of(settings_type))
    typed = name.removeprefix(prefix)
    matches = [candidate for candidate in known if _abbreviates(typed, candidate)] or difflib.get_close_matches(
        typed, known, 1, cutoff=0.5
    )
    hint = f"did you mean {prefix}{matches[0]}?" if matches else f"`{command} --help` lists options and fields"
    return UserError(f"{source}{': ' if source else ''}{name} must be the name of a field, got {name!r}; {hint}")


def _abbreviates(typed: str, name: str) -> bool:
    """Whether `typed` is the field without its section, or each of its words shortened, like optimizer.lr."""
    section, _, last = typed.rpartition(".")
    words = name.rpartition(".")[2].split("_")
    # learning -> l(?:e(?:a(?:r ...)?)?)?
    shortened = [word[0] + "".join(f"(?:{letter}" for letter in word[1:]) + ")?" * (len(word) - 1) for word in words]
    return section in ("", name.rpartition(".")[0]) and re.fullmatch("_?".join(shortened), last) is not None


def fields_help(settings_type: type, commands: Sequence[str], prefix: str = "") -> str:
    """The fields of some commands by section, with their values, defaults and docstrings.

    Args:
        commands: the section of the first command comes first.
        prefix: prefix of the fields on the command line.
    """
    own_section = f"{commands[0]}."
    sections = sorted(_sections(settings_type), key=lambda section: section[0] != own_section)
    listed = [
        (title, list(_lines(settings_type, path, section, commands, prefix))) for path, title, section in sections
    ]
    return "\n".join("\n".join([f"{title}:", *lines, ""]) for title, lines in listed if lines)


def _sections(settings_type: type, path: str = "") -> Iterator[tuple[str, str, type]]:
    """A dataclass and the dataclasses in its fields: dotted path, first sentence of the docstring, type."""
    yield path, re.split(r"[.;](?:\s|$)", str(settings_type.__doc__))[0], settings_type
    for name, hint in get_type_hints(settings_type).items():
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            yield from _sections(hint, f"{path}{name}.")


def _lines(settings_type: type, path: str, section: type, commands: Sequence[str], prefix: str) -> Iterator[str]:
    """The lines about the fields of one section."""
    texts = _docstrings(section.__module__)[section.__name__]
    width = min(shutil.get_terminal_size().columns, HELP_WIDTH)
    for name, field in fields_of(settings_type).items():
        above, _, last = name.rpartition(".")
        if path.rstrip(".") == above and field.is_used_by(commands):
            default = "" if field.default in (None, "") else f" (default: {_shown(field.default)})"
            option, text = f"  --{prefix}{name} {field.metavar}", texts[last] + default
            if len(option) + len(text) + 2 <= width:
                yield f"{option}  {text}"
            else:
                yield option
                yield from textwrap.wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)


@functools.cache
def _docstrings(module: str) -> Mapping[str, Mapping[str, str]]:
    """The texts below the fields of each class of a module, in one line each.

    The module is parsed once. Libraries parse it once for each class: half of the time of `--help`.
    """
    tree = ast.parse(Path(str(sys.modules[module].__file__)).read_text(encoding="utf-8"))
    return {
        node.name: {
            field.target.id: " ".join(text.value.value.split())
            for field, text in itertools.pairwise(node.body)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
        }
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }


def _shown(default: object) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)


def _described(hint: Any) -> tuple[str, str]:
    """Placeholder of a value of this type in the help, and the values that it takes."""
    options = [option for option in get_args(hint) if option is not type(None)]
    if get_origin(hint) in (Union, UnionType):
        described = [_described(option) for option in options]
        metavar = "|".join(placeholder for placeholder, _ in described)
        rule = " or ".join(values.removeprefix("be ") for _, values in described)
        return metavar, f"be {rule}{' or null' if type(None) in get_args(hint) else ''}"
    if get_origin(hint) is Literal:
        words = [str(value) for value in options]
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
