"""Models of one experiment in MLflow's registry: which one is the champion, and what a repeated step makes."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES

from experiments.config import RunConfig, load_config, override
from experiments.errors import UserError
from experiments.runs.folder import Outcome, RunFolder
from experiments.runs.logger import RunFolderLogger
from experiments.tracking import registry
from experiments.tracking.check import check_tracking
from experiments.tracking.mlflow_settings import ADDRESSES, VARIABLES, default_store
from experiments.tracking.registry import CHAMPION, download_export, register
from experiments.tracking.store import RunStore
from experiments.train import score_and_export, train
from tests.conftest import tiny
from tests.process_state import mlflow_addresses

# MLflow (3.17.2) compares a column of the input example with a range.
pytestmark = pytest.mark.filterwarnings("ignore:Operation with range is deprecated")


@pytest.fixture(scope="module")
def export(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole export folder."""
    folder = RunFolder(tmp_path_factory.mktemp("trained") / "run")
    config = load_config(None, tiny(photos, folder.path.parent) | {"trainer.max_epochs": 1})
    folder.start("run", {}, {})
    result = train(config, output_dir=folder.path, logger=RunFolderLogger(folder))
    score_and_export(result, folder.export, folder.scores)
    return folder.export


@pytest.fixture
def config(tmp_path: Path, mlflow_database: Path) -> RunConfig:
    (tmp_path / "runs").mkdir()
    shutil.copy(mlflow_database, tmp_path / "runs" / "mlflow.db")
    return load_config(None, {"output_dir": tmp_path / "runs", "tracking.experiment": "dogs"})


@pytest.fixture
def store(config: RunConfig) -> RunStore:
    return RunStore(config)


def trained(
    store: RunStore,
    config: RunConfig,
    export: Path,
    name: str,
    *,
    val_loss: float,
    data: str,
    val_accuracy: float = 0.5,
    metric: str = "val_loss",
) -> RunFolder:
    """A published run with an export, on a data set, that came to a loss and an accuracy."""
    folder = RunFolder(config.output_dir / "train" / name)
    folder.start(name, {"data.fingerprint": data, "data.name": "folder", "sweep.metric": metric}, {})
    shutil.copytree(export, folder.export)
    manifest = json.loads((folder.export / "model.json").read_text())
    scores = {"val_loss": val_loss, "val_accuracy": val_accuracy}
    manifest["metrics"] |= scores
    manifest["class_names"] = [f"{data} {one}" for one in manifest["class_names"]]
    (folder.export / "model.json").write_text(json.dumps(manifest))
    folder.record(1, scores)
    folder.finish(Outcome("COMPLETE", scores[metric], scores))
    store.push(folder)
    return folder


def champion(store: RunStore) -> str:
    return str(store.client.get_model_version_by_alias("dogs", CHAMPION).version)


def test_the_better_model_of_one_data_set_becomes_the_champion(
    store: RunStore, config: RunConfig, export: Path
) -> None:
    for name, val_loss, expected in (("a", 0.5, True), ("b", 0.6, False), ("c", 0.4, True)):
        folder = trained(store, config, export, name, val_loss=val_loss, data="dogs")
        register(store, folder, name="dogs")
        assert folder.published.is_champion is expected
    assert champion(store) == "3"
    tags = store.client.get_model_version("dogs", "1").tags
    assert tags["data.fingerprint"] == "dogs"
    assert json.loads(tags["class_names"]) == ["dogs Class1", "dogs Class2", "dogs Class3"]


