"""A real MLflow server on loopback that goes away in the middle of a sweep."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments import sweep
from experiments.config import RunConfig, load_config
from experiments.errors import TrackingError
from experiments.single_run import train_and_register
from experiments.study import trials as study_trials
from experiments.study.study import trial_folder
from experiments.tracking.registry import download_export
from experiments.tracking.store import RunStore
from tests.conftest import tiny
from tests.whole import check_whole


class Server:
    """An MLflow server that can be killed and started again at the same address."""

    def __init__(self, folder: Path, prefix: str = "") -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}{prefix}"
        store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/files"]
        address = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        address += ["--static-prefix", prefix] if prefix else []
        self._command = [sys.executable, "-m", "mlflow", "server", *store, *address]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                    return
            except OSError:
                time.sleep(0.2)
        raise AssertionError("the MLflow server did not come up")

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    started = Server(tmp_path)
    started.start()
    try:
        yield started
    finally:
        started.kill()


@pytest.mark.slow
def test_a_server_that_goes_away_and_comes_back_gets_everything(
    server: Server, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(None, tiny(photos, tmp_path / "runs") | {"tracking.uri": server.uri})
    back = threading.Timer(3.0, server.start)
    go_away_in_trial_1(server, config, monkeypatch, then=back.start)
    sweep.run_sweep(config)
    back.join()
    check_whole(config, 3)


@pytest.mark.slow
def test_a_server_that_stays_away_ends_the_sweep_and_the_same_command_sends_the_rest(
    server: Server, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = {"tracking.uri": server.uri, "tracking.flush_timeout_seconds": 2.0}
    config = load_config(None, tiny(photos, tmp_path / "runs") | overrides)
    with monkeypatch.context() as patched:
        go_away_in_trial_1(server, config, patched, then=lambda: None)
        with pytest.raises(TrackingError, match="is sent when the same command runs again"):
            sweep.run_sweep(config)
    server.start()
    trained: list[RunConfig] = []
    train = study_trials.train

    def counting(config: RunConfig, **kwargs: Any) -> Any:
        trained.append(config)
        return train(config, **kwargs)

    monkeypatch.setattr(study_trials, "train", counting)
    sweep.run_sweep(config)
    assert trained == [], "training went on without the server, and nothing was trained again"
    check_whole(config, 3)


@pytest.mark.slow
def test_a_server_below_a_path_gets_a_registered_model(photos: Path, tmp_path: Path) -> None:
    server = Server(tmp_path, "/tools/mlflow")
    server.start()
    try:
        values = tiny(photos, tmp_path / "runs") | {"tracking.uri": server.uri, "trainer.max_epochs": 1}
        trained = train_and_register(load_config(None, values))
        assert trained.model_uri == f"models:/{photos.name}/1"
        store = RunStore(load_config(None, values))
        assert (download_export(trained.model_uri, store) / "model.json").is_file()
    finally:
        server.kill()


def go_away_in_trial_1(
    server: Server, config: RunConfig, monkeypatch: pytest.MonkeyPatch, then: Callable[[], None]
) -> None:
    """Kill the server when the second trial has trained its first epoch and the first trial stands in MLflow."""
    report = study_trials.PruningCallback.on_validation_end

    def on_validation_end(self: Any, trainer: Any, module: Any) -> None:
        report(self, trainer, module)
        if self.trial.number == 1 and trainer.current_epoch == 0:
            deadline = time.monotonic() + 120
            while trial_folder(config, 0).run_id is None and time.monotonic() < deadline:
                time.sleep(0.1)
            server.kill()
            then()

    monkeypatch.setattr(study_trials.PruningCallback, "on_validation_end", on_validation_end)
