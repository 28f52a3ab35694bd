"""Ctrl-C on real commands in processes of their own, and what they leave."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import single_run as training
from experiments import sweep
from experiments.config import RunConfig, load_config, override
from experiments.data import inputs
from experiments.data.inputs import forget_opened, open_features_once
from experiments.errors import InterruptedRunError
from experiments.interrupts import Watch
from experiments.runs.folder import RunFolder
from experiments.study.study import load_study, trial_folder
from lightning_modules.caches.features import FeatureData
from lightning_modules.export import check_golden
from tests.conftest import tiny
from tests.running import Running
from tests.unpublished import NoPublisher
from tests.whole import check_whole

LONG = {"trainer.max_epochs": 2000, "sweep.n_trials": 1}
MANY = {"trainer.max_epochs": 2, "sweep.n_trials": 20}


def start(command: str, values: Mapping[str, object], until: str) -> Running:
    """A command, returned once it has said something."""
    running = Running(Path(str(values["output_dir"])).with_suffix(".log"), command, values=values)
    running.wait_for(lambda text: until in text)
    return running


def test_ctrl_c_stops_after_the_batch_and_the_trial_can_continue(photos: Path, tmp_path: Path) -> None:
    running = start("sweep", tiny(photos, tmp_path / "runs") | LONG, "epoch 2/2000")
    running.process.send_signal(signal.SIGINT)
    errors = running.end(60)
    assert running.process.returncode == 130
    assert "stopping after this batch" in errors
    text = "interrupted before the first trial was complete, so there is no model and no report yet; the same command"
    assert text in errors
    study = load_study(load_config(None, tiny(photos, tmp_path / "runs")), "tiny")
    assert [trial.state.name for trial in study.trials] == ["RUNNING"]
    assert (tmp_path / "runs/studies/tiny/trials/0000/checkpoints/last.ckpt").is_file()


def test_a_second_ctrl_c_stops_at_once(photos: Path, tmp_path: Path) -> None:
    running = start("sweep", tiny(photos, tmp_path / "runs") | LONG, "epoch 2/2000")
    # Held, it can't reach the end of its batch: both signals are there when it goes on.
    running.process.send_signal(signal.SIGSTOP)
    running.process.send_signal(signal.SIGINT)
    running.process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    running.process.send_signal(signal.SIGCONT)
    running.end(60)
    assert running.process.returncode == 130
    assert time.monotonic() - started < 5


def test_an_interrupted_sweep_leaves_its_best_model_and_a_report_and_continues(
    photos: Path, tmp_path: Path, mlflow_database: Path
) -> None:
    output_dir = tmp_path / "runs"
    output_dir.mkdir()
    shutil.copy(mlflow_database, output_dir)
    running = start("sweep", tiny(photos, output_dir) | MANY, "sweep: 2/20 trials")
    running.process.send_signal(signal.SIGINT)
    errors = running.end(120)
    assert running.process.returncode == 130
    said = re.search(
        r"^interrupted after (\d+) of 20 trials; best model so far: trial (\d+) "
        r"\(val_loss ([\d.]+), best of \d+ trials? on 12 photos: optimistic\) in (\S+), "
        r"report: (\S+); the same command continues from here$",
        errors,
        re.MULTILINE,
    )
    assert said, errors
    config = load_config(None, tiny(photos, output_dir) | MANY)
    finished, number, value, export, report = said.groups()
    trials = load_study(config, "tiny").trials
    assert sum(trial.state.is_finished() for trial in trials) == int(finished)
    best = min((trial for trial in trials if trial.value is not None), key=lambda trial: trial.value or 0.0)
    assert (str(best.number), f"{best.value:.4f}") == (number, value)
    check_golden(Path(export))
    assert Path(report).read_text().startswith("<!DOCTYPE html>")
    # The export has replaced the checkpoint of the best trial: the sweep ends with it all the same.
    assert not (trial_folder(config, best.number).path / "checkpoints").exists()
    result = sweep.run_sweep(config)
    check_whole(config, 20)
    assert result.best is not None
    exports = [number for number in range(20) if trial_folder(config, number).export.is_dir()]
    assert exports == [result.best.number]
    check_golden(trial_folder(config, result.best.number).export)


def test_a_locked_database_of_the_study_does_not_hold_up_the_end(photos: Path, tmp_path: Path) -> None:
    database = tmp_path / "study.db"
    values = tiny(photos, tmp_path / "runs") | LONG | {"sweep.storage": f"sqlite:///{database}"}
    values |= {"model.trainable": "all"}  # an epoch takes longer, so that the database can be locked between two
    running = start("sweep", values, "epoch 2/2000")
    trial = trial_folder(load_config(None, values), 0)
    deadline = time.monotonic() + 60
    while trial.run_id is None and time.monotonic() < deadline:
        time.sleep(0.1)  # MLflow is still being imported in the other process
    lock = sqlite3.connect(database, timeout=60, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    started = time.monotonic()
    running.process.send_signal(signal.SIGTERM)
    errors = running.end(60)
    seconds = time.monotonic() - started
    lock.close()
    assert running.process.returncode == 130
    assert "no model and no report, as the study's storage does not answer" in errors
    assert "Traceback" not in errors
    assert seconds < 15  # SQLite's driver waits for 5, and can't be interrupted; the rest is for a busy machine


def test_ctrl_c_exports_the_best_epoch_of_a_training(photos: Path, tmp_path: Path) -> None:
    running = start("train", tiny(photos, tmp_path / "runs") | LONG, "epoch 2/2000")
    running.process.send_signal(signal.SIGINT)
    errors = running.end(60)
    assert running.process.returncode == 130
    said = re.search(
        r"^interrupted after epoch (\d+) of 2000; best model so far: epoch (\d+) \(val_loss ([\d.]+)\) in (\S+); "
        r"the same command continues from here$",
        errors,
        re.MULTILINE,
    )
    assert said, errors
    done, best, value, export = said.groups()
    losses = RunFolder(Path(export).parent).curves()["val_loss"]
    assert max(losses) == int(done)
    assert min(losses, key=losses.__getitem__) == int(best)
    measured = json.loads((Path(export) / "model.json").read_text())["metrics"]
    assert f"{measured['val_loss']:.4f}" == value == f"{losses[int(best)]:.4f}"
    assert not [name for name in measured if name.startswith("test_")], "the test split is scored once, at the end"
    check_golden(Path(export))


def interrupt_in(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt training after the first batch of an epoch, counted from 1."""

    def stop(self: Watch, trainer: Any, *args: Any, **kwargs: Any) -> None:
        if trainer.current_epoch + 1 == epoch:
            raise InterruptedRunError

    monkeypatch.setattr(Watch, "on_train_batch_end", stop)


