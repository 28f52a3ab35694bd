"""Shared fixtures: a learnable data set of a few dozen tiny pictures and a run that trains on it in seconds."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sagemaker_launch.rehearsal.torchserve import TorchServe

# Before torch is imported, here and in the processes that tests start. Tiny networks gain nothing from a second thread,
# and wait long for one that another process, such as the publisher, keeps off its core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parent.parent
# Real photos and weights are not part of the project: tests that need them are skipped where they are absent.
REAL_DATA = Path(os.environ.get("EXPERIMENTS_TEST_DATA", REPOSITORY.parent / "shared"))
# The environment of rehearsed jobs is made once for all runs of the tests: half a minute, and the package index.
JOB_IMAGES = REPOSITORY / "runs" / "rehearsal-image"


# Files that look at the same jobs: whatever processes share the tests, one of them runs both.
SHARING_JOBS = ("test_browser.py", "test_cloud.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file's tests in one process of `pytest -n 2 --dist loadgroup`, with the fixtures that they share."""
    for item in items:
        name = "jobs" if item.path.name in SHARING_JOBS else item.path.name
        item.add_marker(pytest.mark.xdist_group(name))


@pytest.fixture(scope="session")
def job_images() -> Path:
    """Where that environment is, or a skip where AWS's container toolkit, which has a part in C, can't be built."""
    if shutil.which("cc") is None and not any(JOB_IMAGES.glob("*/complete")):
        pytest.skip("needs a C compiler (Debian: gcc libc6-dev), with which AWS's container toolkit is built")
    return JOB_IMAGES


@pytest.fixture(scope="session")
def start_torchserve() -> Callable[[Path, Path], TorchServe]:
    """Starts AWS's inference container with a folder of its own on a model folder, or a skip where that can't be."""
    from sagemaker_launch.rehearsal.image import build_image
    from sagemaker_launch.rehearsal.namespaces import find_namespaces
    from sagemaker_launch.rehearsal.torchserve import LINKED, REQUIREMENTS, TorchServe

    if shutil.which("java") is None:
        pytest.skip("needs Java (Debian: default-jre-headless), in which TorchServe is written")
    namespaces = find_namespaces()
    if namespaces is None:
        pytest.skip("needs Linux namespaces: AWS's toolkit writes to /etc and sees the whole machine's processes")
    image = build_image(JOB_IMAGES, REQUIREMENTS, LINKED)
    return lambda tree, model: TorchServe(tree, model, image, namespaces)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of tiny pictures that colour tells apart, in the dogImages layout."""
    from tests.pictures import make_class_folders

    root = tmp_path_factory.mktemp("photos")
    make_class_folders(root, classes=3, per_class={"train": 8, "valid": 4, "test": 4}, size=24, seed=0)
    return root


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: a sweep that finds a copy of it saves the seconds of its migrations."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


def tiny(photos: Path, output_dir: Path) -> dict[str, object]:
    """Overrides for a run of a second: the head of a small network with random weights."""
    return {
        "data.name": "folder",
        "data.root": photos,
        "data.cache_dir": output_dir / "cache",
        "data.image_size": 32,
        "data.crop_fraction": 1.0,
        "data.batch_size": 8,
        "data.augment": "none",
        "model.backbone": "shufflenet_v2_x0_5",
        "model.weights": "none",
        "optimizer.learning_rate": 0.01,
        "trainer.max_epochs": 3,
        "trainer.accelerator": "cpu",
        "output_dir": output_dir,
        "search": REPOSITORY / "conf" / "search" / "quick.yaml",
        "sweep.study_name": "tiny",
        "sweep.n_trials": 3,
        "sweep.pruner": "none",
    }


def real(name: str) -> Path:
    """A file or folder of real data, or a skip that says why."""
    path = REAL_DATA / name
    if not path.exists():
        pytest.skip(f"needs {path}: set EXPERIMENTS_TEST_DATA to a folder that holds {name}")
    return path
