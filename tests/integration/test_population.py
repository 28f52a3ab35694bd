"""Heads that train together end as each would have ended alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from experiments.callbacks.checkpoints import BEST_CHECKPOINT, CHECKPOINT_FOLDER
from experiments.config import RunConfig, load_config, override
from experiments.data import inputs
from experiments.data.inputs import open_data_once, open_features_once
from experiments.runs.folder import RunFolder
from experiments.study.population_training import PopulationRun, train_population
from experiments.task import HeadTask
from experiments.train import train
from lightning_modules.caches.features import FeatureSet
from lightning_modules.heads.population import HeadPopulation, Member
from tests.conftest import tiny
from tests.integration.test_train import MemoryLogger

FIELDS = {
    "learning_rate": "optimizer.learning_rate",
    "weight_decay": "optimizer.weight_decay",
    "batch_size": "data.batch_size",
    "max_epochs": "trainer.max_epochs",
    "warmup_epochs": "optimizer.warmup_epochs",
    "dropout": "model.dropout",
    "label_smoothing": "model.label_smoothing",
}
"""Field of a member to field of the config."""
MEMBERS = [
    Member(0.05, 0.1, 8, 4),
    Member(0.003, 0.0, 5, 4, warmup_epochs=1.0),
    Member(0.5, 0.01, 24, 4, label_smoothing=0.1),
    Member(0.02, 0.02, 5, 4, dropout=0.3),
    Member(0.02, 0.02, 7, 4, dropout=0.6, label_smoothing=0.2),
]


@pytest.fixture
def config(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A run whose features, three views of each photo, are made up so that heads learn from them."""
    config = load_config(None, tiny(photos, tmp_path))
    folders = open_data_once(config)
    torch.manual_seed(0)
    means = torch.randn(3, 32)

    def made_up(labels: tuple[int, ...], views: int) -> torch.Tensor:
        return means[list(labels)] + 4 * torch.randn(views, len(labels), 32)

    train, valid = folders.train.labels, folders.valid.labels
    features = FeatureSet(
        made_up(train, 3), torch.tensor(train), made_up(valid, 1), torch.tensor(valid), nn.Linear(32, 3)
    )
    monkeypatch.setattr(inputs, "_open_features", lambda config: features)
    return config


def alone(config: RunConfig, member: Member, folder: Path) -> list[dict[str, float]]:
    values = {field: getattr(member, name) for name, field in FIELDS.items()}
    result = train(override(config, values), output_dir=folder, logger=MemoryLogger())
    return [dict(result.history[epoch]) for epoch in sorted(result.history)]


def new_heads(config: RunConfig, members: list[Member]) -> HeadPopulation:
    return HeadPopulation(
        open_features_once(config),
        members,
        optimizer=config.optimizer.name,
        schedule=config.optimizer.schedule,
        seed=config.seed,
        gradient_clip=config.trainer.gradient_clip,
    )


def assert_equal(first: dict[str, float], other: dict[str, float], tolerance: float = 1e-4) -> None:
    names = ("val_loss", "val_accuracy", "val_top5_accuracy", "train_loss", "train_accuracy", "learning_rate")
    assert {name: first[name] for name in names} == pytest.approx({name: other[name] for name in names}, abs=tolerance)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("members", [MEMBERS, [MEMBERS[0], Member(0.01, 0.0, 8, 4)]], ids=["mixed", "one batch size"])
def test_every_member_ends_as_its_solo_run(
    config: RunConfig, tmp_path: Path, optimizer: str, members: list[Member]
) -> None:
    config = override(config, {"optimizer.name": optimizer})
    population = new_heads(config, members)
    epochs = [population.train_epoch() for _ in range(4)]
    for index, member in enumerate(members):
        solo = alone(config, member, tmp_path / str(index))
        assert max(epoch["val_loss"] for epoch in solo) - min(epoch["val_loss"] for epoch in solo) > 0.01, (
            "nothing was learned"
        )
        for found, wanted in zip(epochs, solo, strict=True):
            assert_equal(found[index], wanted)


