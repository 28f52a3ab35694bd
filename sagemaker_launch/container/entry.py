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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from experiments.callbacks.checkpoints import CHECKPOINT_FOLDER
from experiments.callbacks.history import best_epoch, run_metrics
from experiments.config import RunConfig, load_config, require, to_public
from experiments.console import quiet_libraries, say
from experiments.errors import UserError
from experiments.runs.folder import RunFolder, environment_tags
from experiments.runs.logger import RunFolderLogger
from experiments.study.epochs import resolve_config
from experiments.train import score_and_export, train
from lightning_modules import metrics
from lightning_modules.files import remove_shared, replaced_whole
from lightning_modules.launchers import is_first_process
from lightning_modules.locks import KernelLock
from lightning_modules.process import prepare_process
from lightning_modules.redaction import redact
from sagemaker_launch.container.hyperparameters import TUNING_OBJECTIVE, decode
from sagemaker_launch.container.machines import REHEARSED_WITHOUT_GPU, has_gpu, run_folder_name
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
    instance_type: str = ""
    """Empty where the service does not tell."""
    may_lack_gpu: bool = False
    """Whether the rehearsal lets a job of a GPU instance train on the CPU."""

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
            resources.get("current_instance_type", ""),
            resources.get(REHEARSED_WITHOUT_GPU, False),
        )

    def require_gpu(self) -> None:
        """Refuse to train on the CPU of a GPU instance, for hours and at its price.

        Raises:
            UserError: if PyTorch sees no GPU on it.
        """
        if not has_gpu(self.instance_type) or torch.cuda.is_available():
            return
        if self.may_lack_gpu:
            say(f"{self.instance_type} is rehearsed without a GPU: the job trains on the CPU")
            return
        device = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs"
        raise UserError(
            f"{self.instance_type} must show PyTorch a GPU, got none (PyTorch {torch.__version__}, built for {device})"
            ": take an image whose CUDA fits the driver of the instance (cloud.image_uri), or an instance without GPU "
            "(cloud.instance_type)"
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
    job.require_gpu()
    config = resolve_config(job_config(job, scratch))  # already resolved, unless another program created the job
    # The jobs of a tuning job may share a checkpoint prefix in S3.
    folder = RunFolder(job.base / "checkpoints" / run_folder_name(job.name))
    num_processes = config.trainer.num_processes
    if is_first_process(num_processes):
        start_run(folder, job, config)

    def say_epoch(epoch: int, values: Mapping[str, float]) -> None:
        epochs = {line.step: line.metrics for line in folder.metric_lines() if line.step <= epoch}
        write_line(metric_line("metrics", epoch, {**values, **summary_of(config, epochs)}))

    logger = RunFolderLogger(folder, on_epoch=say_epoch, on_facts=lambda facts: write_line(facts_line(facts)))
    debugger = [DebuggerHook(job.base / CONFIG_FILE)] if job.is_debugged else []
    reporter = [ResumedEpochs(folder, say_epoch)] if is_first_process(num_processes) else []
    result = train(
        config,
        output_dir=folder.path,
        logger=logger,
        callbacks=[*reporter, *debugger],
        single_steps=job.is_debugged,
    )
    if not is_first_process(num_processes):  # torchrun starts one for each device
        return
    scores = job.base / "output" / "data" / "scores.npz"
    scores.parent.mkdir(parents=True, exist_ok=True)
    values = score_and_export(result, scratch / "export", scores, score_test=not job.is_tuned)
    shutil.copytree(scratch / "export", job.base / "model", dirs_exist_ok=True)
    scored = {name: value for name, value in values.items() if name.startswith(("val_", "test_"))}
    write_line(metric_line("outcome", max(result.history), {**metrics.summary(result.metrics), **scored}))
    # They are no longer needed, and each later job of a search downloads all checkpoints in S3.
    remove_shared(folder.path / CHECKPOINT_FOLDER)
    for hook in debugger:  # last, so that the trained model is kept
        hook.check()


class ResumedEpochs(Callback):
    """Makes the metrics of a run agree with the checkpoint that it resumes from, and reports its epochs again.

    The folder may have lines of later epochs, which are trained again, or lack some. An interruption also loses lines
    that the toolkit has read and not yet logged.
    """

    def __init__(self, folder: RunFolder, say_epoch: Callable[[int, Mapping[str, float]], None]) -> None:
        self._folder, self._say_epoch = folder, say_epoch
        self._epochs: Mapping[int, Mapping[str, float]] = {}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Read the epochs of the checkpoint."""
        self._epochs = checkpoint["callbacks"]["History"]["epochs"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report them, before the first new epoch."""
        self._folder.keep_epochs(self._epochs)
        for line in self._folder.metric_lines():
            self._say_epoch(line.step, line.metrics)


def summary_of(config: RunConfig, epochs: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """The objectives at the best of some epochs, and the highest accuracy."""
    best = best_epoch(epochs, config.sweep.metric, config.sweep.direction)
    return metrics.summary(run_metrics(epochs, best))


def job_config(job: Job, scratch: Path) -> RunConfig:
    """The config that was sent, with the folders and devices of this machine.

    Raises:
        UserError: for an unknown field, a value that its field refuses, or a channel that is missing.
    """
    values: dict[str, object] = {**decode(job.hyperparameters)}
    values |= {
        "data.name": "folder",
        "data.root": photo_folder(job.channel(PHOTOS), scratch / PHOTOS),
        "data.cache_dir": scratch / "cache",
        "trainer.devices": max(1, torch.cuda.device_count()),
        "trainer.num_nodes": job.num_nodes,
    }
    if job.is_debugged:
        values["trainer.compile"] = False  # a compiled network runs smdebug's hooks while it is traced, or never
    if job.channel(WEIGHTS).is_dir():
        # Its folder in S3 is named by the content: all files in it are the same one.
        files = sorted(path for path in job.channel(WEIGHTS).iterdir() if path.is_file())
        require(bool(files), "the channel weights", "have a file", "none")
        values["model.weights"] = str(files[0])
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
    """Start the run folder, or find it after an interruption, and print where it runs."""
    tags = environment_tags()
    if not folder.has_started:
        folder.start(job.name, to_public(config), tags)
    facts = {"trainer.devices": config.trainer.devices, "trainer.num_nodes": config.trainer.num_nodes}
    write_line(facts_line(facts))
    write_line(environment_line(tags))


def write_failure(base: Path, error: Exception) -> None:
    """Write a reason that fits into the service's answer; the traceback is in the log."""
    path = base / "output" / "failure"
    path.parent.mkdir(parents=True, exist_ok=True)
    # The name of a file may hold any bytes. If there is no failure file, the toolkit writes one that begins with the
    # traceback; if there is an empty one, AWS shows no reason.
    text = redact(f"{type(error).__name__}: {error}").encode("utf-8", "backslashreplace").decode()[:MAX_REASON]
    with replaced_whole(path, shared=True) as part:  # torchrun's processes may fail together
        part.write_text(text, encoding="utf-8")
