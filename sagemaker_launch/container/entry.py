"""Entry point of a job: reads SageMaker's files below /opt/ml, calls `train()`, writes the model.

The toolkit never passes SIGTERM on (aws/sagemaker-training-toolkit#125), so nothing here waits for a signal: the run
folder and its checkpoints are complete after every epoch, and a restarted job continues from them.

The bundle has a file `entry.py` that calls `main()` (`shipping/bundle.py`); the toolkit runs that file.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from experiments.callbacks.checkpoints import CHECKPOINT_FOLDER
from experiments.callbacks.history import best_epoch, run_metrics
from experiments.config import RunConfig, load_config, to_public
from experiments.console import quiet_libraries
from experiments.errors import UserError
from experiments.runs.folder import RunFolder, environment_tags
from experiments.runs.logger import RunFolderLogger
from experiments.study.epochs import resolve_config
from experiments.train import score_and_export, train
from lightning_modules import metrics
from lightning_modules.files import replaced_whole
from lightning_modules.launchers import is_first_process
from lightning_modules.locks import KernelLock
from lightning_modules.process import prepare_process
from lightning_modules.redaction import redact
from sagemaker_launch.container.hyperparameters import TUNING_OBJECTIVE, decode
from sagemaker_launch.container.metric_lines import environment_line, facts_line, metric_line, write_line
from sagemaker_launch.container.smdebug.callback import DebuggerHook
from sagemaker_launch.container.smdebug.recorder import CONFIG_FILE

PHOTOS, WEIGHTS = "photos", "weights"
"""Channels of a job."""
INDEX_FILES = "sets/*/index.json"
"""The file of a content-addressed channel that maps the path of each photo to its file in `objects`."""
MAX_REASON = 1024
"""Characters of the failure file that become the job's FailureReason (AWS's developer guide, read 2026-11)."""


@dataclass(frozen=True)
class Job:
    """Settings of the job by the service."""

    base: Path
    """/opt/ml, or where the rehearsal keeps it."""
    name: str
    hyperparameters: dict[str, str]
    num_nodes: int

    @classmethod
    def read(cls, base: Path) -> Job:
        """Read the files that the service writes before it starts the container."""
        config = base / "input" / "config"
        resources = json.loads((config / "resourceconfig.json").read_text())
        return cls(
            base,
            os.environ.get("TRAINING_JOB_NAME", "job"),
            json.loads((config / "hyperparameters.json").read_text()),
            len(resources["hosts"]),
        )

    @property
    def is_tuned(self) -> bool:
        """Whether it belongs to a tuning job: then the test split is not scored."""
        return TUNING_OBJECTIVE in self.hyperparameters

    @property
    def is_debugged(self) -> bool:
        """Whether the service has configured Debugger."""
        return (self.base / CONFIG_FILE).is_file()

    def channel(self, name: str) -> Path:
        """The folder of a channel's files."""
        return self.base / "input" / "data" / name


def main() -> None:
    """Run the job; an error becomes its FailureReason."""
    prepare_process()
    quiet_libraries()
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    base = Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"))
    try:
        run(Job.read(base), scratch=Path(tempfile.gettempdir()) / "experiments")
    except Exception as error:
        write_failure(base, error)
        raise


def run(job: Job, *, scratch: Path) -> None:
    """Train, score, and leave the export folder in the model directory.

    Args:
        scratch: a folder on the instance's fast disk, for caches.

    Raises:
        DebuggerError: if requested tensors are missing, raised after the model is written.
    """
    config = resolve_config(job_config(job, scratch))  # already resolved, unless another program created the job
    # The jobs of a tuning job may share a checkpoint prefix in S3.
    folder = RunFolder(job.base / "checkpoints" / job.name)
    num_processes = config.trainer.num_processes
    if is_first_process(num_processes):
        start_run(folder, job, config)

    def say_epoch(epoch: int, values: Mapping[str, float]) -> None:
        epochs = {line.step: line.metrics for line in folder.metric_lines()}
        write_line(metric_line("metrics", epoch, {**values, **summary_of(config, epochs)}))

    logger = RunFolderLogger(folder, on_epoch=say_epoch, on_facts=lambda facts: write_line(facts_line(facts)))
    debugger = [DebuggerHook(job.base / CONFIG_FILE)] if job.is_debugged else []
    result = train(config, output_dir=folder.path, logger=logger, callbacks=debugger, single_steps=job.is_debugged)
    if not is_first_process(num_processes):  # torchrun starts one for each device
        return
    scores = job.base / "output" / "data" / "scores.npz"
    scores.parent.mkdir(parents=True, exist_ok=True)
    values = score_and_export(result, scratch / "export", scores, score_test=not job.is_tuned)
    shutil.copytree(scratch / "export", job.base / "model", dirs_exist_ok=True)
    scored = {name: value for name, value in values.items() if name.startswith(("val_", "test_"))}
    epochs = {line.step: line.metrics for line in folder.metric_lines()}
    write_line(metric_line("outcome", max(epochs), {**summary_of(config, epochs), **scored}))
    # They are no longer needed, and each later job of a search downloads all checkpoints in S3.
    shutil.rmtree(folder.path / CHECKPOINT_FOLDER)
    for hook in debugger:  # last, so that the trained model is kept
        hook.check()


