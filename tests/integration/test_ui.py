"""`ui --dashboard` serves MLflow and Optuna's dashboard on 127.0.0.1, and both end with it."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import wsgiref.util
from pathlib import Path

import optuna
import psutil
import pytest
import requests

from experiments.cli import main
from experiments.config import load_config, override
from experiments.errors import UserError
from experiments.study import dashboard
from experiments.study.dashboard import REFRESH_SECONDS, ReadOnlyDashboard
from experiments.study.storage import open_storage
from experiments.study.study import load_study
from tests.conftest import REPOSITORY

STUDIO = "d-abcdefgh1234.studio.eu-west-1.sagemaker.aws"


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
    options = ["--port", str(port), "--dashboard", "--dashboard-port", "0", "--allow-host", STUDIO]
    with ui(tmp_path, *options) as process:
        try:
            assert process.stdout is not None
            (first,) = itertools.islice((line for line in process.stdout if " at http" in line), 1)
            optuna_url = first.split()[2]
            assert first.startswith("Optuna at http") and "copy" in first
            assert process.stdout.readline().startswith(f"MLflow at http://127.0.0.1:{port}")
            # The links are printed when MLflow answers, not before.
            assert requests.get(f"http://127.0.0.1:{port}/health", timeout=10).text == "OK"
            (study,) = get(f"{optuna_url}/api/studies", process).json()["study_summaries"]
            assert study["study_name"] == "new"
            trials = get(f"{optuna_url}/api/studies/{study['study_id']}?after=0", process).json()["trials"]
            assert [trial["state"] for trial in trials] == ["Complete"]
            assert "Optuna Dashboard" in get(f"{optuna_url}/dashboard", process).text
            assert requests.delete(f"{optuna_url}/api/studies/{study['study_id']}", timeout=10).status_code == 403
            assert get(f"http://127.0.0.1:{port}/health", process).text == "OK"
            for url in (f"http://127.0.0.1:{port}/ajax-api/2.0/mlflow/experiments/search", f"{optuna_url}/api/studies"):
                assert through_proxy(url, STUDIO) == {"host kept": 200, "host replaced": 200}
                assert through_proxy(url, f"{STUDIO}.example.com") == {"host kept": 403, "host replaced": 403}
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


def through_proxy(url: str, name: str) -> dict[str, int]:
    """Status of a request of a page behind a proxy of a name: MLflow's pages post, Optuna's get."""
    origin = {"Origin": f"https://{name}"}
    cases = {"host kept": {"Host": name, **origin}, "host replaced": origin}
    if "ajax-api" in url:
        return {
            case: requests.post(url, headers=sent, json={"max_results": 1}, timeout=10).status_code
            for case, sent in cases.items()
        }
    return {case: requests.get(url, headers=sent, timeout=10).status_code for case, sent in cases.items()}


def call(app: ReadOnlyDashboard, path: str, method: str = "GET") -> tuple[str, str]:
    """Status and body of the answer to a request."""
    environ: dict[str, object] = {"REQUEST_METHOD": method, "PATH_INFO": path}
    wsgiref.util.setup_testing_defaults(environ)
    said: list[str] = []
    body = b"".join(app(environ, lambda status, headers, *_: said.append(status)))
    return said[0], body.decode()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", ["/api/studies/0", "/api/studies", "/api/studies/0/note", "/dashboard"])
def test_a_request_that_writes_is_forbidden_and_changes_nothing(method: str, path: str, tmp_path: Path) -> None:
    with_studies(tmp_path, "one")
    journal = tmp_path / "studies" / "one" / "journal.log"
    before = journal.read_bytes()
    app = ReadOnlyDashboard(open_storage(load_config(None, {"output_dir": tmp_path, "sweep.study_name": "one"})))
    status, body = call(app, path, method)
    assert status.startswith("403") and "read-only copy" in json.loads(body)["reason"]
    assert json.loads(call(app, "/api/studies")[1])["study_summaries"][0]["study_name"] == "one"
    assert journal.read_bytes() == before


def test_the_copy_follows_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_studies(tmp_path, "one")
    config = load_config(None, {"output_dir": tmp_path, "sweep.study_name": "one"})
    app = ReadOnlyDashboard(open_storage(config))
    study = optuna.load_study(study_name="one", storage=open_storage(config))

    def trials() -> list[tuple[str, int]]:
        shown = json.loads(call(app, "/api/studies/0")[1])["trials"]
        return [(one["state"], len(one["intermediate_values"])) for one in shown]

    now = [0.0]
    monkeypatch.setattr(dashboard.time, "monotonic", lambda: now[0])
    assert trials() == [("Complete", 0)]
    running = study.ask()
    running.report(0.5, 1)
    assert trials() == [("Complete", 0)], "a copy of this moment is shown for some seconds"
    assert REFRESH_SECONDS < 10
    now[0] += REFRESH_SECONDS + 0.1
    assert trials() == [("Complete", 0), ("Running", 1)]
    app_of_now = app._app
    now[0] += REFRESH_SECONDS + 0.1
    assert trials() == [("Complete", 0), ("Running", 1)] and app._app is app_of_now, "nothing has changed"
    study.tell(running, 0.5)
    now[0] += REFRESH_SECONDS + 0.1
    assert trials() == [("Complete", 0), ("Complete", 1)]


@pytest.mark.parametrize("option", ["--port", "--dashboard-port"])
def test_a_busy_port_is_refused_before_anything_is_started(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "experiments.tracking.store", None)  # nothing heavy is imported either
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        others = {"--port": str(free_port()), option: port}
        words = [word for pair in others.items() for word in pair]
        assert main(["ui", "--output_dir", str(tmp_path), "--dashboard", *words]) == 2
    shown = capsys.readouterr()
    assert shown.err == f"error: {option} must be a free port, got {port}: Address already in use; name another one\n"
    assert shown.out == ""


def test_a_study_that_was_deleted_is_named(tmp_path: Path) -> None:
    """As a dashboard that may write does with one click."""
    with_studies(tmp_path, "one")
    config = load_config(None, {"output_dir": tmp_path, "sweep.study_name": "one"})
    optuna.delete_study(study_name="one", storage=open_storage(config))
    with pytest.raises(UserError, match=r"study must exist .*, got 'one', which was deleted: its trials are still in"):
        load_study(config, "one")


@pytest.mark.parametrize(
    ("studies", "options", "message"),
    [
        pytest.param((), ["--dashboard"], "run a sweep first", marks=pytest.mark.slow),
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
