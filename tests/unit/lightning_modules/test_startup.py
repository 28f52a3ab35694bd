"""Python's collector and late imports, in a command's own process and in a process of somebody else."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

from lightning_modules import startup
from tests.conftest import REPOSITORY

COMMAND = """
import gc
from experiments.__main__ import run
usual = gc.get_threshold()
run()
assert gc.get_threshold() == RARELY, gc.get_threshold()
from lightning_modules.startup import collect_as_usual
collect_as_usual()
assert (gc.get_threshold(), gc.get_freeze_count() > 1000) == (usual, True)

import sys
from torchmetrics import Metric
assert not any(name.startswith("scipy.signal.") for name in sys.modules), "torchmetrics imports what sound needs"
later = sys.modules["scipy.signal"]
from scipy.signal import find_peaks
assert find_peaks([0, 1, 0])[0].tolist() == [1]
import scipy.signal
assert scipy.signal is not later and scipy.signal.__file__
assert later.hamming(3).tolist() == scipy.signal.windows.hamming(3).tolist()
"""


def test_a_command_collects_rarely_until_it_trains_and_imports_no_sound(tmp_path: Path) -> None:
    script = COMMAND.replace("RARELY", str(startup.RARELY))
    subprocess.run(
        [sys.executable, "-c", script, "report", "none", f"--output_dir={tmp_path}"], check=True, cwd=REPOSITORY
    )


def test_a_process_of_somebody_else_is_left_alone() -> None:
    before = gc.get_threshold(), gc.get_freeze_count()
    startup.collect_as_usual()
    assert (gc.get_threshold(), gc.get_freeze_count()) == before
