"""Python's collector in a command's own process, and in a process of somebody else."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

from lightning_modules import garbage
from tests.conftest import REPOSITORY

COMMAND = """
import gc
from experiments.__main__ import run
usual = gc.get_threshold()
run()
assert gc.get_threshold() == RARELY, gc.get_threshold()
from lightning_modules.garbage import collect_as_usual
collect_as_usual()
assert (gc.get_threshold(), gc.get_freeze_count() > 1000) == (usual, True)
"""


def test_a_command_collects_rarely_until_it_trains(tmp_path: Path) -> None:
    script = COMMAND.replace("RARELY", str(garbage.RARELY))
    subprocess.run(
        [sys.executable, "-c", script, "report", "none", f"--output_dir={tmp_path}"], check=True, cwd=REPOSITORY
    )


def test_a_process_of_somebody_else_is_left_alone() -> None:
    before = gc.get_threshold(), gc.get_freeze_count()
    garbage.collect_as_usual()
    assert (gc.get_threshold(), gc.get_freeze_count()) == before
