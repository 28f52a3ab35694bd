"""Config: round trips, refusals and presets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.config import RunConfig, config_help, field_names, load_config, override, to_flat, to_yaml
from experiments.search_space import check_against, load_search_space
from tests.conftest import REPOSITORY

PRESETS = sorted((REPOSITORY / "conf").glob("*.yaml"))

values = st.fixed_dictionaries(
    {},
    optional={
        "data.image_size": st.integers(16, 1024),
        "data.batch_size": st.integers(1, 4096),
        "data.fraction": st.floats(0.001, 1),
        "data.augment": st.sampled_from(["none", "light", "strong"]),
        "data.root": st.sampled_from(["photos", "/a/b c", "s3://bucket/prefix"]),
        "model.backbone": st.text(min_size=1, max_size=20),
        "model.dropout": st.floats(0, 0.99),
        "optimizer.learning_rate": st.floats(1e-12, 1e3),
        "optimizer.name": st.sampled_from(["sgd", "adamw"]),
        "trainer.max_epochs": st.integers(1, 10_000),
        "trainer.compile": st.booleans(),
        "sweep.timeout_seconds": st.none() | st.floats(0.1, 1e6),
        "tracking.uri": st.none() | st.sampled_from(["http://127.0.0.1:5000", "sqlite:///x.db"]),
        "seed": st.integers(0, 2**31),
    },
)


@given(values)
def test_flat_values_make_the_same_config_again(chosen: dict[str, object]) -> None:
    config = load_config(None, chosen)
    assert override(RunConfig(), to_flat(config)) == config


@given(values)
def test_a_config_written_as_yaml_loads_as_itself(chosen: dict[str, object]) -> None:
    import tempfile

    config = load_config(None, chosen)
    with tempfile.TemporaryDirectory() as folder:
        preset = Path(folder) / "preset.yaml"
        preset.write_text(to_yaml(config))
        assert load_config(preset) == config


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("optimizer.learning_rate", "1e-05", 1e-5),
        ("optimizer.learning_rate", "1", 1.0),
        ("trainer.compile", "True", True),
        ("trainer.compile", "false", False),
        ("sweep.timeout_seconds", "null", None),
        ("data.batch_size", "128", 128),
        ("model.weights", "1.5", "1.5"),
    ],
)
def test_text_is_read_as_the_type_of_its_field(name: str, text: str, value: object) -> None:
    read = to_flat(load_config(None, {name: text}))[name]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("optimizer.lr", "optimizer.learning_rate"),
        ("trainer.max_ep", "trainer.max_epochs"),
        ("learning_rate", "optimizer.learning_rate"),
        ("data.batchsize", "data.batch_size"),
        ("sweep.trials", "sweep.n_trials"),
    ],
)
def test_unknown_override_names_the_key_and_the_nearest_field(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"unknown field '{name}'; did you mean {near}"):
        load_config(None, {name: 1})


def test_an_unknown_key_in_a_preset_names_the_file(tmp_path: Path) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text("optimizer:\n  lr: 0.1\n")
    with pytest.raises(ValueError, match=r"mine\.yaml names unknown field 'optimizer\.lr'"):
        load_config(preset)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("optimizer.learning_rate", -1.0, "must be > 0, got -1.0"),
        ("optimizer.weight_decay", -0.1, "must be >= 0"),
        ("data.batch_size", 0, "must be >= 1, got 0"),
        ("data.image_size", 8, "must be 16..1024, got 8"),
        ("data.fraction", 0.0, r"must be in \(0, 1\]"),
        ("data.name", "folder", "data.root must"),
        ("model.dropout", 1.0, r"must be in \[0, 1\)"),
        ("trainer.max_epochs", 0, "must be >= 1"),
        ("sweep.n_trials", 0, "must be >= 1"),
        ("sweep.study_name", "a/b", "usable as a folder name"),
        ("sweep.metric", "val_accuracy", "sweep.direction must be maximize"),
        ("seed", -1, "seed must be >= 0"),
        ("seed", "three", "seed.*three"),
        ("trainer.max_epochs", 1.5, "trainer.max_epochs.*1.5"),
        ("model.trainable", "tail", "model.trainable.*tail"),
        ("optimizer.learning_rate", "fast", "optimizer.learning_rate.*fast"),
    ],
)
def test_a_refused_value_names_key_rule_and_value(name: str, value: object, rule: str) -> None:
    with pytest.raises(ValueError, match=rule) as error:
        load_config(None, {name: value})
    assert "\n" not in str(error.value)


def test_a_preset_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    preset = tmp_path / "list.yaml"
    preset.write_text("- 1\n- 2\n")
    with pytest.raises(ValueError, match="must hold sections"):
        load_config(preset)
    preset.write_text("a: [")
    with pytest.raises(ValueError, match="is not YAML"):
        load_config(preset)
    with pytest.raises(FileNotFoundError):
        load_config(tmp_path / "absent.yaml")


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.name)
def test_every_preset_loads_with_its_search_space(preset: Path) -> None:
    config = load_config(preset)
    assert config.search is not None
    check_against(load_search_space(REPOSITORY / config.search), config)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "conf").rglob("*.yaml")), ids=lambda path: path.name)
def test_every_file_in_conf_opens_with_the_command_that_runs_it(path: Path) -> None:
    assert "python -m experiments" in path.read_text().splitlines()[0]


@pytest.mark.parametrize("path", sorted((REPOSITORY / "conf/search").glob("*.yaml")), ids=lambda path: path.name)
def test_every_search_space_fits_the_default_config(path: Path) -> None:
    check_against(load_search_space(path), RunConfig())


def test_help_explains_every_field() -> None:
    text = config_help()
    for name in field_names():
        assert f"--{name} " in text
    assert "Peak step size after warm-up" in text


def test_reading_a_config_imports_nothing_heavy() -> None:
    code = "import sys, experiments.config; print([m for m in ('torch', 'mlflow', 'optuna') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
