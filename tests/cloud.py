"""A rehearsal of the service, what was typed against it, and what came of it in MLflow."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from experiments.config import RunConfig, load_config
from lightning_modules.metrics import BEST, EPOCH_SECONDS, HIGHEST_VAL_ACCURACY, IMAGES_PER_SECOND
from sagemaker_launch.account.policy import policies
from sagemaker_launch.aws import client as aws
from sagemaker_launch.cli import main
from sagemaker_launch.rehearse import ADMINISTRATOR, Service, start_service
from sagemaker_launch.settings.cloud import CloudSettings, load_cloud
from tests.conftest import IMAGE_OPTIONS, REPOSITORY, own_flags, tiny
from tests.shared_run import SharedRun

CLOUD = REPOSITORY / "conf" / "cloud" / "rehearsal.yaml"
PRESET = "preset.yaml"
KEY_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
PASSWORD = "planted" + "Password9"
REAL_CLIENT = aws.client
STARTED: list[Service] = []
"""Services that end with the run of the tests, and not with the process that started them."""


@dataclass
class Cloud:
    """A rehearsal, what was typed against it, and what came of it."""

    home: Path
    config: RunConfig
    fields: list[str]
    settings: CloudSettings
    calls: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    said: str = ""
    database: Path | None = None
    """A copy of MLflow's database from before the first test, which may add to the one in `home`."""
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def secret(self) -> str:
        """The key with which its commands sign, which they must not show."""
        return self.environment["AWS_SECRET_ACCESS_KEY"]

    @property
    def preset(self) -> Path:
        """The file of its config."""
        return self.home / PRESET

    @contextlib.contextmanager
    def in_reach(self) -> Iterator[None]:
        """Within it, clients of AWS reach the rehearsal, and what they call is noted."""

        def recording(name: str, *given: Any, **options: Any) -> Any:
            client = REAL_CLIENT(name, *given, **options)

            def note(model: Any, params: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
                self.calls.append((name, model.name, {"url": params["url_path"], "body": params["body"]}))

            client.meta.events.register("before-call", note)
            return client

        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            patch.setattr(aws, "client", recording)
            yield

    def run(self, *arguments: str) -> int:
        """Run one command as the command line does; what is given here wins."""
        return main([arguments[0], *own_flags(f"cloud {arguments[0]}", self.fields), *arguments[1:]])

    def sent(self, operation: str, index: int = 0) -> dict[str, Any]:
        """The body of a request."""
        bodies = [call["body"] for _, name, call in self.calls if name == operation]
        body: dict[str, Any] = json.loads(bodies[index])
        return body

    @property
    def tuning_job(self) -> str:
        """Name of the tuning job."""
        return str(self.sent("CreateHyperParameterTuningJob")["HyperParameterTuningJobName"])

    def runs(self) -> dict[str, Run]:
        """All runs of jobs in MLflow by name."""
        return {name: run for name, run in self.all_runs().items() if "job" in run.data.tags}

    def all_runs(self) -> dict[str, Run]:
        """All runs in MLflow by name, those at home too."""
        client = MlflowClient(f"sqlite:///{self.home / 'mlflow.db'}")
        experiment = client.get_experiment_by_name(self.config.tracking.experiment)
        assert experiment is not None
        return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}

    def history(self, run: Run) -> dict[int, dict[str, float]]:
        """All metrics that have a course, by epoch, but for what depends on the clock."""
        client = MlflowClient(f"sqlite:///{self.home / 'mlflow.db'}")
        epochs: dict[int, dict[str, float]] = {}
        for name in run.data.metrics:
            for point in client.get_metric_history(run.info.run_id, name):
                epochs.setdefault(point.step, {})[name] = point.value
        return {epoch: found for epoch, values in epochs.items() if (found := comparable(values))}


def comparable(values: dict[str, float]) -> dict[str, float]:
    """What the same training has alike wherever it runs."""
    skipped = (EPOCH_SECONDS, IMAGES_PER_SECOND, "training_seconds", "billable_seconds", "spot_saving", "usd")
    by_beginning = (BEST, HIGHEST_VAL_ACCURACY, "test_", "system/")
    return {name: value for name, value in values.items() if name not in skipped and not name.startswith(by_beginning)}


def start_shared(run: SharedRun, images: Path, name: str = "rehearsal-service", *more: str) -> Mapping[str, str]:
    """The environment of a rehearsal that all processes of a run of the tests share, and that ends with the run.

    It also has the administrator's key, under names that no client reads.

    Args:
        name: of the rehearsal, of which a run of the tests may have several.
        more: options of the rehearsal.
    """

    def start(folder: Path) -> None:
        run.note_build(name)
        with run.alive.open("rb") as alive:
            options = [*IMAGE_OPTIONS, "--grace", "2", *more]
            running = start_service(load_cloud(CLOUD), folder / "rehearsal", options, stdin=alive.fileno())
        STARTED.append(running)
        run.end_with_run(psutil.Process(running.process.pid))
        kept = folder / "environment.json"  # for the other processes of this run, and for nobody else
        kept.touch(mode=0o600)
        pair = {f"{ADMINISTRATOR}{name}": running.administrator[name] for name in KEY_VARIABLES}
        kept.write_text(json.dumps({**running.environment, **pair}))

    folder = run.build_once(name, start)
    environment: dict[str, str] = json.loads((folder / "environment.json").read_text())
    return environment


def as_administrator(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of a shared rehearsal with the key of its administrator, whom no policy limits."""
    pair = {name: environment[f"{ADMINISTRATOR}{name}"] for name in KEY_VARIABLES}
    return {name: value for name, value in environment.items() if not name.startswith(ADMINISTRATOR)} | pair


def account(service: str) -> Any:
    """An administrator's client of the rehearsal that this process's environment names."""
    key = as_administrator(os.environ)
    return boto3.client(
        service,
        region_name="us-east-1",
        aws_access_key_id=key["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=key["AWS_SECRET_ACCESS_KEY"],
    )


def grant(settings: CloudSettings) -> None:
    """Attach the policies that `policy` prints for further settings, as a person does after changing them."""
    iam, printed = account("iam"), policies(settings, "us-east-1")
    documents = {name: json.dumps(policy) for name, policy in printed.items()}
    iam.put_user_policy(UserName="launcher", PolicyName=settings.project, PolicyDocument=documents["launcher"])
    roles = {"role": settings.role_arn, "schedule_role": settings.endpoint.schedule_role_arn}
    for name, role in roles.items():
        if role is not None:
            role_name = role.rpartition("/")[2]
            with contextlib.suppress(iam.exceptions.EntityAlreadyExistsException):
                iam.create_role(RoleName=role_name, AssumeRolePolicyDocument=documents[f"{name}_trust"])
            iam.put_role_policy(RoleName=role_name, PolicyName=settings.project, PolicyDocument=documents[name])


def cloud_in(home: Path, photos: Path, environment: Mapping[str, str]) -> Cloud:
    """A tiny search, kept in `home`, on a running rehearsal."""
    values = tiny(photos, home) | {
        "sweep.n_trials": 2,
        "trainer.record": "light",
        "tracking.experiment": "cloud",
        "sweep.storage": f"sqlite:///{home}/none.db?password={PASSWORD}",
    }
    # On another number of threads, convolutions come out another last digit: jobs compute on as many as these tests.
    threads = json.dumps({"OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"]})
    fields = [f"--config={home / PRESET}", f"--cloud={CLOUD}", f"--cloud.environment={threads}"]
    return Cloud(home, load_config(None, values), fields, load_cloud(CLOUD), environment=environment)
