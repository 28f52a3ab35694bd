"""MLflow's store. Run folders are written first, and MLflow is repeatedly sent what it lacks of them.

So nothing waits for a tracking server, and nothing is lost when it is away or when a process is killed: pushing a
folder again sends only what the server lacks.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, ErrorCode

from experiments.config import RunConfig, sqlite_url, tracking_uri
from experiments.console import say
from experiments.errors import TrackingError
from experiments.runs.folder import FINGERPRINT, MetricLine, Published, RunFolder, RunRecord, now_ms
from experiments.tracking.check import (
    ARTIFACTS,
    CHECK_SECONDS,
    DATABASE,
    Experiment,
    artifact_folder,
    database,
    first_line,
    local_folder,
    restore_command,
    upgrade_command,
)
from experiments.tracking.mlflow_settings import client_settings
from experiments.tracking.views import tuned_names, view_tags
from lightning_modules.files import replaced_whole
from lightning_modules.locks import KernelLock
from lightning_modules.metrics import DIRECTIONS, VAL_LOSS
from lightning_modules.redaction import public_url

KEY_TAG = "experiments.key"
"""Tag by which the run of a run folder is found."""
STATUS = {"COMPLETE": "FINISHED", "PRUNED": "FINISHED", "FAIL": "FAILED", "STOPPED": "KILLED"}

LOCATIONS = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}
"""Columns in which MLflow keeps absolute paths of artifacts (3.17.2)."""

POINTS, PARAMS, TAGS = 800, 100, 100
"""Entries of a call: MLflow takes 100 params, 100 tags, and 1,000 entries in all (its REST API's Log Batch)."""
AWAY = (MlflowException, OSError)
"""Errors of MLflow's client if its server or database does not answer (requests' errors are OSErrors)."""

_Item = TypeVar("_Item")
_Point = tuple[str, int, int]
"""A metric's name, step and time, by which MLflow's points are told apart."""


class RunStore:
    """The MLflow experiment that run folders are pushed to.

    Args:
        before_call: called before each call to MLflow, so that its duration can be watched.

    Raises:
        MlflowException, OSError: if MLflow does not answer, or refuses the experiment.
    """

    def __init__(self, config: RunConfig, *, before_call: Callable[[], None] = lambda: None) -> None:
        self.uri = tracking_uri(config)
        # Our own store moves with its folder: the note in a run folder must name it there too.
        self.name = f"{public_url(config.tracking.uri or DATABASE)}#{config.tracking.experiment}"
        self.flush_timeout_seconds = config.tracking.flush_timeout_seconds
        self.before_call = before_call
        # A server has its own place. A database has none, and MLflow would take the working directory.
        local = None if database(self.uri) is None else artifact_folder(config).resolve().as_uri()
        before_call()
        with _locked_store(config):
            self.client = MlflowClient(self.uri, registry_uri=self.uri)  # otherwise an environment variable decides
            self.experiment_id = self._experiment(config.tracking.experiment, local)
        # What this process knows MLflow to have, by run: metric points, params and tags.
        self._sent: dict[str, set[_Point]] = {}
        self._params: dict[str, Mapping[str, str]] = {}
        self._tags: dict[str, Mapping[str, str]] = {}

    @classmethod
    def open_or_wait(cls, config: RunConfig) -> RunStore:
        """Open the store, and wait for a server that is away.

        Raises:
            TrackingError: if it does not answer within `tracking.flush_timeout_seconds`.
        """
        return wait_for_store(lambda: cls(config), config)

    @client_settings()
    def push(self, folder: RunFolder, parent_run_id: str | None = None) -> str:
        """Bring MLflow up to date with a folder: what MLflow has is not sent again.

        Raises:
            MlflowException, OSError: if the server does not take it.
        """
        # First: a file that is written from now on differs from this list, and the next push sends it.
        files = folder.files()
        record = folder.read()
        epochs = folder.metric_lines()
        lines = [*epochs, *folder.system_lines()]
        run_id = self._run_id(folder, record, lines, parent_run_id)
        sent = self._sent[run_id]
        points = [
            Metric(key, value, line.timestamp_ms, line.step) for line in lines for key, value in line.metrics.items()
        ]
        if record.outcome is not None:
            assert record.ended_ms is not None, "written with the outcome"
            last = max((line.step for line in epochs), default=0)
            points += [Metric(key, value, record.ended_ms, last) for key, value in folder.final_metrics().items()]
        tags: dict[str, str] = {}
        if record.outcome is not None:
            # With the tags that were added since the run began.
            tags = {**record.tags, "trial_state": record.outcome.state}
            tags |= {"failure_reason": record.outcome.reason} if record.outcome.reason else {}
        self._push_values(run_id, [point for point in points if _point(point) not in sent], record.params, tags)
        if record.outcome is not None:
            self._push_artifacts(run_id, folder, files)
            self.before_call()
            self.client.set_terminated(run_id, STATUS[record.outcome.state], record.ended_ms)
            folder.note_published(replace(folder.published, files=files))
        return run_id

    def _push_artifacts(self, run_id: str, folder: RunFolder, files: Mapping[str, Sequence[int]]) -> None:
        """Send the files that MLflow lacks or has in an older version."""
        before = folder.published.files
        for name, status in files.items():
            path = folder.path / name
            if folder.artifacts in path.parents and before.get(name) != status:
                artifact_path = path.parent.relative_to(folder.artifacts).as_posix()
                self.before_call()
                self.client.log_artifact(run_id, str(path), None if artifact_path == "." else artifact_path)

    def _run_id(
        self, folder: RunFolder, record: RunRecord, lines: Sequence[MetricLine], parent_run_id: str | None
    ) -> str:
        """The MLflow run of a folder: by the noted run ID, else by the tag with its key, else a new run."""
        known = folder.run_id
        if known in self._sent:
            return known
        self.before_call()
        found = self._find(folder.published, record.key)
        if found is None:
            tags = {**record.tags, KEY_TAG: record.key}
            if parent_run_id:
                tags["mlflow.parentRunId"] = parent_run_id
            run = self.client.create_run(self.experiment_id, record.started_ms, tags=tags, run_name=record.name)
            found_id = str(run.info.run_id)
            self._sent[found_id], self._params[found_id], self._tags[found_id] = set(), {}, tags
        else:
            found_id = str(found.info.run_id)
            self._tags[found_id] = found.data.tags
            if found.info.lifecycle_stage == LifecycleStage.DELETED:
                self.client.restore_run(found_id)
            # After a crash the run may already hold some of what is in the folder.
            keys = {key for line in lines for key in line.metrics} | folder.final_metrics().keys()
            self._sent[found_id] = {
                _point(point) for key in keys for point in self.client.get_metric_history(found_id, key)
            }
            if parent_run_id and found.data.tags.get("mlflow.parentRunId") != parent_run_id:
                self.client.set_tag(found_id, "mlflow.parentRunId", parent_run_id)
            if record.outcome is None:
                self.client.update_run(found_id, "RUNNING")
        if (folder.published.store, known) != (self.name, found_id):
            folder.note_published(Published(self.name, found_id))
        return found_id

    def push_or_wait(self, folder: RunFolder, parent_run_id: str | None = None) -> str:
        """Push, and wait for a server that is away.

        Raises:
            TrackingError: if it does not answer within `tracking.flush_timeout_seconds`.
        """
        return self.wait(lambda: self.push(folder, parent_run_id), folder)

    def wait(self, call: Callable[[], _Item], folder: RunFolder) -> _Item:
        """Make a call about a run's folder, and wait for a server that is away.

        Raises:
            TrackingError: if it does not answer within `tracking.flush_timeout_seconds`.
        """
        kept = f"the run is whole in {folder.path} and is sent when the same command runs again"
        return call_or_wait(call, self.uri, self.flush_timeout_seconds, kept)

    @client_settings()
    def push_killed(self, folder: RunFolder, parent_run_id: str | None = None) -> str:
        """Push, and show a run that has not ended as KILLED: the same command continues it later.

        Raises:
            MlflowException, OSError: if the server does not take it.
        """
        run_id = self.push(folder, parent_run_id)
        if folder.outcome is None:
            self.before_call()
            self.client.update_run(run_id, "KILLED")
        return run_id

    @client_settings()
    def find_complete(self, folders: Sequence[RunFolder]) -> set[Path]:
        """The folders that MLflow has completely. MLflow itself is asked, as its database may have been deleted."""
        by_run_id = {
            folder.run_id: folder for folder in folders if folder.published.store == self.name and folder.is_published
        }
        return {
            by_run_id[run.info.run_id].path
            for run in self._runs_by_id([run_id for run_id in by_run_id if run_id is not None])
            if run.info.lifecycle_stage == LifecycleStage.ACTIVE
            and run.info.end_time == by_run_id[run.info.run_id].read().ended_ms
        }

    @client_settings()
    def find_known(self, folders: Sequence[RunFolder]) -> set[Path]:
        """The folders that have a run in MLflow, complete or not, deleted or not."""
        paths = {folder.run_id: folder.path for folder in folders}
        return {paths[run.info.run_id] for run in self._runs_by_id([run_id for run_id in paths if run_id is not None])}

    def _runs_by_id(self, run_ids: list[str]) -> Iterator[Run]:
        for chunk in _chunks(run_ids, 100):
            listed = ", ".join(f"'{run_id}'" for run_id in chunk)
            self.before_call()
            yield from self.client.search_runs(
                [self.experiment_id], f"attributes.run_id IN ({listed})", ViewType.ALL, max_results=len(chunk)
            )

    def _experiment(self, name: str, artifact_location: str | None) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            return str(self.client.create_experiment(name, artifact_location))
        return str(found.experiment_id)

    @client_settings()
    def find_run(self, run_id: str) -> Run | None:
        """A run by its ID; None if there is none."""
        try:
            return self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in (ErrorCode.Name(RESOURCE_DOES_NOT_EXIST), ErrorCode.Name(INVALID_PARAMETER_VALUE)):
                return None
            raise

    def _find(self, published: Published, key: str) -> Run | None:
        # In another store, or where the database was deleted, the folder's run has another ID or is not there.
        known = self.find_run(published.run_id) if published.run_id else None
        if known is not None and known.info.experiment_id == self.experiment_id:
            return known
        found = self.client.search_runs(
            [self.experiment_id], f"tags.`{KEY_TAG}` = '{key}'", ViewType.ALL, max_results=1
        )
        return found[0] if found else None

    def _push_values(
        self, run_id: str, points: Sequence[Metric], params: Mapping[str, str], tags: Mapping[str, str]
    ) -> None:
        """Send metrics, and the params and tags that MLflow lacks, in as few calls as its limits allow."""
        known = self._params.get(run_id)
        if known is None:
            self.before_call()
            run = self.client.get_run(run_id)
            known, has_dataset = run.data.params, bool(run.inputs and run.inputs.dataset_inputs)
        else:
            has_dataset = FINGERPRINT in known
        before = self._tags.get(run_id, {})
        columns = (
            list(_chunks(points, POINTS)),
            list(_chunks([Param(key, value) for key, value in params.items() if key not in known], PARAMS)),
            list(_chunks([RunTag(key, value) for key, value in tags.items() if before.get(key) != value], TAGS)),
        )
        for some_points, some_params, some_tags in itertools.zip_longest(*columns, fillvalue=()):
            self.before_call()
            self.client.log_batch(run_id, some_points, some_params, some_tags)
            self._sent[run_id] |= {_point(point) for point in some_points}
        if FINGERPRINT in params and not has_dataset:
            self.before_call()
            self.client.log_inputs(run_id, [_dataset(params)])
        self._params[run_id], self._tags[run_id] = params, {**before, **tags}


def call_or_wait(call: Callable[[], _Item], uri: str, seconds: float, kept: str) -> _Item:
    """Make a call to MLflow, and wait for a server or database that is away.

    Args:
        kept: for the error: what is not lost, and how it is sent later.

    Raises:
        TrackingError: if it does not answer within that many seconds, or refuses the call.
    """
    deadline = time.monotonic() + seconds
    pause = 0.2
    while True:
        try:
            return call()
        except AWAY as error:
            refused = is_refusal(error)
            if refused or time.monotonic() + pause > deadline:
                text = f"tracking.uri {uri} does not take the run ({reason(error, uri)}): {kept}"
                raise TrackingError(text, is_refusal=refused) from None  # MLflow's own text repeats the password
        time.sleep(pause)
        pause = min(2 * pause, 10.0)


def wait_for_store(open_store: Callable[[], RunStore], config: RunConfig) -> RunStore:
    """Open a store by a call, and wait for a server that is away.

    Raises:
        TrackingError: if it does not answer within `tracking.flush_timeout_seconds`.
    """
    kept = f"what has run is whole in {config.output_dir} and is sent when the same command runs again"
    return call_or_wait(open_store, tracking_uri(config), config.tracking.flush_timeout_seconds, kept)


def is_refusal(error: BaseException) -> bool:
    """Whether MLflow would refuse the same call again."""
    return isinstance(error, MlflowException) and error.error_code == ErrorCode.Name(INVALID_PARAMETER_VALUE)


def reason(error: BaseException, uri: str) -> str:
    """Why MLflow does not take a run, with the next step where a person must do something."""
    text = str(error)
    if deleted := re.search(r"experiment (\d+) must be in the 'active' state", text):
        return f"its experiment was deleted; restore it: {restore_command(uri, deleted[1])}"
    if "out-of-date database schema" in text:
        return f"another version of MLflow made this database; back it up, then run `{upgrade_command(uri)}`"
    return first_line(error)


@client_settings()
def find_on_server(uri: str, name: str) -> Experiment | None:
    """The experiment with a name on a server.

    Raises:
        OSError: if it does not answer, or refuses.
    """
    try:
        found = MlflowClient(uri, registry_uri=uri).get_experiment_by_name(name)
    except MlflowException as error:
        raise OSError(str(error)) from error
    if found is None:
        return None
    is_deleted = found.lifecycle_stage == LifecycleStage.DELETED
    return Experiment(str(found.experiment_id), is_deleted, found.artifact_location)


def find_folder(run: Run, output_dir: Path) -> RunFolder | None:
    """The run folder below `output_dir` that a run in MLflow copies; None if it is elsewhere or does not exist."""
    for path in sorted(output_dir.rglob("run.json")):
        folder = RunFolder(path.parent)
        if folder.has_started and folder.read().key == run.data.tags.get(KEY_TAG):
            return folder
    return None


@client_settings()
def save_views(config: RunConfig) -> dict[str, str]:
    """Give each experiment of a store the views in which its runs are compared.

    Returns:
        The IDs of the experiments that have runs, by name.
    """
    uri = tracking_uri(config)
    with _locked_store(config):
        client = MlflowClient(uri, registry_uri=uri)
        experiments = client.search_experiments()
    found: dict[str, str] = {}
    for experiment in experiments:
        runs = _runs_without_parent(client, experiment.experiment_id)
        if runs:
            found[experiment.name] = experiment.experiment_id
            tuned = tuned_names(run.data.params for run in runs)
            objectives = (run.data.params.get("sweep.metric", VAL_LOSS) for run in runs)  # of the newest run first
            metric = next((name for name in objectives if name in DIRECTIONS), VAL_LOSS)
            for key, value in view_tags(tuned, metric, now_ms=now_ms()).items():
                client.set_experiment_tag(experiment.experiment_id, key, value)
    return found


def _runs_without_parent(client: MlflowClient, experiment_id: str) -> list[Run]:
    """Searches and single runs; trials tell nothing more about tuned fields."""
    only = "tags.`mlflow.parentRunId` IS NULL"
    page = client.search_runs([experiment_id], only)
    runs = list(page)
    while page.token:
        page = client.search_runs([experiment_id], only, page_token=page.token)
        runs += page
    return runs


@contextlib.contextmanager
def _locked_store(config: RunConfig) -> Iterator[None]:
    """Prepare MLflow's store and lock it, so that no other process creates it at the same time."""
    config.output_dir.mkdir(parents=True, exist_ok=True)
    # Two processes that create the database at once break its migrations.
    lock = KernelLock(config.output_dir / "mlflow.lock", timeout=config.tracking.flush_timeout_seconds)
    with lock, client_settings():
        if config.tracking.uri is None:
            _create_database(config.output_dir / DATABASE)
            _follow_folder(config.output_dir.resolve())
        yield


def _create_database(path: Path) -> None:
    """Make MLflow's database under another name: a kill within its migrations would leave one that can't be opened."""
    if path.exists():
        return
    with replaced_whole(path) as part:
        MlflowClient(sqlite_url(part)).search_experiments()


def _follow_folder(output_dir: Path) -> None:
    """Correct the absolute paths in MLflow's store below `output_dir` if that was moved or is mounted elsewhere.

    Raises:
        MlflowException: if the database is locked.
    """
    artifacts = output_dir / ARTIFACTS
    try:
        with contextlib.closing(sqlite3.connect(output_dir / DATABASE, timeout=CHECK_SECONDS)) as database, database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
            if "experiments" not in tables:
                return  # it is empty, and MLflow fills it
            locations = database.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
            for before in (
                location
                for (location,) in locations
                if location.endswith(f"/{ARTIFACTS}") and location != artifacts.as_uri()
            ):
                folder = local_folder(before)
                if folder is None or (folder.is_dir() and not artifacts.is_dir()):
                    continue  # artifacts are elsewhere on purpose
                for table, column in (
                    (name, column) for name in LOCATIONS.keys() & tables for column in LOCATIONS[name]
                ):
                    database.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? OR {column} GLOB ?",
                        (artifacts.as_uri(), len(before) + 1, before, f"{_literal(before)}/*"),
                    )
                say(f"MLflow's store was moved: its artifacts are looked for in {artifacts}, no longer in {folder}")
    except sqlite3.OperationalError as error:
        raise MlflowException(f"{output_dir / DATABASE}: {error}") from error


def _literal(text: str) -> str:
    """Text as a pattern of SQLite's GLOB."""
    return re.sub(r"([*?[])", r"[\1]", text)


def _dataset(params: Mapping[str, str]) -> DatasetInput:
    root = params.get("data.root", "None")
    facts = {key: value for key, value in params.items() if key.startswith("data.")}
    dataset = Dataset(
        name=params["data.name"] if root == "None" else Path(root).name,
        digest=params[FINGERPRINT][:36],
        source_type="local",
        source=json.dumps({"uri": root}),
        profile=json.dumps(facts),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def _point(metric: Metric) -> _Point:
    return metric.key, metric.step, metric.timestamp


def _chunks(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
