"""Storage of a study: a journal file in its folder, or a database whose calls are repeated while it is away."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from sqlalchemy import event, text
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from experiments.config import RunConfig
from experiments.console import say
from experiments.errors import CommandError, SweepError, UserError
from experiments.patience import Patience
from lightning_modules.locks import KernelLock

IDENTITY_FILE = "study.json"
"""In a study's folder, once it has begun."""
STORAGE_SECONDS = 60.0
"""How long a call to the study's storage waits for a lock, unless `tracking.flush_timeout_seconds` is longer."""

TAKE_CONNECT_TIMEOUT = (
    *("postgresql", "postgresql+psycopg", "postgresql+psycopg2"),
    *("mysql", "mysql+mysqldb", "mysql+pymysql"),
)
"""Drivers of databases whose connect() has the argument connect_timeout."""
CONNECT_SECONDS = 10
"""How long a connection to the study's database may take."""
CLOCKS = {
    "sqlite": "SELECT (julianday('now') - 2440587.5) * 86400",
    "postgresql": "SELECT extract(epoch FROM clock_timestamp())",
    "mysql": "SELECT unix_timestamp(now(3))",
    "mariadb": "SELECT unix_timestamp(now(3))",
}
"""The time in seconds since 1970, by the dialect of a database."""


def study_folder(config: RunConfig) -> Path:
    """The folder of a study and its trials."""
    return config.output_dir / "studies" / config.sweep.study_name


def journal_file(config: RunConfig) -> Path:
    """The journal file of a study that has no database."""
    return study_folder(config) / "journal.log"


def study_patience(config: RunConfig, check: Callable[[], None]) -> Patience:
    """How long to wait for a study's storage and locks."""
    # A trial without its study is lost, so this waits longer than for MLflow, which gets everything later.
    return Patience(max(config.tracking.flush_timeout_seconds, STORAGE_SECONDS), check)


class Journal(JournalFileBackend):
    """A journal file that says where it is damaged."""

    def __init__(self, path: Path, patience: Patience) -> None:
        super().__init__(str(path), JournalLock(path, patience))
        self._path = path

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """All entries from a number on. Damaged lines at the end are skipped: the next writer removes them.

        Raises:
            UserError: if a damaged line precedes an entry.
        """
        number = log_number_from
        try:
            for entry in super().read_logs(log_number_from):
                if not _is_entry(entry):
                    raise ValueError
                number += 1
                yield entry
        except ValueError:
            if not any(_is_entry(line + b"\n") for line in self._path.read_bytes().split(b"\n")[number:]):
                known = self._log_number_offset.items()
                self._log_number_offset = {entry: offset for entry, offset in known if entry <= number}
                return
            raise UserError(
                f"{self._path} is damaged after its entry {number}: bring back a copy of it, or move it away. The same "
                "command then makes the study again, and takes finished trials from their folders"
            ) from None


class JournalLock(JournalFileOpenLock):
    """Locks a journal file with a lock that the kernel releases when its holder dies, and mends a damaged last line.

    Optuna's own locks stay after a kill and block all processes for 30 seconds.
    """

    def __init__(self, journal: Path, patience: Patience) -> None:
        super().__init__(str(journal))
        self._journal, self._patience = journal, patience
        self._lock: KernelLock | None = None

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._lock = self._patience.lock(Path(f"{self._journal}.lock"))
        with self._journal.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            while size and not _is_entry(line := _last_line(file, size)):
                size -= len(line)
                file.truncate(size)
                if line.endswith(b"\n"):  # no kill leaves that
                    say(f"{self._journal} ended with a line that is no entry of a study: it was cut off")
        return True

    def release(self) -> None:
        """Release the lock."""
        assert self._lock is not None
        self._lock.release()


def _last_line(file: BinaryIO, size: int) -> bytes:
    """The last line of a file, with its end if it has one."""
    for tail in (65_536, size):
        file.seek(max(0, size - tail))
        found = file.read()
        before = found[:-1].rfind(b"\n") + 1
        if before:
            break
    return found[before:]


def _is_entry(line: object) -> bool:
    """Whether something, parsed or not, is an entry of a journal."""
    if isinstance(line, bytes):
        if not line.endswith(b"\n"):
            return False
        try:
            line = json.loads(line)
        except ValueError:
            return False
    return isinstance(line, dict) and "op_code" in line


