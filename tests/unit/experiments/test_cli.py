"""The command line: help at once, plain errors, exit codes."""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import boto3.exceptions
import pytest

from experiments import cli
from experiments.cli import main, parse_overrides
from experiments.config import RunConfig, load_config
from experiments.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    CommandError,
    TrackingError,
    UserError,
)
from lightning_modules.inference import BadExportError
from lightning_modules.redaction import public_url
from tests.conftest import REPOSITORY

COMMANDS = ("sweep", "train", "evaluate", "predict", "report", "ui")


def test_overrides_are_read_in_both_forms() -> None:
    assert parse_overrides(["--a.b", "1", "--c=x=y"]) == {"a.b": "1", "c": "x=y"}
    assert parse_overrides([]) == {}


def test_a_value_may_be_negative_empty_or_begin_with_dashes() -> None:
    assert parse_overrides(["--a", "-1", "--b=", "--c=--d", "--e", ""]) == {"a": "-1", "b": "", "c": "--d", "e": ""}


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["stray"], "unexpected argument 'stray'"),
        (["-a", "1"], "unexpected argument '-a'"),
        (["--a", "1", "2"], "unexpected argument '2'"),
        (["--a"], "--a needs a value"),
        (["--a=1", "--b"], "--b needs a value"),
    ],
)
def test_what_is_no_override_is_refused(tokens: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_overrides(tokens)


def processor_seconds() -> float:
    """What the processes took that this one has started: a busy machine changes it little."""
    times = os.times()
    return times.children_user + times.children_system


def test_help_answers_within_half_a_second() -> None:
    seconds = []
    for _ in range(5):
        started = processor_seconds()
        subprocess.run([sys.executable, "-m", "experiments", "sweep", "--help"], capture_output=True, check=True)
        seconds.append(processor_seconds() - started)
    print(f"--help: median {statistics.median(seconds):.2f} s")
    assert min(seconds) < 0.5


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS if name != "sweep")], ids=str)
def test_help_of_each_command_exits_0_at_once(command: list[str]) -> None:
    started = processor_seconds()
    done = subprocess.run(
        [sys.executable, "-m", "experiments", *command, "--help"], capture_output=True, text=True, check=False
    )
    seconds = processor_seconds() - started
    print(f"{' '.join(command)} --help: {seconds:.2f} s")
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: python -m experiments" in done.stdout
    assert seconds < 1.5


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["--help"])
    assert exit_info.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {command} " in shown or f"\n    {command} " in shown for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep", "--optimizer.lr", "1"], "did you mean optimizer.learning_rate"),
        (["sweep", "--optimizer.learning_rate", "-1"], "optimizer.learning_rate must be > 0"),
        (["train", "--config", "absent.yaml"], "absent.yaml"),
        (["train", "--seed"], "--seed needs a value"),
        (["sweep", "--conf", "conf/quick.yaml"], "conf must be the name of a field"),
        (["sweep", "--conf=conf/quick.yaml"], "conf must be the name of a field"),
        (["sweep", "--mor", "3"], "mor must be the name of a field"),
        (["train", "--trainer.max_ep", "3"], "did you mean trainer.max_epochs"),
        (["train", "--trainer.max_epochs", "many"], "trainer.max_epochs"),
        (["train", "conf/quick.yaml"], "unexpected argument 'conf/quick.yaml'"),
        (["train", "--config", "LICENSE"], "LICENSE"),
        (["train", "--config", "conf"], "conf"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    for name in COMMANDS:
        monkeypatch.setattr(cli, f"_{name}", lambda *_: None)
    assert main(arguments) == EXIT_USAGE
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["swep"],
        [],
        ["predict", "photo.jpg"],  # no --model
        ["predict", "--model", "export"],  # no photo
        ["report"],
        ["train", "--config"],
        ["sweep", "--more", "many"],
        ["evaluate", "--model", "export", "--split", "train"],
        ["ui", "--port", "http"],
    ],
    ids=" ".join,
)
def test_what_the_command_line_does_not_know_is_wrong_use(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == EXIT_USAGE
    assert "python -m experiments" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["sweep", "--more", "-1"],
        ["predict", "photo.jpg", "--model", "export", "--top-k", "0"],
        ["ui", "--port", "99999"],
    ],
    ids=" ".join,
)
def test_a_number_that_no_command_can_use_is_wrong_use(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in COMMANDS:
        monkeypatch.setattr(cli, f"_{name}", lambda *_: None)
    try:
        code: object = main(arguments)
    except SystemExit as exited:
        code = exited.code
    assert code == EXIT_USAGE


@pytest.mark.parametrize(
    "arguments",
    [
        ["report", "digits", "dogs", "--output_dir", "out"],
        ["report", "digits", "dogs", "--output_dir=out"],
        ["report", "--output_dir=out", "digits", "dogs"],
        ["report", "--output_dir", "out", "digits", "dogs"],
    ],
    ids=" ".join,
)
def test_fields_may_stand_anywhere_behind_the_command(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[RunConfig, list[str]]] = []
    monkeypatch.setattr(cli, "_report", lambda config, parsed: called.append((config, parsed.studies)))
    assert main(arguments) == EXIT_DONE
    [(config, studies)] = called
    assert config.output_dir == Path("out")
    assert studies == ["digits", "dogs"]


def test_overrides_reach_the_command_as_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[RunConfig, argparse.Namespace]] = []
    monkeypatch.setattr(cli, "_train", lambda *arguments: called.append(arguments))
    preset = str(REPOSITORY / "conf" / "quick.yaml")
    assert main(["train", "--config", preset, "--seed", "7", "--optimizer.learning_rate=1e-05"]) == EXIT_DONE
    [(config, arguments)] = called
    assert (config.seed, config.optimizer.learning_rate, config.data.image_size) == (7, 1e-5, 32)
    assert arguments.overrides == {"seed": "7", "optimizer.learning_rate": "1e-05"}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("data.root must exist"), EXIT_USAGE),
        (CommandError("2 of 3 photos can't be read"), EXIT_FAILED),
        (TrackingError("MLflow is away"), EXIT_FAILED),
        (BadExportError("the export is damaged"), EXIT_FAILED),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("wants_traceback", [False, True])
