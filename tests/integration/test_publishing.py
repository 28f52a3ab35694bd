"""Everything that a run folder has reaches MLflow, whenever it is written: compared file by file."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from experiments import drawing
from experiments.config import RunConfig, load_config, override
from experiments.publisher import FINISH, LOCK_FILE, Publication, Publisher
from experiments.run_folder import Outcome, RunFolder
from experiments.tracking import KEY_TAG, STATUS, tracking_uri

PICTURES = ("confusion_matrix.png", "per_class_accuracy.csv", "worst_errors.png")


@pytest.fixture
def config(tmp_path: Path, mlflow_database: Path) -> RunConfig:
    shutil.copy(mlflow_database, tmp_path / "mlflow.db")
    return load_config(None, {"output_dir": tmp_path, "tracking.experiment": "race", "sweep.study_name": "race"})


def home(config: RunConfig) -> Path:
    return config.output_dir / "studies" / config.sweep.study_name


def publication(config: RunConfig) -> Publication:
    return Publication(config, home(config) / "trials" / "*", home(config) / LOCK_FILE, parent=home(config) / "study")


def start(folder: RunFolder, config: RunConfig, trial: str | None = None) -> None:
    tags = {"study": config.sweep.study_name} | ({"trial": trial} if trial else {})
    folder.start(trial or "study", {"seed": 0, "tracking.experiment": config.tracking.experiment}, tags)


def draw_fast(path: Path) -> None:
    """What a drawer does, in 30 ms: pictures one after another, then the scores are gone."""
    folder = RunFolder(path)
    folder.artifacts.mkdir(exist_ok=True)
    for name in PICTURES:
        (folder.artifacts / name).write_text(f"{path.name} {name}")
        time.sleep(0.01)
    folder.scores.unlink()


def publish_with_fast_drawers(what: Publication, connection: Connection) -> None:
    """The publisher's process. Only what a picture shows is ours; when it is drawn and sent is decided as always."""
    from experiments import publish

    drawing._start_drawer = lambda: None
    drawing._have_drawn = draw_fast
    publish.PUBLISH_SECONDS = 0.02
    publish.publish(what, connection)


def write_trial(config: RunConfig, number: int, chance: random.Random) -> None:
    """A trial as a training process leaves it, in one of the ways that trials end."""
    folder = RunFolder(home(config) / "trials" / f"{number:04d}")
    start(folder, config, f"{number}")
    for epoch in (1, 2):
        folder.record(epoch, {"val_loss": chance.random()})
        time.sleep(0.06 * chance.random())
    kind = number % 4
    if kind < 2:
        folder.scores.write_bytes(b"scores")
        time.sleep(0.002 * chance.random())
        folder.finish(Outcome("COMPLETE", 1.0, {"val_loss": 1.0}))
    elif kind == 2:
        folder.finish(Outcome("PRUNED", 1.0, reason="pruned after epoch 2"))
    else:
        (folder.artifacts / "profile").mkdir(parents=True)
        (folder.artifacts / "profile" / "trace.json").write_text(f"trace {number}")
        (folder.artifacts / "error.txt").write_text(f"error {number}")
        folder.finish(Outcome("FAIL", reason="ValueError: no"))


def write_late(config: RunConfig, number: int) -> None:
    """A page that another command writes into a run that has ended, as `parity` does, and a param."""
    folder = RunFolder(home(config) / "trials" / f"{number:04d}")
    folder.artifacts.mkdir(exist_ok=True)
    (folder.artifacts / "parity.html").write_text(f"parity {number}")
    folder.add_params({"noted.late": number})


def runs(config: RunConfig, view: int = ViewType.ACTIVE_ONLY) -> dict[str, Run]:
    """MLflow's runs by their key."""
    client = MlflowClient(tracking_uri(config))
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    assert experiment is not None
    return {run.data.tags[KEY_TAG]: run for run in client.search_runs([experiment.experiment_id], "", view, 1000)}


