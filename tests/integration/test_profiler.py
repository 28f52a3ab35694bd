"""`trainer.profile` for real: bottlenecks that were planted, and runs that nothing must change."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from experiments.config import RunConfig, load_config, override
from experiments.data.inputs import forget_opened
from experiments.train import train
from lightning_modules.caches.photos import PhotoFiles
from lightning_modules.classifier import ImageClassifier
from lightning_modules.insight.profiler import StepClock
from tests.conftest import tiny
from tests.integration.test_train import MemoryLogger, run, timeless


@pytest.fixture
def config(photos: Path, tmp_path: Path) -> RunConfig:
    """12 steps an epoch, which compute and hardly do anything else."""
    forget_opened()
    values = {"data.cache": "decoded", "data.batch_size": 2, "trainer.max_epochs": 1, "trainer.profile": True}
    return load_config(None, tiny(photos, tmp_path) | values)


def verdict_of(config: RunConfig, folder: Path, *callbacks: Callback) -> str:
    """The verdict of a run, as MLflow gets it."""
    logger = MemoryLogger()
    train(config, output_dir=folder, logger=logger, callbacks=callbacks)
    return str(logger.facts["profile.verdict"])


def test_a_step_that_computes_is_measured_and_left_as_it_is(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Watcher(Callback):
        """Notes in which steps somebody measures."""

        def __init__(self) -> None:
            self.watched: list[int] = []

        def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
            if isinstance(trainer.profiler, StepClock):
                self.watched.append(trainer.global_step)

    config = override(config, {"model.trainable": "all", "trainer.max_epochs": 2})
    watcher = Watcher()
    profiled = run(config, tmp_path / "profiled", watcher)
    plain = run(override(config, {"trainer.profile": False}), tmp_path / "plain")
    assert timeless(profiled) == timeless(plain)
    assert not (tmp_path / "plain" / "artifacts").exists()
    assert watcher.watched == [8, 9, 10, 11, *range(13, 24)], "7 to settle, not the first of an epoch, then 12 and 3"

    folder = tmp_path / "profiled" / "artifacts" / "profile"
    assert sorted(path.name for path in folder.iterdir()) == ["profile.html", "profile.json", "trace.json.gz"]
    figures = json.loads((folder / "profile.json").read_text())
    assert figures["verdict"].startswith("compute-bound, ")
    assert f"profile: {figures['verdict']}" in capsys.readouterr().err
    assert sum(figures["shares"].values()) == pytest.approx(1)
    assert len(figures["steps"]) == 12 and figures["first_step"] == 8
    assert figures["trace"]["steps"] == 3
    assert any("conv" in operator["name"] for operator in figures["trace"]["operators"])
    assert figures["peak_rss_bytes"] > 10**8
    shown = (folder / "profile.html").read_text()
    assert figures["verdict"] in shown and "http" not in shown
    with gzip.open(folder / "trace.json.gz") as file:
        names = {event["name"] for event in json.load(file)["traceEvents"]}
    assert {"step", "data", "copy", "forward", "backward", "optimiser"} <= names


def test_a_slow_loader_is_found(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = PhotoFiles.__getitem__

    def slowly(self: PhotoFiles, index: int) -> Any:
        time.sleep(0.05 if len(self) == 24 else 0)  # those to train with
        return read(self, index)

    monkeypatch.setattr(PhotoFiles, "__getitem__", slowly)
    uncached = override(config, {"data.cache": "none", "data.num_workers": 1})
    verdict = verdict_of(uncached, tmp_path)
    assert verdict.endswith("of the step waits for data: raise data.num_workers or use data.cache features")


@pytest.mark.slow
def test_values_that_are_read_in_the_step_are_found_where_they_are(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = ImageClassifier.training_step

    def reading(self: ImageClassifier, *args: Any) -> Tensor:
        loss = step(self, *args)
        for _ in range(10_000):
            loss.item()
        return loss

    monkeypatch.setattr(ImageClassifier, "training_step", reading)
    verdict = verdict_of(override(config, {"model.trainable": "all"}), tmp_path)
    assert "of the step reads values off the device, 10000 times a step by " in verdict
    assert "test_profiler.py(" in verdict and "): reading: keep them as tensors" in verdict


def test_a_slow_callback_is_found(config: RunConfig, tmp_path: Path) -> None:
    class Sleeper(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            time.sleep(0.05)

    assert "Sleeper.on_train_batch_end takes 5" in verdict_of(config, tmp_path, Sleeper())


@pytest.mark.parametrize("step", [9, 22])
def test_a_run_that_is_killed_during_its_profile_leaves_nothing_and_is_profiled_when_it_resumes(
    config: RunConfig, tmp_path: Path, step: int
) -> None:
    class Killer(Callback):
        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            if trainer.global_step == step:
                raise ConnectionAbortedError("killed")

    config = override(config, {"trainer.max_epochs": 2})
    with pytest.raises(ConnectionAbortedError):
        run(config, tmp_path, Killer())
    assert not (tmp_path / "artifacts").exists() or not list((tmp_path / "artifacts").iterdir())
    assert "of the step" in verdict_of(config, tmp_path)
    assert [path.name for path in (tmp_path / "artifacts").iterdir()] == ["profile"]


def test_a_run_without_a_steady_step_says_why_it_has_no_profile(config: RunConfig, tmp_path: Path) -> None:
    assert verdict_of(override(config, {"data.batch_size": 24}), tmp_path) == (
        "no profile, for too few steps (1, 1 an epoch): lower data.batch_size or raise trainer.max_epochs"
    )
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_tiny_batch_leaves_a_gpu_idle(config: RunConfig, tmp_path: Path) -> None:
    verdict = verdict_of(override(config, {"trainer.accelerator": "gpu"}), tmp_path)
    assert verdict.startswith("the GPU is idle for ") and "2 images are too few for it" in verdict