def summary_of(config: RunConfig, epochs: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """The objectives at the best of some epochs, and the highest accuracy."""
    best = best_epoch(epochs, config.sweep.metric, config.sweep.direction)
    return metrics.summary(run_metrics(epochs, best))


def job_config(job: Job, scratch: Path) -> RunConfig:
    """The config that was sent, with the folders and devices of this machine.

    Raises:
        UserError: for an unknown field, a value that its field refuses, a channel that is missing, or a GPU that
            PyTorch does not see.
    """
    devices = torch.cuda.device_count()
    # The launcher sets it for instances with GPUs.
    if os.environ.get("TRAINING_DEVICE") == "cuda" and devices == 0:
        raise UserError(
            f"the job must see the GPU of its instance, and PyTorch {torch.__version__} sees none: name an image whose "
            "CUDA fits the driver (cloud.image_uri)"
        )
    values: dict[str, object] = {**decode(job.hyperparameters)}
    values |= {
        "data.name": "folder",
        "data.root": photo_folder(job.channel(PHOTOS), scratch / PHOTOS),
        "data.cache_dir": scratch / "cache",
        "trainer.devices": max(1, devices),
        "trainer.num_nodes": job.num_nodes,
    }
    if job.is_debugged:
        values["trainer.compile"] = False  # a compiled network runs smdebug's hooks while it is traced, or never
    if job.channel(WEIGHTS).is_dir():
        (weights,) = job.channel(WEIGHTS).iterdir()
        values["model.weights"] = str(weights)
    return load_config(None, values)


def photo_folder(channel: Path, target: Path) -> Path:
    """The class folders: the channel itself, or links with the original names to its content-addressed files.

    Raises:
        UserError: if the channel is missing.
    """
    if not channel.is_dir():
        raise UserError(f"the job must have a channel {PHOTOS!r}, got none at {channel}")
    index = next(channel.glob(INDEX_FILES), None)
    if index is None:
        return channel
    target.parent.mkdir(parents=True, exist_ok=True)
    with KernelLock(Path(f"{target}.lock")):  # the processes of all devices call this
        if not target.is_dir():
            with replaced_whole(target) as part:
                for name, stored in json.loads(index.read_text()).items():
                    (part / name).parent.mkdir(parents=True, exist_ok=True)
                    (part / name).symlink_to(channel / "objects" / stored)
    return target


def start_run(folder: RunFolder, job: Job, config: RunConfig) -> None:
    """Start the run folder, or resume it after an interruption, and print where it runs."""
    tags = environment_tags()
    if not folder.has_started:
        folder.start(job.name, to_public(config), tags)
    # An interruption loses lines that the toolkit has read and not yet logged. Completed epochs are not trained again,
    # so their lines are printed again.
    epochs: dict[int, Mapping[str, float]] = {}
    for line in folder.metric_lines():
        epochs[line.step] = line.metrics
        write_line(metric_line("metrics", line.step, {**line.metrics, **summary_of(config, epochs)}))
    facts = {"trainer.devices": config.trainer.devices, "trainer.num_nodes": config.trainer.num_nodes}
    write_line(facts_line(facts))
    write_line(environment_line(tags))


def write_failure(base: Path, error: Exception) -> None:
    """Write a reason that fits into the service's answer; the traceback is in the log."""
    path = base / "output" / "failure"
    path.parent.mkdir(parents=True, exist_ok=True)
    # If there is no file, the toolkit writes one that begins with the traceback.
    path.write_text(redact(f"{type(error).__name__}: {error}")[:MAX_REASON])
