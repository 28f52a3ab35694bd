"""A head on cached features takes many steps at once, and ends as if it had taken them one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import Callback

from experiments.config import RunConfig, load_config
from experiments.train import TrainResult, train, trained_network
from lightning_modules.heads.head import HeadClassifier
from lightning_modules.process import prepare_process
from tests.conftest import tiny
from tests.integration.test_train import MemoryLogger, timeless

CASES: dict[str, dict[str, object]] = {
    "plain": {},
    "dropout and views": {"model.dropout": 0.3, "data.augment": "light", "data.cache_views": 3},
    "sgd, clipped": {"optimizer.name": "sgd", "trainer.gradient_clip": 0.05},
    "one cycle": {"optimizer.schedule": "one_cycle", "optimizer.warmup_epochs": 1.0, "model.label_smoothing": 0.1},
    "one batch an epoch": {"data.batch_size": 24, "optimizer.weight_decay": 0.2},
}


class Seen(Callback):
    """Notes what Lightning counts, and whose steps they are."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.many = False

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.steps.append(trainer.global_step)
        self.many = isinstance(pl_module, HeadClassifier)


def run(config: RunConfig, folder: Path, *, single_steps: bool = False) -> tuple[TrainResult, Seen]:
    seen = Seen()
    logger = MemoryLogger()
    result = train(config, output_dir=folder, logger=logger, callbacks=[seen], single_steps=single_steps)
    return result, seen


@pytest.mark.parametrize("case", list(CASES))
def test_it_ends_as_one_by_one(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    # 24 images in batches of 5: two steps at once make pieces of 10, 10 and 4.
    monkeypatch.setattr("lightning_modules.caches.features.IMAGES_AT_ONCE", 12)
    config = load_config(None, tiny(photos, tmp_path) | {"data.batch_size": 5} | CASES[case])
    single, by_one = run(config, tmp_path / "single", single_steps=True)
    many, at_once = run(config, tmp_path / "many")
    assert not by_one.many
    assert at_once.many
    batches = 1 if config.data.batch_size == 24 else 5
    assert by_one.steps == list(range(1, 3 * batches + 1))
    assert at_once.steps == list(range(1, 3 * -(-batches // 2) + 1))
    assert len({metrics["train_loss"] for metrics in many.history.values()}) == 3, "nothing was learned"
    for epoch, metrics in timeless(single).items():
        assert timeless(many)[epoch] == pytest.approx(metrics, abs=1e-6), epoch
    heads = [trained_network(result.task, result.output_dir).state_dict()["fc.weight"] for result in (single, many)]
    assert torch.allclose(heads[0], heads[1], atol=1e-6)


@pytest.mark.parametrize("values", [{"trainer.record": "light"}, {"trainer.profile": True}])
def test_who_looks_at_steps_sees_each(photos: Path, tmp_path: Path, values: dict[str, object]) -> None:
    config = load_config(None, tiny(photos, tmp_path) | values)
    _, seen = run(config, tmp_path)
    assert not seen.many
    assert seen.steps == list(range(1, 10))


def test_a_run_that_was_killed_between_epochs_ends_with_the_same_metrics(photos: Path, tmp_path: Path) -> None:
    config = load_config(None, tiny(photos, tmp_path) | {"model.dropout": 0.2, "optimizer.schedule": "cosine"})
    whole, _ = run(config, tmp_path / "whole")

    class Killed(Exception):
        """Stands for the end of the process."""

    class Kill(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 2:
                raise Killed

    with pytest.raises(Killed):
        train(config, output_dir=tmp_path / "cut", logger=MemoryLogger(), callbacks=[Kill()])
    resumed, seen = run(config, tmp_path / "cut")
    assert seen.steps == [3]
    assert timeless(resumed) == timeless(whole)


def test_no_step_looks_for_a_gpu_where_there_is_none(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning has torch search for the driver at each question for GPUs, and each step of an optimiser asks."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # as Lightning leaves it
    searches: list[int] = []
    monkeypatch.setattr(torch.cuda, "_device_count_nvml", lambda: searches.append(1) or 0)
    prepare_process()
    run(load_config(None, tiny(photos, tmp_path) | {"trainer.max_epochs": 10}), tmp_path)
    assert len(searches) < 10, "the run has 30 steps"
