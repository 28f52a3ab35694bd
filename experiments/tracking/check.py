"""Checks of `tracking.uri` and `tracking.experiment` before a run.

A database is read here without MLflow, which takes as long to import as PyTorch; a server is asked by MLflow's client.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

import sqlalchemy
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from experiments.config import RunConfig, require, require_folder, tracking_uri
from experiments.errors import UserError
from lightning_modules.redaction import redact

DATABASE, ARTIFACTS = "mlflow.db", "mlartifacts"
"""MLflow's store below `output_dir`; `tracking.uri` may name another database, or a server that keeps both."""
ENGINES = ("postgresql", "mysql", "sqlite", "mssql")
"""Databases that MLflow opens itself (mlflow.store.db.db_types, 3.17.2)."""
CHECK_SECONDS = 5.0
"""How long `check_tracking` waits for an answer. A server in good health answers within a second."""
MAX_NAME_LENGTH = 256
"""Longest name of experiments and registered models in MLflow's tables (3.17.2)."""

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Experiment:
    """The properties of an experiment that `check_tracking` needs."""

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
    found = _find_experiment(uri, name)
    if found is not None and found.is_deleted:
        raise UserError(
            f"tracking.experiment must not be deleted in MLflow, got {name!r}: choose another name, or restore it: "
            f"{restore_command(uri, found.experiment_id)}"
        )
    is_own = found is not None and config.tracking.uri is None and found.artifact_location.endswith(f"/{ARTIFACTS}")
    if found is not None and not is_own and (folder := local_folder(found.artifact_location)) is not None:
        require_folder(f"the artifact folder of tracking.experiment {name!r}", folder)
    elif database(uri) is not None:
        require_folder("output_dir", config.output_dir)


def _find_experiment(uri: str, name: str) -> Experiment | None:
    """The experiment with a name; None if the store has none, or is a database that is locked now."""
    if "://" not in uri and uri != "databricks":
        hint = f"; did you mean http://{uri}?" if re.match(r"[\w.-]+:\d+", uri) else ""
        raise UserError(f"tracking.uri must start with http://, https:// or a database's sqlite:///, got {uri!r}{hint}")
    try:
        url = database(uri)
        if url is None:
            from experiments.tracking.store import find_on_server  # imports MLflow

            return _with_timeout(CHECK_SECONDS, lambda: find_on_server(uri, name))
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
            require_folder("the folder of tracking.uri", Path(url.database or "").parent)
            return None  # a run creates it
        return _with_timeout(CHECK_SECONDS, lambda: _find_experiment_in_database(url, name))
    except (OSError, SQLAlchemyError, ImportError) as error:
        if "database is locked" in str(error):
            return None  # the publisher waits for it
        raise UserError(
            f"tracking.uri must be an MLflow server or database that answers, got {uri}: {first_line(error)}"
        ) from None


def artifact_folder(config: RunConfig) -> Path:
    """The artifact folder of a store whose database this process opens itself."""
    return config.output_dir / ARTIFACTS


def database(uri: str) -> URL | None:
    """The URL of a database; None for a server."""
    try:
        url = make_url(uri)
        return url if url.get_backend_name() in ENGINES else None
    except (ArgumentError, ValueError):  # MLflow's client explains what is wrong with it
        return None


def _find_experiment_in_database(url: URL, name: str) -> Experiment | None:
    """Read the experiment with SQL: MLflow's own client creates or changes tables when it opens a database."""
    timeout = {"sqlite": {"timeout": 0.5}, "postgresql": {"connect_timeout": int(CHECK_SECONDS)}}
    options = timeout.get(url.get_backend_name(), {})
    engine = sqlalchemy.create_engine(url, poolclass=NullPool, connect_args=options)
    with engine.connect() as connection:
        if not sqlalchemy.inspect(connection).has_table("alembic_version"):
            return None  # an empty database: a run creates the tables
        schema = connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version")).scalar()
        expected = newest_schema()
        upgrade = upgrade_command(str(url))
        require(
            schema == expected,
            "tracking.uri",
            f"be a database of MLflow {metadata.version('mlflow')} (back it up, then run `{upgrade}`; if it is "
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
    return Experiment(str(row.experiment_id), row.lifecycle_stage == "deleted", row.artifact_location)


def newest_schema() -> str:
    """The revision of a database of the installed MLflow: the last of its migrations, whose import takes a second."""
    spec = importlib.util.find_spec("mlflow")
    assert spec is not None and spec.origin is not None
    texts = [path.read_text() for path in Path(spec.origin).parent.glob("store/db_migrations/versions/*.py")]
    own, followed = (
        {found[1] for text in texts if (found := re.search(rf"^{name}\s*=\s*[\"'](\w+)", text, re.MULTILINE))}
        for name in ("revision", "down_revision")
    )
    (newest,) = own - followed
    return newest


def _with_timeout(seconds: float, call: Callable[[], _Item]) -> _Item:
    """The result of a call that may hang, for example if a server accepts a connection and sends nothing.

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


def local_folder(location: str) -> Path | None:
    """The folder of an artifact location; None if it is not on this machine, such as S3 or a server's own."""
    if location.startswith("file:"):
        return Path(url2pathname(urlsplit(location).path)).absolute()
    return None if re.match(r"[a-z][a-z0-9+-]+:", location) else Path(location).absolute()


def restore_command(uri: str, experiment_id: str) -> str:
    """The command that restores an experiment that was deleted."""
    return f"MLFLOW_TRACKING_URI={shlex.quote(uri)} mlflow experiments restore --experiment-id {experiment_id}"


def upgrade_command(url: str) -> str:
    """The command that gives a database of an older MLflow the schema of the installed one."""
    return shlex.join(["mlflow", "db", "upgrade", url])


def first_line(error: BaseException) -> str:
    """The first line of an error, without secrets and the pages that MLflow and urllib3 add."""
    text = redact(str(error))
    system = re.search(r"\[Errno -?\d+\] ([\w ]+)", text)
    return system[1] if system else text.strip().splitlines()[0][:300]
