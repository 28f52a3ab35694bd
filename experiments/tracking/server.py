"""MLflow's server for this machine, as `ui` starts it. Written against MLflow 3.17: its own command sets the same."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import mlflow.environment_variables as variables
import mlflow.server.constants as names
import uvicorn
from mlflow.server.security_utils import get_default_allowed_hosts

from experiments.console import guard_output
from experiments.loopback import why_foreign
from experiments.runs.processes import die_with_parent

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class LocalOnly:
    """An ASGI application behind a check of Host and Origin.

    MLflow's own check takes `10.example.com` for an address of a private network, and leaves out its paths beyond
    `/api/` and `/ajax-api/`.

    Args:
        allowed_hosts: further names under which a proxy passes on requests.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], allowed_hosts: Sequence[str]) -> None:
        self._app, self._allowed_hosts = app, allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        reason = None
        if scope["type"] != "lifespan":
            reason = why_foreign(_header(scope, b"host") or "", _header(scope, b"origin"), self._allowed_hosts)
        if reason is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": reason})
        else:
            headers = [(b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": reason.encode()})


def _header(scope: Scope, name: bytes) -> str | None:
    found = [value for key, value in scope["headers"] if key == name]
    return b", ".join(found).decode("latin-1") if found else None


def serve_mlflow(uri: str, artifacts: Path, port: int, allowed_hosts: Sequence[str]) -> None:
    """Serve MLflow on 127.0.0.1 until this process is ended, in one process that ends with its parent.

    MLflow's own command starts uvicorn as a process of its own, which keeps the port when the command is killed.

    Args:
        uri: of the database. It is in no command line, which all users of a machine can read.
        artifacts: folder of artifacts that clients send to this server.
        allowed_hosts: further names under which a proxy passes on requests; as MLflow's `--allowed-hosts`.
    """
    die_with_parent()
    guard_output()
    os.environ |= {
        names.BACKEND_STORE_URI_ENV_VAR: uri,
        names.REGISTRY_STORE_URI_ENV_VAR: uri,
        names.ARTIFACT_ROOT_ENV_VAR: "mlflow-artifacts:/",
        names.SERVE_ARTIFACTS_ENV_VAR: "true",
        names.ARTIFACTS_DESTINATION_ENV_VAR: artifacts.resolve().as_uri(),
    }
    if allowed_hosts:
        named = [name for host in allowed_hosts for name in (host, f"{host}:*")]
        os.environ[variables.MLFLOW_SERVER_ALLOWED_HOSTS.name] = ",".join([*get_default_allowed_hosts(), *named])
        origins = [f"https://{host}" for host in allowed_hosts]
        os.environ[variables.MLFLOW_SERVER_CORS_ALLOWED_ORIGINS.name] = ",".join(origins)
    from mlflow.server.fastapi_app import app  # it reads the variables

    log = Path(names.__file__).with_name("uvicorn_log_config.yaml")
    uvicorn.run(LocalOnly(app, allowed_hosts), host="127.0.0.1", port=port, log_config=str(log))
