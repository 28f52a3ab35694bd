"""Checkpoints within an epoch: a run that is killed there ends with the metrics of an uninterrupted one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import Callback

from experiments.callbacks.checkpoints import CHECKPOINT_FOLDER
from experiments.callbacks.progress import EpochProgress
from experiments.config import RunConfig, load_config, override
from experiments.data.inputs import forget_opened
from experiments.task import HeadTask, task_of
from experiments.train import TrainResult, train, trained_network
from lightning_modules.metrics import EPOCH_SECONDS, IMAGES_PER_SECOND, TRAIN_ACCURACY, TRAIN_LOSS
from tests.conftest import tiny
from tests.integration.test_train import MemoryLogger, timeless

BATCHES = 5
"""Of an epoch: 24 images, 5 a batch."""
EVERY_BATCH = {"trainer.checkpoint_minutes": 1e-9}
CASES: dict[str, dict[str, object]] = {
    "photos": {"model.trainable": "all", "data.cache": "decoded"},
    "features": {"model.trainable": "head", "data.cache": "features", "data.cache_views": 3},
}


class Killed(Exception):
    """Stands for the end of the process."""


class Kill(Callback):
    """Dies at a batch (both counted from 1), before that batch is saved: checkpoints come after all else."""

    def __init__(self, epoch: int, batch: int) -> None:
        self.at = epoch - 1, batch - 1

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == self.at:
            raise Killed


class KillInValidation(Callback):
    """Dies while an epoch is validated."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch - 1

    def on_validation_batch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.current_epoch == self.epoch:
            raise Killed


class Steps(Callback):
    """Notes each training step, and the step of the newest checkpoint before it (-1 for none)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[tuple[int, int]] = []

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        self.seen.append((trainer.global_step, saved_step(self.folder)))


def saved_step(folder: Path) -> int:
    path = folder / CHECKPOINT_FOLDER / "last.ckpt"
    return int(torch.load(path, weights_only=True)["global_step"]) if path.is_file() else -1


def run(config: RunConfig, folder: Path, *callbacks: Callback) -> TrainResult:
    return train(config, output_dir=folder, logger=MemoryLogger(), callbacks=callbacks)


def assert_same(first: TrainResult, other: TrainResult) -> None:
    """To the last bit."""
    assert timeless(first) == timeless(other)
    assert first.best_epoch == other.best_epoch
    networks = [trained_network(result.task, result.output_dir).state_dict() for result in (first, other)]
    for name, value in networks[0].items():
        assert torch.equal(value, networks[1][name]), name


@pytest.fixture(scope="module", autouse=True)
def one_at_once() -> Iterator[None]:
    """A head takes as many steps between two checkpoints as a network does: one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_modules.caches.features.IMAGES_AT_ONCE", 5)
        yield


@pytest.fixture(scope="module", params=list(CASES))
def whole(request: pytest.FixtureRequest, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A run that nothing interrupts and that saves at the end of its epochs."""
    forget_opened()
    folder = tmp_path_factory.mktemp(request.param)
    values = {
        "data.batch_size": 5,
        "data.augment": "strong",
        "model.dropout": 0.3,
        "optimizer.name": "sgd",
        "optimizer.schedule": "one_cycle",
    }
    config = load_config(None, tiny(photos, folder) | values | CASES[request.param])
    assert isinstance(task_of(config), HeadTask) == (request.param == "features")
    steps = Steps(folder)
    result = run(config, folder, steps)
    assert steps.seen == [(step, step // BATCHES * BATCHES or -1) for step in range(3 * BATCHES)]
    assert len({metrics[TRAIN_LOSS] for metrics in result.history.values()}) == 3, "nothing was learned"
    return result


def test_writing_within_epochs_changes_no_metric(whole: TrainResult, tmp_path: Path) -> None:
    steps = Steps(tmp_path)
    result = run(override(whole.task.config, EVERY_BATCH), tmp_path, steps)
    assert_same(result, whole)
    # After the last batch of an epoch nothing is written before it is validated.
    assert steps.seen == [(step, step or -1) for step in range(3 * BATCHES)]


@pytest.mark.parametrize(
    ("kill", "saved"),
    [
        (Kill(1, 3), 2),
        (Kill(2, 2), BATCHES + 1),
        (Kill(2, BATCHES), BATCHES + 4),
        (KillInValidation(2), BATCHES + 4),
    ],
    ids=["first epoch", "early batch", "last batch", "validation"],
)
def test_a_run_that_is_killed_within_an_epoch_resumes_there(
    whole: TrainResult, tmp_path: Path, kill: Callback, saved: int
) -> None:
    config = override(whole.task.config, EVERY_BATCH)
    with pytest.raises(Killed):
        run(config, tmp_path, kill)
    assert saved_step(tmp_path) == saved
    steps = Steps(tmp_path)
    resumed = run(config, tmp_path, steps)
    assert [step for step, _ in steps.seen] == list(range(saved, 3 * BATCHES))
    assert_same(resumed, whole)


def test_an_epoch_may_be_interrupted_twice_and_its_clock_continues(
    whole: TrainResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = override(whole.task.config, EVERY_BATCH)
    for kill in (Kill(2, 3), Kill(2, 3), Kill(2, 5), Kill(3, 4)):
        with pytest.raises(Killed):
            run(config, tmp_path, kill)
    # The interval may change on the way, also to none.
    resumed = run(whole.task.config, tmp_path, EpochProgress("run", {}))
    assert_same(resumed, whole)
    assert "run: resumes from its checkpoint after 60% of epoch 3" in capsys.readouterr().err
    assert resumed.history.keys() == {1, 2, 3}
    for metrics in resumed.history.values():
        assert 0 < metrics[EPOCH_SECONDS] < 60
        # Batches before and after the checkpoint count, those that were done twice count once.
        assert round(metrics[EPOCH_SECONDS] * metrics[IMAGES_PER_SECOND]) == 24
        assert 0 <= metrics[TRAIN_ACCURACY] <= 1


def test_nothing_is_written_within_an_epoch_before_the_interval_is_over(whole: TrainResult, tmp_path: Path) -> None:
    steps = Steps(tmp_path)
    run(override(whole.task.config, {"trainer.checkpoint_minutes": 60.0, "trainer.max_epochs": 1}), tmp_path, steps)
    assert steps.seen == [(step, -1) for step in range(BATCHES)]
