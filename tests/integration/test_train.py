"""`train()` for real: resuming, reproducing, exporting."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger

from experiments.callbacks.checkpoints import CHECKPOINT_FOLDER
from experiments.callbacks.history import History, NotANumberError, best_epoch, run_metrics
from experiments.config import RunConfig, load_config, override
from experiments.data.inputs import forget_opened, open_data_once, open_decoded_once, open_features_once, photo_data
from experiments.errors import InterruptedRunError
from experiments.interrupts import Interrupts, Watch
from experiments.runs.scoring import score_split
from experiments.task import PhotoTask, task_of
from experiments.train import TrainResult, export, score_and_export, train, trained_network
from lightning_modules.caches import photos as photo_files
from lightning_modules.caches.features import FeatureBatches
from lightning_modules.data import ShardedSampler
from lightning_modules.export import check_golden
from lightning_modules.inference import Interpolation, load_export
from lightning_modules.metrics import DIRECTIONS
from lightning_modules.network import recipe
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
    forget_opened()
    return load_config(None, tiny(photos, tmp_path))


@pytest.mark.parametrize(
    ("trainable", "cache"), [("head", "features"), ("head", "none"), ("last_block", "none"), ("all", "decoded")]
)
def test_a_resumed_run_ends_with_the_metrics_of_an_uninterrupted_one(
    config: RunConfig, tmp_path: Path, trainable: str, cache: str
) -> None:
    config = override(
        config,
        {
            "model.trainable": trainable,
            "data.cache": cache,
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
    networks = [trained_network(result.task, result.output_dir).state_dict() for result in (resumed, whole)]
    for tensor, other in zip(*(network.values() for network in networks), strict=True):
        assert torch.equal(tensor, other)


def test_a_run_folder_that_was_moved_resumes_with_its_best_epoch(config: RunConfig, tmp_path: Path) -> None:
    # All epochs are equally accurate, of which the first is the best.
    values = {"optimizer.learning_rate": 1e-7, "sweep.metric": "val_accuracy", "sweep.direction": "maximize"}
    config = override(config, values)
    whole = run(config, tmp_path / "whole")
    assert whole.best_epoch == 1, "a later epoch must not be taken for the best one"
    with pytest.raises(ConnectionAbortedError):
        run(config, tmp_path / "here", StopAfterEpoch(2))
    (tmp_path / "here").rename(tmp_path / "there")
    resumed = run(config, tmp_path / "there")
    assert (timeless(resumed), resumed.best_epoch) == (timeless(whole), 1)
    networks = [trained_network(result.task, result.output_dir).state_dict() for result in (resumed, whole)]
    for tensor, other in zip(*(network.values() for network in networks), strict=True):
        assert torch.equal(tensor, other)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_cached_features_give_the_same_answer(config: RunConfig, tmp_path: Path, optimizer: str) -> None:
    """To 1e-5 in val_loss, in every epoch, with dropout and label smoothing too."""
    values = {"model.dropout": 0.2, "model.label_smoothing": 0.1, "optimizer.name": optimizer}
    values |= {"trainer.max_epochs": 4, "data.batch_size": 5, "optimizer.learning_rate": 0.05}
    cached = run(override(config, values | {"data.cache": "features"}), tmp_path / "cached")
    plain = run(override(config, values | {"data.cache": "none"}), tmp_path / "plain")
    assert cached.history.keys() == plain.history.keys()
    for epoch, metrics in plain.history.items():
        for name in ("val_loss", "train_loss", "val_accuracy", "train_accuracy", "learning_rate"):
            assert cached.history[epoch][name] == pytest.approx(metrics[name], abs=1e-5), (epoch, name)
    assert len({metrics["val_loss"] for metrics in plain.history.values()}) == 4, "nothing was learned"


@pytest.mark.parametrize("augment", ["none", "light", "strong"])
def test_decoded_photos_give_the_same_answer(config: RunConfig, tmp_path: Path, augment: str) -> None:
    config = override(config, {"model.trainable": "all", "data.augment": augment, "optimizer.learning_rate": 0.001})
    decoded = run(override(config, {"data.cache": "decoded"}), tmp_path / "decoded")
    plain = run(override(config, {"data.cache": "none"}), tmp_path / "plain")
    assert timeless(decoded) == timeless(plain)
    assert len({metrics["val_loss"] for metrics in plain.history.values()}) == 3, "nothing was learned"


@pytest.fixture
def decoded_files(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets an entry for every photo file that training decodes."""
    seen: list[int] = []
    decode = photo_files.open_image
    monkeypatch.setattr(photo_files, "open_image", lambda *args, **named: seen.append(1) or decode(*args, **named))
    return seen


