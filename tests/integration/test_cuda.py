"""What only a CUDA device shows. Skipped elsewhere; the rest of the tests train on the CPU."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from experiments.config import load_config, override
from experiments.inputs import forget_opened
from experiments.train import export, train
from lightning_modules.export import check_golden
from tests.conftest import tiny
from tests.integration.test_train import MemoryLogger, timeless

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("trainable", "cache"), [("all", "decoded"), ("all", "none"), ("last_block", "decoded"), ("head", "features")]
)
def test_training_on_cuda_learns_and_exports(
    photos: Path, tmp_path: Path, trainable: str, cache: str, compiled: bool
) -> None:
    forget_opened()
    values = {"model.trainable": trainable, "data.cache": cache, "data.augment": "strong", "trainer.compile": compiled}
    config = override(load_config(None, tiny(photos, tmp_path)), values | {"trainer.accelerator": "auto"})
    result = train(config, output_dir=tmp_path, logger=MemoryLogger())
    assert all(math.isfinite(metrics["val_loss"]) for metrics in result.history.values())
    check_golden(export(config, result.data.folders, tmp_path, tmp_path / "export", result.metrics))


def test_decoded_photos_give_the_same_answer_on_cuda(photos: Path, tmp_path: Path) -> None:
    forget_opened()
    values = {"model.trainable": "all", "data.augment": "strong", "trainer.precision": "32-true"}
    config = override(load_config(None, tiny(photos, tmp_path)), values | {"trainer.accelerator": "auto"})
    plain, decoded = (
        timeless(train(override(config, {"data.cache": cache}), output_dir=tmp_path / cache, logger=MemoryLogger()))
        for cache in ("none", "decoded")
    )
    for epoch, metrics in plain.items():
        assert decoded[epoch]["val_loss"] == pytest.approx(metrics["val_loss"], abs=1e-3)
