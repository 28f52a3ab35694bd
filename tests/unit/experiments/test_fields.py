"""Fields: each command's own, what its help says of them, and how a wrong value is refused."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from experiments import cli
from experiments.config import RunConfig, load_config
from experiments.errors import EXIT_USAGE, UserError
from experiments.fields import EVERY_COMMAND, fields_of
from sagemaker_launch import cli as cloud_cli
from sagemaker_launch import rehearse
from sagemaker_launch.settings.cloud import CloudSettings, load_cloud
from sagemaker_launch.stages import COMMANDS, Stages

Main = Callable[[Sequence[str]], int]
HOME = ("sweep", "train", "evaluate", "predict", "report", "ui")
CLOUD = (
    *("tune", "train", "sync", "status", "stop", "cost", "debug-report", "parity", "deploy", "query", "delete"),
    *("serve", "image", "policy", "rehearse"),
)
ALL = [*((cli.main, "", name) for name in HOME), *((cloud_cli.main, "cloud ", name) for name in CLOUD)]
LONG = ("sweep", "train", "tune", "deploy", "rehearse", "policy", "parity")
"""Commands with more fields than fit into 60 lines."""
SETTINGS_TYPES = {"": RunConfig, "cloud.": CloudSettings}


def help_of(main: Main, command: str) -> str:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit) as exit_info:
        main([command, "--help"])
    assert exit_info.value.code == 0
    return shown.getvalue()


def options_in(shown: str) -> set[str]:
    """The fields that a help lists."""
    _, _, fields = shown.partition("Fields, set as")
    return {line.split()[0].removeprefix("--") for line in fields.splitlines() if line.startswith("  --")}


def own(*commands: str) -> set[str]:
    """The fields that commands declare to use."""
    return {
        prefix + name
        for prefix, settings_type in SETTINGS_TYPES.items()
        if not prefix or commands[0].startswith("cloud ")
        for name, field in fields_of(settings_type).items()
        if field.is_used_by(commands)
    }


@pytest.mark.parametrize("kind", SETTINGS_TYPES.values())
def test_every_field_declares_commands_that_exist(kind: type) -> None:
    known = {prefix + name for _, prefix, name in ALL}
    for name, field in fields_of(kind).items():
        assert field.commands == EVERY_COMMAND or (field.commands and set(field.commands) <= known), name


@pytest.mark.parametrize(("main", "prefix", "command"), ALL)
def test_help_shows_the_fields_of_its_command_and_no_others(
    main: Main, prefix: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = help_of(main, command)
    stages = [f"cloud {stage}" for stage in COMMANDS] if command in ("rehearse", "live-check") else []
    assert options_in(shown) == own(prefix + command, *stages)
    assert {"output_dir", "tracking.uri", "tracking.experiment"} <= options_in(shown), "they belong to all"
    assert max(map(len, shown.partition("Fields, set as")[2].splitlines())) <= 80
    assert command in LONG or len(shown.splitlines()) < 60
    for word in ("Union[", "Optional[", "<class", "CONFIG", "null)", "typing."):
        assert word not in shown


def test_sweep_lists_its_own_fields_first() -> None:
    listed = [line.split()[0] for line in help_of(cli.main, "sweep").splitlines() if line.startswith("  --")]
    fields = [name for name in listed if "." in name]
    of_sweep = [name for name in fields if name.startswith("--sweep.")]
    assert fields[: len(of_sweep)] == of_sweep and len(of_sweep) > 10


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (cli.main, ["predict", "photo.jpg", "--model", "export", "--optimizer.learning_rate", "7"]),
        (cli.main, ["report", "digits", "--data.batch_size=7"]),
        (cli.main, ["train", "--sweep.n_trials", "7"]),
        (cli.main, ["ui", "--seed", "7"]),
        (cloud_cli.main, ["status", "--cloud.budget_usd", "7"]),
        (cloud_cli.main, ["stop", "job", "--data.image_size", "7"]),
        (cloud_cli.main, ["tune", "--cloud.keep_alive_seconds", "7"]),
        (cloud_cli.main, ["train", "--trainer.devices", "7"]),
        (cloud_cli.main, ["rehearse", "--sweep.n_trials", "7"]),  # without --all it only starts the service
    ],
    ids=lambda value: " ".join(value[:1]) if isinstance(value, list) else "",
)
def test_a_typed_field_of_other_commands_is_refused(
    main: Main, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == EXIT_USAGE
    printed = capsys.readouterr().err
    assert f"must be left out of `{words[0]}`, which does not use it, got '7'; `{words[0]} --help`" in printed
    assert printed.count("\n") == 1


def test_a_refusal_shows_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "a.jpg", "--model", "m", "--sweep.storage", "postgresql://me:hush@host/db"]) == 2
    assert "hush" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("sweep.n_trials", "many", "be a whole number, got 'many'"),
        ("sweep.n_trials", 1.5, "be a whole number, got 1.5"),
        ("optimizer.learning_rate", "fast", "be a number, got 'fast'"),
        ("sweep.timeout_seconds", "1h", "be a number or null, got '1h'"),
        ("trainer.profile", "ja", "be true or false, got 'ja'"),
        ("trainer.compile", "maybe", "be true or false or auto, got 'maybe'"),
        ("data.cache", "disk", "be one of auto, none, decoded, features, got 'disk'"),
        ("sweep.study_name", 2024, "be text, in quotes where YAML reads something else, got 2024"),
        ("search", 5, "be a path or null, got 5"),
    ],
)
def test_a_value_of_the_wrong_type_names_key_rule_and_value(name: str, value: object, rule: str) -> None:
    with pytest.raises(UserError) as refused:
        load_config(None, {name: value})
    assert str(refused.value) == f"{name} must {rule}"


def test_a_wrong_type_in_cloud_settings_names_the_field_as_it_is_typed() -> None:
    for values, message in (
        ({"spot": "perhaps"}, "cloud.spot must be true or false, got 'perhaps'"),
        ({"tags": {"team": 5}}, """cloud.tags must be a mapping of texts such as {"a": "b"}, got {'team': 5}"""),
        ({"endpoint.alarms": "one"}, """cloud.endpoint.alarms must be a list of texts such as ["a", "b"], got 'one'"""),
    ):
        with pytest.raises(UserError) as refused:
            load_cloud(None, values)
        assert str(refused.value) == message


def test_a_printed_follow_up_command_gets_its_own_fields_and_the_experiment() -> None:
    typed = "--config conf/quick.yaml --cloud.region eu-west-1 --cloud.budget_usd 5 --seed 3 --output_dir out"
    given, fields = cloud_cli.parse(["train", *typed.split(), "--price-per-hour", "2"])
    given.overrides = {"seed": "3", "output_dir": "out"}
    given.cloud_overrides = {"region": "eu-west-1", "budget_usd": "5", "price_per_hour": "2"}
    assert fields == typed.split()[2:]
    expected = "--config conf/quick.yaml --output_dir out --cloud.region eu-west-1"
    assert cloud_cli._passed_on(given, "stop") == expected.split()
    expected = "--config conf/quick.yaml --output_dir out --cloud.region eu-west-1 --cloud.price_per_hour 2"
    assert cloud_cli._passed_on(given, "sync", "quick") == expected.split()
    assert cloud_cli._passed_on(given, "sync", "dogs")[4:6] == ["--tracking.experiment", "dogs"]
    for command in ("stop", "sync", "query"):  # and it is accepted there
        words = cloud_cli._passed_on(given, command, "dogs")
        cli.refuse_foreign_fields(cli.parse_overrides(words[2:]), [f"cloud {command}"], cloud_cli.SETTINGS_TYPES)


def test_a_preset_that_needs_a_typed_field_is_passed_on_field_by_field(tmp_path: Path) -> None:
    preset = tmp_path / "features.yaml"
    preset.write_text("data: {cache: features}\nmodel: {trainable: all}\ntracking: {uri: 'http://mlflow:5000'}\n")
    given, _ = cloud_cli.parse(["train", "--config", str(preset)])
    given.overrides = {"model.trainable": "head", "data.name": "folder", "data.root": "my/dogs"}
    given.cloud_overrides = {}
    # Neither takes the field without which the preset is refused.
    stop, sync = cloud_cli._passed_on(given, "stop", "dogs"), cloud_cli._passed_on(given, "sync", "dogs")
    assert stop == ["--tracking.uri", "http://mlflow:5000", "--tracking.experiment", "dogs"]
    assert "--config" not in sync and sync[:4] == ["--data.name", "folder", "--data.root", "my/dogs"]
    for command, words in (("stop", stop), ("sync", sync)):
        cli.refuse_foreign_fields(cli.parse_overrides(words), [f"cloud {command}"], cloud_cli.SETTINGS_TYPES)


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (cli.main, ["predict", "photo.jpg", "--model", "nowhere"]),
        (cli.main, ["report", "nowhere"]),
        (cloud_cli.main, ["serve", "nowhere"]),
        (cloud_cli.main, ["policy"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_commands_without_photos_take_a_preset_that_leaves_their_folder_open(
    main: Main, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As conf/dogs6.yaml does."""
    preset = tmp_path / "folder.yaml"
    preset.write_text("data: {name: folder}\n")
    monkeypatch.chdir(tmp_path)
    assert main([words[0], "--config", str(preset), *words[1:]]) != 0
    assert "data.root" not in capsys.readouterr().err
    for command in (["train"], ["evaluate", "--model", str(tmp_path)]):
        (tmp_path / "model.json").write_text("{}")
        assert cli.main([*command, "--config", str(preset), "--output_dir", str(tmp_path)]) == EXIT_USAGE
        printed = capsys.readouterr().err
        assert "data.root must name the folder of class folders when data.name is 'folder', got None" in printed