def open_storage(config: RunConfig, check: Callable[[], None] = lambda: None) -> BaseStorage:
    """The storage that `sweep.storage` names, or a journal file in the study's folder.

    A call to it waits, up to STORAGE_SECONDS, for a lock that another process holds or a database that restarts.

    Args:
        check: called while it waits; raises to stop, such as after Ctrl-C.

    Raises:
        UserError: for a database on a host that does not exist, and a new study's database that can't be reached.
        SweepError: if it stays locked or away; from each later call, too.
    """
    patience = study_patience(config, check)
    if config.sweep.storage is None:
        study_folder(config).mkdir(parents=True, exist_ok=True)
        return JournalStorage(Journal(journal_file(config), patience))
    try:
        url = make_url(config.sweep.storage)
    except (ArgumentError, ValueError):  # a port that is no number
        raise UserError("sweep.storage must be a URL such as postgresql+psycopg://user@host/database") from None
    # The URL may hold a password, in more than one place, and the driver's own message may repeat it.
    address = f"{url.host or ''}{f':{url.port}' if url.port else ''}/{url.database or ''}"
    if url.host and _is_unknown(url.host):
        raise UserError(f"sweep.storage must name a host that exists, got {url.host!r}")
    is_sqlite = url.get_backend_name() == "sqlite"
    # Of a new study, a server that does not answer is a mistake. One that has begun waits for a server that restarts.
    has_begun = (study_folder(config) / IDENTITY_FILE).is_file()
    # No pool: a database closes connections that idle for the hours of a trial, and nothing would close them here.
    options: dict[str, Any] = {"poolclass": NullPool}
    if is_sqlite:
        options["connect_args"] = {"timeout": 0.5}  # SQLite's own wait ignores signals
    elif url.drivername in TAKE_CONNECT_TIMEOUT:
        options["connect_args"] = {"connect_timeout": CONNECT_SECONDS}  # a server may accept and stay silent
    try:
        storage = patience.call(
            lambda: RDBStorage(str(config.sweep.storage), engine_kwargs=dict(options)),
            lambda error: (is_sqlite or has_begun) and _is_away(error),
            f"sweep.storage {address}",
        )
    except CommandError:
        raise
    except Exception as error:  # each of SQLAlchemy's drivers raises its own classes
        if isinstance(error, RuntimeError):  # Optuna's own, of the version of its tables
            text = " ".join(str(error).split())
            raise UserError(
                f"sweep.storage must be a database of Optuna {optuna.__version__}, got {address}: {text}"
            ) from None
        raise UserError(
            f"sweep.storage must be a database that answers, got {address}: {type(error).__name__}"
        ) from None
    if is_sqlite:
        _lock_at_once(storage.engine)
    return _patient(storage, patience, f"sweep.storage {address}")


def database_seconds(storage: BaseStorage) -> float:
    """The time in seconds since 1970 by the clock of a study's database: the machines that share it may disagree.

    Args:
        storage: what `open_storage` gave for a database.

    Raises:
        SweepError: if the database stays locked or away.
    """
    seconds: float = storage.seconds()  # type: ignore[attr-defined]
    return seconds


def _patient(storage: RDBStorage, patience: Patience, name: str) -> BaseStorage:
    """A storage that repeats a call from its beginning while its database is locked or away.

    Only a whole call can be repeated: a transaction ends with its connection. Each call may be made twice: what it
    writes has a key, and a trial that was created twice is claimed like one whose process died.
    """
    cached: Any = get_storage(storage)

    def repeat(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            try:
                return patience.call(lambda: method(*args, **named), _is_away, name)
            except (SQLAlchemyError, StorageInternalError) as error:
                # Only the class: a driver's text may repeat the password, and Optuna's own blames the written data.
                error_type = type(getattr(_driver_error(error), "orig", None) or error).__name__
                raise SweepError(
                    f"{name} was opened, and then failed ({error_type}): nothing is lost, a trial that has trained is "
                    "kept in its folder. Bring the database back, then the same command continues"
                ) from error

        return call

    def seconds() -> float:
        with storage.engine.connect() as connection:
            return float(connection.execute(text(CLOCKS[storage.engine.dialect.name])).scalar_one())

    cached.seconds = seconds
    for method in ("seconds", *(attribute for attribute in vars(BaseStorage) if not attribute.startswith("_"))):
        setattr(cached, method, repeat(getattr(cached, method)))
    patient: BaseStorage = cached
    return patient


def _is_unknown(host: str) -> bool:
    """Whether the network says that there is no such host: waiting won't help, as it may where it gives no answer."""
    try:
        socket.getaddrinfo(host, None)
    except socket.gaierror as error:
        return error.errno == socket.EAI_NONAME
    return False


def _is_away(error: Exception) -> bool:
    """Whether an error says that a database is locked or away, so that waiting helps."""
    found = _driver_error(error)
    if not isinstance(found, DBAPIError):
        return False
    if isinstance(found.orig, sqlite3.Error):
        return " is locked" in str(found.orig)
    return isinstance(found, OperationalError | InterfaceError) or found.connection_invalidated


def _driver_error(error: BaseException) -> BaseException:
    """The driver's error, which Optuna's own error wraps."""
    return error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error


def _lock_at_once(engine: Engine) -> None:
    """Let SQLite's transactions take the lock when they begin.

    Two transactions that first read and then write would wait for each other.
    """

    @event.listens_for(engine, "connect")
    def connect(driver: sqlite3.Connection, record: object) -> None:
        del record
        driver.isolation_level = None  # no BEGIN of its own

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