@pytest.fixture
def config(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A training without MLflow, which takes no part in this."""
    monkeypatch.setattr(training, "Publisher", NoPublisher)
    return load_config(None, tiny(photos, tmp_path / "runs") | {"trainer.max_epochs": 4})


def train(config: RunConfig) -> RunFolder:
    return training.train_run(config, training.run_path_prefix(config), "train", {})


def test_a_training_that_was_interrupted_and_ends_replaces_the_export(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        interrupt_in(3, patched)
        with pytest.raises(InterruptedRunError, match="after epoch 2 of 4; best model so far: epoch 2"):
            train(config)
    [so_far] = config.output_dir.glob("train/*/export/model.json")
    before = json.loads(so_far.read_text())
    folder = train(config)
    after = json.loads(so_far.read_text())
    assert folder.export == so_far.parent
    assert "test_loss" in after["metrics"] and "test_loss" not in before["metrics"]
    whole = train(override(config, {"output_dir": tmp_path / "whole"}))
    undisturbed = json.loads((whole.export / "model.json").read_text())
    assert undisturbed["sha256"] == after["sha256"] != before["sha256"]


def test_a_training_that_is_interrupted_before_its_first_epoch_ends_says_so(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_in(1, monkeypatch)
    with pytest.raises(InterruptedRunError, match="before the first epoch was finished, so there is no model yet"):
        train(config)
    assert not list(config.output_dir.glob("train/*/export"))


@pytest.mark.parametrize("values", [{}, {"model.trainable": "all"}], ids=["features", "decoding"])
def test_an_interrupt_stops_the_work_before_the_training(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, values: dict[str, object]
) -> None:
    """Features of many photos take minutes: the signal must not wait for them."""

    @contextlib.contextmanager
    def interrupted(*_: object) -> Iterator[Callable[[int], None]]:
        yield lambda _: signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("experiments.data.inputs.progress", interrupted)
    forget_opened()
    with pytest.raises(InterruptedRunError, match="before the first epoch was finished"):
        train(override(config, values))
    monkeypatch.undo()
    monkeypatch.setattr(training, "Publisher", NoPublisher)
    assert train(override(config, values)).outcome is not None


def test_ctrl_c_is_looked_for_within_a_batch_of_features_and_leaves_no_cache(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []

    def interrupted() -> None:
        looked.append(1)
        if len(looked) == 20:
            raise InterruptedRunError

    with monkeypatch.context() as patched:
        patched.setattr(inputs, "raise_if_interrupted", interrupted)
        with pytest.raises(InterruptedRunError):
            open_features_once(config)
    assert len(looked) == 20, "the network has more layers, so this was its first batch"
    arrays = config.data.cache_dir / "arrays"
    assert not [entry for entry in arrays.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    features = open_features_once(config)
    assert features.train.shape[1] == len(features.train_labels)


def test_an_interrupt_while_a_training_is_scored_trains_nothing_again(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    validation_inputs = FeatureData.validation_inputs

    def interrupted(self: FeatureData, device: torch.device) -> Any:
        signal.raise_signal(signal.SIGINT)
        return validation_inputs(self, device)

    with monkeypatch.context() as patched:
        patched.setattr(FeatureData, "validation_inputs", interrupted)
        with pytest.raises(InterruptedRunError, match="after epoch 4 of 4; best model so far"):
            train(config)
    interrupt_in(1, monkeypatch)  # any batch
    outcome = train(config).outcome
    assert outcome is not None and outcome.state == "COMPLETE"
