"""The codec between a config and a job's hyperparameters."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.config import RunConfig, is_sent, load_config, override, to_flat
from experiments.errors import UserError
from experiments.study.search_space import ChoiceRange, FloatRange, IntRange, SearchSpace, load_search_space
from sagemaker_launch.container.hyperparameters import SAFE, decode, encode, field_name, wire_name, wire_value
from tests.conftest import REPOSITORY

SPACES = sorted((REPOSITORY / "conf" / "search").glob("*.yaml"))


def sent_part(config: RunConfig) -> dict[str, object]:
    return {name: value for name, value in to_flat(config).items() if is_sent(name)}


@pytest.mark.parametrize("path", sorted((REPOSITORY / "conf").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_preset_comes_back_as_it_was(path: Path) -> None:
    config = load_config(path)
    received = override(RunConfig(), {**decode(encode(config)), "data.root": "photos"})
    assert sent_part(received) == sent_part(config)


@settings(max_examples=60, deadline=None)
@given(
    weights=st.from_regex(SAFE, fullmatch=True),
    learning_rate=st.floats(1e-12, 1e3),
    seed=st.integers(0, 2**32 - 1),
    compiled=st.sampled_from([True, False, "auto"]),
)
def test_any_config_comes_back_as_it_was(weights: str, learning_rate: float, seed: int, compiled: bool | str) -> None:
    base = RunConfig()
    config = replace(
        base,
        model=replace(base.model, weights=weights),
        optimizer=replace(base.optimizer, learning_rate=learning_rate),
        trainer=replace(base.trainer, compile=compiled),
        seed=seed,
    )
    assert sent_part(override(base, decode(encode(config)))) == sent_part(config)


@settings(max_examples=300, deadline=None)
@given(text=st.text(min_size=1) | st.text("a1.-_ $()`'\"\\;&|<>*?~#!{}[]\n\t", min_size=1))
def test_text_is_one_word_for_a_shell_or_refused(text: str) -> None:
    """AWS's toolkit 5.1.1 joins all values to a command line of a shell."""
    config = replace(RunConfig(), model=replace(RunConfig().model, backbone=text))
    if not SAFE.fullmatch(text):
        for refused in (lambda: encode(config), lambda: wire_value("model.backbone", text)):
            with pytest.raises(UserError, match=r"model\.backbone must have only letters, digits and \._- in a job"):
                refused()
        return
    words = [word for name, value in encode(config).items() for word in (f"--{name}", str(json.loads(value)))]
    assert shlex.split(" ".join(words), comments=True) == words
    assert not set(" ".join(words)) & set("$`*?~{}[]()<>|&;!\n\0")


@pytest.mark.parametrize("dialect", ["plain", "python", "quoted"])
def test_all_three_dialects_are_read_alike(dialect: str) -> None:
    config = override(RunConfig(), {"trainer.compile": "false", "optimizer.name": "sgd", "data.batch_size": 32})
    sent = encode(config)
    if dialect == "python":
        sent["trainer__compile"] = "False"
    elif dialect == "quoted":
        sent = {name: json.dumps(value.strip('"')) for name, value in sent.items()}
    assert override(RunConfig(), decode(sent)) == config


OF_TOOLKIT = (
    *("sagemaker_program", "sagemaker_submit_directory"),
    *("sagemaker_container_log_level", "sagemaker_torch_distributed_enabled"),
)


def test_no_name_has_a_dot_and_none_is_lost() -> None:
    names = encode(RunConfig())
    assert not any("." in name for name in names)
    assert [field_name(wire_name(name)) for name in to_flat(RunConfig())] == list(to_flat(RunConfig()))
    assert len(names) <= 100 - len(OF_TOOLKIT)


def test_what_may_hold_a_password_or_a_path_is_not_sent() -> None:
    config = override(
        RunConfig(),
        {
            "tracking.uri": "https://me:hidden@tracking",
            "sweep.storage": "postgresql://me:hidden@db/x",
            "data.root": "/home/me/hidden",
            "data.cache_dir": "/home/me/hidden",
            "output_dir": "/home/me/hidden",
        },
    )
    assert "hidden" not in json.dumps(encode(config))


def test_what_belongs_to_the_service_is_no_field() -> None:
    assert decode({"sagemaker_program": "entry.py", "_tuning_objective_metric": "best_val_loss", "seed": "1"}) == {
        "seed": "1"
    }


@pytest.mark.parametrize("path", SPACES, ids=lambda p: p.stem)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_point_that_sagemaker_can_draw_is_the_config_that_optuna_would_have_built(
    path: Path, data: st.DataObject
) -> None:
    space = load_search_space(path)
    point = data.draw(points(space))
    quoted = data.draw(st.booleans())
    drawn = {wire_name(name): wire_value(name, value) for name, value in point.items()}
    if quoted:
        drawn = {name: json.dumps(value) for name, value in drawn.items()}
    at_home = override(RunConfig(), point)
    assert override(RunConfig(), decode({**encode(RunConfig()), **drawn})) == at_home


def points(space: SearchSpace) -> st.SearchStrategy[dict[str, object]]:
    """Any point of a space."""

    def values(search_range: object) -> st.SearchStrategy[object]:
        if isinstance(search_range, FloatRange):
            return st.floats(search_range.low, search_range.high)
        if isinstance(search_range, IntRange):
            return st.integers(search_range.low, search_range.high)
        assert isinstance(search_range, ChoiceRange)
        return st.sampled_from(search_range.values)

    return st.fixed_dictionaries({name: values(search_range) for name, search_range in space.items()})
