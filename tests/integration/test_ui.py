"""`ui --dashboard` serves MLflow and Optuna's dashboard on 127.0.0.1, and both end with it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import optuna
import psutil
import pytest
import requests

from experiments.config import load_config, override
from experiments.study_storage import open_storage
from tests.conftest import REPOSITORY


def with_studies(output_dir: Path, *names: str) -> None:
    """Studies of a finished trial each, the last one changed last."""
    config = load_config(None, {"output_dir": output_dir})
    for name in names:
        own = override(config, {"sweep.study_name": name})
        study = optuna.create_study(study_name=name, storage=open_storage(own))
        study.optimize(lambda trial: trial.suggest_float("optimizer.learning_rate", 0.0, 1.0), n_trials=1)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def get(url: str, process: subprocess.Popen[str]) -> requests.Response:
    """Ask until somebody answers, as long as the server lives."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return requests.get(url, timeout=10)
        except requests.ConnectionError:
            assert process.poll() is None, f"the server ended with {process.returncode}"
            assert time.monotonic() < deadline, f"no answer from {url}"
            time.sleep(0.2)


def ui(output_dir: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "experiments", "ui", "--output_dir", str(output_dir), *options]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_both_uis_answer_and_end_together(tmp_path: Path, mlflow_database: Path) -> None:
    with_studies(tmp_path, "old", "new")
    shutil.copy(mlflow_database, tmp_path / "mlflow.db")
    port = free_port()
    with ui(tmp_path, "--port", str(port), "--dashboard", "--dashboard-port", "0") as process:
        try:
            assert process.stdout is not None
            optuna_url = process.stdout.readline().strip().removeprefix("Optuna at ")
            assert process.stdout.readline().startswith(f"MLflow at http://127.0.0.1:{port}")
            (study,) = get(f"{optuna_url}/api/studies", process).json()["study_summaries"]
            assert study["study_name"] == "new"
            trials = get(f"{optuna_url}/api/studies/{study['study_id']}?after=0", process).json()["trials"]
            assert [trial["state"] for trial in trials] == ["Complete"]
            assert "Optuna Dashboard" in get(f"{optuna_url}/dashboard", process).text
            assert get(f"http://127.0.0.1:{port}/health", process).text == "OK"
            addresses = {
                (one.laddr.ip, one.laddr.port)
                for owner in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
                for one in owner.net_connections("tcp")
                if one.status == psutil.CONN_LISTEN
            }
            assert {ip for ip, _ in addresses} == {"127.0.0.1"}
        finally:
            children = psutil.Process(process.pid).children(recursive=True)
            os.kill(process.pid, signal.SIGTERM)
        assert process.wait(60) == 130
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive


@pytest.mark.parametrize(
    ("studies", "options", "message"),
    [
        ((), ["--dashboard"], "run a sweep first"),
        (("one",), ["--dashboard", "two"], "there are one"),
    ],
)
def test_a_study_that_is_not_there_is_named(
    studies: tuple[str, ...], options: list[str], message: str, tmp_path: Path
) -> None:
    with_studies(tmp_path, *studies)
    with ui(tmp_path, *options) as process:
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert message in said
