"""MLflow. Run folders are written first and MLflow is brought up to date from them, as often as it takes.

So nothing waits for a tracking server, and nothing is lost when it is away or when a process is killed: pushing a
folder a second time sends only what the server lacks.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import mlflow
import sqlalchemy
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
from mlflow.utils.file_utils import local_file_uri_to_path
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from experiments.config import RunConfig, public_url, require, tracking_uri
from experiments.errors import TrackingError, UserError
from experiments.mlflow_views import tuned_names, view_tags
from experiments.run_folder import MetricLine, RunFolder, now_ms

KEY_TAG = "experiments.key"
"""Tag by which a run folder finds its run again."""
STATUS = {"COMPLETE": "FINISHED", "PRUNED": "FINISHED", "FAIL": "FAILED", "STOPPED": "KILLED"}

AWAY = (MlflowException, OSError)
"""What MLflow's client raises when its server or database does not answer (requests' errors are OSErrors)."""
CHECK_SECONDS = 5.0
"""How long `check_tracking` waits for an answer. A server in good health answers within a second."""
MAX_NAME_LENGTH = 256
"""Of experiments and registered models, in MLflow's tables (3.17.2)."""

_log = logging.getLogger(__name__)
_Item = TypeVar("_Item")


class RunStore:
    """The MLflow experiment that run folders are pushed to."""

    def __init__(self, config: RunConfig) -> None:
        self.uri = tracking_uri(config)
        self.flush_timeout_seconds = config.tracking.flush_timeout_seconds
        local = None if config.tracking.uri else (config.output_dir / "mlartifacts").resolve().as_uri()
        with _opening(config):
            self.client = MlflowClient(self.uri, registry_uri=self.uri)  # or a variable of the shell decides
            self.experiment_id = self._retry(
                lambda: self._experiment(config.tracking.experiment, local),
                f"what has run is whole in {config.output_dir} and is sent when the same command runs again",
            )
        # What this process knows to stand in MLflow, by run: metric points and params.
        self._sent: dict[str, set[tuple[str, int]]] = {}
        self._params: dict[str, Mapping[str, str]] = {}

    def push(self, folder: RunFolder, parent_run_id: str | None = None) -> str:
        """Bring MLflow up to date with a folder: what stands there is not sent again.

        Raises:
            MlflowException, OSError: if the server does not take it.
        """
        noted = folder.read()
        epochs = folder.metric_lines()
        lines = [*epochs, *folder.system_lines()]
        run_id = self._run_id(folder, noted, lines, parent_run_id)
        sent = self._sent[run_id]
        fresh = [
            (key, line.step, line.timestamp_ms, value)
            for line in lines
            for key, value in line.metrics.items()
            if (key, line.step) not in sent
        ]
        for chunk in _chunks(fresh, 1000):  # MLflow's limit a request
            self.client.log_batch(run_id, metrics=[Metric(key, value, at, step) for key, step, at, value in chunk])
            sent |= {(key, step) for key, step, _, _ in chunk}
        self._push_params(run_id, noted["params"])
        if noted["outcome"]:
            outcome = noted["outcome"]
            last = max((line.step for line in epochs), default=0)
            new = [(key, value) for key, value in folder.final_metrics().items() if (key, last) not in sent]
            # What was noted since the run began, too.
            tags = noted["tags"] | {"trial_state": outcome["state"]}
            tags |= {"failure_reason": outcome["reason"]} if outcome["reason"] else {}
            self.client.log_batch(
                run_id,
                metrics=[Metric(key, value, noted["ended_ms"], last) for key, value in new],
                tags=[RunTag(key, value) for key, value in tags.items()],
            )
            if folder.artifacts.is_dir():
                self.client.log_artifacts(run_id, str(folder.artifacts))
            self.client.set_terminated(run_id, STATUS[outcome["state"]], noted["ended_ms"])
            folder.note_published(run_id, ended_ms=noted["ended_ms"])
        return run_id

    def _run_id(
        self, folder: RunFolder, noted: Mapping[str, Any], lines: Sequence[MetricLine], parent_run_id: str | None
    ) -> str:
        """The MLflow run of a folder: the one it was given, the one that carries its key, or a new one."""
        known = folder.run_id
        if known in self._sent:
            return known
        found = self._find(known, noted["key"])
        if found is None:
            tags = dict(noted["tags"]) | {KEY_TAG: noted["key"]}
            if parent_run_id:
                tags["mlflow.parentRunId"] = parent_run_id
            run = self.client.create_run(self.experiment_id, noted["started_ms"], tags=tags, run_name=noted["name"])
            found = str(run.info.run_id)
            self._sent[found] = set()
        else:
            # After a crash the run may already hold some of what stands in the folder.
            keys = {key for line in lines for key in line.metrics}
            self._sent[found] = {
                (key, point.step) for key in keys for point in self.client.get_metric_history(found, key)
            }
            if not noted["outcome"]:
                self.client.update_run(found, "RUNNING")
        folder.note_published(found)
        return found

    def push_or_wait(self, folder: RunFolder, parent_run_id: str | None = None) -> str:
        """Push, and wait for a server that is away.

        Raises:
            TrackingError: if it stays away for `tracking.flush_timeout_seconds`.
        """
        return self._retry(
            lambda: self.push(folder, parent_run_id),
            f"the run is whole in {folder.path} and is sent when the same command runs again",
        )

    def set_status(self, folder: RunFolder, status: str) -> None:
        """Set the status of a run that goes on later, such as KILLED; not worth waiting for a server."""
        try:
            self.client.update_run(self.push(folder), status)
        except AWAY as error:
            _log.warning(
                "MLflow at %s did not hear that a run is %s: %s",
                public_url(self.uri),
                status,
                first_line(error),
            )

    def _retry(self, call: Callable[[], str], kept: str) -> str:
        deadline = time.monotonic() + self.flush_timeout_seconds
        pause = 0.5
        while True:
            try:
                return call()
            except AWAY as error:
                refused = isinstance(error, MlflowException) and error.error_code == ErrorCode.Name(
                    INVALID_PARAMETER_VALUE
                )
                if refused or time.monotonic() + pause > deadline:
                    raise TrackingError(
                        f"tracking.uri {public_url(self.uri)} does not take the run ({first_line(error)}): {kept}"
                    ) from error
            time.sleep(pause)
            pause = min(2 * pause, 10.0)

    def _experiment(self, name: str, artifact_location: str | None) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        return str(self.client.create_experiment(name, artifact_location))

    def find_run(self, run_id: str) -> Run | None:
        """A run by its ID; None if there is none."""
        try:
            return self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in (ErrorCode.Name(RESOURCE_DOES_NOT_EXIST), ErrorCode.Name(INVALID_PARAMETER_VALUE)):
                return None
            raise

    def _find(self, run_id: str | None, key: str) -> str | None:
        if run_id is not None:
            try:
                return str(self.client.get_run(run_id).info.run_id)
            except MlflowException as error:
                # The database was deleted: the folder makes a new one whole again.
                if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                    raise
        found = self.client.search_runs([self.experiment_id], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
        return str(found[0].info.run_id) if found else None

    def _push_params(self, run_id: str, params: Mapping[str, str]) -> None:
        if self._params.get(run_id) == params:
            return
        run = self.client.get_run(run_id)
        new = [Param(key, value) for key, value in params.items() if key not in run.data.params]
        for chunk in _chunks(new, 100):  # MLflow's limit a request
            self.client.log_batch(run_id, params=chunk)
        if "data.fingerprint" in params and not (run.inputs and run.inputs.dataset_inputs):
            self.client.log_inputs(run_id, [_dataset(params)])
        self._params[run_id] = params


@dataclass(frozen=True)
class _Experiment:
    """What `check_tracking` must know about an experiment."""

    experiment_id: str
    is_deleted: bool
    artifact_location: str


def check_tracking(config: RunConfig) -> None:
    """Refuse what MLflow would refuse at the end of a run. Takes about a second and creates nothing.

    Raises:
        UserError: if `tracking.uri` is malformed or does not answer, if its database has the schema of another version
            of MLflow, if the experiment was deleted, if MLflow refuses its name for an experiment or a model, or if its
            artifact folder is not writable.
    """
    name, uri = config.tracking.experiment, tracking_uri(config)
    # The registered model has the name of the experiment, and MLflow allows fewer names for models.
    allowed = name.strip() not in ("", ".", "..") and len(name) <= MAX_NAME_LENGTH and not re.search("[/:]", name)
    require(allowed, "tracking.experiment", f"have 1..{MAX_NAME_LENGTH} characters, none of them / or :", name)
    found = _look_up(uri, name)
    if found is not None and found.is_deleted:
        raise UserError(
            f"tracking.experiment must not be deleted in MLflow, got {name!r}: choose another name, or restore it: "
            f"MLFLOW_TRACKING_URI={public_url(uri)} mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    if found is not None and (folder := _local_folder(found.artifact_location)) is not None:
        _check_writable("tracking.experiment", f"{name!r}, whose artifacts are in", folder)
    elif config.tracking.uri is None:
        _check_writable("output_dir", "", config.output_dir / "mlartifacts")


def _look_up(uri: str, name: str) -> _Experiment | None:
    """The experiment of a name; None if the store has none, or is a database that is locked at the moment."""
    if "://" not in uri and uri != "databricks":
        hint = f"; did you mean http://{uri}?" if re.match(r"[\w.-]+:\d+", uri) else ""
        raise UserError(f"tracking.uri must start with http://, https:// or a database's sqlite:///, got {uri!r}{hint}")
    _limit_requests()
    try:
        url = _database(uri)
        if url is None:
            client = MlflowClient(uri, registry_uri=uri)
            found = _within(CHECK_SECONDS, lambda: client.get_experiment_by_name(name))
            if found is None:
                return None
            is_deleted = found.lifecycle_stage == LifecycleStage.DELETED
            return _Experiment(str(found.experiment_id), is_deleted, found.artifact_location)
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
            _check_writable("tracking.uri", "", Path(url.database or "").parent)
            return None  # a run creates it
        return _within(CHECK_SECONDS, lambda: _look_up_in_database(url, name))
    except (*AWAY, SQLAlchemyError, ImportError) as error:
        if "database is locked" in str(error):
            return None  # the publisher waits for it
        reason = public_url(first_line(error))
        raise UserError(
            f"tracking.uri must be an MLflow server or database that answers, got {public_url(uri)}: {reason}"
        ) from None


def _database(uri: str) -> URL | None:
    """The URL of a database; None for a server."""
    try:
        url = make_url(uri)
        return url if url.get_backend_name() in DATABASE_ENGINES else None
    except ArgumentError:  # MLflow's client says what is wrong with it
        return None


def _look_up_in_database(url: URL, name: str) -> _Experiment | None:
    """Read the experiment with SQL: MLflow's own client creates or changes tables when it opens a database."""
    timeout = {"sqlite": {"timeout": 0.5}, "postgresql": {"connect_timeout": int(CHECK_SECONDS)}}
    options = timeout.get(url.get_backend_name(), {})
    engine = sqlalchemy.create_engine(url, poolclass=NullPool, connect_args=options)
    with engine.connect() as connection:
        schema = MigrationContext.configure(connection).get_current_revision()
        if schema is None:
            return None  # an empty database: a run creates the tables
        (expected,) = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations")).get_heads()
        place = url.render_as_string(hide_password=True)
        require(
            schema == expected,
            "tracking.uri",
            f"be a database of MLflow {mlflow.__version__} (back it up, then run `mlflow db upgrade {place}`; if it is "
            f"of a newer MLflow, install that one), schema {expected}",
            schema,
        )
        row = connection.execute(
            sqlalchemy.text(
                "SELECT experiment_id, lifecycle_stage, artifact_location FROM experiments WHERE name = :name"
            ),
            {"name": name},
        ).first()
    if row is None:
        return None
    return _Experiment(str(row.experiment_id), row.lifecycle_stage == LifecycleStage.DELETED, row.artifact_location)


def _within(seconds: float, call: Callable[[], _Item]) -> _Item:
    """The result of a call that may hang, such as a server that accepts a connection and stays silent.

    Raises:
        TimeoutError: if it takes longer; the call keeps its thread, which ends with the process.
    """
    results: list[_Item] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            results.append(call())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="check_tracking", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:.0f} seconds")
    return results[0]


def _local_folder(location: str) -> Path | None:
    """The folder of an artifact location; None if it is not on this machine, such as S3 or a server's own."""
    if location.startswith("file:") or not re.match(r"[a-z][a-z0-9+-]+:", location):
        return Path(local_file_uri_to_path(location)).absolute()
    return None


def _check_writable(key: str, owner: str, folder: Path) -> None:
    folder = folder.absolute()
    existing = next(one for one in (folder, *folder.parents) if one.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):  # root may write anywhere by its rights, but not to a read-only disk
            pass
    except OSError as error:
        value = f"{owner} {folder}".lstrip()
        raise UserError(f"{key} must be on a folder that can be written, got {value}: {error.strerror}") from None


def find_folder(run: Run, output_dir: Path) -> RunFolder | None:
    """The run folder below `output_dir` of which a run in MLflow is a copy; None if it lies elsewhere or nowhere."""
    for noted in sorted(output_dir.rglob("run.json")):
        folder = RunFolder(noted.parent)
        if folder.read()["key"] == run.data.tags.get(KEY_TAG):
            return folder
    return None


def save_views(config: RunConfig) -> dict[str, str]:
    """Give each experiment of a store the views in which its runs are compared.

    Returns:
        The IDs of the experiments that have runs, by name.
    """
    uri = tracking_uri(config)
    with _opening(config):
        client = MlflowClient(uri, registry_uri=uri)
        experiments = client.search_experiments()
    found: dict[str, str] = {}
    for experiment in experiments:
        runs = _runs_without_parent(client, experiment.experiment_id)
        if runs:
            found[experiment.name] = experiment.experiment_id
            tuned = tuned_names(run.data.params for run in runs)
            for key, value in view_tags(tuned, now_ms=now_ms()).items():
                client.set_experiment_tag(experiment.experiment_id, key, value)
    return found


def _runs_without_parent(client: MlflowClient, experiment_id: str) -> list[Run]:
    """Searches and single runs: thousands of trials say nothing more of what was tuned."""
    only = "tags.`mlflow.parentRunId` IS NULL"
    page = client.search_runs([experiment_id], only)
    runs = list(page)
    while page.token:
        page = client.search_runs([experiment_id], only, page_token=page.token)
        runs += page
    return runs


@contextmanager
def _opening(config: RunConfig) -> Iterator[None]:
    """Prepare the place of MLflow's store, and keep other processes from it while it is made."""
    _limit_requests()
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # standard output is for results
    config.output_dir.mkdir(parents=True, exist_ok=True)
    # Two processes that create the database at once break its migrations.
    with FileLock(config.output_dir / "mlflow.lock"):
        if config.tracking.uri is None:
            _create_database(config.output_dir / "mlflow.db")
        yield


def _limit_requests() -> None:
    """Let a call to MLflow answer or fail soon: this file decides how long to wait for a server."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")


def _create_database(path: Path) -> None:
    """Make MLflow's database beside its place: a kill within its migrations would leave one that nobody can open."""
    if path.exists():
        return
    part = path.with_name(".mlflow.db.part")
    part.unlink(missing_ok=True)
    MlflowClient(f"sqlite:///{part.resolve()}").search_experiments()
    part.replace(path)


def _dataset(params: Mapping[str, str]) -> DatasetInput:
    root = params.get("data.root", "None")
    facts = {key: value for key, value in params.items() if key.startswith("data.")}
    dataset = Dataset(
        name=params["data.name"] if root == "None" else Path(root).name,
        digest=params["data.fingerprint"][:36],
        source_type="local",
        source=json.dumps({"uri": root}),
        profile=json.dumps(facts),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


class SystemMonitor:
    """Samples processor, memory, disk, network and GPU with MLflow's own monitors."""

    def __init__(self) -> None:
        self._monitors: list[BaseMetricsMonitor] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        try:
            self._monitors.append(GPUMonitor())
        except (ImportError, RuntimeError) as error:  # no nvidia-ml-py, or no NVIDIA driver
            _log.debug("no GPU metrics: %s", error)

    def sample(self) -> dict[str, float]:
        """The state of the machine now."""
        values: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.clear_metrics()
            monitor.collect_metrics()
            values |= {f"system/{key}": float(value) for key, value in monitor.aggregate_metrics().items()}
        return values


def _chunks(items: list[_Item], size: int) -> Iterator[list[_Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def first_line(error: BaseException) -> str:
    """What went wrong, without the pages that MLflow and urllib3 add."""
    system = re.search(r"\[Errno -?\d+\] ([\w ]+)", str(error))
    return system[1] if system else str(error).strip().splitlines()[0][:300]
