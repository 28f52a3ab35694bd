"""A job that is interrupted while only a part of its files has reached S3, in this process.

The service copies each file of the checkpoint folder by itself, at any moment. So after an interruption S3 has some
version of each file, between the one that it had when the attempt began and the newest one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from experiments.callbacks.history import History
from experiments.config import RunConfig
from experiments.runs.folder import RunFolder
from lightning_modules.metrics import EPOCH_SECONDS, IMAGES_PER_SECOND
from sagemaker_launch.container import entry
from sagemaker_launch.container.hyperparameters import encode
from sagemaker_launch.container.metric_lines import ReportedLine, parse_lines

Files = Mapping[str, bytes | None]
"""Content of each file below the checkpoint folder by its path; None for one that was removed."""
NAME = "dogs-0123456789-1"


class Interrupted(BaseException):
    """The machine is gone."""


@dataclass
class Attempt:
    """What one attempt has printed, and each state of its files."""

    lines: list[str] = field(default_factory=list)
    states: list[dict[str, bytes]] = field(default_factory=list)
    trained: list[int] = field(default_factory=list)
    """The epochs that it has trained to their end."""
    completed: bool = False

    @property
    def reports(self) -> list[ReportedLine]:
        """What it has reported."""
        return parse_lines(self.lines)


class JobOnThisMachine:
    """A job on photos of this machine, without the service.

    Args:
        base: its /opt/ml, and what is kept from one attempt to the next.
    """

    def __init__(self, base: Path, photos: Path, config: RunConfig) -> None:
        self.ml, self._scratch = base / "ml", base / "scratch"
        settings = self.ml / "input" / "config"
        settings.mkdir(parents=True)
        (self.ml / "input" / "data").mkdir()
        (self.ml / "input" / "data" / "photos").symlink_to(photos)
        (settings / "hyperparameters.json").write_text(json.dumps(encode(config)))
        (settings / "resourceconfig.json").write_text(json.dumps({"hosts": ["algo-1"], "current_host": "algo-1"}))

    @property
    def checkpoints(self) -> Path:
        """The folder that the service copies to S3."""
        return self.ml / "checkpoints"

    def run(self, restored: Files, *, interrupt_at: int = 0) -> Attempt:
        """Run one attempt on a fresh machine.

        Args:
            restored: what S3 has when it begins.
            interrupt_at: the number of the change of a file at which the machine goes away, from 1; 0 for never.
        """
        for folder in (self.checkpoints, self.ml / "model", self._scratch / "export"):
            shutil.rmtree(folder, ignore_errors=True)
        (self.ml / "model").mkdir()
        for name, content in restored.items():
            if content is not None:
                (self.checkpoints / name).parent.mkdir(parents=True, exist_ok=True)
                (self.checkpoints / name).write_bytes(content)
        attempt = Attempt()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRAINING_JOB_NAME", NAME)
            patch.setattr(entry, "write_line", attempt.lines.append)
            with self._watched(patch, attempt, interrupt_at):
                entry.run(entry.Job.read(self.ml), scratch=self._scratch)
                attempt.completed = True
        return attempt

    @contextmanager
    def _watched(self, patch: pytest.MonkeyPatch, attempt: Attempt, interrupt_at: int) -> Iterator[None]:
        """Note the state of the files after each change, and end the attempt at one of them."""

        def changed() -> None:
            if len(attempt.states) == interrupt_at > 0:
                return  # the machine is gone: what Python tidies up on the way out counts for nothing
            attempt.states.append(files_in(self.checkpoints))
            if len(attempt.states) == interrupt_at:
                raise Interrupted

        def then_changed(function: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **named: Any) -> Any:
                result = function(*args, **named)
                changed()
                return result

            return wrapped

        validated = History.on_validation_end

        def note_epoch(history: History, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            attempt.trained.append(trainer.current_epoch + 1)
            validated(history, trainer, module)

        patch.setattr(History, "on_validation_end", note_epoch)
        patch.setattr(Path, "replace", then_changed(Path.replace))
        patch.setattr(Path, "unlink", then_changed(Path.unlink))
        patch.setattr(RunFolder, "_append", then_changed(RunFolder._append))
        with suppress(Interrupted):
            yield


def files_in(folder: Path) -> dict[str, bytes]:
    """The files that the service copies."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".sagemaker-ignore"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def versions_of(attempt: Attempt, name: str) -> list[bytes | None]:
    """The contents that a file had in an attempt, None for a missing one."""
    found: list[bytes | None] = [None]
    for state in attempt.states:
        if state.get(name) not in found:
            found.append(state.get(name))
    return found


def part_of(before: Files, attempt: Attempt, random: Random) -> dict[str, bytes]:
    """What S3 may have after an attempt: of each file one of its versions, with markers of the uploader.

    Args:
        before: what it had when the attempt began.
    """
    names = {name for state in (before, *attempt.states) for name in state}
    chosen = {name: random.choice([before, *attempt.states]).get(name) for name in sorted(names)}
    markers = {f"{name}.sagemaker-uploaded": b"" for name in sorted(names) if random.random() < 0.5}
    return {name: content for name, content in {**chosen, **markers}.items() if content is not None}


def epochs_with_weights(s3: Files, scratch: Path) -> int:
    """The number of epochs after which some file in S3 has the weights and the optimiser."""
    found = [0]
    for name, content in s3.items():
        if name.endswith(".ckpt") and content is not None:
            path = scratch / hashlib.sha256(content).hexdigest()
            path.write_bytes(content)
            checkpoint = torch.load(path, weights_only=True)
            path.unlink()
            if "optimizer_states" in checkpoint:
                found.append(len(checkpoint["callbacks"]["History"]["epochs"]))
    return max(found)


def result_of(job: JobOnThisMachine, attempt: Attempt) -> dict[str, Any]:
    """What a person gets of a job: metrics of all epochs and of the model, and the model."""
    (outcome,) = (report.metrics for report in attempt.reports if report.topic == "outcome")
    epochs = {report.epoch: _comparable(report.metrics) for report in attempt.reports if report.topic == "metrics"}
    manifest = json.loads((job.ml / "model" / "model.json").read_text())
    metrics = _comparable(manifest["metrics"])
    return {"outcome": dict(outcome), "epochs": epochs, "weights": manifest["sha256"], "metrics": metrics}


def _comparable(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name not in (EPOCH_SECONDS, IMAGES_PER_SECOND)}