def test_a_whole_rehearsal_gives_each_command_what_it_accepts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The stages are parsed and checked as the command line does, without a service."""
    given, _ = cloud_cli.parse(["rehearse", "--all", "--config", "conf/quick.yaml"])
    given.overrides = {"sweep.n_trials": "2", "data.root": "photos", "output_dir": "out", "tracking.uri": "http://a:1"}
    given.cloud_overrides = {"budget_usd": "5", "endpoint.budget_usd_per_hour": "1", "bucket": "my-bucket"}
    ran: list[str] = []

    def succeeds(stages: Stages, command: str, *own: str) -> bool:
        parsed, fields = cloud_cli.parse([command, *own, *stages.arguments_of(command)])
        cli.refuse_foreign_fields(cli.parse_overrides(fields), parsed.uses, cloud_cli.SETTINGS_TYPES)
        ran.append(command)
        stages.jobs.append(command)
        return True

    service = contextlib.nullcontext(rehearse.Service({}, {}, None))
    monkeypatch.setattr(rehearse, "run_rehearsal", lambda *_: service)
    monkeypatch.setattr(Stages, "succeeds", succeeds)
    arguments_of = functools.partial(cloud_cli._passed_on, given, with_secrets=False)
    assert rehearse.rehearse_all(CloudSettings(), tmp_path, arguments_of, [], {})
    assert set(ran) == set(COMMANDS)
    assert "--tracking.uri" not in arguments_of("tune"), "other users of the machine can read a command line"
    assert "--sweep.n_trials" in arguments_of("tune") and "--sweep.n_trials" not in arguments_of("train")
    assert "--cloud.endpoint.budget_usd_per_hour" in arguments_of("deploy")
