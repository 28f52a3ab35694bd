"""The process that publishes: what it loads, and what it does when it or a process that draws for it is killed."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from experiments.config import RunConfig, load_config
from experiments.runs import processes
from experiments.runs.folder import Outcome, RunFolder
from experiments.runs.scoring import Scores
from experiments.tracking.publisher import Publication, Publisher
from tests.conftest import REPOSITORY

TENSOR_STACK = {"torch", "torchvision", "pytorch_lightning", "lightning_fabric", "torchmetrics"}
PICTURES = {"confusion_matrix.png", "per_class_accuracy.png", "worst_errors.png", "learning_curves.png"}


@pytest.fixture(autouse=True)
def cold_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here processes start as they do for a person, and are children of the one that starts them."""
    monkeypatch.setattr(processes, "CONTEXT", multiprocessing.get_context("spawn"))


@pytest.fixture
def config(tmp_path: Path, mlflow_database: Path) -> RunConfig:
    shutil.copy(mlflow_database, tmp_path)
    return load_config(None, {"output_dir": tmp_path})


@pytest.fixture
def finished(photos: Path, tmp_path: Path) -> RunFolder:
    """A run that has ended and waits for its pictures, with one wrong prediction to show."""
    folder = RunFolder(tmp_path / "train" / "one")
    folder.start("one", {}, {})
    folder.record(1, {"val_loss": 1.0, "val_accuracy": 0.5})
    paths = tuple(path.relative_to(photos) for path in sorted((photos / "valid" / "001.Class1").iterdir()))[:2]
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8]])
    Scores(photos, paths, np.array([0, 0]), np.log(probabilities), ("Class1", "Class2")).save(folder.scores)
    folder.finish(Outcome("COMPLETE", 1.0))
    return folder


def publisher(config: RunConfig, folder: RunFolder) -> Publisher:
    return Publisher(Publication(config, folder.path, config.output_dir / "publisher.lock"))


def whole(folder: RunFolder) -> bool:
    return folder.is_published and {path.name for path in folder.artifacts.glob("*.png")} == PICTURES


def test_publishing_and_drawing_load_neither_the_tensor_stack_nor_optuna(
    config: RunConfig, finished: RunFolder
) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "import experiments.__main__\n"  # a spawned process imports its parent's main module again
        "from experiments.config import load_config\n"
        "from experiments.tracking.publisher import Publication, Publisher\n"
        "output, folder = map(Path, sys.argv[1:])\n"
        "config = load_config(None, {'output_dir': output})\n"
        "with Publisher(Publication(config, folder, output / 'publisher.lock')):\n"
        "    pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(config.output_dir), str(finished.path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        # Each process, the spawned ones too, lists what it imports.
        env=os.environ | {"PYTHONPROFILEIMPORTTIME": "1"},
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    assert done.returncode == 0, done.stderr[-2000:]
    assert whole(finished)
    assert {"mlflow", "PIL"} <= imported
    assert imported & (TENSOR_STACK | {"matplotlib", "optuna", "sklearn"}) == set()


def wait_for_drawer() -> tuple[psutil.Process, psutil.Process]:
    """The publisher and the process that draws for it."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for child in psutil.Process().children():
            for grandchild in child.children():
                return child, grandchild
        time.sleep(0.01)
    raise AssertionError("nothing is drawn")


@pytest.mark.slow
def test_a_killed_drawer_costs_nothing(config: RunConfig, finished: RunFolder) -> None:
    with publisher(config, finished):
        _, drawer = wait_for_drawer()
        drawer.kill()
    assert whole(finished)


def test_a_killed_publisher_takes_its_drawers_along(config: RunConfig, finished: RunFolder) -> None:
    with publisher(config, finished):
        process, drawer = wait_for_drawer()
        process.kill()
        drawer.wait(30)
    assert whole(finished)
