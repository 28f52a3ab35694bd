"""Search spaces: round trips, and what one of the engines cannot express."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.config import RunConfig
from experiments.search_space import (
    ChoiceRange,
    FloatRange,
    IntRange,
    Range,
    check_against,
    dump_search_space,
    grid_points,
    load_search_space,
)

floats = st.tuples(st.floats(1e-9, 1e3), st.floats(1e-9, 1e3), st.booleans()).filter(lambda one: one[0] < one[1])
integers = st.tuples(st.integers(1, 500), st.integers(1, 500), st.booleans()).filter(lambda one: one[0] < one[1])
choices = st.lists(
    st.integers() | st.booleans() | st.text(max_size=9) | st.floats(-9, 9), min_size=1, max_size=9, unique_by=str
)
ranges = st.one_of(
    floats.map(lambda one: FloatRange(*one)),
    integers.map(lambda one: IntRange(*one)),
    choices.map(lambda one: ChoiceRange(tuple(one))),
)
names = st.sampled_from(["optimizer.learning_rate", "data.batch_size", "trainer.max_epochs", "model.dropout", "seed"])


@given(st.dictionaries(names, ranges, min_size=1))
def test_a_space_written_as_yaml_loads_as_itself(space: dict[str, Range]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "space.yaml"
        path.write_text(dump_search_space(space))
        assert dict(load_search_space(path)) == space


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer.lr: {type: float, low: 1, high: 2}", "did you mean optimizer.learning_rate"),
        ("optimizer.learning_rate: {type: real, low: 1, high: 2}", "type must be one of float, int, choice"),
        ("optimizer.learning_rate: {type: float, low: 1, high: 2, q: 1}", "must have only low, high, log, got 'q'"),
        ("data.batch_size: {type: int, low: 8, high: 64, step: 8}", "must have only low, high, log, got 'step'"),
        ("optimizer.learning_rate: {type: float, low: 1e-5, high: 1e-1}", "write 1.0e-5"),
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
    ],
)
def test_what_an_engine_cannot_express_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_search_space(path)


def test_extremes_that_the_config_refuses_are_refused_before_a_trial() -> None:
    with pytest.raises(ValueError, match=r"model\.dropout can't take 1\.5"):
        check_against({"model.dropout": FloatRange(0.0, 1.5)}, RunConfig())


def test_a_grid_needs_choices() -> None:
    assert grid_points({"data.batch_size": ChoiceRange((32, 64))}) == {"data.batch_size": [32, 64]}
    with pytest.raises(ValueError, match="must be a choice for sampler grid"):
        grid_points({"model.dropout": FloatRange(0.0, 0.5)})
