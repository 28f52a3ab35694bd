"""The study in a real PostgreSQL, started for the test from Debian's package."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments import sweep
from experiments.config import load_config, override
from experiments.errors import SweepError
from experiments.study import storage as study_storage
from experiments.study import trials as study_trials
from experiments.study.storage import open_storage
from tests.conftest import tiny
from tests.postgres import Server, find_binaries, running_server


@pytest.fixture
def server() -> Iterator[Server]:
    """One with an empty database."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    with running_server(binaries) as running:
        yield running


@pytest.mark.slow
def test_two_workers_share_a_study_in_postgresql(photos: Path, tmp_path: Path, server: Server) -> None:
    config = load_config(None, tiny(photos, tmp_path / "runs"))
    config = override(config, {"sweep.storage": server.url, "sweep.workers": 2, "sweep.n_trials": 4})
    result = sweep.run_sweep(config)
    assert [trial.state.name for trial in result.study.trials] == ["COMPLETE"] * 4
    more = sweep.run_sweep(override(config, {"sweep.workers": 1, "sweep.n_trials": 5}))
    assert len(more.study.trials) == 5


def stop_at_the_second(server: Server, monkeypatch: pytest.MonkeyPatch, then: Callable[[], None]) -> list[int]:
    """Stop the server when the second training begins; returns the epoch that each one begins with."""
    started: list[int] = []

    def stop(self: Any, trainer: Any, module: Any) -> None:
        on_train_start(self, trainer, module)
        started.append(trainer.current_epoch)
        if len(started) == 2:
            server.control("stop")
            then()

    on_train_start = study_trials.EpochProgress.on_train_start
    monkeypatch.setattr(study_trials.EpochProgress, "on_train_start", stop)
    return started


@pytest.mark.slow
@pytest.mark.usefixtures("unpublished")
def test_a_study_waits_for_its_postgresql_that_restarts(
    photos: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = load_config(None, tiny(photos, tmp_path / "runs"))
    config = override(config, {"sweep.storage": server.url, "sweep.n_trials": 2})
    back = threading.Timer(4.0, lambda: server.control("start"))
    started = stop_at_the_second(server, monkeypatch, then=back.start)
    study = sweep.run_sweep(config).study
    back.join()
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE"]
    assert started == [0, 0]
    assert all(sorted(trial.intermediate_values) == [1, 2, 3] for trial in study.trials)
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("waiting for")]
    assert len(lines) == 1
    assert re.fullmatch(r"waiting for sweep\.storage 127\.0\.0\.1:\d+/postgres, .*, for 2 min at most", lines[0])


@pytest.mark.slow
@pytest.mark.usefixtures("unpublished")
def test_a_study_continues_after_its_postgresql_went_away(
    photos: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_storage, "STORAGE_SECONDS", 1.0)
    config = load_config(None, tiny(photos, tmp_path / "runs"))
    config = override(config, {"sweep.storage": server.url, "sweep.n_trials": 2, "tracking.flush_timeout_seconds": 1.0})
    started = stop_at_the_second(server, monkeypatch, then=lambda: None)
    with pytest.raises(SweepError, match=r"storage 127\.0\.0\.1:\d+/postgres .*did not answer, for 1 sec") as error:
        sweep.run_sweep(config)
    assert "secret" not in str(error.value)
    server.control("start")
    study = sweep.run_sweep(config).study
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE"]
    assert started == [0, 0, 0], "the first trial is not trained again"


def test_a_database_that_does_not_answer_is_named_without_its_password(tmp_path: Path) -> None:
    url = "postgresql+psycopg://user:secret@127.0.0.1:1/studies"
    config = load_config(None, {"sweep.storage": url, "output_dir": tmp_path})
    with pytest.raises(ValueError, match=r"sweep\.storage must be a database that answers") as error:
        open_storage(config)
    assert "secret" not in str(error.value)
