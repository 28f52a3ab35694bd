"""The sweep for real: what it leaves in Optuna and MLflow, and what a kill at any moment costs."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import random
import re
import shlex
import shutil
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import torch
from mlflow import MlflowClient
from optuna.trial import TrialState

from experiments import sweep
from experiments.cli import parse_overrides
from experiments.config import RunConfig, load_config, override, tracking_uri
from experiments.errors import InterruptedRunError, SweepError, TrackingError, UserError
from experiments.interrupts import Watch
from experiments.runs.folder import Outcome, RunFolder
from experiments.runs.logger import RunFolderLogger
from experiments.study import trials as study_trials
from experiments.study.progress import SweepProgress
from experiments.study.search_space import ChoiceRange
from experiments.study.storage import study_folder
from experiments.study.study import load_study, trial_folder
from experiments.train import train
from lightning_modules.export import check_golden
from lightning_modules.heads.population import HeadPopulation
from lightning_modules.inference import load_export
from tests.conftest import REPOSITORY, tiny
from tests.unit.experiments.report.test_report import Page
from tests.warm import WarmContext
from tests.whole import check_whole, runs_of


@pytest.fixture
def config(photos: Path, tmp_path: Path, mlflow_database: Path) -> RunConfig:
    return config_in(tmp_path / "runs", photos, mlflow_database)


def config_in(output_dir: Path, photos: Path, mlflow_database: Path) -> RunConfig:
    output_dir.mkdir()
    shutil.copy(mlflow_database, output_dir)
    return load_config(None, tiny(photos, output_dir))


Finished = tuple[RunConfig, sweep.SweepResult]


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path) -> Finished:
    """A sweep that has ended, to look at: tests leave it as it is."""
    config = config_in(tmp_path_factory.mktemp("finished") / "runs", photos, mlflow_database)
    return config, sweep.run_sweep(config)


def test_a_sweep_leaves_a_study_runs_pictures_and_one_export(finished: Finished) -> None:
    config, result = finished
    check_whole(config, 3)
    assert result.best is not None
    client = MlflowClient(tracking_uri(config))
    runs = {run.data.tags.get("trial"): run for run in runs_of(config)}
    child, parent = runs["1"], runs[None]
    assert child.data.params["optimizer.learning_rate"] == str(result.study.trials[1].params["optimizer.learning_rate"])
    assert child.data.params["data.bad_files"] == "0"
    assert len(child.inputs.dataset_inputs[0].dataset.digest) == 36
    for tag in ("package.torch", "python", "origin", "mlflow.source.git.commit"):
        assert child.data.tags[tag]
    metrics = {"val_loss", "val_accuracy", "train_loss", "learning_rate", "images_per_second", "epoch_seconds"}
    metrics |= {"system/cpu_utilization_percentage", "best_val_loss", "best_val_accuracy", "highest_val_accuracy"}
    assert metrics <= child.data.metrics.keys()
    assert child.data.metrics["best_val_loss"] == pytest.approx(result.study.trials[1].value)
    # A search stands beside its trials by the name of what it found; it has no course, and no value of what it tuned.
    assert parent.data.metrics.keys() == {"best_val_loss", "best_val_accuracy", "highest_val_accuracy"}
    assert parent.data.metrics["best_val_loss"] == pytest.approx(result.best.value)
    assert "optimizer.learning_rate" not in parent.data.params
    assert "log=True" in parent.data.params["search.optimizer.learning_rate"]
    pictures = {item.path for item in client.list_artifacts(child.info.run_id)}
    assert {"confusion_matrix.png", "per_class_accuracy.png", "worst_errors.png", "learning_curves.png"} <= pictures
    study_artifacts = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert study_artifacts == {"trials.csv", "report.html"}
    exports = [number for number in range(3) if trial_folder(config, number).export.is_dir()]
    assert exports == [result.best.number]
    check_golden(trial_folder(config, result.best.number).export)
    assert not list(study_folder(config).rglob("*.ckpt"))


@pytest.mark.usefixtures("unpublished")
def test_trials_that_draw_their_backbone_take_its_recipe(photos: Path, tmp_path: Path, config: RunConfig) -> None:
    names = ("shufflenet_v2_x0_5", "shufflenet_v2_x1_5")
    (tmp_path / "search.yaml").write_text(f"model.backbone: {{type: choice, values: [{', '.join(names)}]}}")
    values = {"search": tmp_path / "search.yaml", "sweep.sampler": "grid", "sweep.n_trials": 2, "trainer.max_epochs": 1}
    values |= {"data.crop_fraction": None, "data.cache": "none"}
    config = override(config, values)
    best = sweep.run_sweep(config).best
    noted = [trial_folder(config, number).read().params for number in range(2)]
    crops = {params["model.backbone"]: params["data.crop_fraction"] for params in noted}
    assert crops == {names[0]: str(224 / 256), names[1]: str(224 / 232)}
    exported = load_export(trial_folder(config, best.number).export)
    assert exported.preprocessing.resize_size == {names[0]: 37, names[1]: 33}[best.params["model.backbone"]]


def test_the_report_s_command_trains_the_best_trial_again_to_the_last_digit(finished: Finished, tmp_path: Path) -> None:
    config, result = finished
    assert result.best is not None
    page = Page(result.report)
    home = next(code.text for code in page.all("code") if code.text.startswith("python -m experiments train --data"))
    typed = parse_overrides(shlex.split(home)[4:])
    again = load_config(None, {**typed, "data.cache_dir": config.data.cache_dir, "trainer.accelerator": "cpu"})
    folder = RunFolder(tmp_path / "again")
    folder.start("again", {}, {})
    trained = train(again, output_dir=folder.path, logger=RunFolderLogger(folder))
    assert trained.metrics["val_loss"] == result.best.value
    assert page.table("Confusion matrix")[0][1:] == ["Class1", "Class2", "Class3"]
    wrong = page.table("Worst errors")[1:] if "Worst errors: the numbers" in result.report.read_text() else []
    assert len(page.all("img")) == len(wrong)


def test_the_same_command_continues_and_more_adds_trials(config: RunConfig) -> None:
    sweep.run_sweep(override(config, {"sweep.n_trials": 1}))
    sweep.run_sweep(override(config, {"sweep.n_trials": 2}))
    check_whole(config, 2)
    sweep.run_sweep(override(config, {"sweep.n_trials": 2}))
    check_whole(config, 2)
    sweep.run_sweep(override(config, {"sweep.n_trials": 2}), more=1)
    check_whole(config, 3)


def test_a_pruned_trial_is_a_finished_run(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optuna.trial.Trial, "should_prune", lambda trial: trial.number == 1)
    sweep.run_sweep(config)
    check_whole(config, 3)
    states = [trial.state for trial in load_study(config, "tiny").trials]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE]


@pytest.mark.usefixtures("unpublished")
@pytest.mark.parametrize(
    ("error", "failures", "trials", "states"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), 1, 3, "COMPLETE COMPLETE COMPLETE"),
        (OSError(5, "Input/output error"), 1, 3, "COMPLETE COMPLETE COMPLETE"),
        (OSError(28, "No space left on device"), 2, 4, "COMPLETE FAIL COMPLETE COMPLETE"),
        (RuntimeError("a bug of ours"), 1, 4, "COMPLETE FAIL COMPLETE COMPLETE"),
    ],
    ids=["memory", "once", "twice", "bug"],
)
def test_a_trial_is_tried_once_more_where_that_can_help_and_replaced_where_it_fails(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, error: Exception, failures: int, trials: int, states: str
) -> None:
    calls: list[int] = []

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if 2 <= len(calls) < 2 + failures:
            raise error
        return train(*args, **kwargs)

    train = study_trials.train
    monkeypatch.setattr(study_trials, "train", failing)
    sweep.run_sweep(config)
    ended = load_study(config, "tiny").trials
    assert len(ended) == trials
    assert " ".join(trial.state.name for trial in ended) == states
    if ended[1].state == TrialState.FAIL:
        reason = f"{type(error).__name__}: {error}"
        assert ended[1].user_attrs["failure_reason"] == reason
        assert trial_folder(config, 1).outcome == Outcome("FAIL", reason=reason)


@pytest.mark.usefixtures("unpublished")
def test_a_trial_that_diverges_is_pruned_with_the_worst_value(config: RunConfig, tmp_path: Path) -> None:
    search = tmp_path / "diverging.yaml"
    search.write_text("optimizer.learning_rate: {type: choice, values: [1.0e-2, 1.0e+36]}")
    wide = override(config, {"optimizer.name": "sgd", "search": search, "sweep.sampler": "grid", "sweep.n_trials": 2})
    study = sweep.run_sweep(wide).study
    [diverged] = [trial for trial in study.trials if trial.params["optimizer.learning_rate"] > 1]
    assert diverged.state == TrialState.PRUNED
    reason = diverged.user_attrs["failure_reason"]
    assert re.fullmatch(r"diverged at epoch \d: val_loss is \w+: lower optimizer.learning_rate or .*", reason)
    assert trial_folder(wide, diverged.number).outcome == Outcome("PRUNED", diverged.value, reason=reason)
    assert diverged.value is not None
    assert diverged.value >= math.log(3)
    assert len(study.trials) == 2


def test_trials_that_keep_failing_end_the_sweep_and_lock_nothing(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("this machine is on fire")

    with monkeypatch.context() as patched:
        patched.setattr(study_trials, "train", fail)
        with pytest.raises(
            SweepError, match=r"trials keep failing: 2, and sweep\.max_failures is 1.*trial 1: .*on fire"
        ):
            sweep.run_sweep(override(config, {"sweep.max_failures": 1}))
    assert [trial.state.name for trial in load_study(config, "tiny").trials] == ["FAIL", "FAIL"]
    assert {run.info.status for run in runs_of(config)} == {"FAILED"}
    sweep.run_sweep(override(config, {"model.label_smoothing": 0.1}))  # whatever the correction is
    assert [trial.state.name for trial in load_study(config, "tiny").trials] == ["COMPLETE"] * 3


@pytest.mark.usefixtures("unpublished")
def test_workers_whose_trials_keep_failing_end_the_sweep_too(config: RunConfig) -> None:
    small = {"data.cache": "features", "data.cache_max_gb": 1e-9, "sweep.workers": 2, "sweep.max_failures": 1}
    with pytest.raises(SweepError, match=r"trials keep failing: 2, and sweep\.max_failures is 1.*CacheTooSmallError"):
        sweep.run_sweep(override(config, small))
    failed = [trial.state.name for trial in load_study(config, "tiny").trials]
    assert failed.count("FAIL") in (2, 3), "each worker may have been at one"


@pytest.mark.usefixtures("unpublished")
def test_a_database_that_fails_in_the_middle_is_named_and_ends_the_workers(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "studies.db"

    def spoil(self: Any, *args: Any) -> None:
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute("DROP TABLE IF EXISTS trials")

    monkeypatch.setattr(SweepProgress, "update", spoil)
    with pytest.raises(SweepError, match=r"sweep\.storage .*studies\.db was opened, and then failed \(Op"):
        sweep.run_sweep(override(config, {"sweep.storage": f"sqlite:///{database}", "sweep.workers": 2}))
    assert multiprocessing.active_children() == []


@pytest.mark.usefixtures("unpublished")
def test_a_sweep_without_a_complete_trial_fails(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optuna.trial.Trial, "should_prune", lambda trial: True)
    with pytest.raises(SweepError, match=r"no trial of study 'tiny' is complete: 3 pruned, 0 failed\. See .*report"):
        sweep.run_sweep(config)


def test_what_no_trial_can_open_ends_the_sweep_before_the_first(config: RunConfig) -> None:
    with pytest.raises(UserError, match=r"model\.weights must be imagenet, none or an existing file"):
        sweep.run_sweep(override(config, {"model.weights": "/nowhere/weights.pth"}))
    assert not study_folder(config).exists()


def test_an_interrupted_sweep_resumes_from_the_checkpoint(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: Watch, trainer: Any, *args: Any, **kwargs: Any) -> None:
        if trainer.current_epoch == 2:
            deadline = time.monotonic() + 120
            while trial_folder(config, 0).run_id is None and time.monotonic() < deadline:
                time.sleep(0.1)  # MLflow is to know the run
            raise InterruptedRunError

    with monkeypatch.context() as patched:
        patched.setattr(Watch, "on_train_batch_end", stop)
        with pytest.raises(InterruptedRunError):
            sweep.run_sweep(config)
    assert {run.info.status for run in runs_of(config)} == {"KILLED"}
    started: list[int] = []
    monkeypatch.setattr(
        study_trials.EpochProgress,
        "on_train_start",
        lambda self, trainer, module: started.append(trainer.current_epoch),
    )
    sweep.run_sweep(config)
    assert started == [2, 0, 0]
    check_whole(config, 3)


def publishers() -> list[psutil.Process]:
    return [psutil.Process(child.pid) for child in multiprocessing.active_children() if child.name == "publisher"]


def kill_publisher() -> None:
    [publisher] = publishers()
    publisher.kill()
    publisher.wait()


def test_a_publisher_that_is_killed_is_replaced(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    start = study_trials.EpochProgress.on_train_start

    def kill_then_start(self: Any, *args: Any) -> None:
        if self.name in ("trial 0", "trial 2"):
            kill_publisher()
        start(self, *args)

    monkeypatch.setattr(study_trials.EpochProgress, "on_train_start", kill_then_start)
    sweep.run_sweep(config)
    check_whole(config, 3)


@pytest.mark.slow
def test_a_publisher_that_is_killed_at_the_end_is_replaced(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    conclude = sweep._export_and_report

    def kill_then_conclude(*args: Any) -> sweep.SweepResult:
        kill_publisher()
        return conclude(*args)

    monkeypatch.setattr(sweep, "_export_and_report", kill_then_conclude)
    sweep.run_sweep(config)
    check_whole(config, 3)
    assert publishers() == []


def test_a_publisher_that_keeps_dying_ends_the_sweep_and_loses_nothing(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = study_trials.EpochProgress.on_train_start

    def kill_then_start(self: Any, *args: Any) -> None:
        kill_publisher()
        start(self, *args)

    config = override(config, {"sweep.n_trials": 6})
    with monkeypatch.context() as patched:
        patched.setattr(study_trials.EpochProgress, "on_train_start", kill_then_start)
        with pytest.raises(TrackingError, match="keeps dying"):
            sweep.run_sweep(config)
    sweep.run_sweep(config)
    check_whole(config, 6)


def test_a_tracking_server_that_never_answers_ends_the_sweep_with_a_plain_error(config: RunConfig) -> None:
    away = {"tracking.uri": "http://127.0.0.1:1", "tracking.flush_timeout_seconds": 1.0}
    with pytest.raises(UserError, match=r"tracking\.uri must be an MLflow server .* got http://127\.0\.0\.1:1"):
        sweep.run_sweep(override(config, away))
    assert not study_folder(config).exists()
    sweep.run_sweep(config)
    check_whole(config, 3)


def test_another_search_space_is_refused_for_the_same_study(finished: Finished) -> None:
    config, _ = finished
    with pytest.raises(ValueError, match="search must stay as it was"):
        sweep.run_sweep(override(config, {"search": REPOSITORY / "conf/search/full.yaml"}))
    with pytest.raises(ValueError, match=r"model\.trainable must stay 'head'"):
        sweep.run_sweep(override(config, {"model.trainable": "all"}))


def test_photos_that_are_gone_end_neither_the_trial_nor_the_sweep(
    config: RunConfig, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "photos"
    shutil.copytree(photos, root)
    config = override(config, {"data.root": root, "sweep.n_trials": 1})
    first, *_, last = sorted((root / "valid").rglob("*.jpg"))
    tell = study_trials._tell

    def remove_then_tell(*args: Any) -> Any:
        first.unlink()  # with which the model would be exported
        last.write_bytes(b"")
        return tell(*args)

    monkeypatch.setattr(study_trials, "_tell", remove_then_tell)
    sweep.run_sweep(config)
    check_whole(config, 1)
    folder = trial_folder(config, 0)
    assert (folder.export / "golden" / "image.jpg").is_file()
    assert (folder.artifacts / "worst_errors.png").is_file()
    assert not (folder.artifacts / "pictures_error.txt").exists()


# Populations


@pytest.mark.slow
def test_a_population_ends_as_its_trials_would_alone(config: RunConfig) -> None:
    config = override(config, {"sweep.sampler": "random", "sweep.n_trials": 5, "model.dropout": 0.2})
    alone = sweep.run_sweep(config)
    together = override(config, {"sweep.population": 3, "output_dir": config.output_dir.parent / "together"})
    result = sweep.run_sweep(together)
    check_whole(together, 5)
    for trial, other in zip(result.study.trials, alone.study.trials, strict=True):
        assert trial.params == other.params
        assert trial.value == pytest.approx(other.value, abs=1e-4)
        assert trial.intermediate_values == pytest.approx(other.intermediate_values, abs=1e-4)
    assert result.best is not None and alone.best is not None
    assert result.best.number == alone.best.number
    networks = [
        load_export(trial_folder(run_config, result.best.number).export).network for run_config in (config, together)
    ]
    for weight, other_weight in zip(*(network.state_dict().values() for network in networks), strict=True):
        assert torch.allclose(weight.float(), other_weight.float(), atol=1e-4)
    assert not list(study_folder(together).rglob("*.ckpt"))


@pytest.mark.usefixtures("unpublished")
def test_pruned_and_diverged_members_leave_the_population(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    epoch = HeadPopulation.train_epoch

    def diverging(self: HeadPopulation) -> dict[int, dict[str, float]]:
        values = epoch(self)
        if self.epoch == 2:
            values[2]["val_loss"] = float("nan")
        return values

    monkeypatch.setattr(HeadPopulation, "train_epoch", diverging)
    monkeypatch.setattr(optuna.trial.Trial, "should_prune", lambda trial: trial.number == 1)
    result = sweep.run_sweep(override(config, {"sweep.population": 4, "sweep.n_trials": 4}))
    states = [trial.state.name for trial in result.study.trials]
    assert states == ["COMPLETE", "PRUNED", "PRUNED", "COMPLETE"]
    assert [len(trial.intermediate_values) for trial in result.study.trials] == [3, 1, 2, 3]
    assert "diverged at epoch 2: val_loss is nan" in result.study.trials[2].user_attrs["failure_reason"]


@pytest.mark.slow
def test_an_interrupted_population_continues(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = override(config, {"sweep.population": 3})
    epoch = HeadPopulation.train_epoch

    def interrupted(self: HeadPopulation) -> dict[int, dict[str, float]]:
        if self.epoch == 2:
            raise InterruptedRunError
        return epoch(self)

    with monkeypatch.context() as patched:
        patched.setattr(HeadPopulation, "train_epoch", interrupted)
        with pytest.raises(InterruptedRunError):
            sweep.run_sweep(config)
    assert [trial.state.name for trial in load_study(config, "tiny").trials] == ["RUNNING"] * 3
    sweep.run_sweep(config)
    check_whole(config, 3)


@pytest.mark.usefixtures("unpublished")
def test_what_can_not_train_together_is_trained_one_by_one(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    epoch = HeadPopulation.train_epoch

    def out_of_memory(self: HeadPopulation) -> dict[int, dict[str, float]]:
        if self.epoch == 1:
            raise MemoryError("no room for three heads")
        return epoch(self)

    monkeypatch.setattr(HeadPopulation, "train_epoch", out_of_memory)
    result = sweep.run_sweep(override(config, {"sweep.population": 3}))
    assert [trial.state.name for trial in result.study.trials] == ["COMPLETE"] * 3
    assert [len(trial.intermediate_values) for trial in result.study.trials] == [3] * 3
    assert "3 trials that trained together are trained one by one after MemoryError: no room" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("values", "trials"),
    [
        ({}, sweep.POPULATION),
        ({"sweep.population": 2}, 2),
        ({"data.cache": "none"}, 1),
        ({"model.trainable": "all"}, 1),
        ({"model.backbone": "squeezenet1_0"}, 1),  # its head is no linear layer
        ({"trainer.record": "light"}, 1),
    ],
    ids=str,
)
def test_heads_on_cached_features_train_together_by_default(values: dict[str, object], trials: int) -> None:
    config = load_config(None, values)
    assert sweep.with_population(config, {}).sweep.population == trials
    varying = {"model.trainable": ChoiceRange(("head", "all"))}
    assert sweep.with_population(config, varying).sweep.population == max(1, config.sweep.population)


# How long trials train


@pytest.mark.usefixtures("unpublished")
def test_a_study_trains_for_the_epochs_of_its_own_batch_size(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "search.yaml").write_text("data.batch_size: {type: choice, values: [4, 24]}")
    values = {"trainer.max_epochs": None, "trainer.min_steps": 7, "search": tmp_path / "search.yaml"}
    config = override(config, values | {"sweep.sampler": "grid", "sweep.n_trials": 2})
    study = sweep.run_sweep(config).study
    assert [len(trial.intermediate_values) for trial in study.trials] == [3, 3]
    assert study.user_attrs["config"]["trainer.max_epochs"] == 3
    assert {trial_folder(config, number).read().params["trainer.max_epochs"] for number in (0, 1)} == {"3"}
    rule = r"trainer\.max_epochs must stay 3 for study 'tiny' \(.* with --trainer\.max_epochs 3\), got 5$"
    with pytest.raises(UserError, match=rule):
        sweep.run_sweep(override(config, {"trainer.min_steps": 13}), more=1)
    assert len(sweep.run_sweep(override(config, {"trainer.min_steps": 9})).study.trials) == 2


def test_a_best_trial_that_ends_with_its_best_epoch_is_said_and_reported(
    config: RunConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    result = sweep.run_sweep(override(config, {"sweep.n_trials": 1, "optimizer.schedule": "constant"}))
    values = result.best.intermediate_values
    assert min(values, key=values.__getitem__) == 3, "still learning after three epochs"
    advice = "the best epoch is the last one, 3: train longer, such as with --trainer.max_epochs 6"
    assert f"trial 0, the best one: {advice}" in capfd.readouterr().err
    assert ["tiny, trial 0", "trainer.max_epochs", advice] in Page(result.report).table("A row for each finding")


# Kills


def sweep_in_a_child(config: RunConfig) -> None:
    os.setpgid(0, 0)
    torch.set_num_threads(1)
    sweep.run_sweep(config)


def start_child(config: RunConfig) -> Any:
    process = WarmContext.Process(target=sweep_in_a_child, args=(config,))
    process.start()
    return process


@pytest.mark.slow
def test_twenty_kills_at_random_moments_lose_nothing(config: RunConfig) -> None:
    config = override(config, {"sweep.n_trials": 6, "trainer.max_epochs": 4, "sweep.pruner": "median"})
    (config.output_dir / "mlflow.db").unlink()  # a kill may also meet MLflow's migrations
    seed = random.randrange(10_000)
    print(f"seed {seed}")
    moments = random.Random(seed)
    kills = 0
    deadline = time.monotonic() + 480
    while kills < 20 and time.monotonic() < deadline:
        process = start_child(config)
        # While it trains, or once the publisher has come up and writes to MLflow.
        process.join(moments.uniform(0.3, 3.0) if moments.random() < 0.7 else moments.uniform(3.0, 8.0))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
        if process.exitcode == 0:  # the study has all its trials: go on killing with two more
            config = override(config, {"sweep.n_trials": config.sweep.n_trials + 2})
    assert kills == 20
    last = start_child(config)
    last.join(240)
    assert last.exitcode == 0, "what it said stands in the captured standard error"
    check_whole(config, config.sweep.n_trials)
    for number in range(config.sweep.n_trials):
        lines = [line.step for line in trial_folder(config, number).metric_lines() if "val_loss" in line.metrics]
        assert lines == sorted(set(lines))


def test_a_killed_sweep_ends_as_an_uninterrupted_one(config: RunConfig) -> None:
    config = override(config, {"sweep.sampler": "random"})
    sweep.run_sweep(config)
    other = override(config, {"output_dir": config.output_dir.parent / "killed"})
    kills = 0
    while True:
        process = start_child(other)
        process.join(2.5 if kills < 4 else 240)
        if process.exitcode == 0:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
    studies = [load_study(run_config, "tiny") for run_config in (config, other)]
    assert [trial.params for trial in studies[0].trials] == [trial.params for trial in studies[1].trials]
    assert [trial.value for trial in studies[0].trials] == [trial.value for trial in studies[1].trials]


# Several processes


@pytest.mark.slow
def test_two_sweeps_at_once_share_the_study(config: RunConfig) -> None:
    config = override(config, {"sweep.n_trials": 5})
    processes = [start_child(config), start_child(config)]
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0, 0]
    check_whole(config, 5)


@pytest.mark.slow
def test_workers_share_the_study_and_a_killed_one_is_replaced(config: RunConfig) -> None:
    # Trials that take longer than a new worker takes to come up.
    config = override(config, {"sweep.workers": 2, "sweep.n_trials": 6, "trainer.max_epochs": 40, "data.cache": "none"})
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=sweep_in_a_child, args=(config,))
    process.start()
    victim = first_worker(process.pid)
    os.kill(victim, signal.SIGKILL)
    process.join(300)
    assert process.exitcode == 0
    check_whole(config, 6)
    logs = [study_folder(config) / f"worker-{index}.log" for index in range(2)]
    assert all("epoch 40/40" in log.read_text() for log in logs)


def first_worker(supervisor: int | None) -> int:
    """The first worker that has trained an epoch; the publisher is a child of the supervisor too."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for child in psutil.Process(supervisor).children():
            logs = [Path(file.path) for file in child.open_files() if Path(file.path).name.startswith("worker-")]
            if logs and "epoch 1/" in logs[0].read_text():
                return int(child.pid)
        time.sleep(0.1)
    raise AssertionError("no worker came up")


def test_an_export_of_the_best_trial_loads(finished: Finished) -> None:
    config, result = finished
    assert result.best is not None
    assert load_export(trial_folder(config, result.best.number).export).class_names == ("Class1", "Class2", "Class3")


def test_the_epoch_after_which_a_trial_is_pruned_leaves_a_line_too(
    photos: Path, tmp_path: Path, unpublished: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("optuna.pruners.NopPruner.prune", lambda *_: True)
    values = {**tiny(photos, tmp_path), "sweep.n_trials": 1}
    with pytest.raises(SweepError, match="1 pruned"):
        sweep.run_sweep(load_config(None, values))
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("trial 0: epoch 1/3 val_loss ") for line in lines)
    assert any(line.startswith("trial 0 pruned, val_loss ") and "(pruned after epoch 1)" in line for line in lines)
