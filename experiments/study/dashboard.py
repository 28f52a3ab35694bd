"""Optuna's own dashboard on a study, beside MLflow: what `ui --dashboard` serves.

The dashboard can change and delete what it shows, also while a sweep runs. So it gets a copy of the studies in memory,
and requests that write are refused, as are those of other web pages.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
from optuna.storages import BaseStorage, InMemoryStorage
from optuna_dashboard import wsgi

from experiments.config import RunConfig, override, require
from experiments.errors import CommandError, UserError
from experiments.loopback import why_foreign
from experiments.study.storage import open_storage
from experiments.study.study import journals, load_study

REFRESH_SECONDS = 2.0
"""Age from which a copy is renewed before a request is answered; the page in a browser asks every 10 seconds."""
READING = ("GET", "HEAD")
Answer = Iterable[bytes]


class _Server(ThreadingMixIn, WSGIServer):
    """Answers while it still works out another answer, such as the importances of a large study."""

    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    """Says nothing of each request."""

    def log_message(self, *args: object) -> None:
        """Say nothing."""


class ReadOnlyDashboard:
    """The dashboard as a WSGI application, on a copy that follows the studies of a storage.

    Args:
        allowed_hosts: further names under which a proxy passes on requests.
    """

    def __init__(self, storage: BaseStorage, allowed_hosts: Sequence[str] = ()) -> None:
        self._storage, self._allowed_hosts = storage, allowed_hosts
        self._lock = threading.Lock()
        self._copied: list[object] | None = None
        self._app: Callable[..., Answer] | None = None
        self._looked = 0.0

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., object]) -> Answer:
        """Answer a request."""
        if reason := why_foreign(environ.get("HTTP_HOST", ""), environ.get("HTTP_ORIGIN"), self._allowed_hosts):
            return _refuse(start_response, "403 Forbidden", reason)
        if environ["REQUEST_METHOD"] not in READING:
            reason = "this is a read-only copy of the study: `ui --dashboard` changes nothing"
            return _refuse(start_response, "403 Forbidden", reason)
        try:
            app = self._current()
        except CommandError as error:  # the storage stays locked
            return _refuse(start_response, "503 Service Unavailable", str(error))
        return app(environ, start_response)

    def _current(self) -> Callable[..., Answer]:
        """The dashboard on a copy that is recent enough."""
        with self._lock:
            if self._app is None or time.monotonic() - self._looked > REFRESH_SECONDS:
                # `copy_study` tells of each copy.
                optuna.logging.set_verbosity(optuna.logging.WARNING)
                names = [study.study_name for study in self._storage.get_all_studies()]
                ids = map(self._storage.get_study_id_from_name, names)
                found: list[object] = list(zip(names, map(self._storage.get_all_trials, ids), strict=True))
                # A new copy has a new dashboard, which remembers nothing of the old one.
                if self._app is None or found != self._copied:
                    self._app, self._copied = wsgi(_copy(self._storage, names)), found
                self._looked = time.monotonic()
            return self._app


def dashboard_server(config: RunConfig, study: str | None, port: int, allowed_hosts: Sequence[str] = ()) -> WSGIServer:
    """A server of the dashboard on 127.0.0.1, bound and not yet serving.

    Args:
        study: name of the study; by default the one that changed last. A database shows all of its studies.
        port: 0 takes a free one.
        allowed_hosts: further names under which a proxy passes on requests.

    Raises:
        UserError: if there is no such study, or none at all; if the port is taken.
    """
    app = ReadOnlyDashboard(_storage(config, study), allowed_hosts)
    try:
        return make_server("127.0.0.1", port, app, server_class=_Server, handler_class=_Quiet)
    except OSError as error:
        raise UserError(f"--dashboard-port must be free, got {port}: {error.strerror}") from error


def _storage(config: RunConfig, study: str | None) -> BaseStorage:
    if study is not None:
        load_study(config, study)  # or says which there are
    elif config.sweep.storage is None:
        found = journals(config)
        require(bool(found), "--dashboard", f"find a study under {config.output_dir}; run a sweep first", "none")
        study = max(found, key=lambda path: path.stat().st_mtime).parent.name
    return open_storage(config if study is None else override(config, {"sweep.study_name": study}))


def _copy(storage: BaseStorage, names: list[str]) -> InMemoryStorage:
    copy = InMemoryStorage()
    for name in names:
        optuna.copy_study(from_study_name=name, from_storage=storage, to_storage=copy)
    return copy


def _refuse(start_response: Callable[..., object], status: str, reason: str) -> Answer:
    """Answer as the dashboard's own API does, so that its page shows the reason."""
    body = json.dumps({"reason": reason}).encode()
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
