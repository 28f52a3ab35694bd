"""Optuna's own dashboard on a study, beside MLflow: what `ui --dashboard` serves."""

from __future__ import annotations

from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna.storages import BaseStorage
from optuna_dashboard import wsgi

from experiments.config import RunConfig, override, require
from experiments.errors import UserError
from experiments.study import journals, load_study
from experiments.study_storage import open_storage


class _Server(ThreadingMixIn, WSGIServer):
    """Answers while it still works out another answer, such as the importances of a large study."""

    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    """Says nothing of each request."""

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def dashboard_server(config: RunConfig, study: str | None, port: int) -> WSGIServer:
    """A server of the dashboard on 127.0.0.1, bound and not yet serving.

    Args:
        study: name of the study; by default the one that changed last. A database shows all of its studies.
        port: 0 takes a free one.

    Raises:
        UserError: if there is no such study, or none at all; if the port is taken.
    """
    app = wsgi(_storage(config, study))
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
    # Our own storage, because the dashboard writes too (notes, names), and locks as a running sweep does.
    return open_storage(config if study is None else override(config, {"sweep.study_name": study}))
