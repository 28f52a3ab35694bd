"""The README's commands do what it says."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.cli import command_parser, parse_overrides
from experiments.config import load_config
from sagemaker_launch.cli import parse
from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
COMMANDS = [
    line for line in re.findall(r"(?:\.venv/bin/)?(python -m experiments [^`\n]+)", README) if "--help" not in line
]

CLOUD_DOCS = README + "".join((REPOSITORY / "docs" / name).read_text() for name in ("cloud.md", "endpoints.md"))
CLOUD_COMMANDS = [
    line
    for line in re.findall(r"(python -m sagemaker_launch [^`\n]+)", CLOUD_DOCS)
    if "--help" not in line and "|" not in line
]


def test_the_first_commands_are_make_demo_and_make_test() -> None:
    first = README.split("```")[1].split("\n")
    assert [line.split("#")[0].strip() for line in first if line.strip()] == ["make demo", "make test"]


def test_the_readme_is_short_and_its_files_exist() -> None:
    assert len(README.splitlines()) < 150
    for link in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (REPOSITORY / link).exists(), link


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_in_the_readme_is_understood(command: str) -> None:
    """Parsed and checked as the command line does, without running it."""
    arguments, rest = command_parser().parse_known_args(shlex.split(command)[3:])
    load_config(arguments.config, parse_overrides(rest))


@pytest.mark.parametrize("command", CLOUD_COMMANDS)
def test_every_cloud_command_in_the_docs_is_understood(command: str) -> None:
    arguments, fields = parse(shlex.split(command, comments=True)[3:])
    overrides = parse_overrides(fields)
    load_config(arguments.config, {name: value for name, value in overrides.items() if not name.startswith("cloud.")})
    for option in (arguments.config, arguments.cloud):
        assert option is None or option.name == "mine.yaml" or (REPOSITORY / option).is_file()


def test_make_demo_ends_with_the_best_trial_and_the_way_to_look_at_it(tmp_path: Path) -> None:
    """The command behind `make demo`, at a sixth of its length, twice."""
    demo = re.search(r"^demo:.*\n\t\$\(BIN\)/python (.*)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert demo is not None
    short = ["--sweep.n_trials", "1", "--trainer.max_epochs", "1", "--output_dir", str(tmp_path / "runs")]
    short += ["--data.fraction", "0.2", "--data.cache_dir", str(tmp_path / "cache")]
    for trials in (1, 3):
        done = subprocess.run(
            [sys.executable, *shlex.split(demo.group(1)), *short],
            capture_output=True,
            text=True,
            check=False,
            cwd=REPOSITORY,
        )
        assert done.returncode == 0, done.stderr
        assert f"study quick: {trials} trials" in done.stdout
        assert "best trial" in done.stdout
        assert "python -m experiments ui" in done.stdout
