"""A run of the tests in several processes: what takes long is built once, and its files have an order."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest

from tests.conftest import LONGEST, REPOSITORY, pytest_collection_modifyitems
from tests.shared_run import FOLDER, Keeper, SharedRun

CONFTEST = """
import os
from pathlib import Path
import pytest
from tests.conftest import *

def build(folder):
    SharedRun.current().note_build("palace")

@pytest.fixture(scope="session")
def palace(shared_run):
    {palace}

@pytest.fixture(autouse=True)
def note_process():
    with Path({seen!r}).open("a") as file:
        file.write(os.environ["PYTEST_XDIST_WORKER"] + "\\n")
"""
SHARED = 'return shared_run.build_once("palace", build)'
PER_PROCESS = "return build(None)"


@pytest.mark.parametrize(("palace", "code"), [(SHARED, 0), (PER_PROCESS, 1)])
def test_a_run_fails_if_two_processes_build_the_same_thing(tmp_path: Path, palace: str, code: int) -> None:
    seen = tmp_path / "seen"
    (tmp_path / "conftest.py").write_text(CONFTEST.format(palace=palace, seen=str(seen)))
    for name in ("first", "second"):
        (tmp_path / f"test_{name}.py").write_text("def test_it(palace): pass\n")
    own = ["--rootdir", str(tmp_path), "--basetemp", str(tmp_path / "base"), "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile", *own, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    assert sorted(seen.read_text().split()) == ["gw0", "gw1"], "both processes took part"
    assert ("FAILED built 2 times in one run: palace" in done.stdout) == (code == 1)


@pytest.fixture
def own_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Keeper:
    monkeypatch.setenv(FOLDER, "set by the next line, and back afterwards")
    return Keeper(tmp_path / "shared")


def test_what_can_not_be_built_is_not_tried_again(own_run: Keeper) -> None:
    tried = []

    def fail(folder: Path) -> None:
        tried.append(folder)
        raise ValueError("no stones")

    with pytest.raises(ValueError, match="no stones"):
        SharedRun.current().build_once("palace", fail)
    with pytest.raises(RuntimeError, match="palace could not be built by another test: ValueError"):
        SharedRun.current().build_once("palace", fail)
    assert len(tried) == 1
    (own_run.run.folder / "castle").mkdir()
    with pytest.raises(RuntimeError, match="castle was being built by another process, which died"):
        SharedRun.current().build_once("castle", fail)
    assert own_run.end() == []


def test_a_shared_process_ends_with_the_run_and_one_that_does_not_is_named(
    own_run: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.shared_run.STOP_SECONDS", 0.5)
    with own_run.run.alive.open("rb") as alive:
        good = subprocess.Popen(["cat"], stdin=alive, stdout=subprocess.DEVNULL)
    deaf = subprocess.Popen(["sleep", "600"])
    for process in (good, deaf):
        own_run.run.end_with_run(psutil.Process(process.pid))
    assert good.poll() is None
    assert own_run.end() == [f"still running 0 s after the run: {deaf.pid}"]
    assert good.wait(10) == 0
    assert deaf.wait(10) == -9


def test_unit_tests_come_first_and_then_the_longest_files() -> None:
    names = [
        "e2e/test_a.py",
        LONGEST[-1],
        "integration/test_b.py",
        LONGEST[0],
        "unit/caches/test_z.py",
        "unit/test_a.py",
    ]
    items: list[Any] = [SimpleNamespace(path=REPOSITORY / "tests" / name) for name in names]
    pytest_collection_modifyitems(cast(list[pytest.Item], items))
    order = [item.path.relative_to(REPOSITORY / "tests").as_posix() for item in items]
    assert order == [
        "unit/caches/test_z.py",
        "unit/test_a.py",
        LONGEST[0],
        LONGEST[-1],
        "e2e/test_a.py",
        "integration/test_b.py",
    ]


def test_the_longest_files_exist() -> None:
    assert [name for name in LONGEST if not (REPOSITORY / "tests" / name).is_file()] == []
