"""Locate the model to deploy: the best of a tuning job, a run in MLflow, or a registered version."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.config import RunConfig, require
from experiments.console import say
from experiments.tracking.exports import locate_export
from experiments.tracking.store import RunStore, find_folder
from sagemaker_launch.aws import client as aws
from sagemaker_launch.aws.resources import TRAINING
from sagemaker_launch.jobs.found import best_training_job
from sagemaker_launch.settings.cloud import CloudSettings
from sagemaker_launch.shipping.archive import fetch_model

if TYPE_CHECKING:  # imports torch
    from experiments.int8 import Int8


@dataclass(frozen=True)
class LocatedModel:
    """An export folder on this machine, and where it comes from."""

    export: Path
    source: str
    registered: str | None = None
    """Registry URI of a registered version; None for any other model."""
    int8: Int8 | None = None
    """Its network in int8, where that was asked for: accepted or not."""


def model_of_tuning_job(settings: CloudSettings, config: RunConfig, tuning_job: str) -> LocatedModel:
    """The model of a tuning job's best training job.

    Raises:
        ValueError: if there is none yet.
    """
    job = best_training_job(aws.client("sagemaker", settings), tuning_job)
    return LocatedModel(_export_of_job(settings, config, job), f"best of {tuning_job}: {job['TrainingJobName']}")


def model_of_run(settings: CloudSettings, config: RunConfig, run_id: str) -> LocatedModel:
    """The model of a run in MLflow, trained at home or in the cloud.

    Raises:
        ValueError: if there is no such run, or it has no model.
    """
    store = RunStore.open_or_wait(config)
    found = store.find_run(run_id)
    require(found is not None, "--run", f"be a run of {store.uri}", run_id)
    assert found is not None
    source = f"run {run_id} ({found.info.run_name})"
    folder = find_folder(found, config.output_dir)
    if folder is not None and folder.export.is_dir():
        return LocatedModel(folder.export, source)
    if "job" in found.data.tags:
        described = TRAINING.describe(aws.client("sagemaker", settings), found.data.tags["job"])
        return LocatedModel(_export_of_job(settings, config, described), source)
    return LocatedModel(locate_export(f"runs:/{run_id}/model", config), source)


def registered_model(config: RunConfig, model: str) -> LocatedModel:
    """A registered version, or an export folder.

    Raises:
        ValueError: if there is no such model.
    """
    return LocatedModel(locate_export(model, config), model, model if model.startswith("models:/") else None)


def in_int8(settings: CloudSettings, config: RunConfig, model: LocatedModel) -> tuple[CloudSettings, LocatedModel]:
    """A model with its network in int8, and the settings that serve it: float32 if int8 is less accurate.

    Raises:
        UserError: as `quantize_export`.
    """
    from experiments.int8 import quantize_export  # imports torch

    found = quantize_export(model.export, config)
    say(found.summary)
    if not found.is_accepted:
        settings = replace(settings, endpoint=replace(settings.endpoint, precision="float32"))
    return settings, replace(model, export=found.export, int8=found)


def _export_of_job(settings: CloudSettings, config: RunConfig, described: object) -> Path:
    assert isinstance(described, dict)
    name = described["TrainingJobName"]
    artifacts = described.get("ModelArtifacts", {}).get("S3ModelArtifacts")
    require(artifacts is not None, name, "have left a model", described["TrainingJobStatus"])
    # Under the job's ARN: a job of the same name in another account or rehearsal has another model.
    created = int(described["CreationTime"].timestamp() * 1000)
    folder = config.output_dir / "models" / f"{name}-{created}"
    return folder if folder.is_dir() else fetch_model(aws.client("s3", settings), artifacts, folder)
