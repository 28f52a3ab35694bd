"""The command line: help at once, plain errors, exit codes."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.cli import EXIT_FAILED, EXIT_USAGE, main, parse_overrides
from experiments.config import field_names

COMMANDS = ("sweep", "train", "evaluate", "predict", "report", "ui")


def test_overrides_are_read_in_both_forms() -> None:
    assert parse_overrides(["--a.b", "1", "--c=x=y"]) == {"a.b": "1", "c": "x=y"}


@pytest.mark.parametrize(
    ("tokens", "message"), [(["stray"], "unexpected argument 'stray'"), (["--a"], "needs a value")]
)
def test_what_is_no_override_is_refused(tokens: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_overrides(tokens)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_every_field(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main([command, "--help"])
    assert exit_info.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"--{name}" in shown for name in field_names())


def test_help_answers_within_half_a_second() -> None:
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "experiments", "sweep", "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - started)
    print(f"--help: median {statistics.median(seconds):.2f} s")
    # The fastest of five: what it costs on a machine that is not busy with something else.
    assert min(seconds) < 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep", "--optimizer.lr", "1"], "did you mean optimizer.learning_rate"),
        (["sweep", "--optimizer.learning_rate", "-1"], "optimizer.learning_rate must be > 0"),
        (["train", "--config", "absent.yaml"], "absent.yaml"),
        (["train", "--seed"], "--seed needs a value"),
        (["sweep", "--conf", "conf/quick.yaml"], "unknown field 'conf'"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == EXIT_USAGE
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_an_unknown_command_is_wrong_use() -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["swep"])
    assert exit_info.value.code == EXIT_USAGE


def test_a_failure_is_one_line_and_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "photo.jpg", "--model", str(tmp_path)]) == EXIT_FAILED
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert "is not an export folder" in shown
    assert shown.count("\n") == 1
