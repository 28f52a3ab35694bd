"""Processes of our own: by spawn, without the caller's script, in an environment of their own."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from experiments.runs import processes
from experiments.runs.processes import start_process
from tests.conftest import REPOSITORY

NAMES = ("CUDA_VISIBLE_DEVICES", "MLFLOW_RUN_ID", "MPLBACKEND")


def note(path: Path) -> None:
    """What the process sees."""
    path.write_text(json.dumps({name: os.environ.get(name) for name in NAMES}))


@pytest.mark.parametrize("outside", [None, "2,3"])
def test_a_process_gets_its_own_variables_and_the_caller_keeps_his(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outside: str | None
) -> None:
    monkeypatch.setattr(processes, "CONTEXT", multiprocessing.get_context("spawn"))  # as outside of tests
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if outside is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", outside)
    monkeypatch.setenv("MLFLOW_RUN_ID", "of another program")
    monkeypatch.setenv("MPLBACKEND", "tkagg")
    # Python 3.14's default.
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none=False: "forkserver")
    script = ModuleType("__main__")
    script.__file__ = str(tmp_path / "script.py")
    (tmp_path / "script.py").write_text("raise SystemExit('the script runs once more')")
    monkeypatch.setitem(sys.modules, "__main__", script)
    process = start_process(note, (tmp_path / "noted",), name="one", environment={"CUDA_VISIBLE_DEVICES": "3"})
    assert sys.modules["__main__"] is script
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == outside
    assert (os.environ["MLFLOW_RUN_ID"], os.environ["MPLBACKEND"]) == ("of another program", "tkagg")
    process.join(60)
    assert process.exitcode == 0, "the script did not run once more"
    assert json.loads((tmp_path / "noted").read_text()) == {
        "CUDA_VISIBLE_DEVICES": "3",
        "MLFLOW_RUN_ID": None,
        "MPLBACKEND": "agg",
    }


def test_a_script_without_a_guard_runs_once(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(
        "import time\n"
        "from experiments.runs.processes import start_process\n"
        "print('once', flush=True)\n"
        "process = start_process(time.sleep, (0,), name='one')\n"
        "process.join()\n"
        "print(process.exitcode)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, script], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("once\n0\n", "")
