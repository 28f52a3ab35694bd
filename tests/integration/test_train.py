"""`train()` for real: resuming, reproducing, exporting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger

from experiments.config import RunConfig, load_config, override
from experiments.train import CHECKPOINT_FOLDER, NotANumberError, TrainResult, export, train
from lightning_modules.export import check_golden
from tests.conftest import tiny


class MemoryLogger(Logger):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, float]] = []
        self.facts: dict[str, Any] = {}

    @property
    def name(self) -> str:
        return "memory"

    @property
    def version(self) -> str:
        return "0"

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.lines.append(dict(metrics))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.facts |= params


class StopAfterEpoch(Callback):
    """Dies after an epoch, as a process does that is killed."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == self.epoch:
            raise ConnectionAbortedError("killed")


def run(config: RunConfig, folder: Path, *callbacks: Callback) -> TrainResult:
    return train(config, output_dir=folder, logger=MemoryLogger(), callbacks=callbacks)


def timeless(result: TrainResult) -> dict[int, dict[str, float]]:
    """The history without what a clock decides."""
    return {
        epoch: {key: value for key, value in metrics.items() if "second" not in key}
        for epoch, metrics in result.history.items()
    }


@pytest.fixture
def config(photos: Path, tmp_path: Path) -> RunConfig:
    return load_config(None, tiny(photos, tmp_path))


@pytest.mark.parametrize("trainable", ["head", "last_block", "all"])
def test_a_resumed_run_ends_with_the_metrics_of_an_uninterrupted_one(
    config: RunConfig, tmp_path: Path, trainable: str
) -> None:
    config = override(
        config,
        {
            "model.trainable": trainable,
            "model.dropout": 0.3,
            "data.augment": "strong",
            "optimizer.schedule": "one_cycle",
            "optimizer.name": "sgd",
        },
    )
    whole = run(config, tmp_path / "whole")
    with pytest.raises(ConnectionAbortedError):
        run(config, tmp_path / "cut", StopAfterEpoch(1))
    resumed = run(config, tmp_path / "cut")
    assert timeless(resumed) == timeless(whole)
    for one, other in zip(resumed.model.state_dict().values(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_loader_processes_change_no_metric(config: RunConfig, tmp_path: Path) -> None:
    config = override(config, {"data.augment": "strong", "trainer.max_epochs": 2})
    alone = run(config, tmp_path / "0")
    helped = run(override(config, {"data.num_workers": 2}), tmp_path / "2")
    assert timeless(alone) == timeless(helped)


def test_a_run_that_has_ended_trains_no_further(config: RunConfig, tmp_path: Path) -> None:
    first = run(config, tmp_path)
    again = run(config, tmp_path, StopAfterEpoch(0))
    assert again.history == first.history


def test_training_learns_and_the_best_epoch_counts(config: RunConfig, tmp_path: Path) -> None:
    config = override(config, {"trainer.max_epochs": 6, "model.trainable": "all", "optimizer.learning_rate": 0.003})
    result = run(config, tmp_path)
    losses = {epoch: metrics["val_loss"] for epoch, metrics in result.history.items()}
    assert list(losses) == [1, 2, 3, 4, 5, 6]
    assert result.best_epoch == min(losses, key=losses.__getitem__)
    assert result.history[6]["train_loss"] < result.history[1]["train_loss"]


def test_early_stopping_stops(config: RunConfig, tmp_path: Path) -> None:
    values = {"trainer.early_stopping_patience": 2, "trainer.max_epochs": 30, "optimizer.learning_rate": 1e-9}
    result = run(override(config, values | {"optimizer.schedule": "constant", "model.trainable": "head"}), tmp_path)
    assert len(result.history) < 30


def test_a_loss_that_is_no_number_stops_the_run_and_says_what_to_try(config: RunConfig, tmp_path: Path) -> None:
    values = {"optimizer.learning_rate": 1e30, "optimizer.name": "sgd", "model.trainable": "all"}
    with pytest.raises(NotANumberError, match=r"val_loss is (nan|inf).*optimizer\.learning_rate"):
        run(override(config, values), tmp_path)


def test_the_export_scores_as_the_trainer_does(config: RunConfig, tmp_path: Path) -> None:
    folder = export(run(config, tmp_path), tmp_path / "export")
    check_golden(folder)


def test_the_logger_gets_one_line_an_epoch_and_the_facts_of_the_data(config: RunConfig, tmp_path: Path) -> None:
    logger = MemoryLogger()
    train(config, output_dir=tmp_path, logger=logger)
    assert [line["epoch"] for line in logger.lines] == [0, 1, 2]
    for name in ("train_loss", "val_loss", "val_accuracy", "learning_rate", "epoch_seconds", "images_per_second"):
        assert all(name in line for line in logger.lines)
    assert logger.facts["data.train_images"] == 24
    assert len(logger.facts["data.fingerprint"]) == 64


def test_a_torn_checkpoint_beside_the_whole_one_is_of_no_account(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ConnectionAbortedError):
        run(config, tmp_path, StopAfterEpoch(2))
    (tmp_path / CHECKPOINT_FOLDER / ".last.ckpt.part").write_bytes(b"half")
    assert list(run(config, tmp_path).history) == [1, 2, 3]