def artifacts(config: RunConfig, run: Run) -> dict[str, bytes]:
    root = Path(run.info.artifact_uri.removeprefix("file://"))
    assert root.is_relative_to(config.output_dir)
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def differences(config: RunConfig) -> list[str]:
    """What run folders have and MLflow lacks, or has otherwise."""
    found, known = [], runs(config)
    folders = [RunFolder(path.parent) for path in sorted(home(config).glob("**/run.json"))]
    parent = known.get(RunFolder(home(config) / "study").read()["key"])
    client = MlflowClient(tracking_uri(config))
    for folder in folders:
        noted = folder.read()
        run = known.get(noted["key"])
        if run is None:
            found.append(f"{folder.path.name}: no run")
            continue
        here = {
            str(path.relative_to(folder.artifacts)): path.read_bytes()
            for path in folder.artifacts.rglob("*")
            if path.is_file()
        }
        there = artifacts(config, run)
        found += [
            f"{folder.path.name}: {name}" for name in here.keys() | there.keys() if here.get(name) != there.get(name)
        ]
        found += [f"{folder.path.name}: param {name}" for name in noted["params"].items() - run.data.params.items()]
        found += [f"{folder.path.name}: tag {name}" for name in noted["tags"].items() - run.data.tags.items()]
        if folder.outcome is not None and run.info.status != STATUS[folder.outcome.state]:
            found.append(f"{folder.path.name}: status {run.info.status}")
        if folder.path.name != "study":
            assert parent is not None
            steps = [point.step for point in client.get_metric_history(run.info.run_id, "val_loss")]
            if steps != sorted(folder.curves()["val_loss"]):
                found.append(f"{folder.path.name}: epochs {steps}")
            if run.data.tags.get("mlflow.parentRunId") != parent.info.run_id:
                found.append(f"{folder.path.name}: parent")
        if not folder.is_published:
            found.append(f"{folder.path.name}: not noted as published")
    if len(known) != len(folders):
        found.append(f"{len(known)} runs of {len(folders)} folders")
    return found


def finish_study(config: RunConfig) -> None:
    parent = RunFolder(home(config) / "study")
    parent.artifacts.mkdir(exist_ok=True)
    (parent.artifacts / "trials.csv").write_text("number,value\n")
    parent.finish(Outcome("COMPLETE", 1.0, {"best_val_loss": 1.0}))


def test_200_trials_that_end_while_the_publisher_works_are_whole_in_mlflow(config: RunConfig) -> None:
    start(RunFolder(home(config) / "study"), config)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=publish_with_fast_drawers, args=(publication(config), theirs))
    process.start()
    theirs.close()
    chance = random.Random(0)
    assert isinstance(ours.recv(), float)  # it has imported MLflow: from here on both sides work at the same time
    for number in range(200):
        write_trial(config, number, chance)
        if number % 5 == 0 and number >= 10:
            write_late(config, number - 10)
        while ours.poll():
            ours.recv()
    finish_study(config)
    ours.send(FINISH)
    while isinstance(said := ours.recv(), float):
        pass
    process.join(30)
    assert said == ""
    assert differences(config) == []


@pytest.fixture
def published(config: RunConfig) -> RunConfig:
    """A finished study of three trials in MLflow."""
    start(RunFolder(home(config) / "study"), config)
    for number in (2, 3, 6):
        write_trial(config, number, random.Random(number))
    finish_study(config)
    with Publisher(publication(config)):
        pass
    assert differences(config) == []
    return config


def delete_database(config: RunConfig) -> RunConfig:
    (config.output_dir / "mlflow.db").unlink()
    return config


def delete_a_run(config: RunConfig) -> RunConfig:
    MlflowClient(tracking_uri(config)).delete_run(next(iter(runs(config).values())).info.run_id)
    return config


def delete_all_runs(config: RunConfig) -> RunConfig:
    for run in runs(config).values():
        MlflowClient(tracking_uri(config)).delete_run(run.info.run_id)
    return config


def move_to_another_store(config: RunConfig) -> RunConfig:
    return override(config, {"tracking.uri": f"sqlite:///{config.output_dir}/other.db"})


def move_to_another_experiment(config: RunConfig) -> RunConfig:
    return override(config, {"tracking.experiment": "other"})


@pytest.mark.parametrize(
    "lose",
    [delete_database, delete_a_run, delete_all_runs, move_to_another_store, move_to_another_experiment],
    ids=lambda one: one.__name__,
)
def test_what_mlflow_has_lost_is_filled_again_from_the_run_folders(
    published: RunConfig, lose: Callable[[RunConfig], RunConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # where MLflow keeps the artifacts of a database without a server
    config = lose(published)
    with Publisher(publication(config)):
        pass
    assert differences(config) == []
