"""`parity`: the config and seed of a job once more on this machine, and both runs side by side."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.config import RunConfig, noted_fields, require
from experiments.console import say
from sagemaker_launch.settings.cloud import CloudSettings

if TYPE_CHECKING:
    from experiments.runs.folder import RunFolder
    from sagemaker_launch.jobs.commands import Add

PARITY_TAG = "parity_of"
"""Tag of a run at home: the job whose config it trains."""


def add_parity_command(add: Add) -> None:
    """The command and its options."""
    parity = add("parity", _parity, "Train the config and seed of a job at home, and compare the two runs.")
    parity.add_argument("job", metavar="JOB", help="a training job, or one of a tuning job")
    parity.add_argument("--run", metavar="FOLDER_OR_RUN_ID", help="compare with this run instead of training one")


def _parity(settings: CloudSettings, config: RunConfig, arguments: argparse.Namespace) -> None:
    from experiments.report.parity import compare, write_parity
    from experiments.runs.folder import RunFolder
    from experiments.tracking.store import RunStore

    job = RunFolder(config.output_dir / "cloud" / arguments.job)
    if job.outcome is None:
        job = _sync(settings, config, arguments.job)
    epochs = len(job.metric_lines())
    require(epochs > 0, arguments.job, "have trained an epoch at least", epochs)
    home = find_run_folder(config, arguments.run) if arguments.run else train_at_home(config, job, arguments.overrides)
    found = compare(home, job)
    page, _ = write_parity(found, [home, job])
    store = RunStore.open_or_wait(config)
    for folder in (home, job):
        store.push_or_wait(folder)
    print(found.verdict)
    print(page)


def _sync(settings: CloudSettings, config: RunConfig, name: str) -> RunFolder:
    """The run folder of a training job; one of a tuning job comes home with it, below its run.

    Raises:
        ValueError: if there is none of that name, or it has not ended.
    """
    from sagemaker_launch.aws.client import client
    from sagemaker_launch.aws.resources import TRAINING
    from sagemaker_launch.jobs.found import find_job
    from sagemaker_launch.jobs.sync import Synchroniser

    sagemaker = client("sagemaker", settings)
    described = TRAINING.find(sagemaker, name)
    require(described is not None, "JOB", "be a training job of this account and region", name)
    assert described is not None
    whole = described["TuningJobArn"].rpartition("/")[2] if "TuningJobArn" in described else name
    synchronised = Synchroniser.open(settings, config).sync(find_job(sagemaker, whole))
    (job,) = (one for one in synchronised if one.path.name == name)
    require(job.outcome is not None, name, "have ended: run parity again after its end", described[TRAINING.status])
    return job


def train_at_home(config: RunConfig, job: RunFolder, overrides: Mapping[str, object]) -> RunFolder:
    """Train what a job has trained, unless that was done before.

    Args:
        job: its run folder.
        overrides: what the user set on top of its config.
    """
    from experiments.single_run import complete_run, run_place, train_run
    from lightning_modules.metrics import TEST_LOSS
    from sagemaker_launch.jobs.found import config_at_home

    name = job.path.name
    config = config_at_home(config, noted_fields(job.read().params), overrides)
    place = run_place(config, f"parity/{name}")
    done = complete_run(place)
    if done is not None:
        say(f"{name} was trained at home before: {done.path}")
        return done
    assert job.outcome is not None, "checked when it was synchronised"
    # The jobs of a search leave the test split alone, and so does this.
    return train_run(config, place, f"{name} at home", {PARITY_TAG: name}, score_test=TEST_LOSS in job.outcome.metrics)


def find_run_folder(config: RunConfig, run: str) -> RunFolder:
    """The folder of a run that has ended, by its path or its ID in MLflow.

    Raises:
        ValueError: if there is none on this machine, or it has not ended.
    """
    from experiments.runs.folder import RunFolder
    from experiments.tracking.store import RunStore, find_folder

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
