"""A process of the tests that dies fails the run, which names the test and ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


def options_of_make_test() -> list[str]:
    """What the Makefile gives to pytest, but for the selection of tests."""
    recipe = (REPOSITORY / "Makefile").read_text().partition("\ntest:")[2].partition("\n\n")[0]
    return recipe.partition('"not slow"')[2].split()


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        ("os.kill(os.getpid(), 9)", "ended by SIGKILL"),
        pytest.param("os._exit(130)", "ended by exit code 130", marks=pytest.mark.slow),
    ],
)
def test_a_dead_worker_ends_the_run_and_is_named(tmp_path: Path, ending: str, words: str) -> None:
    """xdist 3.8 starts another worker otherwise, and then waits for ever (its issue 1378)."""
    for name in "abcdef":
        line = ending if name == "b" else "pass"
        (tmp_path / f"test_{name}.py").write_text(f"import os\ndef test_first(): pass\ndef test_second(): {line}\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.worker_deaths", *options_of_make_test(), str(tmp_path)]
    done = subprocess.run(
        [*command, f"--rootdir={tmp_path}", "-p", "no:cacheprovider"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=REPOSITORY,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert words in done.stdout
    assert "crashed while running 'test_b.py::test_second'" in done.stdout
