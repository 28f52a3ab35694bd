"""What the commands say to a person."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.console import invocation
from tests.conftest import REPOSITORY


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


WRITES = """
import logging, sys, warnings
from experiments.console import guard_output, quiet_libraries, say
from lightning_modules.redaction import Revealed
guard_output()
quiet_libraries()
url = "http://me:hunter22@127.0.0.1:1/?token=t0kent0ken"
print("print", url)
say(f"say {url}")
warnings.warn(url)
logging.getLogger("library").error("logged %s", url)
sys.stdout.write(Revealed("export PASSWORD=asked-for"))
raise RuntimeError(url)
"""


def test_no_way_of_printing_shows_a_secret(tmp_path: Path) -> None:
    (tmp_path / "writes.py").write_text(WRITES)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(tmp_path / "writes.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    shown = "http://me:***@127.0.0.1:1/?token=***"
    assert done.stdout == f"print {shown}\nexport PASSWORD=asked-for"
    assert f"say {shown}" in done.stderr and f"ERROR: logged {shown}" in done.stderr
    assert f"UserWarning: {shown}" in done.stderr and f"RuntimeError: {shown}" in done.stderr
    assert "hunter22" not in done.stderr and "t0ken" not in done.stderr
