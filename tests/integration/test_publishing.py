"""Everything that a run folder has reaches MLflow, whenever it is written: compared file by file."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import sqlite3
import time
import uuid
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from experiments.config import RunConfig, load_config, override
from experiments.errors import TrackingError
from experiments.figures import pictures
from experiments.runs.folder import Outcome, RunFolder
from experiments.single_run import train_and_register
from experiments.tracking import drawers as drawing
from experiments.tracking.publisher import LOCK_FILE, Phase, Publication, Publisher
from experiments.tracking.store import KEY_TAG, STATUS, tracking_uri
from tests.conftest import tiny

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
    folder.scores.unlink(missing_ok=True)


def publish_with_fast_drawers(publication: Publication, connection: Connection) -> None:
    """The publisher's process. Only what a picture shows is ours; when it is drawn and sent is decided as always."""
    from experiments.tracking import publish

    drawing._start_drawer = lambda: None
    drawing._have_drawn = draw_fast
    publish.PUBLISH_SECONDS = 0.02
    publish.publish(publication, connection)


def write_trial(config: RunConfig, number: int, chance: random.Random) -> None:
    """A trial as a training process leaves it, in one of the ways that trials end."""
    folder = RunFolder(home(config) / "trials" / f"{number:04d}")
    start(folder, config, f"{number}")
    for epoch in (1, 2):
        folder.record(epoch, {"val_loss": chance.random()})
        time.sleep(0.06 * chance.random())
    outcome_index = number % 4
    if outcome_index < 2:
        folder.scores.write_bytes(b"scores")
        time.sleep(0.002 * chance.random())
        folder.finish(Outcome("COMPLETE", 1.0, {"val_loss": 1.0}))
    elif outcome_index == 2:
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


def reader(config: RunConfig) -> MlflowClient:
    """A client of a copy of the database: MLflow keeps files open, also one that was deleted."""
    database = Path(tracking_uri(config).removeprefix("sqlite:///"))
    return MlflowClient(f"sqlite:///{shutil.copy(database, database.with_name(f'{uuid.uuid4().hex}.copy'))}")


def runs(config: RunConfig) -> dict[str, Run]:
    """MLflow's runs by their key."""
    client = reader(config)
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    return {run.data.tags[KEY_TAG]: run for run in found}


def artifacts(config: RunConfig, run: Run) -> dict[str, bytes]:
    root = Path(run.info.artifact_uri.removeprefix("file://"))
    assert root.is_relative_to(config.output_dir)
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def differences(config: RunConfig) -> list[str]:
    """What run folders have and MLflow lacks, or has otherwise."""
    found, known = [], runs(config)
    folders = [RunFolder(path.parent) for path in sorted(home(config).glob("**/run.json"))]
    parent = known.get(RunFolder(home(config) / "study").read().key)
    client = reader(config)
    for folder in folders:
        record = folder.read()
        run = known.get(record.key)
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
        found += [f"{folder.path.name}: param {name}" for name in record.params.items() - run.data.params.items()]
        found += [f"{folder.path.name}: tag {name}" for name in record.tags.items() - run.data.tags.items()]
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


@pytest.mark.slow
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
    ours.send(Phase.FINISH)
    while isinstance(message := ours.recv(), float):
        pass
    process.join(30)
    assert message == ""
    assert differences(config) == []


def test_a_run_that_two_processes_draw_at_once_has_no_error(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    write_trial(config, 0, random.Random(0))
    [folder] = [RunFolder(path) for path in home(config).glob("trials/*")]
    folder.scores.write_bytes(b"scores")

    def finish_first(folder: RunFolder) -> None:
        draw_fast(folder.path)
        raise FileNotFoundError(folder.scores)

    monkeypatch.setattr(pictures, "draw", finish_first)
    drawing.draw_once(folder.path)
    assert not (folder.artifacts / "pictures_error.txt").exists()


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


def test_a_command_publishes_other_runs_that_a_deleted_database_had(published: RunConfig) -> None:
    """Runs of another study and of another experiment stay out; a run that somebody deleted stays deleted."""
    alone = [RunFolder(published.output_dir / "train" / name) for name in ("one", "deleted", "elsewhere")]
    for folder in alone:
        start(folder, published)
        folder.finish(Outcome("COMPLETE", 1.0))
    alone[2].add_params({"tracking.experiment": "another"})
    other = override(published, {"sweep.study_name": "other"})
    start(RunFolder(home(other) / "study"), other)
    with Publisher(publication(other)):
        finish_study(other)
    there = runs(published)
    assert {folder.path.name: folder.read().key in there for folder in alone} == {
        "one": True,
        "deleted": True,
        "elsewhere": False,
    }
    client = MlflowClient(tracking_uri(published))
    client.delete_run(there[alone[1].read().key].info.run_id)
    with Publisher(publication(other)):
        pass
    assert alone[1].read().key not in runs(published)
    delete_database(published)
    with Publisher(publication(other)):
        pass
    assert {folder.path.name for folder in alone if folder.read().key in runs(published)} == {"one", "deleted"}
    kept = [RunFolder(path.parent) for path in home(published).glob("**/run.json")]
    assert {folder.read().key for folder in kept} <= runs(published).keys()
    for folder in kept:
        assert artifacts(published, runs(published)[folder.read().key]).keys() == {
            path.relative_to(folder.artifacts).as_posix() for path in folder.artifacts.rglob("*") if path.is_file()
        }


def test_a_run_that_mlflow_refuses_does_not_hold_up_the_others(config: RunConfig) -> None:
    start(RunFolder(home(config) / "study"), config)
    for number in (2, 3, 6):
        write_trial(config, number, random.Random(number))
    RunFolder(home(config) / "trials" / "0002").add_params({"not/?allowed": "x"})
    finish_study(config)
    with pytest.raises(TrackingError, match=r"0002 and is sent when"), Publisher(publication(config)):
        pass
    assert {folder.path.name for folder in map(RunFolder, home(config).glob("trials/*")) if folder.is_published} == {
        "0003",
        "0006",
    }


@pytest.mark.slow
def test_a_model_that_was_not_registered_is_registered_by_the_same_command(
    photos: Path, tmp_path: Path, mlflow_database: Path
) -> None:
    shutil.copy(mlflow_database, tmp_path / "mlflow.db")
    config = load_config(
        None, tiny(photos, tmp_path) | {"trainer.max_epochs": 1, "tracking.flush_timeout_seconds": 1.0}
    )

    def run_sql(statement: str) -> None:
        connection = sqlite3.connect(tmp_path / "mlflow.db")
        connection.execute(statement)
        connection.commit()
        connection.close()

    run_sql("CREATE TRIGGER full BEFORE INSERT ON model_versions BEGIN SELECT RAISE(ABORT, 'the disk is full'); END")
    with pytest.raises(TrackingError, match=r"creation error.*is sent when the same command runs again"):
        train_and_register(config)
    run_sql("DROP TRIGGER full")
    first = train_and_register(config)
    assert (first.model_uri, first.champion) == (f"models:/{photos.name}/1", True)
    assert [path.name for path in tmp_path.glob("train/*")] == [first.export.parent.name]
    second = train_and_register(config)
    assert second.export != first.export, "a run that has gone through all steps is trained again"
    assert second.model_uri == f"models:/{photos.name}/2"
