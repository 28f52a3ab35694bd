"""A rehearsal for the clients, and a way to run a client's script against it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import boto3
import pytest

from sagemaker_launch.account.policy import policies
from sagemaker_launch.settings.cloud import load_cloud
from tests.clients.environments import Client, declared, environment
from tests.clients.launched import launch
from tests.clients.recording import FILE
from tests.clients.table import WRITE, committed_rows, rows_of, write_rows
from tests.cloud import CLOUD, as_administrator, cloud_in, start_shared
from tests.conftest import REPOSITORY
from tests.shared_run import SharedRun

ROLE = "arn:aws:iam::123456789012:role/clients"
SECONDS = 900
"""Time of one script."""
LIMIT = 1800
"""Seconds after which pytest ends a test. The first one also installs its client and starts the rehearsal."""

SLOW = ("--health-check-timeout", "300")
"""TorchServe takes minutes to start where other tests compute."""

RunScript = Callable[..., None]


@pytest.fixture(scope="session")
def clients_service(shared_run: SharedRun, job_images: Path) -> Mapping[str, str]:
    """The variables in which our launcher reaches the rehearsal that all clients share."""
    return start_shared(shared_run, job_images, "clients", "--inference-images", str(job_images), *SLOW)


@pytest.fixture(scope="session")
def launched(shared_run: SharedRun, clients_service: Mapping[str, str], photos: Path, mlflow_database: Path) -> Path:
    """What our launcher made in this rehearsal, as its commands reported it: a file for the scripts."""

    def build(folder: Path) -> None:
        shared_run.note_build("jobs of our launcher for the clients")
        shutil.copy(mlflow_database, folder / "mlflow.db")
        made = launch(cloud_in(folder, photos, clients_service))
        (folder / "launched.json").write_text(json.dumps(made))

    return shared_run.build_once("launched", build) / "launched.json"


@pytest.fixture(scope="session")
def clients_environment(clients_service: Mapping[str, str]) -> Mapping[str, str]:
    """The variables in which a client reaches the same rehearsal."""
    found = as_administrator(clients_service)
    iam = boto3.client(
        "iam",
        endpoint_url=found["AWS_ENDPOINT_URL"],
        region_name="us-east-1",
        aws_access_key_id=found["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=found["AWS_SECRET_ACCESS_KEY"],
    )
    # Without a policy, so without limits: clients keep their files where they like.
    with contextlib.suppress(iam.exceptions.EntityAlreadyExistsException):
        trust = policies(load_cloud(CLOUD), "us-east-1")["role_trust"]
        iam.create_role(RoleName=ROLE.rpartition("/")[2], AssumeRolePolicyDocument=json.dumps(trust))
    return found


@pytest.fixture
def run_script(clients_environment: Mapping[str, str], tmp_path: Path) -> RunScript:
    """Runs a script in its client's environment: each step that it declares must come to its end.

    More variables of the script may be keyword arguments.
    """

    def run(client: Client, script: Path, **variables: str) -> None:
        bin_folder = environment(client)
        records = tmp_path / "operations.jsonl"
        records.touch()
        done = subprocess.run(
            [str(bin_folder / "python"), str(script)],
            cwd=tmp_path,
            env={
                "PATH": f"{bin_folder}:{os.environ['PATH']}",
                "PYTHONPATH": str(REPOSITORY),
                "PYTHONDONTWRITEBYTECODE": "1",
                FILE: str(records),
                **_settings(tmp_path),
                **clients_environment,
                **variables,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-20_000:]
        recorded = [(one["operation"], one["outcome"]) for one in map(json.loads, records.read_text().splitlines())]
        assert recorded == declared(script)
        rows = rows_of(client, recorded)
        if WRITE in os.environ:
            write_rows(rows)
        assert set(rows) <= set(committed_rows()), f"the table is old: run it again with {WRITE}=1"

    return run


def _settings(home: Path) -> dict[str, str]:
    """A user's settings: an empty home, a role, a bucket, and no calls to anything but the rehearsal."""
    cloud = load_cloud(CLOUD)
    assert cloud.bucket is not None
    settings = home / "sagemaker.yaml"
    # Both SDKs report each call to Amazon otherwise.
    settings.write_text("SchemaVersion: '1.0'\nSageMaker:\n  PythonSDK:\n    Modules:\n      TelemetryOptOut: true\n")
    return {
        "HOME": str(home),
        "SAGEMAKER_USER_CONFIG_OVERRIDE": str(settings),
        "AWS_EC2_METADATA_DISABLED": "true",
        "ROLE": ROLE,
        "BUCKET": cloud.bucket,
    }
