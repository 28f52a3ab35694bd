"""One search space for both engines: the part that Optuna and SageMaker can both express.

optimizer.learning_rate: {type: float, low: 1.0e-5, high: 1.0e-1, log: true}
data.batch_size: {type: choice, values: [32, 64, 128]}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType

from experiments.config import CUT_FIELDS, RunConfig, field_names, is_tunable, override, require
from experiments.console import say
from experiments.errors import UserError
from experiments.fields import unknown_field
from experiments.yaml_files import dump_yaml, read_yaml

Choice = bool | int | float | str
Point = dict[str, Choice]
"""One drawn point: dotted field name to value."""

BUILT_IN = Path(__file__).parent / "search_spaces"
"""Search spaces for sweeps that name none; `conf/search` has links to them."""
SEARCHED = "search."
"""Prefix of the params with the ranges of a search, in the run of the search."""
MAX_PARAMETERS = 30
"""SageMaker tunes at most 30 hyperparameters a job (AWS service quotas, read 2026-11)."""
MAX_CHOICES = 30
"""Values that one categorical range may list in SageMaker (CategoricalParameterRange, read 2026-11)."""


@dataclass(frozen=True)
class FloatRange:
    """A real number in [low, high]."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class IntRange:
    """A whole number in [low, high], both included."""

    low: int
    high: int
    log: bool = False


@dataclass(frozen=True)
class ChoiceRange:
    """One of a list of values, without order."""

    values: tuple[Choice, ...]


Range = FloatRange | IntRange | ChoiceRange
SearchSpace = Mapping[str, Range]
"""Dotted field name to range, in the order of the file."""

_RANGE_TYPES: Mapping[str, type[Range]] = MappingProxyType(
    {"float": FloatRange, "int": IntRange, "choice": ChoiceRange}
)


def study_space(config: RunConfig) -> SearchSpace:
    """The search space of a config: the file that `search` names, else the built-in space.

    Raises:
        UserError: as `load_search_space`.
    """
    if config.search is not None:
        return load_search_space(config.search)
    path = BUILT_IN / ("head.yaml" if config.model.trainable == "head" else "full.yaml")
    say(f"no search is set: the search space is {path}")
    return load_search_space(path)


def load_search_space(path: Path) -> SearchSpace:
    """Read a search space and refuse what one of the engines cannot express.

    Raises:
        UserError: if there is no such file; naming the field, the rule and the value.
    """
    space = build_search_space(read_yaml(path, "--search"), str(path))
    for name in space:
        source = f"search space: {name}"
        rule = (
            "be a field that keeps the photos of all trials the same; repeat the best trial with other values instead"
        )
        require(name not in CUT_FIELDS, source, rule, name)
        require(is_tunable(name), source, "be a field that changes the result", name)
    return space


def build_search_space(loaded: object, source: str) -> SearchSpace:
    """`load_search_space` for what was read elsewhere, such as in a study's attributes.

    A study of an older version may tune any field: its report is still written.

    Raises:
        UserError: naming the field, the rule and the value.
    """
    require(isinstance(loaded, dict) and len(loaded) > 0, source, "map field names to ranges", loaded)
    assert isinstance(loaded, dict)
    require(len(loaded) <= MAX_PARAMETERS, source, f"tune at most {MAX_PARAMETERS} fields", len(loaded))
    return MappingProxyType({name: _range(str(name), raw) for name, raw in loaded.items()})


def extremes(search_range: Range) -> tuple[Choice, ...]:
    """The values between which a range draws; all of them where it is a list."""
    return search_range.values if isinstance(search_range, ChoiceRange) else (search_range.low, search_range.high)


def dump_search_space(space: SearchSpace) -> str:
    """The space as YAML that `load_search_space` reads back."""
    type_names = {range_type: name for name, range_type in _RANGE_TYPES.items()}
    plain = {
        name: {"type": type_names[type(search_range)]}
        | {field.name: _plain(getattr(search_range, field.name)) for field in fields(search_range)}
        for name, search_range in space.items()
    }
    return dump_yaml(plain)


def check_against(space: SearchSpace, config: RunConfig) -> None:
    """Refuse a space whose extremes the config would refuse, before a trial finds out, and a profile of each trial.

    Raises:
        UserError: naming the field and the value that `RunConfig` refuses.
    """
    # A verdict holds for one batch size and one network, and each trial would pay for its own.
    require(
        not config.trainer.profile,
        "trainer.profile",
        "be false in a search: profile one run first (train --trainer.profile true)",
        config.trainer.profile,
    )
    for name, search_range in space.items():
        for value in extremes(search_range):
            try:
                override(config, {name: value})
            except ValueError as error:
                raise UserError(f"search space: {name} can't take {value!r}: {error}") from error


def grid_points(space: SearchSpace) -> dict[str, list[Choice]]:
    """The lists that a grid goes through.

    Raises:
        UserError: if a range is not a list of choices, which is all that SageMaker's Grid takes.
    """
    for name, search_range in space.items():
        require(
            isinstance(search_range, ChoiceRange),
            f"search space: {name}",
            "be a choice for sampler grid",
            search_range,
        )
    return {name: list(choices.values) for name, choices in space.items() if isinstance(choices, ChoiceRange)}


def _range(name: str, raw: object) -> Range:
    source = f"search space: {name}"
    if name not in field_names():
        raise unknown_field(name, RunConfig, source="search space")
    require(isinstance(raw, dict), source, "be a mapping such as {type: float, low: 0.1, high: 1.0}", raw)
    assert isinstance(raw, dict)
    entries = dict(raw)
    type_name = entries.pop("type", None)
    require(
        isinstance(type_name, str) and type_name in _RANGE_TYPES,
        f"{source}: type",
        f"be one of {', '.join(_RANGE_TYPES)}",
        type_name,
    )
    known = [field.name for field in fields(_RANGE_TYPES[type_name])]
    for key in entries:
        # `step`, `q` and conditional spaces exist in Optuna only, `ScalingType: ReverseLogarithmic` in SageMaker only.
        require(key in known, f"{source}: {type_name} range", f"have only {', '.join(known)}", key)
    if type_name == "choice":
        return _choice(source, entries.get("values"))
    number = (int, float) if type_name == "float" else (int,)
    for key in ("low", "high"):
        value = entries.get(key)
        right = isinstance(value, number) and not isinstance(value, bool)
        hint = " (a number in quotes is text)" if isinstance(value, str) else ""
        require(right, f"{source}: {key}", f"be a number of type {type_name}{hint}", value)
    low, high, log = entries["low"], entries["high"], entries.get("log", False)
    require(isinstance(log, bool), f"{source}: log", "be true or false", log)
    require(low < high, source, "have low < high", (low, high))
    require(not log or low > 0, f"{source}: low", "be > 0 on a log scale", low)
    if type_name == "float":
        return FloatRange(float(low), float(high), log)
    return IntRange(low, high, log)


def _choice(source: str, values: object) -> ChoiceRange:
    require(isinstance(values, list) and len(values) > 0, f"{source}: values", "be a list", values)
    assert isinstance(values, list)
    require(len(values) <= MAX_CHOICES, f"{source}: values", f"be at most {MAX_CHOICES}", len(values))
    for value in values:
        require(isinstance(value, Choice), f"{source}: values", "be numbers, text or true/false", value)
    texts = [str(value) for value in values]
    # SageMaker sends choices as text, so 1 and "1" would be the same choice there.
    require(len(set(texts)) == len(texts), f"{source}: values", "be different as text", values)
    return ChoiceRange(tuple(values))


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
