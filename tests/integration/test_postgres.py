"""The study in a real PostgreSQL, started for the test from Debian's package."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments import sweep
from experiments.config import load_config, override
from experiments.study import open_storage
from tests.conftest import tiny


def postgres_binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    return found[-1].parent


@pytest.fixture
def database() -> Iterator[str]:
    """URL of an empty database on a free port of 127.0.0.1."""
    binaries = postgres_binaries()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # PostgreSQL refuses to run as root, and others may not enter pytest's folders.
    as_postgres = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []

    def run(*command: str) -> None:
        subprocess.run([*as_postgres, *command], check=True, cwd="/")

    with tempfile.TemporaryDirectory() as folder:
        if as_postgres:
            shutil.chown(folder, "postgres")
        run(f"{binaries}/initdb", "--pgdata", f"{folder}/data", "--auth", "trust", "--username", "tester", "--no-sync")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        control = [f"{binaries}/pg_ctl", "--pgdata", f"{folder}/data"]
        run(*control, "--log", f"{folder}/log", "--options", options, "--wait", "start")
        try:
            yield f"postgresql+psycopg://tester@127.0.0.1:{port}/postgres"
        finally:
            run(*control, "--mode", "immediate", "stop")


def test_two_workers_share_a_study_in_postgresql(photos: Path, tmp_path: Path, database: str) -> None:
    config = load_config(None, tiny(photos, tmp_path / "runs"))
    config = override(config, {"sweep.storage": database, "sweep.workers": 2, "sweep.n_trials": 4})
    result = sweep.run_sweep(config)
    assert [trial.state.name for trial in result.study.trials] == ["COMPLETE"] * 4
    more = sweep.run_sweep(override(config, {"sweep.workers": 1, "sweep.n_trials": 5}))
    assert len(more.study.trials) == 5


def test_a_database_that_does_not_answer_is_named_without_its_password(tmp_path: Path) -> None:
    url = "postgresql+psycopg://user:secret@127.0.0.1:1/studies"
    config = load_config(None, {"sweep.storage": url, "output_dir": tmp_path})
    with pytest.raises(ValueError, match=r"sweep\.storage must be a database that answers") as error:
        open_storage(config)
    assert "secret" not in str(error.value)
