"""MLflow or the study's database does not answer: SIGTERM ends a command all the same, and its end waits for a limit.

Real commands, real locks, and real connections to a real MLflow server, through a proxy that can hold them up.
"""

from __future__ import annotations

import re
import selectors
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient

from experiments.config import load_config
from experiments.study.study import load_study
from tests.conftest import tiny
from tests.integration.test_tracking_server import Server
from tests.running import Running

LIMIT_SECONDS = 10.0
"""How long after SIGTERM a command may work, with tracking.flush_timeout_seconds 2, until it says its last word."""
EXIT_SECONDS = 20.0
"""How long Python may take to leave after that: a second, or many on a machine with other work."""
LAST_WORD = "the same command continues from here"


class Proxy:
    """Passes bytes on to a server; from a moment on none at all, or one per second."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.mode = "pass"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._is_open = True
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._is_open = False
        with socket.create_connection(self._listener.getsockname()):
            pass
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while self._is_open:
            client, _ = self._listener.accept()
            thread = threading.Thread(target=self._serve, args=(client,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with (
            client,
            socket.create_connection(("127.0.0.1", self._target)) as server,
            selectors.DefaultSelector() as both,
        ):
            both.register(client, selectors.EVENT_READ, server)
            both.register(server, selectors.EVENT_READ, client)
            while self._is_open:
                for key, _ in both.select(0.1):
                    source = key.fileobj
                    assert isinstance(source, socket.socket)
                    while self.mode == "silent" and self._is_open:
                        time.sleep(0.05)
                    slow = self.mode == "slow" and source is server
                    try:
                        received = source.recv(1 if slow else 65_536)
                        if not received:
                            return
                        key.data.sendall(received)
                    except OSError:  # one side has left
                        return
                    until = time.monotonic() + (1.0 if slow else 0.0)
                    while time.monotonic() < until and self._is_open:
                        time.sleep(0.05)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("server"))
    started.start()
    try:
        yield started
    finally:
        started.kill()


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Hold SQLite's exclusive lock, as a backup does."""
    connection = sqlite3.connect(database, isolation_level=None, timeout=30)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


def terminate(commands: list[Running]) -> None:
    """SIGTERM ends each command in time, with a sentence in place of a traceback."""
    for command in commands:
        command.process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    while not all(LAST_WORD in command.text for command in commands):
        assert time.monotonic() - begun < LIMIT_SECONDS, [command.text for command in commands]
        time.sleep(0.05)
    for command in commands:
        text = command.end(EXIT_SECONDS)
        assert "Traceback" not in text, text
        assert command.process.returncode == 130, text


def long_runs(photos: Path, folder: Path, **fields: object) -> list[Running]:
    """A sweep and a training of many epochs, both of which MLflow knows."""
    commands = []
    for name in ("sweep", "train"):
        values = tiny(photos, folder / name) | {
            "data.cache_dir": folder / "cache",
            "trainer.max_epochs": 20_000,
            "sweep.n_trials": 1,
            "tracking.flush_timeout_seconds": 2.0,
            **{key.replace("__", "."): value for key, value in fields.items()},
        }
        commands.append(Running(folder / f"{name}.log", name, values=values))
    for command in commands:
        command.wait_for(lambda text: re.search(r"epoch \d+/20000", text))
    deadline = time.monotonic() + 60
    while len(list(folder.rglob("published.json"))) < 3:  # the sweep's study and trial, and the training
        assert time.monotonic() < deadline, [command.text for command in commands]
        time.sleep(0.1)
    return commands


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["silent", "slow"])
def test_sigterm_ends_a_command_whose_server_holds_it_up(
    server: Server, photos: Path, tmp_path: Path, mode: str
) -> None:
    proxy = Proxy(server.port)
    try:
        commands = long_runs(photos, tmp_path, tracking__uri=proxy.uri)
        proxy.mode = mode
        time.sleep(3)  # a round of the publisher has begun
        terminate(commands)
    finally:
        proxy.close()


@pytest.mark.slow
def test_sigterm_ends_a_command_whose_mlflow_database_is_locked(photos: Path, tmp_path: Path) -> None:
    commands = long_runs(photos, tmp_path)
    with locked(tmp_path / "sweep" / "mlflow.db"), locked(tmp_path / "train" / "mlflow.db"):
        time.sleep(3)
        terminate(commands)


@pytest.mark.slow
def test_sigterm_ends_a_command_whose_study_is_locked(photos: Path, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    sweep, train = long_runs(photos, tmp_path, sweep__storage=storage)
    values = tiny(photos, tmp_path / "sweep") | {"sweep.storage": storage}
    values.pop("search")
    with locked(tmp_path / "study.db"):
        from_best = Running(tmp_path / "best.log", "train", "--from-best", "tiny", values=values)
        time.sleep(6)
        terminate([sweep, train])
        from_best.process.send_signal(signal.SIGTERM)  # it has nothing to lose yet
        assert "Traceback" not in from_best.end(LIMIT_SECONDS)


@pytest.mark.slow
def test_a_study_that_is_locked_for_a_while_fails_no_trial(photos: Path, tmp_path: Path) -> None:
    values = tiny(photos, tmp_path / "runs") | {
        "sweep.storage": f"sqlite:///{tmp_path}/study.db",
        "sweep.n_trials": 1,
        "trainer.max_epochs": 200,
        "tracking.flush_timeout_seconds": 2.0,
    }
    command = Running(tmp_path / "log", "sweep", values=values)
    command.wait_for(lambda text: re.search(r"epoch \d+/200", text))
    with locked(tmp_path / "study.db"):
        time.sleep(7)
    assert "best trial 0" in command.end(120)
    study = load_study(load_config(None, values), "tiny")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"]
    assert len(study.trials[0].intermediate_values) == 200


@pytest.mark.slow
def test_the_end_of_a_command_waits_up_to_the_limit_and_the_same_command_sends_the_run(
    photos: Path, tmp_path: Path, mlflow_database: Path
) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "mlflow.db").write_bytes(mlflow_database.read_bytes())
    values = tiny(photos, runs) | {"trainer.max_epochs": 1, "tracking.flush_timeout_seconds": 2.0}
    with locked(runs / "mlflow.db"):
        text = Running(tmp_path / "log", "train", values=values).end(90)
    assert "Traceback" not in text
    assert re.search(r"error: tracking\.uri sqlite:.* is sent when the same command runs again\n$", text)
    sent = Running(tmp_path / "log", "train", values=values).end(90)
    assert f"models:/{photos.name}/1 (champion)" in sent
    assert len(list(runs.glob("train/*/run.json"))) == 1
    (run,) = MlflowClient(f"sqlite:///{runs}/mlflow.db").search_runs(["1"])
    assert run.info.status == "FINISHED"


@pytest.mark.slow
def test_sigterm_ends_the_wait_for_mlflow_after_the_training(server: Server, photos: Path, tmp_path: Path) -> None:
    proxy = Proxy(server.port)
    try:
        fields = {"trainer.max_epochs": 300, "tracking.uri": proxy.uri, "tracking.flush_timeout_seconds": 100.0}
        command = Running(tmp_path / "log", "train", values=tiny(photos, tmp_path) | fields)
        command.wait_for(lambda text: "epoch 2/300" in text)
        proxy.mode = "silent"
        deadline = time.monotonic() + 90
        while not list(tmp_path.glob("train/*/export/model.json")):
            assert time.monotonic() < deadline, command.text
            time.sleep(0.1)
        time.sleep(2)
        terminate([command])
    finally:
        proxy.close()
