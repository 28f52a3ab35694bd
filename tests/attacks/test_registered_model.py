"""The registered model behind MLflow's own server: a client that sends the path of a file gets nothing of it."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import requests
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from experiments.config import load_config
from experiments.runs.folder import Outcome, RunFolder
from experiments.tracking.mlflow_settings import default_store
from experiments.tracking.registry import register
from experiments.tracking.store import RunStore
from tests.integration.test_ui import free_port
from tests.pictures import jpeg_bytes
from tests.unit.lightning_modules.test_export import export, tiny_network

# MLflow 3.17 with pandas 3.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Operation with range is deprecated")]

PHOTO = jpeg_bytes(seed=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a registered model."""
    config = load_config(None, {"output_dir": tmp_path_factory.mktemp("runs"), "tracking.experiment": "dogs"})
    store = RunStore(config)
    folder = RunFolder(config.output_dir / "train" / "a")
    folder.start("a", {"data.fingerprint": "dogs", "data.name": "folder", "sweep.metric": "val_loss"}, {})
    export(tiny_network(), folder.export, metrics={"val_loss": 0.5, "val_accuracy": 0.5})
    folder.finish(Outcome("COMPLETE", 0.5, {"val_loss": 0.5, "val_accuracy": 0.5}))
    store.push(folder)
    register(store, folder, name="dogs")
    with default_store(store.uri):
        return Path(mlflow.artifacts.download_artifacts("models:/dogs@champion"))


@pytest.fixture(scope="module")
def url(model: Path) -> Iterator[str]:
    """MLflow's server of models, in a folder whose photos have names that are base64 too."""
    (model.parent / "secret").mkdir(exist_ok=True)
    (model.parent / "secret" / "abcd").write_bytes(PHOTO)
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model), "--env-manager", "local"]
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # it starts uvicorn by its name
    with subprocess.Popen(
        [*command, "--port", str(port), "--workers", "1"],
        cwd=model.parent / "secret",
        env={**os.environ, **path},
        start_new_session=True,
    ) as server:
        try:
            deadline = time.monotonic() + 120
            while True:
                try:
                    requests.get(f"http://127.0.0.1:{port}/ping", timeout=5).raise_for_status()
                    break
                except (requests.ConnectionError, requests.HTTPError):
                    assert server.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/invocations"
        finally:
            os.killpg(server.pid, signal.SIGKILL)  # uvicorn would stay


def post(url: str, image: str) -> requests.Response:
    return requests.post(url, json={"dataframe_split": {"columns": ["image"], "data": [[image]]}}, timeout=60)


def test_bytes_are_scored(url: str) -> None:
    answer = post(url, base64.b64encode(PHOTO).decode())
    assert answer.status_code == 200, answer.text
    assert answer.json()["predictions"][0]["label"]


@pytest.mark.parametrize(
    "image", ["abcd", "./abcd", "{}/abcd", "file://{}/abcd", "/etc/passwd", "~/.aws/credentials", ""]
)
def test_the_path_of_a_file_is_not_read(image: str, url: str, model: Path) -> None:
    answer = post(url, image.format(model.parent / "secret"))
    assert answer.status_code >= 400
    assert "predictions" not in answer.json()
    assert "root:" not in answer.text


@pytest.fixture(scope="module")
def loaded(model: Path) -> Any:
    """The registered model in this process."""
    return mlflow.pyfunc.load_model(str(model)).unwrap_python_model()


@settings(max_examples=100, deadline=None)
@given(name=st.text("abcdefghijklmnopABCD0123+/=._-", min_size=1, max_size=24))
def test_a_photo_under_any_name_is_not_read(loaded: Any, model: Path, name: str) -> None:
    """Some of the names are base64 of something."""
    root = model.parent / "named"
    file = (root / name.strip("/")).resolve()
    assume(root in file.parents)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(PHOTO)
    with contextlib.chdir(root):
        for path in (str(file), file.relative_to(root).as_posix()):
            with pytest.raises(ValueError, match=r"a path is never read|are not a JPEG"):
                loaded.predict(None, pd.DataFrame({"image": [path]}))
    shutil.rmtree(root)
