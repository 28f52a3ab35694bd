"""Speed as ratios within one run, never as seconds: the machine may be any."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import pytest
import torch

from experiments.config import RunConfig, load_config, override
from experiments.data.inputs import forget_opened, open_data_once, open_decoded_once, open_features_once, photo_data
from experiments.train import train
from lightning_modules.data import PhotoBatches
from lightning_modules.heads.population import HeadPopulation, Member
from lightning_modules.metrics import EPOCH_SECONDS
from tests.conftest import tiny
from tests.integration.test_train import MemoryLogger
from tests.pictures import make_class_folders

pytestmark = pytest.mark.slow


def seconds(config: RunConfig, folder: Path) -> float:
    started = time.perf_counter()
    train(config, output_dir=folder, logger=MemoryLogger())
    return time.perf_counter() - started


def test_a_trial_on_cached_features_takes_a_fraction_of_one_without(photos: Path, tmp_path: Path) -> None:
    values = {"model.backbone": "resnet50", "data.image_size": 96, "trainer.max_epochs": 5}
    config = load_config(None, tiny(photos, tmp_path) | values)
    forget_opened()
    seconds(config, tmp_path / "first")  # computes the features, and warms both sides
    cached = [seconds(config, tmp_path / f"cached{number}") for number in range(5)]
    plain = [seconds(override(config, {"data.cache": "none"}), tmp_path / f"plain{number}") for number in range(5)]
    assert statistics.median(plain) > 10 * statistics.median(cached)


def test_a_head_takes_its_steps_without_what_lightning_does_around_them(photos: Path, tmp_path: Path) -> None:
    config = load_config(None, tiny(photos, tmp_path) | {"data.batch_size": 1, "trainer.max_epochs": 20})
    forget_opened()

    def epoch(folder: Path, *, single_steps: bool) -> float:
        result = train(config, output_dir=folder, logger=MemoryLogger(), single_steps=single_steps)
        return statistics.median(values[EPOCH_SECONDS] for values in result.history.values())

    times = [
        (epoch(tmp_path / f"many{number}", single_steps=False), epoch(tmp_path / f"one{number}", single_steps=True))
        for number in range(5)
    ]
    many, one_by_one = (statistics.median(column) for column in zip(*times, strict=True))
    assert one_by_one > 2 * many


def test_a_population_takes_a_fraction_of_its_members_one_by_one(photos: Path, tmp_path: Path) -> None:
    config = load_config(None, tiny(photos, tmp_path))
    features = open_features_once(config)

    def epochs(count: int) -> float:
        members = [Member(learning_rate=0.01, weight_decay=0.0, batch_size=8, max_epochs=20)] * count
        population = HeadPopulation(features, members, optimizer="adamw", schedule="cosine", seed=0)
        started = time.perf_counter()
        for _ in range(20):
            population.train_epoch()
        return time.perf_counter() - started

    epochs(16)
    together = statistics.median(epochs(16) for _ in range(5))
    alone = statistics.median(epochs(1) for _ in range(5))
    assert 16 * alone > 3 * together


def test_reading_decoded_photos_costs_a_few_copies_and_decoding_more(tmp_path: Path) -> None:
    photos = make_class_folders(tmp_path / "photos", per_class={"train": 60, "valid": 2}, size=400)
    values = {"data.image_size": 224, "model.trainable": "all", "data.augment": "light", "data.batch_size": 32}
    config = load_config(None, tiny(photos, tmp_path) | values)
    forget_opened()
    folders = open_data_once(config)
    cached = photo_data(config, folders, open_decoded_once(config)).train_dataloader()
    from_files = photo_data(config, folders).train_dataloader()
    sources = [batch.pixels for batch in cached]
    targets = [torch.empty_like(source) for source in sources]

    def epoch(loader: PhotoBatches) -> float:
        started = time.perf_counter()
        for _ in loader:
            pass
        return time.perf_counter() - started

    def copy() -> float:
        started = time.perf_counter()
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)
        return time.perf_counter() - started

    times = [(epoch(cached), copy(), epoch(from_files)) for _ in range(7)]
    reading, copying, decoding = (statistics.median(column) for column in zip(*times, strict=True))
    # Two to three copies were measured: a batch needs fresh memory (docs/performance.md).
    assert reading < 6 * copying
    assert decoding > 3 * reading
