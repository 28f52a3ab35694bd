"""What only a CUDA device shows. Skipped elsewhere; the rest of the tests train on the CPU."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import Callback

from experiments.config import RunConfig, load_config, override
from experiments.data.inputs import forget_opened, open_data_once, open_decoded_once, open_features_once, photo_data
from experiments.train import export, train
from lightning_modules.export import check_golden
from lightning_modules.heads.population import HeadPopulation, Member
from tests.conftest import tiny
from tests.integration.test_train import MemoryLogger

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def config(photos: Path, tmp_path: Path) -> RunConfig:
    """A run on the device."""
    forget_opened()
    return override(load_config(None, tiny(photos, tmp_path)), {"trainer.accelerator": "auto"})


class NeverWait(Callback):
    """From the second epoch on, whatever waits for the device between two batches is an error."""

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.current_epoch:
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.is_last_batch:
            torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def never_wait() -> Iterator[NeverWait]:
    """It, and the end of it after an error too."""
    yield NeverWait()
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # torch 2.11's own compiler uses it
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("trainable", "cache"), [("all", "decoded"), ("all", "none"), ("last_block", "decoded"), ("head", "features")]
)
def test_training_on_cuda_learns_and_exports(
    config: RunConfig, tmp_path: Path, trainable: str, cache: str, compiled: bool
) -> None:
    values = {"model.trainable": trainable, "data.cache": cache, "data.augment": "strong", "trainer.compile": compiled}
    config = override(config, values)
    result = train(config, output_dir=tmp_path, logger=MemoryLogger())
    assert all(math.isfinite(metrics["val_loss"]) for metrics in result.history.values())
    check_golden(export(result.task, tmp_path, tmp_path / "export", result.metrics))


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("augment", ["none", "light", "strong"])
@pytest.mark.parametrize(
    ("trainable", "cache"), [("all", "decoded"), ("last_block", "none"), ("head", "decoded"), ("head", "features")]
)
def test_no_step_waits_for_the_device(
    config: RunConfig, tmp_path: Path, trainable: str, cache: str, augment: str, never_wait: NeverWait
) -> None:
    values = {"model.trainable": trainable, "data.cache": cache, "data.augment": augment, "model.dropout": 0.2}
    values["trainer.gradient_clip"] = 1.0
    config = override(config, values)
    result = train(config, output_dir=tmp_path, logger=MemoryLogger(), callbacks=[never_wait])
    assert len(result.history) == 3


@pytest.mark.parametrize("augment", ["none", "light", "strong"])
def test_batches_are_those_of_the_cpu_decoded_before_or_not(config: RunConfig, augment: str) -> None:
    config = override(config, {"data.augment": augment, "model.trainable": "all"})
    folders = open_data_once(config)
    seen = []
    for cache, device in (("none", "cuda"), ("decoded", "cuda"), ("none", "cpu")):
        data = photo_data(config, folders, open_decoded_once(override(config, {"data.cache": cache})))
        data.augment = "light" if augment == "strong" else data.augment  # mixing needs a trainer
        here = torch.device(device)
        seen.append([data.transfer_batch_to_device(batch, here, 0) for batch in data.train_dataloader()])
    for plain, decoded, on_cpu in zip(*seen, strict=True):
        assert plain[0].is_cuda
        assert plain[0].is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(plain[0], decoded[0])
        assert plain[1].tolist() == decoded[1].tolist() == on_cpu[1].tolist()
        assert torch.allclose(plain[0].cpu(), on_cpu[0], atol=1e-3)


def test_a_member_of_a_population_ends_as_its_solo_run(config: RunConfig, tmp_path: Path) -> None:
    config = override(config, {"data.augment": "light", "optimizer.schedule": "one_cycle"})
    features = open_features_once(config).to(torch.device("cuda"))
    members = [Member(0.05, 0.1, 8, 3), Member(0.02, 0.0, 5, 3, dropout=0.3)]
    population = HeadPopulation(features, members, optimizer="adamw", schedule="one_cycle", seed=config.seed)
    epochs = [population.train_epoch() for _ in range(3)]
    for index, member in enumerate(members):
        values = {"optimizer.learning_rate": member.learning_rate, "optimizer.weight_decay": member.weight_decay}
        values |= {"data.batch_size": member.batch_size, "model.dropout": member.dropout}
        solo = train(override(config, values), output_dir=tmp_path / str(index), logger=MemoryLogger())
        for epoch, metrics in solo.history.items():
            for name in ("val_loss", "train_loss", "val_accuracy"):
                assert epochs[epoch - 1][index][name] == pytest.approx(metrics[name], abs=1e-4), (name, epoch)
