"""MLflow's settings of this process. They belong to the caller, such as a notebook: ours hold within a block only."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

import mlflow

VARIABLES = {
    # `store.py` decides how long to wait, and reports what failed. The time limit of a request remains MLflow's 120
    # seconds, which a large artifact in a slow store needs.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    # Standard output is for results.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Settings of MLflow's client, which the user may set to other values. It reads them at each call."""
ADDRESSES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
"""Variables that MLflow sets together with its addresses. An address may contain a password."""
PROBE = "unset:"
"""A tracking URI of no store. The registry's address is the same, unless the caller has set one."""


@contextlib.contextmanager
def client_settings() -> Iterator[None]:
    """Turn off the retries and the output of MLflow's clients, and their log of errors that they also raise."""
    added = {name: value for name, value in VARIABLES.items() if name not in os.environ}
    log = logging.getLogger("mlflow.store.db.utils")
    # A filter of this block alone: blocks may be nested, or overlap in threads.
    log.addFilter(nothing := lambda _: False)
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
        log.removeFilter(nothing)


@contextlib.contextmanager
def default_store(uri: str) -> Iterator[None]:
    """Make a store the default of MLflow's functions: some take no address, or do not use it for all their calls."""
    variables = {name: os.environ.pop(name) for name in ADDRESSES if name in os.environ}
    # Without the variables, MLflow answers with what the caller has set by its functions.
    is_set = mlflow.is_tracking_uri_set()  # type: ignore[no-untyped-call]
    tracking_uri = mlflow.get_tracking_uri() if is_set else None
    mlflow.set_tracking_uri(PROBE)
    found = mlflow.get_registry_uri()
    registry_uri = None if found == PROBE else found
    try:
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        yield
    finally:
        mlflow.set_tracking_uri(tracking_uri)  # type: ignore[arg-type]  # None unsets it
        mlflow.set_registry_uri(registry_uri)  # type: ignore[arg-type]
        for name in ADDRESSES:
            os.environ.pop(name, None)
        os.environ.update(variables)