def test_the_backbone_sees_each_photo_once_for_all_trials(
    config: RunConfig, tmp_path: Path, decoded_files: list[int]
) -> None:
    run(config, tmp_path / "0")
    assert len(decoded_files) == 24 + 12
    run(override(config, {"optimizer.learning_rate": 0.1, "data.batch_size": 3}), tmp_path / "1")
    forget_opened()
    run(override(config, {"model.dropout": 0.5}), tmp_path / "2")
    assert len(decoded_files) == 24 + 12, "another process finds them on disk"
    run(override(config, {"data.augment": "light", "data.cache_views": 3}), tmp_path / "3")
    assert len(decoded_files) == 24 + 12 + 24, "all views are made of one decoding, validation is never augmented"


def test_a_network_that_trains_as_a_whole_decodes_each_photo_once_for_all_trials(
    config: RunConfig, tmp_path: Path, decoded_files: list[int]
) -> None:
    config = override(config, {"model.trainable": "all", "data.augment": "light"})
    run(config, tmp_path / "0")
    assert len(decoded_files) == 24 + 12
    forget_opened()
    run(override(config, {"data.batch_size": 3, "data.augment": "strong"}), tmp_path / "1")
    assert len(decoded_files) == 24 + 12


def test_auto_reports_that_decoded_photos_do_not_fit_and_continues(
    config: RunConfig, tmp_path: Path, decoded_files: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    config = override(config, {"model.trainable": "all", "data.cache_max_gb": 1e-5, "trainer.max_epochs": 2})
    run(config, tmp_path / "auto")
    assert len(decoded_files) == 2 * (24 + 12) + 12
    message = "photos are decoded in every epoch: data.cache_max_gb must be at least 0.000111 for the decoded photos"
    assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"data\.cache_max_gb must be at least 0\.000111"):
        run(override(config, {"data.cache": "decoded"}), tmp_path / "decoded")


def test_each_epoch_draws_one_of_the_cached_views(config: RunConfig, tmp_path: Path) -> None:
    views = override(config, {"data.augment": "strong", "data.cache_views": 3})
    folders = open_data_once(views)
    features = open_features_once(views)
    assert features.train.shape == (3, 24, 1024)
    assert not torch.equal(features.train[0], features.train[1])
    sampler = ShardedSampler(24, seed=0, shuffle=True)
    batches = FeatureBatches(features.train, features.train_labels, 10, sampler)
    seen = set()
    for epoch in range(4):
        sampler.set_epoch(epoch)
        rows = torch.cat([rows for rows, _ in batches])
        assert sorted(torch.cat([labels for _, labels in batches]).tolist()) == sorted(folders.train.labels)
        seen |= {(photo, view) for row in rows for view, photo in (features.train == row).all(dim=2).nonzero().tolist()}
    assert len(seen) > 48, "most photos were shown in more than two views"


def test_a_head_that_is_not_linear_is_trained_on_decoded_photos(config: RunConfig, tmp_path: Path) -> None:
    config = override(config, {"model.backbone": "squeezenet1_1", "data.image_size": 64, "trainer.max_epochs": 1})
    assert isinstance(task_of(config), PhotoTask)
    assert open_decoded_once(config) is not None
    run(config, tmp_path)
    with pytest.raises(ValueError, match=r"data\.cache features needs a linear head, which squeezenet1_1 lacks"):
        run(override(config, {"data.cache": "features"}), tmp_path / "cached")


