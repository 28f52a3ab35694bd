"""Each field says what it is for, and study, report, parity, search and job read the same declaration."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

from experiments import cli
from experiments.config import (
    CUT_FIELDS,
    ConfigValue,
    RunConfig,
    decides_result,
    field_names,
    is_needed_to_repeat,
    is_own_in_job,
    is_sent,
    is_tunable,
    override,
    to_flat,
    to_public,
)
from experiments.errors import UserError
from experiments.fields import Role, fields_of
from experiments.report.compared_runs import ComparedRun, config_of, options_to_repeat
from experiments.report.parity import compare
from experiments.runs.folder import Outcome, RunFolder
from experiments.study.identity import Photos, StudyIdentity
from sagemaker_launch import cli as cloud_cli
from sagemaker_launch.container.hyperparameters import decode, encode
from sagemaker_launch.jobs.repeat import config_fields

FIELDS = fields_of(RunConfig)
PHOTOS = Photos("fingerprint", ("a", "b"), 2, 2, 0)
TOGETHER: dict[str, dict[str, object]] = {
    "trainer.on_rule": {"trainer.record": "light"},
    "sweep.metric": {"sweep.direction": "maximize"},
    "sweep.direction": {"sweep.metric": "val_accuracy"},
}
"""What a config must have too, for a field to have another value."""


def another(name: str) -> ConfigValue:
    """A value of a field that is not its default."""
    field = FIELDS[name]
    options = [option for option in get_args(field.hint) if get_origin(option) is Literal] or [field.hint]
    words = [
        word
        for option in options
        for word in get_args(option)
        if get_origin(option) is Literal and word != field.default
    ]
    if words:
        return str(words[0])
    types = get_args(field.hint) or (field.hint,)
    if bool in types:
        return field.default is not True
    if int in types or float in types:
        return 32 if name == "data.image_size" else 0.7 if float in types else 7
    return f"other-{name}"


def with_another(name: str) -> RunConfig:
    return override(RunConfig(), {name: another(name), **TOGETHER.get(name, {})})


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_has_a_role(name: str) -> None:
    assert FIELDS[name].role in get_args(Role)


@pytest.mark.parametrize("name", FIELDS)
def test_a_study_continues_with_another_value_unless_the_field_decides_the_result(name: str) -> None:
    begun = StudyIdentity.of(RunConfig(), {}, PHOTOS)
    changed = replace(begun, config={**begun.config, name: another(name)})
    assert begun.is_same(changed) == (not decides_result(name) and name != "sweep.study_name")


@pytest.mark.parametrize("name", FIELDS)
def test_a_report_repeats_a_run_with_what_decides_it_and_its_photos(name: str) -> None:
    is_named = f"--{name} " in f"{options_to_repeat(with_another(name), 'train')} "
    assert is_named == (decides_result(name) or FIELDS[name].role == "photos") == is_needed_to_repeat(name)


@pytest.mark.parametrize("name", FIELDS)
def test_parity_calls_a_difference_decisive_where_the_field_decides_the_result(name: str, tmp_path: Path) -> None:
    folders = []
    for label, params in (("one", to_public(RunConfig())), ("other", {**to_public(RunConfig()), name: another(name)})):
        folder = RunFolder(tmp_path / label)
        folder.start(label, params, {})
        folder.record(1, {"val_loss": 1.0})
        folder.finish(Outcome("COMPLETE", 1.0, {"val_loss": 1.0}))
        folders.append(folder)
    assert [setting.name for setting in compare(*folders).contradictions] == [name] * decides_result(name)


@pytest.mark.parametrize("name", FIELDS)
def test_a_job_gets_the_fields_that_are_sent_and_home_takes_back_what_is_not_the_machine_s(name: str) -> None:
    config = with_another(name)
    received = decode(encode(config))
    assert (name in received) == is_sent(name)
    back = to_flat(override(RunConfig(), config_fields(received)))[name] == to_flat(config)[name]
    assert back == (is_sent(name) and not is_own_in_job(name))


def test_what_a_search_draws_decides_the_result_and_reaches_a_job() -> None:
    tunable = {name for name in field_names() if is_tunable(name)}
    assert len(tunable) > 20
    for name in tunable:
        assert decides_result(name) and is_sent(name) and name not in CUT_FIELDS, name


def test_a_field_that_decides_the_result_is_sent_to_a_job_unless_the_job_has_its_own() -> None:
    for name in field_names():
        assert not decides_result(name) or is_sent(name) or is_own_in_job(name), name


def test_a_job_repeated_at_home_has_the_devices_and_weights_of_home() -> None:
    params = {name: str(value) for name, value in to_flat(RunConfig()).items()}
    params |= {"trainer.devices": "8", "model.weights": "/opt/ml/net.pth", "seed": "3", "trainer.profile": "True"}
    run = {"name": "run", "metrics": {}, "params": params, "minutes": None}
    assert options_to_repeat(config_of(ComparedRun(origin="sagemaker", **run), RunConfig()), "train") == "--seed 3"
    at_home = config_of(ComparedRun(origin="local", **run), RunConfig())
    assert options_to_repeat(at_home, "train") == "--model.weights /opt/ml/net.pth --trainer.devices 8 --seed 3"
    assert options_to_repeat(at_home, "cloud train") == "--model.weights /opt/ml/net.pth --seed 3"


@pytest.mark.parametrize("command", ["train", "cloud train"])
@pytest.mark.parametrize("name", FIELDS)
def test_the_command_that_repeats_a_run_takes_its_options(name: str, command: str) -> None:
    words = shlex.split(options_to_repeat(with_another(name), command))
    cli.refuse_foreign_fields(cli.parse_overrides(words), [command], cloud_cli.SETTINGS_TYPES)


def test_a_name_that_is_no_field_is_refused_with_the_field_that_was_meant() -> None:
    with pytest.raises(UserError, match=r"trainer\.device must be the name of a field.*did you mean trainer\.devices"):
        decides_result("trainer.device")


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.secret])
def test_a_field_that_may_hold_a_password_is_never_sent_and_is_shown_without_it(name: str) -> None:
    config = override(RunConfig(), {name: "postgresql://me:hush@host/db"})
    assert to_public(config)[name] == "postgresql://me:***@host/db"
    assert not is_sent(name) and "hush" not in str(encode(config))
