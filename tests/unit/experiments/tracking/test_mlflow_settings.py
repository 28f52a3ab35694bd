"""MLflow's settings of a process are the caller's again after each block, and after an error in it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

import mlflow
import pytest

from experiments.tracking.mlflow_settings import ADDRESSES, VARIABLES, client_settings, default_store
from tests.process_state import mlflow_addresses

OURS = "http://me:geheim@127.0.0.1:1"


def variables_of_mlflow() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name in (*VARIABLES, *ADDRESSES)}


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has set nothing."""
    for name in (*VARIABLES, *ADDRESSES):
        monkeypatch.delenv(name, raising=False)
    yield
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)


@pytest.mark.parametrize("registry", [None, "http://registry", "databricks-uc"])
@pytest.mark.parametrize("tracking", [None, "http://tracking", "databricks"])
@pytest.mark.parametrize("environment", [{}, {name: f"http://{name}" for name in ADDRESSES}])
def test_the_default_store_is_that_of_the_caller_again(
    tracking: str | None, registry: str | None, environment: dict[str, str]
) -> None:
    if tracking is not None:
        mlflow.set_tracking_uri(tracking)
    if registry is not None:
        mlflow.set_registry_uri(registry)
    os.environ |= environment
    before, addresses = variables_of_mlflow(), mlflow_addresses()
    with contextlib.suppress(ZeroDivisionError), default_store(OURS):
        assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri()) == (OURS, OURS)
        raise ZeroDivisionError
    assert (variables_of_mlflow(), mlflow_addresses()) == (before, addresses)


def test_the_settings_of_clients_are_those_of_the_caller_again_after_the_outer_block(
    caplog: pytest.LogCaptureFixture,
) -> None:
    before, log = variables_of_mlflow(), logging.getLogger("mlflow.store.db.utils")
    log.warning("first")
    with contextlib.suppress(ZeroDivisionError), client_settings():
        with client_settings():
            assert variables_of_mlflow() == before | VARIABLES
        assert variables_of_mlflow() == before | VARIABLES
        log.error("hidden")
        raise ZeroDivisionError
    log.warning("last")
    assert variables_of_mlflow() == before
    assert [record.message for record in caplog.records] == ["first", "last"]


def test_a_setting_of_the_user_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    with client_settings():
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "3"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "3"
