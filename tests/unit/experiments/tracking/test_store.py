"""What MLflow would refuse at the end of a run is refused before it, and nothing is created on the way."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sized
from pathlib import Path
from typing import Any

import mlflow
import pytest
from alembic.script import ScriptDirectory
from mlflow import MlflowClient
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT

from experiments.config import RunConfig, load_config
from experiments.errors import UserError
from experiments.runs.folder import Outcome, RunFolder
from experiments.tracking import check
from experiments.tracking import store as tracking
from experiments.tracking.check import check_tracking
from experiments.tracking.mlflow_settings import ADDRESSES, VARIABLES, client_settings
from experiments.tracking.publish import MODEL_FILES, REGISTER_SECONDS, seconds_to_register
from experiments.tracking.registry import download_export, tag_version
from experiments.tracking.store import RunStore, find_on_server, save_views
from tests.conftest import REPOSITORY


@pytest.fixture
def database(tmp_path: Path, mlflow_database: Path) -> Path:
    (tmp_path / "runs").mkdir()
    return Path(shutil.copy(mlflow_database, tmp_path / "runs" / "mlflow.db"))


def config_of(tmp_path: Path, **tracking_fields: object) -> RunConfig:
    fields = {f"tracking.{name}": value for name, value in tracking_fields.items()}
    return load_config(None, {"output_dir": tmp_path / "runs", **fields})


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.fixture
def nothing_created(tmp_path: Path) -> Iterator[None]:
    before = files(tmp_path)
    yield
    assert files(tmp_path) == before


@pytest.mark.usefixtures("nothing_created")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"experiment": "team/dogs"}, r"tracking\.experiment must have 1\.\.256 characters.*got 'team/dogs'"),
        ({"experiment": "dogs:2"}, r"none of them / or :, got 'dogs:2'"),
        ({"experiment": " "}, "got ' '"),
        ({"experiment": ".."}, r"got '\.\.'"),
        ({"experiment": "x" * 257}, "got 'xxx"),
        ({"uri": "localhost:5000"}, r"got 'localhost:5000'; did you mean http://localhost:5000\?"),
        ({"uri": "10.0.0.7:5000"}, r"did you mean http://10\.0\.0\.7:5000\?"),
        ({"uri": "./mlruns"}, r"must start with http://.*got '\./mlruns'"),
        ({"uri": "ftp://host/x"}, "answers, got ftp://host/x: Model registry functionality is unavailable"),
        ({"uri": "http://127.0.0.1:1"}, r"answers, got http://127\.0\.0\.1:1: Connection refused$"),
        ({"uri": "http://me:geheim@127.0.0.1:1"}, r"got http://me:\*\*\*@127\.0\.0\.1:1: Connection refused$"),
        ({"uri": "sqlite:////proc/1/none/mlflow.db"}, r"folder of tracking\.uri must be a folder that can be written"),
        ({"uri": "sqlite:////proc"}, "must be an MLflow server or database that answers"),
    ],
)
def test_what_mlflow_would_refuse_is_refused_at_once(tmp_path: Path, fields: dict[str, object], message: str) -> None:
    begun = time.monotonic()
    with pytest.raises(UserError, match=message) as caught:
        check_tracking(config_of(tmp_path, **fields))
    assert time.monotonic() - begun < 2
    assert "geheim" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("nothing_created")
def test_a_first_run_passes(tmp_path: Path) -> None:
    check_tracking(config_of(tmp_path))


def test_a_local_database_is_checked_without_mlflow_which_takes_long_to_import(tmp_path: Path, database: Path) -> None:
    script = (
        "import sys\n"
        "from experiments.config import load_config\n"
        "from experiments.tracking.check import check_tracking\n"
        f"check_tracking(load_config(None, {{'output_dir': {str(database.parent)!r}}}))\n"
        "assert 'mlflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=REPOSITORY)


def test_the_newest_schema_is_that_of_mlflow() -> None:
    migrations = Path(mlflow.__file__).parent / "store" / "db_migrations"
    assert check.newest_schema() == ScriptDirectory(str(migrations)).get_current_head()


def test_a_database_of_another_mlflow_is_refused_with_the_command_that_upgrades_it(
    tmp_path: Path, database: Path
) -> None:
    check_tracking(config_of(tmp_path))
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'acf3f17fdcc7'")
    connection.close()
    with pytest.raises(UserError, match=rf"`mlflow db upgrade sqlite:///{database}`.*got 'acf3f17fdcc7'"):
        check_tracking(config_of(tmp_path))


def test_a_deleted_experiment_is_refused_until_it_is_restored(tmp_path: Path, database: Path) -> None:
    client = MlflowClient(f"sqlite:///{database}")
    experiment = client.create_experiment("dogs", (tmp_path / "artifacts").as_uri())
    client.delete_experiment(experiment)
    config = config_of(tmp_path, experiment="dogs")
    with pytest.raises(UserError, match=rf"got 'dogs'.*mlflow experiments restore --experiment-id {experiment}$"):
        check_tracking(config)
    client.restore_experiment(experiment)
    check_tracking(config)


def test_artifacts_that_can_not_be_written_are_refused(tmp_path: Path, database: Path) -> None:
    client = MlflowClient(f"sqlite:///{database}")
    (tmp_path / "file").write_text("")
    client.create_experiment("file", (tmp_path / "file" / "artifacts").as_uri())
    client.create_experiment("s3", "s3://bucket/artifacts")
    with pytest.raises(UserError, match=r"artifact folder of tracking\.experiment 'file' must be a folder that can"):
        check_tracking(config_of(tmp_path, experiment="file"))
    check_tracking(config_of(tmp_path, experiment="s3"))  # what a bucket allows, only AWS knows


@pytest.mark.usefixtures("nothing_created")
def test_a_silent_server_is_refused_after_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "CHECK_SECONDS", 0.5)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        begun = time.monotonic()
        with pytest.raises(UserError, match="no answer within"):
            check_tracking(config_of(tmp_path, uri=f"http://127.0.0.1:{server.getsockname()[1]}"))
        assert time.monotonic() - begun < 2


def test_a_locked_database_passes_because_a_run_waits_for_it(tmp_path: Path, database: Path) -> None:
    holder = sqlite3.connect(database, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    before = database.stat().st_mtime_ns
    check_tracking(config_of(tmp_path))
    holder.execute("ROLLBACK")
    holder.close()
    assert database.stat().st_mtime_ns == before


def test_a_request_has_the_time_limit_of_mlflow_or_of_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.setenv(name, "7")  # and back to what it was afterwards
        monkeypatch.delenv(name)
    with client_settings():
        assert (MLFLOW_HTTP_REQUEST_TIMEOUT.get(), MLFLOW_HTTP_REQUEST_MAX_RETRIES.get()) == (120, 0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    with client_settings():
        assert MLFLOW_HTTP_REQUEST_TIMEOUT.get() == 7


@pytest.mark.usefixtures("database")
def test_each_call_of_a_client_is_without_retries_and_leaves_the_variables_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {*VARIABLES, *ADDRESSES}
    for name in names:
        monkeypatch.delenv(name, raising=False)
    retries: list[tuple[str, int]] = []

    class Watched(MlflowClient):
        """Notes how often each call would be tried again."""

        def __getattribute__(self, name: str) -> Any:
            if not name.startswith("_"):
                retries.append((name, MLFLOW_HTTP_REQUEST_MAX_RETRIES.get()))
            return super().__getattribute__(name)

    monkeypatch.setattr(tracking, "MlflowClient", Watched)
    config = config_of(tmp_path)
    store = RunStore.open_or_wait(config)
    folder = RunFolder(tmp_path / "run")
    folder.start("run", {}, {})
    run_id = store.push_killed(folder)
    folder.finish(Outcome("COMPLETE", 0.5, {"val_loss": 0.5}))
    store.push_or_wait(folder)
    assert store.find_run(run_id) is not None
    assert store.find_complete([folder]) == store.find_known([folder]) == {folder.path}
    assert save_views(config).keys() == {config.tracking.experiment}
    other = MlflowClient(store.uri, registry_uri=store.uri)
    other.create_registered_model("dogs")
    other.create_model_version("dogs", "file:///nowhere")
    tag_version("models:/dogs/1", store, {"endpoint": "dogs"})
    with pytest.raises(UserError, match="must be an export folder or a registered model"):
        download_export("models:/cats/1", store)
    find_on_server(store.uri, config.tracking.experiment)
    assert {count for _, count in retries} == {0}, retries
    assert {"set_model_version_tag", "get_model_version_download_uri", "set_experiment_tag"} <= {
        name for name, _ in retries
    }
    assert not names & os.environ.keys()


def test_a_slow_store_may_take_its_time_for_each_file_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "golden").mkdir()
    for name in ("model.safetensors", "model.json", "golden/image.jpg"):
        (tmp_path / name).touch()
    assert seconds_to_register(tmp_path, 120) == REGISTER_SECONDS + 120 * (MODEL_FILES + 3)


def test_a_database_that_is_named_puts_no_artifacts_into_the_working_directory(
    tmp_path: Path, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(mlflow_database, tmp_path / "own.db")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    store = RunStore(config_of(tmp_path, uri=f"sqlite:///{tmp_path / 'own.db'}"))
    run = store.client.create_run(store.experiment_id)
    (tmp_path / "picture.png").write_bytes(b"picture")
    store.client.log_artifact(run.info.run_id, str(tmp_path / "picture.png"))
    assert files(tmp_path / "elsewhere") == set()
    assert [one.name for one in (tmp_path / "runs" / "mlartifacts").rglob("*.png")] == ["picture.png"]


@pytest.mark.usefixtures("database")
def test_a_run_with_more_than_a_call_takes_arrives_whole_in_few_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "run")
    params = {f"param.{number}": number for number in range(130)}
    folder.start("run", params, {f"tag.{number}": str(number) for number in range(150)})
    for epoch in range(1, 301):
        folder.record(epoch, {"val_loss": 1 / epoch, "val_accuracy": 0.5, "train_loss": 2 / epoch})
    folder.add_tags({"late": "tag"})
    folder.finish(Outcome("COMPLETE", 1 / 300, {"val_loss": 1 / 300}))
    store = RunStore(config_of(tmp_path))
    sent: list[tuple[int, int, int]] = []
    send = store.client.log_batch

    def log_batch(run_id: str, metrics: Sized, params: Sized, tags: Sized) -> None:
        sent.append((len(metrics), len(params), len(tags)))
        send(run_id, metrics, params, tags)

    monkeypatch.setattr(store.client, "log_batch", log_batch)
    run = store.client.get_run(store.push(folder))
    assert sent == [(800, 100, 1), (101, 30, 0)], "the other tags were sent with the run"
    assert run.data.params == {name: str(value) for name, value in params.items()}
    assert {"tag.149", "late", "trial_state"} <= run.data.tags.keys()
    assert len(store.client.get_metric_history(run.info.run_id, "val_loss")) == 300
    assert run.data.metrics["best_val_loss"] == pytest.approx(1 / 300)
    store.push(folder)
    assert len(sent) == 2, "nothing is sent twice"
