"""A rehearsal of the service, what was typed against it, and what came of it in MLflow."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from experiments.config import RunConfig, load_config, to_yaml
from lightning_modules.metrics import BEST, EPOCH_SECONDS, IMAGES_PER_SECOND
from sagemaker_launch import aws
from sagemaker_launch.cli import main
from sagemaker_launch.rehearse import service
from sagemaker_launch.settings import CloudSettings, load_cloud
from tests.conftest import REPOSITORY, tiny

CLOUD = REPOSITORY / "conf" / "cloud" / "rehearsal.yaml"
SECRET = "planted" + "/Secret+Key7Q"
PASSWORD = "planted" + "Password9"
REAL_CLIENT = aws.client


@dataclass
class Cloud:
    """A rehearsal, what was typed against it, and what came of it."""

    home: Path
    root: Path
    config: RunConfig
    fields: list[str]
    settings: CloudSettings
    calls: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    said: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    @contextmanager
    def in_reach(self) -> Iterator[None]:
        """Within it, clients of AWS reach the rehearsal with keys worth stealing, and what they call is noted."""

        def recording(name: str, *given: Any, **options: Any) -> Any:
            client = REAL_CLIENT(name, *given, **options)

            def note(model: Any, params: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
                self.calls.append((name, model.name, {"url": params["url_path"], "body": params["body"]}))

            client.meta.events.register("before-call", note)
            return client

        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
            patch.setattr(aws, "client", recording)
            yield

    def run(self, *arguments: str) -> int:
        """Run one command as the command line does; what is given here wins."""
        return main([arguments[0], *self.fields, *arguments[1:]])

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
    by_beginning = (BEST, "test_", "system/")
    return {name: value for name, value in values.items() if name not in skipped and not name.startswith(by_beginning)}


@contextmanager
def rehearsed(home: Path, photos: Path, images: Path, database: Path) -> Iterator[Cloud]:
    """Run the service for a tiny search that is kept in `home`."""
    shutil.copy(database, home / "mlflow.db")
    values = tiny(photos, home) | {
        "sweep.n_trials": 2,
        "trainer.record": "light",
        "tracking.experiment": "cloud",
        "sweep.storage": f"sqlite:///{home}/none.db?password={PASSWORD}",
    }
    settings = load_cloud(CLOUD)
    config, preset = load_config(None, values), home / "preset.yaml"
    preset.write_text(to_yaml(config))
    # On another number of threads, convolutions come out another last digit: jobs compute on as many as these tests.
    threads = json.dumps({"OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"]})
    fields = [f"--config={preset}", f"--cloud={CLOUD}", f"--cloud.environment={threads}"]
    found = Cloud(home, home / "rehearsal", config, fields, settings)
    with service(settings, found.root, ["--images", str(images), "--grace", "2"]) as running:
        found.environment = running.environment
        yield found
