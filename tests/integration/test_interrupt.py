"""Ctrl-C on a real sweep in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from experiments.config import load_config
from experiments.study import load_study
from tests.conftest import REPOSITORY, tiny


def start(photos: Path, output_dir: Path) -> subprocess.Popen[str]:
    """A sweep of one long trial, returned once it has finished an epoch."""
    values = tiny(photos, output_dir) | {"trainer.max_epochs": 2000, "sweep.n_trials": 1}
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments", "sweep", *(f"--{name}={value}" for name, value in values.items())],
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "epoch 2/2000" in line:
            return process
    raise AssertionError("the sweep ended before its second epoch")


def test_ctrl_c_stops_after_the_batch_and_the_trial_can_go_on(photos: Path, tmp_path: Path) -> None:
    process = start(photos, tmp_path / "runs")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopping after this batch" in errors
    assert "the same command goes on from here" in errors
    study = load_study(load_config(None, tiny(photos, tmp_path / "runs")), "tiny")
    assert [trial.state.name for trial in study.trials] == ["RUNNING"]
    assert (tmp_path / "runs/studies/tiny/trials/0000/checkpoints/last.ckpt").is_file()


def test_a_second_ctrl_c_stops_at_once(photos: Path, tmp_path: Path) -> None:
    process = start(photos, tmp_path / "runs")
    # Held, it can't reach the end of its batch: both signals are there when it goes on.
    process.send_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert time.monotonic() - started < 5