def test_an_error_of_ours_is_one_line(
    error: Exception,
    code: int,
    wants_traceback: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "_report", fail)
    assert main(["report", "digits", *(["--traceback"] if wants_traceback else [])]) == code
    printed = capsys.readouterr().err
    assert printed.endswith(f"error: {error}\n")
    assert printed.startswith("Traceback" if wants_traceback else "error: ")


@pytest.mark.parametrize(
    "fail",
    [
        lambda *_: dict[str, str]()["missing"],
        lambda *_: [a for a, b in [[1]]],
        lambda *_: (_ for _ in ()).throw(FileNotFoundError(2, "No such file or directory", "photo.jpg")),
    ],
    ids=["KeyError", "ValueError", "OSError"],
)
def test_any_other_error_is_a_bug_with_its_traceback_and_a_log(
    fail: Callable[..., object],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["experiments", "--sweep.storage", "postgresql://me:hush@host/db"])
    monkeypatch.setattr(cli, "_report", fail)
    assert main(["report", "digits"]) == EXIT_FAILED
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback")
    assert "this is a bug in this program" in printed
    [log] = tmp_path.iterdir()
    assert str(log) in printed
    text = log.read_text()
    assert "Traceback" in text and "hush" not in text and sys.version.split()[0] in text


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (
            OSError(28, "No space left on device", "runs/x.ckpt"),
            "runs/x.ckpt: No space left on device: free some space",
        ),
        (
            PermissionError(13, "Permission denied", "/root/runs"),
            "/root/runs: Permission denied: change its permissions",
        ),
        (OSError(5, "Input/output error"), "Input/output error: the disk or network drive did not answer"),
    ],
    ids=["full", "permission", "drive"],
)
def test_an_error_of_the_machine_says_what_to_do(
    error: OSError, advice: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "_report", fail)
    assert main(["report", "digits"]) == EXIT_FAILED
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {advice}")
    assert "Errno" not in printed
    assert printed.count("\n") == 1


def test_an_output_file_is_refused_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for output, rule in (
        (tmp_path, "must name a file"),
        (tmp_path / "file" / "page.html", "must be a folder that can be"),
    ):
        assert main(["report", "digits", "--output", str(output)]) == EXIT_USAGE
        assert f"--output {rule}" in capsys.readouterr().err


def test_an_interrupt_is_exit_code_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments.errors import InterruptedRunError

    for error in (KeyboardInterrupt(), InterruptedRunError()):

        def fail(*_: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(cli, "_report", fail)
        assert main(["report", "digits"]) == EXIT_INTERRUPTED
    assert "the same command continues from here" in capsys.readouterr().err


@pytest.mark.parametrize("uri", ["http://me:secret@host:5000", "https://host/tools/mlflow", "http://[::1]:5000/"])
def test_a_server_is_looked_at_in_a_browser_and_a_database_by_a_command_that_opens_it(uri: str, tmp_path: Path) -> None:
    assert cli._ui_address(load_config(None, {"tracking.uri": uri})) == f"{public_url(uri)} in a browser"
    words = cli._ui_address(load_config(None, {"tracking.uri": f"sqlite:///{tmp_path}/mlflow.db"}))
    assert words.endswith(f"-m experiments ui --tracking.uri sqlite:///{tmp_path}/mlflow.db")


def test_a_process_ends_with_the_code_and_a_single_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "experiments", "sweep", "--optimizer.lr", "1", "--output_dir", str(tmp_path / "runs")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (EXIT_USAGE, "")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_damaged_model_is_one_line_and_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.json").write_text("{}")
    assert main(["predict", "photo.jpg", "--model", str(tmp_path)]) == EXIT_FAILED
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert "is not an export folder" in shown
    assert shown.count("\n") == 1


def test_errors_of_awss_clients_are_one_line_and_no_bug() -> None:
    """`boto3.exceptions.S3UploadFailedError` is no error of botocore; s3transfer and urllib3 have their own."""
    upload = boto3.exceptions.S3UploadFailedError("Failed to upload a to b:\nAn error occurred (AccessDenied)")
    assert cli.explanation(upload) == "Failed to upload a to b: An error occurred (AccessDenied)"
    modules = [importlib.import_module(f"{package}.exceptions") for package in cli.AWS_CLIENTS]
    kinds = {
        kind
        for module in modules
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, Exception) and kind.__module__ == module.__name__
    }
    assert len(kinds) > 150
    for kind in kinds:
        several_lines = {"__module__": kind.__module__, "__init__": lambda self: None, "__str__": lambda self: "a\nb"}
        explained = cli.explanation(type(kind.__name__, (kind,), several_lines)())
        assert explained and "\n" not in explained, kind
