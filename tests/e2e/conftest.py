"""What several end-to-end tests look at: a rehearsal of the service and its jobs, run once for all of them."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from experiments.config import to_yaml
from tests.cloud import Cloud, cloud_in, start_shared
from tests.shared_run import SharedRun


@pytest.fixture(scope="session")
def service_environment(shared_run: SharedRun, job_images: Path) -> Mapping[str, str]:
    """The variables in which a command reaches the rehearsal."""
    return start_shared(shared_run, job_images)


@pytest.fixture(scope="session")
def cloud(shared_run: SharedRun, service_environment: Mapping[str, str], photos: Path, mlflow_database: Path) -> Cloud:
    """A tiny search that has not begun."""

    def prepare(home: Path) -> None:
        shutil.copy(mlflow_database, home / "mlflow.db")
        found = cloud_in(home, photos, service_environment)
        found.preset.write_text(to_yaml(found.config))

    return cloud_in(shared_run.build_once("cloud", prepare), photos, service_environment)


@pytest.fixture(scope="session")
def flow(shared_run: SharedRun, cloud: Cloud) -> Cloud:
    """Tune, train the best, synchronise."""

    def run(folder: Path) -> None:
        shared_run.note_build("jobs of the end-to-end tests")
        output = io.StringIO()
        with cloud.in_reach(), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            done = [cloud.run("tune")]
            best_of = cloud.sent("CreateHyperParameterTuningJob")["HyperParameterTuningJobName"]
            done.append(cloud.run("train", "--best-of", best_of, "--trainer.profile=true"))
            done.append(cloud.run("sync", "--models"))
        assert done == [0, 0, 0], output.getvalue()
        shutil.copy(cloud.home / "mlflow.db", folder / "mlflow.db")
        (folder / "said.txt").write_text(output.getvalue())
        (folder / "calls.json").write_text(json.dumps(cloud.calls, default=_text))

    folder = shared_run.build_once("jobs", run)
    cloud.said, cloud.database = (folder / "said.txt").read_text(), folder / "mlflow.db"
    cloud.calls[:] = [(service, name, call) for service, name, call in json.loads((folder / "calls.json").read_text())]
    return cloud


def _text(body: object) -> str:
    return body.decode(errors="replace") if isinstance(body, bytes) else str(body)