def test_features_of_another_interpolation_are_another_entry(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    bilinear = open_features_once(config)
    cubic = replace(recipe(config.model.backbone), interpolation=Interpolation.BICUBIC)
    monkeypatch.setattr("experiments.data.inputs.recipe", lambda backbone: cubic)
    forget_opened()
    assert not torch.equal(open_features_once(config).valid, bilinear.valid)
    assert len(list((config.data.cache_dir / "arrays").glob("*/array.npy"))) == 4
    forget_opened()


def test_a_cache_that_can_not_hold_the_features_says_what_it_needs(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.cache_max_gb must be at least 9\.83e-05 for this data, got 1e-06"):
        run(override(config, {"data.cache_max_gb": 1e-6}), tmp_path)


def test_loader_threads_change_no_metric(config: RunConfig, tmp_path: Path) -> None:
    config = override(config, {"data.augment": "strong", "trainer.max_epochs": 2, "data.cache": "none"})
    alone = run(config, tmp_path / "0")
    helped = run(override(config, {"data.num_workers": 3}), tmp_path / "3")
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


@pytest.mark.parametrize(("metric", "last"), [("val_loss", 6), ("val_accuracy", 4)])
def test_early_stopping_watches_the_objective(metric: str, last: int) -> None:
    """The loss falls until epoch 4, the accuracy rises until epoch 2."""
    history = History(metric, DIRECTIONS[metric], patience=2)
    trainer = SimpleNamespace(strategy=SimpleNamespace(broadcast=lambda value: value), should_stop=False)
    for epoch, (loss, accuracy) in enumerate([(0.9, 0.5), (0.8, 0.6), (0.7, 0.6), (0.6, 0.5), (0.7, 0.6), (0.7, 0.6)]):
        trainer.current_epoch, trainer.callback_metrics = epoch, {"val_loss": loss, "val_accuracy": accuracy}
        history.on_validation_end(trainer, None)
        assert trainer.should_stop == (epoch + 1 >= last)


def test_the_highest_accuracy_is_that_of_any_epoch_and_the_others_are_of_the_best() -> None:
    epochs = {1: {"val_loss": 0.5, "val_accuracy": 0.9}, 2: {"val_loss": 0.4, "val_accuracy": 0.8}}
    found = run_metrics(epochs, best_epoch(epochs, "val_loss", "minimize"))
    assert found == {"val_loss": 0.4, "val_accuracy": 0.8, "highest_val_accuracy": 0.9}


def test_a_loss_that_is_no_number_stops_the_run_and_says_what_to_try(config: RunConfig, tmp_path: Path) -> None:
    values = {"optimizer.learning_rate": 1e30, "optimizer.name": "sgd", "model.trainable": "all"}
    with pytest.raises(NotANumberError, match=r"val_loss is (nan|inf).*optimizer\.learning_rate"):
        run(override(config, values), tmp_path)


def test_the_export_scores_as_the_trainer_does(config: RunConfig, tmp_path: Path) -> None:
    result = run(config, tmp_path)
    folder = export(result.task, tmp_path, tmp_path / "export", result.metrics)
    check_golden(folder)
    scores = score_split(
        load_export(folder).network, photo_data(config, result.task.folders), result.task.folders.valid
    )
    assert scores.probabilities == pytest.approx(result.validation.probabilities, abs=1e-5)
    assert scores.metrics("val")["val_loss"] == pytest.approx(result.metrics["val_loss"], abs=1e-5)


@pytest.mark.parametrize(("trainable", "cache"), [("all", "none"), ("head", "features")])
def test_an_export_has_float32_scores_in_every_precision_of_training(
    config: RunConfig, tmp_path: Path, trainable: str, cache: str
) -> None:
    values = {"trainer.precision": "bf16-mixed", "model.trainable": trainable, "data.cache": cache}
    result = run(override(config, values), tmp_path)
    measured = score_and_export(result, tmp_path / "export", tmp_path / "scores.npz")
    noted = json.loads((tmp_path / "export" / "model.json").read_text())["metrics"]
    again = score_split(
        load_export(tmp_path / "export").network, photo_data(config, result.task.folders), result.task.folders.valid
    )
    for name, value in again.metrics("val").items():
        assert noted[name] == measured[name] == pytest.approx(value, abs=1e-6)
    of_epochs = {epoch: values["val_loss"] for epoch, values in result.history.items()}
    assert result.best_epoch == min(of_epochs, key=of_epochs.__getitem__), "the epochs' own values choose"
    apart = abs(noted["val_loss"] - of_epochs[result.best_epoch])
    # The features of validation photos are of float32 already.
    assert apart < 1e-6 if cache == "features" else apart > 1e-5


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
    (tmp_path / CHECKPOINT_FOLDER / ".last.ckpt.part.sagemaker-ignore").write_bytes(b"half")
    assert list(run(config, tmp_path).history) == [1, 2, 3]


class SigtermAfterAnEpoch(Callback):
    """Sends SIGTERM where no batch follows it in this epoch: Lightning's own handler acts at the epoch's end."""

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("trainable", ["head", "all"])
def test_sigterm_at_the_end_of_an_epoch_is_an_interrupt_and_not_the_end(
    config: RunConfig, tmp_path: Path, trainable: str
) -> None:
    config = override(config, {"model.trainable": trainable})
    with Interrupts([signal.SIGTERM]) as interrupts, pytest.raises(InterruptedRunError):
        run(config, tmp_path, Watch(interrupts.raise_if_requested), SigtermAfterAnEpoch())
    assert (tmp_path / CHECKPOINT_FOLDER / "last.ckpt").is_file()
    assert run(config, tmp_path).history.keys() == {1, 2, 3}


@pytest.mark.parametrize(("batch_size", "trainable"), [(23, "all"), (11, "last_block")])
def test_a_last_batch_of_one_image_trains_where_batch_norm_does(
    batch_size: int, trainable: str, photos: Path, tmp_path: Path
) -> None:
    """24 images, or 23 of them; the network's last maps have one value. A MNASNet, whose weights had no way back."""
    root = tmp_path / "photos"
    shutil.copytree(photos, root)
    if batch_size == 11:
        next((root / "train" / "001.Class1").iterdir()).unlink()
    values = {"data.root": root, "data.batch_size": batch_size, "model.trainable": trainable}
    config = load_config(
        None, tiny(photos, tmp_path) | values | {"model.backbone": "mnasnet0_5", "trainer.max_epochs": 2}
    )
    result = run(config, tmp_path)
    assert sorted(result.history) == [1, 2]
    assert all(0 < metrics["train_loss"] < 100 for metrics in result.history.values())
    check_golden(export(result.task, tmp_path, tmp_path / "export", {}))
