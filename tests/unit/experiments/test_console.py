"""What the commands say to a person."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from experiments.console import invocation


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Python of an environment in the current folder, with no other on the PATH."""
    python = tmp_path / "my env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    return python


def test_a_command_to_type_runs_with_the_python_that_said_it(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert invocation("experiments", "ui", "--port", "1") == "'my env/bin/python' -m experiments ui --port 1"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert invocation("experiments", "ui") == f"'{environment}' -m experiments ui"
    monkeypatch.setenv("PATH", str(environment.parent))
    assert invocation("experiments", "ui") == "python -m experiments ui"


def test_another_python_of_the_same_base_is_not_taken_for_this_one(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "system").mkdir()
    (tmp_path / "system" / "python").symlink_to(environment.resolve())
    monkeypatch.setenv("PATH", str(tmp_path / "system"))
    assert invocation("experiments", "ui").startswith("'my env/bin/python' ")
