"""`parity`: train the config and seed of a job on this machine too, and compare the two runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from experiments.config import RunConfig, require
from experiments.console import say
from experiments.report.parity import Parity, compare, write_parity
from experiments.runs.folder import RunFolder
from experiments.single_run import complete_run, run_path_prefix, train_run
from experiments.tracking.store import RunStore, find_folder
from lightning_modules.metrics import TEST_LOSS
from sagemaker_launch.aws import client as aws
from sagemaker_launch.aws.resources import TRAINING
from sagemaker_launch.jobs.found import find_job
from sagemaker_launch.jobs.repeat import config_for_home
from sagemaker_launch.jobs.sync import Synchroniser
from sagemaker_launch.settings.cloud import CloudSettings

PARITY_TAG = "parity_of"
"""Tag of a run at home: the job whose config it trains."""


def compare_with_home(
    settings: CloudSettings, config: RunConfig, name: str, overrides: Mapping[str, object], run: str | None = None
) -> tuple[Parity, Path]:
    """Compare a job with a run at home, and add the page to both runs.

    Args:
        name: of a training job, or of one of a tuning job.
        overrides: fields that the user set in addition to the job's config.
        run: folder or ID in MLflow of the run to compare with; by default the job's config is trained here.

    Returns:
        The comparison, and the page.

    Raises:
        ValueError: if there is no such job or run, or it has not ended.
    """
    job = RunFolder(config.output_dir / "cloud" / name)
    if job.outcome is None:
        job = _sync(settings, config, name)
    epochs = len(job.metric_lines())
    require(epochs > 0, name, "have trained an epoch at least", epochs)
    home = find_run_folder(config, run) if run else train_at_home(config, job, overrides)
    found = compare(home, job)
    page, _ = write_parity(found, [home, job])
    store = RunStore.open_or_wait(config)
    for folder in (home, job):
        store.push_or_wait(folder)
    return found, page


def _sync(settings: CloudSettings, config: RunConfig, name: str) -> RunFolder:
    """Synchronise a training job, with its tuning job if it belongs to one, and return its run folder.

    Raises:
        ValueError: if there is none of that name, or it has not ended.
    """
    sagemaker = aws.client("sagemaker", settings)
    described = TRAINING.find(sagemaker, name)
    require(described is not None, "JOB", "be a training job of this account and region", name)
    assert described is not None
    fetched_name = described["TuningJobArn"].rpartition("/")[2] if "TuningJobArn" in described else name
    synchronised = Synchroniser.open(settings, config).sync(find_job(sagemaker, fetched_name))
    (job,) = (folder for folder in synchronised if folder.path.name == name)
    require(job.outcome is not None, name, "have ended: run parity again after its end", described[TRAINING.status])
    return job


def train_at_home(config: RunConfig, job: RunFolder, overrides: Mapping[str, object]) -> RunFolder:
    """Train the config of a job on this machine, unless that was done before.

    Args:
        job: its run folder.
        overrides: what the user set on top of its config.

    Raises:
        UserError: if the photos or weights of this machine are not the job's.
    """
    name = job.path.name
    config = config_for_home(config, name, job.read().params, overrides)
    path_prefix = run_path_prefix(config, f"parity/{name}")
    done = complete_run(path_prefix)
    if done is not None:
        say(f"{name} was trained at home before: {done.path}")
        return done
    assert job.outcome is not None, "checked when it was synchronised"
    # The jobs of a search do not score the test split, so neither does this run.
    return train_run(
        config, path_prefix, f"{name} at home", {PARITY_TAG: name}, score_test=TEST_LOSS in job.outcome.metrics
    )


def find_run_folder(config: RunConfig, run: str) -> RunFolder:
    """The folder of a run that has ended, by its path or its ID in MLflow.

    Raises:
        ValueError: if there is none on this machine, or it has not ended.
    """
    folder: RunFolder | None = RunFolder(Path(run))
    assert folder is not None
    if not folder.has_started:
        store = RunStore.open_or_wait(config)
        known = store.find_run(run)
        folder = find_folder(known, config.output_dir) if known else None
    rule = f"be a run folder, or the ID of a run in MLflow whose folder is below {config.output_dir}"
    require(folder is not None, "--run", rule, run)
    assert folder is not None
    require(folder.outcome is not None, "--run", "have ended", run)
    return folder
