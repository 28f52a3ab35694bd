"""What the commands say to a person."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.console import invocation, quiet_libraries
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


@contextlib.contextmanager
def root_handlers(*handlers: logging.Handler) -> Iterator[logging.Logger]:
    """The root logger with these handlers only."""
    root = logging.getLogger()
    level, before = root.level, root.handlers[:]
    root.handlers[:] = handlers
    try:
        yield root
    finally:
        root.handlers[:] = before
        root.setLevel(level)


def test_a_handler_of_the_caller_shows_what_it_showed_before() -> None:
    shown = io.StringIO()
    handler = logging.StreamHandler(shown)
    with root_handlers(handler) as root:
        root.setLevel(logging.INFO)
        quiet_libraries()
        logging.getLogger("of the caller").info("training begins")
        assert (root.handlers, root.level) == ([handler], logging.INFO)
    assert shown.getvalue() == "training begins\n"


def test_libraries_are_quiet_where_the_caller_has_no_handler(capsys: pytest.CaptureFixture[str]) -> None:
    library = logging.getLogger("of a library")
    library.setLevel(logging.INFO)
    with root_handlers() as root:
        for _ in range(2):
            quiet_libraries()
        assert len(root.handlers) == 1
        library.info("hidden")
        library.warning("shown")
    assert capsys.readouterr().err == "WARNING: shown\n"