def test_a_model_of_another_data_set_never_takes_the_alias_and_the_command_that_sets_it_works(
    store: RunStore, config: RunConfig, export: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    register(store, trained(store, config, export, "a", val_loss=0.5, data="dogs"), name="dogs")
    other = trained(store, config, export, "b", val_loss=0.1, data="clothing")
    capfd.readouterr()
    register(store, other, name="dogs")
    assert not other.published.is_champion
    assert other.published.model_uri == "models:/dogs/2"
    assert champion(store) == "1"
    (said,) = [line for line in capfd.readouterr().err.splitlines() if "stays the champion" in line]
    assert said.startswith("dogs version 1 stays the champion: it was trained on another data set")
    assert "dogs Class1" in said
    exec(shlex.split(said.rpartition("the champion: ")[2])[-1])
    assert champion(store) == "2"


def test_the_objective_of_the_new_run_decides_and_what_a_version_lacks_is_read_from_its_run(
    store: RunStore, config: RunConfig, export: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    first = trained(store, config, export, "a", val_loss=0.5, val_accuracy=0.7, data="dogs")
    register(store, first, name="dogs")
    tags = store.client.get_model_version("dogs", "1").tags
    assert (tags["val_loss"], tags["val_accuracy"]) == ("0.5", "0.7")
    store.client.delete_model_version_tag("dogs", "1", "val_accuracy")  # older versions have val_loss only
    by_accuracy = trained(
        store, config, export, "b", val_loss=0.9, val_accuracy=0.8, data="dogs", metric="val_accuracy"
    )
    with monkeypatch.context() as patched:
        patched.setattr(RunStore, "find_run", lambda *_: None)
        register(store, by_accuracy, name="dogs")
    assert champion(store) == "1"
    assert "it has no val_accuracy, the objective of the other one" in capfd.readouterr().err
    register(store, by_accuracy, name="dogs")
    assert champion(store) == "2", "by its accuracy, although its loss is larger"
    by_loss = trained(store, config, export, "c", val_loss=0.6, val_accuracy=0.6, data="dogs")
    register(store, by_loss, name="dogs")
    assert champion(store) == "3"


def test_a_version_without_tags_is_compared_by_its_run(store: RunStore, config: RunConfig, export: Path) -> None:
    register(store, trained(store, config, export, "a", val_loss=0.5, data="dogs"), name="dogs")
    store.client.delete_model_version_tag("dogs", "1", "data.fingerprint")
    register(store, trained(store, config, export, "b", val_loss=0.4, data="dogs"), name="dogs")
    assert champion(store) == "2"


def test_a_step_that_is_repeated_after_a_kill_makes_nothing_twice(
    store: RunStore, config: RunConfig, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = trained(store, config, export, "a", val_loss=0.5, data="dogs")

    class Killed(Exception):
        pass

    def kill(*_: object, **__: object) -> None:
        raise Killed

    for place, name in ((registry, "_make_champion"), (RunFolder, "note_published")):
        with monkeypatch.context() as patched:
            patched.setattr(place, name, kill)
            with pytest.raises(Killed):
                register(store, folder, name="dogs")
        assert folder.published.model_uri is None
    register(store, folder, name="dogs")
    assert folder.published.model_uri == "models:/dogs/1"
    assert [one.version for one in store.client.search_model_versions("name = 'dogs'")] in (["1"], [1])
    assert champion(store) == "1"


def test_registering_leaves_the_run_as_the_folder_has_it(store: RunStore, config: RunConfig, export: Path) -> None:
    folder = trained(store, config, export, "a", val_loss=0.5, data="dogs")
    register(store, folder, name="dogs")
    run = MlflowClient(store.uri).get_run(str(folder.run_id))
    assert (run.info.status, run.info.end_time) == ("FINISHED", folder.read().ended_ms)
    assert store.find_complete([folder]) == {folder.path}
    with default_store(store.uri):
        assert mlflow.pyfunc.load_model("models:/dogs@champion") is not None


def test_registering_and_fetching_a_model_leave_mlflows_settings_of_the_caller(
    store: RunStore, config: RunConfig, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = trained(store, config, export, "a", val_loss=0.5, data="dogs")
    retries: list[int] = []
    monkeypatch.setattr(
        store.client, "set_model_version_tag", lambda *_: retries.append(MLFLOW_HTTP_REQUEST_MAX_RETRIES.get())
    )
    uri = "sqlite:////nonexistent/of the caller.db"
    with default_store(uri):
        addresses = mlflow_addresses()
        register(store, folder, name="dogs")
        assert set(retries) == {0}
        assert (download_export("models:/dogs@champion", store) / "model.json").is_file()
        with pytest.raises(UserError, match="must be an export folder or a registered model"):
            download_export("models:/cats@champion", store)
        assert mlflow_addresses() == addresses
        assert {name: os.environ[name] for name in ADDRESSES} == dict.fromkeys(ADDRESSES, uri)
        assert not VARIABLES.keys() & os.environ.keys()


def move(config: RunConfig, target: Path) -> RunConfig:
    config.output_dir.rename(target)
    return override(config, {"output_dir": target})


def test_a_store_that_moved_opens_its_champion_and_writes_nothing_into_the_old_place(
    store: RunStore, config: RunConfig, export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = trained(store, config, export, "a", val_loss=0.5, data="dogs")
    register(store, before, name="dogs")
    moved = move(config, tmp_path / "another mount [1] ä")
    check_tracking(moved)
    there = RunStore(moved)
    capsys.readouterr()
    assert (download_export("models:/dogs@champion", there) / "model.json").is_file()
    with default_store(there.uri):
        assert mlflow.pyfunc.load_model("models:/dogs@champion") is not None
    folder = RunFolder(moved.output_dir / "train" / "a")
    assert there.find_complete([folder]) == {folder.path}, "nothing is sent again"
    register(there, trained(there, moved, export, "b", val_loss=0.4, data="dogs"), name="dogs")
    again = move(moved, tmp_path / "a*third[place")
    assert (download_export("models:/dogs@champion", RunStore(again)) / "model.json").is_file()
    said = [line for line in capsys.readouterr().err.splitlines() if "store was moved" in line]
    assert len(said) == 1, "once per move"
    assert said[0].endswith(f"in {again.output_dir / 'mlartifacts'}, no longer in {moved.output_dir / 'mlartifacts'}")
    assert not config.output_dir.exists()
    assert not moved.output_dir.exists()


def test_a_copy_of_a_store_has_its_own_artifacts(
    store: RunStore, config: RunConfig, export: Path, tmp_path: Path
) -> None:
    register(store, trained(store, config, export, "a", val_loss=0.5, data="dogs"), name="dogs")
    copy = override(config, {"output_dir": tmp_path / "copy"})
    shutil.copytree(config.output_dir, copy.output_dir)
    there = RunStore(copy)
    register(there, trained(there, copy, export, "b", val_loss=0.4, data="dogs"), name="dogs")
    assert len(list((copy.output_dir / "mlartifacts").glob("models/*"))) == 2
    assert len(list((config.output_dir / "mlartifacts").glob("models/*"))) == 1


def test_artifacts_that_somebody_keeps_elsewhere_stay_there(config: RunConfig, tmp_path: Path) -> None:
    elsewhere = tmp_path / "large disk" / "mlartifacts"
    elsewhere.mkdir(parents=True)
    MlflowClient(f"sqlite:///{config.output_dir}/mlflow.db").create_experiment("dogs", elsewhere.as_uri())
    store = RunStore(config)
    assert store.client.get_experiment_by_name("dogs").artifact_location == elsewhere.as_uri()


def test_an_empty_database_is_filled(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()  # what a full disk leaves
    config = load_config(None, {"output_dir": tmp_path})
    check_tracking(config)
    assert RunStore(config).client.get_experiment_by_name("experiments") is not None