@pytest.mark.parametrize("schedule", ["constant", "one_cycle"])
def test_schedule_and_clipping_are_those_of_a_solo_run(config: RunConfig, tmp_path: Path, schedule: str) -> None:
    config = override(config, {"optimizer.schedule": schedule, "trainer.gradient_clip": 0.05})
    population = new_heads(config, MEMBERS[:2])
    epochs = [population.train_epoch() for _ in range(4)]
    for index, member in enumerate(MEMBERS[:2]):
        for found, wanted in zip(epochs, alone(config, member, tmp_path / str(index)), strict=True):
            assert_equal(found[index], wanted)


def test_a_member_stops_early_where_it_would_alone(config: RunConfig, tmp_path: Path) -> None:
    config = override(config, {"trainer.max_epochs": 12, "trainer.early_stopping_patience": 2})
    points: list[dict[str, object]] = [
        {"optimizer.learning_rate": 0.5},
        {"optimizer.learning_rate": 0.02, "data.batch_size": 5},
        {"optimizer.learning_rate": 0.1, "trainer.early_stopping_patience": 1},
        {"optimizer.learning_rate": 1e-4, "trainer.max_epochs": 4},
    ]
    runs = [
        PopulationRun(
            HeadTask(override(config, point)), RunFolder(tmp_path / str(index)), lambda epoch, value, ends: False
        )
        for index, point in enumerate(points)
    ]
    for member_run in runs:
        member_run.folder.start("member", {}, {})
    outcomes = {run.folder.path: outcome for run, outcome in train_population(runs, check=lambda: None)}
    lengths = []
    for index, member_run in enumerate(runs):
        solo = train(member_run.task.config, output_dir=tmp_path / f"solo-{index}", logger=MemoryLogger())
        lines = member_run.folder.metric_lines()
        assert [line.step for line in lines] == list(solo.history)
        for line in lines:
            assert line.metrics["val_loss"] == pytest.approx(solo.history[line.step]["val_loss"], rel=1e-4)
        assert outcomes[member_run.folder.path].metrics["val_loss"] == pytest.approx(solo.metrics["val_loss"], rel=1e-4)
        best = torch.load(member_run.folder.path / CHECKPOINT_FOLDER / BEST_CHECKPOINT, weights_only=True)
        assert best["epoch"] + 1 == solo.best_epoch
        lengths.append(len(lines))
    assert len(set(lengths)) > 2 and max(lengths[:3]) < 12, lengths


def test_members_that_leave_change_nothing_for_the_others(config: RunConfig) -> None:
    whole, thinned = new_heads(config, MEMBERS), new_heads(config, MEMBERS)
    whole.train_epoch()
    thinned.train_epoch()
    thinned.keep([1, 4])
    wanted, found = whole.train_epoch(), thinned.train_epoch()
    assert found.keys() == {1, 4}
    for index in (1, 4):
        assert_equal(found[index], wanted[index], tolerance=1e-6)
        for tensor, other in zip(thinned.head(index), whole.head(index), strict=True):
            assert torch.allclose(tensor, other, atol=1e-6)


@pytest.mark.usefixtures("own_threads")
def test_small_members_train_on_one_thread_and_the_process_keeps_its_own(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(2)
    threads = []
    validate = HeadPopulation._validate

    def noting(population: HeadPopulation) -> tuple[list[float], list[float], list[float]]:
        threads.append(torch.get_num_threads())
        return validate(population)

    monkeypatch.setattr(HeadPopulation, "_validate", noting)
    new_heads(config, MEMBERS).train_epoch()
    assert (threads, torch.get_num_threads()) == ([1], 2)
    monkeypatch.setattr("lightning_modules.heads.population.ONE_THREAD_WEIGHTS", len(MEMBERS) * 3 * 32 - 1)
    new_heads(config, MEMBERS).train_epoch()
    assert threads == [1, 2]
