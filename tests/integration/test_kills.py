"""SIGKILL at the boundaries of a command, for each thing that ends a training: a second run ends as an undisturbed one.

`tests/kills.py` does it. Here every thing that ends a training meets those boundaries that differ in what a resumed run
has to do; `make test-all` tries more of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.kills import CASES, SEARCHES, TIMEOUT_TRIALS

FAST = ("max_epochs", "early_stopping", "rule", "not_a_number", "pruning", "timeout")


def kill(photos: Path, folder: Path, *cases: str) -> dict[str, dict[str, Any]]:
    """What `tests/kills.py` found, by case."""
    command = [sys.executable, "-m", "tests.kills", str(photos), str(folder), *cases]
    done = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    return {result["case"]: result for result in results}


def check(result: dict[str, Any]) -> None:
    """The case ended for the reason that it is about, and the same way after each kill."""
    assert result["differing"] == []
    case, epochs = result["case"], {int(last) for last in result["epochs"].values()}
    searched = {"pruning": {"COMPLETE", "PRUNED"}, "population": {"COMPLETE", "PRUNED"}}
    searched |= {"diverging": {"COMPLETE", "PRUNED"}, "not_a_number": {"FAIL"}}
    assert set(result["states"]) == searched.get(case, {"COMPLETE"})
    limit = int(str(CASES[case]["trainer.max_epochs"]))
    assert max(epochs) < limit if case in STOPS_EARLY else max(epochs) == limit
    if case == "timeout":
        assert len(result["epochs"]) == TIMEOUT_TRIALS


STOPS_EARLY = ("early_stopping", "rule", "rule_within_epoch", "not_a_number", "photos")


@pytest.fixture(scope="module")
def fast(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return kill(photos, tmp_path_factory.mktemp("kills"), *(f"{case}:some" for case in FAST))


@pytest.mark.slow
@pytest.mark.parametrize("case", FAST)
def test_a_kill_changes_no_metric(fast: dict[str, dict[str, Any]], case: str) -> None:
    check(fast[case])
    assert fast[case]["kills"] >= 2


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", CASES)
def test_a_kill_at_any_boundary_changes_no_metric(photos: Path, tmp_path: Path, case: str) -> None:
    which = "kinds" if case in SEARCHES else "every"
    result = kill(photos, tmp_path, f"{case}:{which}")[case]
    check(result)
    assert result["kills"] >= 20


def moments(photos: Path, folder: Path, count: int) -> dict[str, Any]:
    """What `tests/moments.py` found."""
    command = [sys.executable, "-m", "tests.moments", str(photos), str(folder), str(count)]
    done = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def check_moments(found: dict[str, Any], count: int) -> None:
    assert found["differing"] == []
    assert found["kills"] == len(found["moments"]) == count
    assert {moment.partition(":")[0] for moment in found["moments"]} == {"host", "moved", "database"}
    assert found["metrics"] > 100


@pytest.mark.slow
def test_a_kill_loses_nothing_when_the_machine_is_another_one_afterwards(photos: Path, tmp_path: Path) -> None:
    check_moments(moments(photos, tmp_path, 3), 3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_lose_nothing_when_the_machine_is_another_one_afterwards(photos: Path, tmp_path: Path) -> None:
    check_moments(moments(photos, tmp_path, 20), 20)
