"""Search spaces: round trips, and what one of the engines cannot express."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.config import CUT_FIELDS, RunConfig, field_names, is_tunable, load_config, override, to_flat
from experiments.errors import UserError
from experiments.study.search_space import (
    ChoiceRange,
    FloatRange,
    IntRange,
    Range,
    build_search_space,
    check_against,
    dump_search_space,
    grid_points,
    load_search_space,
    study_space,
)
from experiments.yaml_files import parse_yaml
from tests.conftest import REPOSITORY

floats = st.tuples(st.floats(1e-9, 1e3), st.floats(1e-9, 1e3), st.booleans()).filter(
    lambda bounds: bounds[0] < bounds[1]
)
integers = st.tuples(st.integers(1, 500), st.integers(1, 500), st.booleans()).filter(
    lambda bounds: bounds[0] < bounds[1]
)
choices = st.lists(
    st.integers() | st.booleans() | st.text(max_size=9) | st.floats(-9, 9), min_size=1, max_size=9, unique_by=str
)
ranges = st.one_of(
    floats.map(lambda bounds: FloatRange(*bounds)),
    integers.map(lambda bounds: IntRange(*bounds)),
    choices.map(lambda values: ChoiceRange(tuple(values))),
)
names = st.sampled_from(
    ["optimizer.learning_rate", "data.batch_size", "trainer.max_epochs", "model.dropout", "data.cache_views"]
)


@pytest.mark.parametrize(("trainable", "name"), [("head", "head"), ("last_block", "full"), ("all", "full")])
def test_a_search_that_names_no_space_has_one_from_any_folder(
    trainable: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(None, {"model.trainable": trainable})
    assert study_space(config) == load_search_space(REPOSITORY / "conf" / "search" / f"{name}.yaml")
    check_against(study_space(config), config)


def test_a_search_space_that_is_named_wins(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("model.dropout: {type: float, low: 0.0, high: 0.5}")
    assert list(study_space(load_config(None, {"search": path}))) == ["model.dropout"]


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(names, ranges, min_size=1))
def test_a_space_written_as_yaml_loads_as_itself(space: dict[str, Range]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "space.yaml"
        path.write_text(dump_search_space(space))
        loaded = dict(load_search_space(path))
    assert loaded == space
    # Equality takes 1, 1.0 and True for the same.
    assert repr(loaded) == repr(space)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer.lr: {type: float, low: 1, high: 2}", "did you mean optimizer.learning_rate"),
        ("optimizer.learning_rate: {type: real, low: 1, high: 2}", "type must be one of float, int, choice"),
        ("optimizer.learning_rate: {type: float, low: 1, high: 2, q: 1}", "must have only low, high, log, got 'q'"),
        ("data.batch_size: {type: int, low: 8, high: 64, step: 8}", "must have only low, high, log, got 'step'"),
        ("optimizer.learning_rate: {type: float, low: '1e-5', high: 1e-1}", "a number in quotes is text"),
        ("optimizer.learning_rate: {type: float, low: 2.0, high: 1.0}", "must have low < high"),
        ("optimizer.learning_rate: {type: float, low: 0.0, high: 1.0, log: true}", "must be > 0 on a log scale"),
        ("data.batch_size: {type: int, low: 1.5, high: 3}", "must be a number of type int"),
        ("data.batch_size: {type: int, low: true, high: 3}", "must be a number of type int"),
        ("data.batch_size: {type: choice, values: []}", "must be a list"),
        ("data.batch_size: {type: choice, values: [1, '1']}", "different as text"),
        ("data.batch_size: {type: choice, values: [[1], [2]]}", "must be numbers, text or true/false"),
        ("data.batch_size: 3", "must be a mapping"),
        ("sweep.n_trials: {type: int, low: 1, high: 2}", "must be a field that changes the result"),
        ("data.root: {type: choice, values: [a, b]}", "must be a field that changes the result"),
        ("", "must map field names to ranges"),
        ("[]", "must map field names to ranges"),
        ("{}", "must map field names to ranges"),
        (
            "optimizer: {learning_rate: {type: float, low: 1, high: 2}}",
            "search space: optimizer must be the name of a field",
        ),
        ("1: {type: int, low: 1, high: 2}", "search space: 1 must be the name of a field"),
        ("data.batch_size:", "must be a mapping such as .*, got None"),
        ("data.batch_size: {low: 1, high: 2}", "type must be one of float, int, choice, got None"),
        ("data.batch_size: {type: [int], low: 1, high: 2}", "type must be one of float, int, choice"),
        ("data.batch_size: {type: {int: 1}, low: 1, high: 2}", "type must be one of float, int, choice"),
        ("data.batch_size: {type: int, high: 2}", "low must be a number of type int, got None"),
        ("data.batch_size: {type: int, low: 2, high: 2}", r"must have low < high, got \(2, 2\)"),
        ("data.batch_size: {type: int, low: 0, high: 2, log: true}", "must be > 0 on a log scale, got 0"),
        ("data.batch_size: {type: int, low: 1, high: 2, log: 1}", "log must be true or false, got 1"),
        ("data.batch_size: {type: int, low: 1, high: 64, ScalingType: Linear}", "got 'ScalingType'"),
        ("data.batch_size: {type: choice, values: [1], low: 1}", "choice range must have only values, got 'low'"),
        ("data.batch_size: {type: choice}", "must be a list, got None"),
        ("data.batch_size: {type: choice, values: 32}", "must be a list, got 32"),
        ("data.batch_size: {type: choice, values: [32, null]}", "must be numbers, text or true/false, got None"),
        ("data.batch_size: {type: choice, values: [32, 32]}", "different as text"),
        ("seed: {type: int, low: 1, high: 2}\nseed: {type: int, low: 1, high: 3}", "seed"),
        ("seed: [", "is not YAML"),
    ],
)
def test_what_an_engine_cannot_express_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_search_space(path)


def test_a_refusal_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("seed: [")
    with pytest.raises(ValueError, match="is not YAML") as error:
        load_search_space(path)
    assert "\n" not in str(error.value)


def test_more_than_thirty_choices_or_fields_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(f"data.batch_size: {{type: choice, values: {list(range(1, 31))}}}")
    load_search_space(path)
    path.write_text(f"data.batch_size: {{type: choice, values: {list(range(1, 32))}}}")
    with pytest.raises(ValueError, match="values must be at most 30, got 31"):
        load_search_space(path)
    path.write_text("\n".join(f"field_{number}: {{type: int, low: 1, high: 2}}" for number in range(31)))
    with pytest.raises(ValueError, match="must tune at most 30 fields, got 31"):
        load_search_space(path)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.yaml"):
        load_search_space(tmp_path / "absent.yaml")


def test_fields_that_do_not_change_the_result_are_not_tunable(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    refused = [name for name in field_names() if not is_tunable(name) and name not in CUT_FIELDS]
    assert {
        "sweep.n_trials",
        "output_dir",
        "data.root",
        "data.name",
        "data.max_bad_fraction",
        "tracking.uri",
        "search",
    } <= set(refused)
    for name in refused:
        path.write_text(f"{name}: {{type: choice, values: [a, b]}}")
        with pytest.raises(ValueError, match=f"^search space: {name} must be a field that changes the result"):
            load_search_space(path)


@pytest.mark.parametrize("name", ["seed", "data.fraction", "data.valid_fraction"])
def test_fields_that_change_the_photos_of_a_trial_are_not_tunable(tmp_path: Path, name: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(f"{name}: {{type: choice, values: [0, 1]}}")
    with pytest.raises(
        UserError, match=f"^search space: {name} must be a field that keeps the photos of all trials the"
    ):
        load_search_space(path)
    loaded = parse_yaml(path.read_text())
    assert list(build_search_space(loaded, "a study of an older version")) == [name], "its report can still be written"


@pytest.mark.parametrize(
    "text",
    [
        "{type: float, low: 1.0, high: .inf}",
        "{type: float, low: -.inf, high: 1.0}",
        "{type: float, low: .nan, high: 1.0}",
        "{type: choice, values: [0.1, .inf]}",
        "{type: choice, values: [0.1, .nan]}",
    ],
)
def test_what_is_no_finite_number_is_refused_before_a_trial(tmp_path: Path, text: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(f"optimizer.weight_decay: {text}")
    with pytest.raises(ValueError, match=r"optimizer\.weight_decay.*(inf|nan)"):
        check_against(load_search_space(path), RunConfig())


# A sweep trains each trial on one device of this machine, and shares its processors among the workers itself.
@pytest.mark.parametrize("name", ["trainer.devices", "trainer.num_nodes"])
def test_how_many_machines_a_trial_takes_is_not_tunable(tmp_path: Path, name: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(f"{name}: {{type: int, low: 1, high: 2}}")
    with pytest.raises(ValueError, match="must be a field that changes the result"):
        load_search_space(path)


@pytest.mark.parametrize(
    ("name", "one", "value"),
    [
        ("model.dropout", FloatRange(-0.1, 0.5), "-0.1"),
        ("trainer.max_epochs", IntRange(0, 3), "0"),
        ("trainer.max_epochs", FloatRange(1.0, 3.0), "1.0"),
        ("data.image_size", ChoiceRange((32, 64, 4096)), "4096"),
        ("optimizer.name", ChoiceRange(("sgd", "adamW")), "'adamW'"),
        ("trainer.compile", ChoiceRange((True, 1)), "1"),
        ("optimizer.learning_rate", ChoiceRange((0.1, "fast")), "'fast'"),
    ],
)
def test_a_value_that_the_config_refuses_is_named(name: str, one: Range, value: str) -> None:
    with pytest.raises(ValueError, match=f"^search space: {name} can't take {value}: .*{name}"):
        check_against({name: one}, RunConfig())


def test_a_range_of_whole_numbers_fits_a_real_field() -> None:
    check_against({"optimizer.weight_decay": IntRange(0, 3)}, RunConfig())


def test_choices_fit_as_the_text_that_a_tuning_job_sends() -> None:
    space = {
        "trainer.compile": ChoiceRange((True, False)),
        "data.batch_size": ChoiceRange((32, 64)),
        "optimizer.learning_rate": ChoiceRange((1e-5, 0.1)),
        "model.trainable": ChoiceRange(("head", "all")),
    }
    check_against(space, RunConfig())
    for name, search_range in space.items():
        for value in search_range.values:
            assert to_flat(override(RunConfig(), {name: str(value)}))[name] == value


def test_extremes_that_the_config_refuses_are_refused_before_a_trial() -> None:
    with pytest.raises(ValueError, match=r"model\.dropout can't take 1\.5"):
        check_against({"model.dropout": FloatRange(0.0, 1.5)}, RunConfig())


def test_a_grid_needs_choices() -> None:
    assert grid_points({"data.batch_size": ChoiceRange((32, 64))}) == {"data.batch_size": [32, 64]}
    with pytest.raises(ValueError, match="must be a choice for sampler grid"):
        grid_points({"model.dropout": FloatRange(0.0, 0.5)})
    with pytest.raises(ValueError, match=r"trainer\.max_epochs must be a choice for sampler grid"):
        grid_points({"data.batch_size": ChoiceRange((32, 64)), "trainer.max_epochs": IntRange(1, 3)})
