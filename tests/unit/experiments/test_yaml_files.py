"""YAML files by YAML 1.2: numbers as people write them, and text that YAML 1.1 takes for something else."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from experiments.config import RunConfig, load_config, to_yaml
from experiments.study.search_space import FloatRange, dump_search_space, load_search_space
from experiments.yaml_files import dump_yaml, parse_yaml


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-5", 1e-5),
        ("1.0e6", 1e6),
        ("1E5", 1e5),
        ("+1e3", 1e3),
        ("-2.5E-3", -2.5e-3),
        (".5e-3", 5e-4),
        ("5.e-1", 0.5),
        ("010", 10),
        ("0x1F", 31),
        ("0o10", 8),
        ("-.inf", float("-inf")),
        ("no", "no"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("1.2.3", "1.2.3"),
        ("1e", "1e"),
        ("'1e-5'", "1e-5"),
        ("~", None),
        ("", None),
        ("TRUE", True),
    ],
)
def test_a_plain_word_is_read_by_the_core_schema(written: str, value: object) -> None:
    read = parse_yaml(f"key: {written}")
    assert read == {"key": value}
    assert isinstance(read, dict) and type(read["key"]) is type(value)


@pytest.mark.parametrize("text", ["1e-5", "1.0e6", "010", "no", "null", "0o7", "1_000", "12:30", "true", ""])
def test_text_is_written_so_that_both_versions_of_yaml_read_it_back(text: str) -> None:
    written = dump_yaml({"key": text})
    assert parse_yaml(written) == yaml.safe_load(written) == {"key": text}


def test_numbers_in_a_preset_and_in_a_search_space_are_numbers(tmp_path: Path) -> None:
    preset, search = tmp_path / "preset.yaml", tmp_path / "search.yaml"
    preset.write_text("optimizer: {learning_rate: 1e-5, weight_decay: 1.0e6}\nsweep: {timeout_seconds: 36e2}\n")
    config = load_config(preset)
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (1e-5, 1e6)
    assert config.sweep.timeout_seconds == 3600.0
    search.write_text(
        "optimizer.learning_rate: {type: float, low: 1e-5, high: 1E-1, log: true}\n"
        "optimizer.weight_decay: {type: choice, values: [1e-4, 1.0e6]}\n"
    )
    space = load_search_space(search)
    assert space["optimizer.learning_rate"] == FloatRange(1e-5, 0.1, log=True)
    search.write_text(dump_search_space(space))
    assert load_search_space(search) == space


def test_an_experiment_named_like_a_number_comes_back_as_text(tmp_path: Path) -> None:
    preset = tmp_path / "preset.yaml"
    config = load_config(None, {"tracking.experiment": "1e5", "sweep.study_name": "007"})
    preset.write_text(to_yaml(config))
    assert load_config(preset) == config != RunConfig()


@pytest.mark.parametrize("text", ["<<: {batch_size: 8}", "<<: [{batch_size: 8}]"])
def test_merge_keys_of_older_presets_still_work(tmp_path: Path, text: str) -> None:
    preset = tmp_path / "preset.yaml"
    preset.write_text(f"data:\n  {text}\n  image_size: 32\n")
    assert (load_config(preset).data.batch_size, load_config(preset).data.image_size) == (8, 32)
