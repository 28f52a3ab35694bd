"""How long a run trains is decided once, and everything reads that number."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.config import RunConfig, load_config, override
from experiments.errors import UserError
from experiments.study.epochs import train_longer, with_max_epochs
from experiments.study.search_space import ChoiceRange, FloatRange, IntRange, SearchSpace
from tests.conftest import tiny


@pytest.fixture
def config(photos: Path, tmp_path: Path) -> RunConfig:
    """24 photos in batches of 8: 3 steps per epoch."""
    return override(load_config(None, tiny(photos, tmp_path)), {"trainer.max_epochs": None})


@pytest.mark.parametrize(
    ("steps", "values", "epochs"),
    [
        (1, {}, 1),
        (6, {}, 2),
        (7, {}, 3),
        (7, {"data.batch_size": 24}, 7),
        (7, {"data.batch_size": 1000}, 7),
        (7, {"data.batch_size": 5}, 2),
        (7, {"trainer.devices": 3}, 7),
        (7, {"data.fraction": 0.5}, 4),
    ],
    ids=str,
)
def test_steps_are_rounded_up_to_whole_epochs(
    config: RunConfig, steps: int, values: dict[str, object], epochs: int
) -> None:
    config = override(config, {"trainer.min_steps": steps, **values})
    assert with_max_epochs(config).trainer.epochs == epochs


def test_a_number_of_epochs_that_is_set_wins(config: RunConfig) -> None:
    config = override(config, {"trainer.max_epochs": 2, "data.root": "s3:/bucket/photos"})
    assert with_max_epochs(config) == config


@pytest.mark.parametrize("drawn", [IntRange(2, 8), ChoiceRange((2, 8, 4)), ChoiceRange(("8", "2"))], ids=str)
@pytest.mark.parametrize("set_", [None, 3])
def test_a_search_over_epochs_wins_over_both(
    config: RunConfig, drawn: IntRange | ChoiceRange, set_: int | None
) -> None:
    found = with_max_epochs(override(config, {"trainer.max_epochs": set_}), {"trainer.max_epochs": drawn})
    assert found.trainer.epochs == 8


def test_a_searched_batch_size_changes_nothing(config: RunConfig) -> None:
    space: SearchSpace = {"data.batch_size": ChoiceRange((4, 12)), "model.dropout": FloatRange(0, 0.5)}
    assert with_max_epochs(override(config, {"trainer.min_steps": 7}), space).trainer.epochs == 3


def test_photos_that_nobody_here_can_count_need_a_number(config: RunConfig) -> None:
    rule = r"^trainer\.max_epochs must be set where data\.root is in S3: its photos are not counted, got None$"
    with pytest.raises(UserError, match=rule):
        with_max_epochs(override(config, {"data.root": "s3://bucket/photos"}))


def test_a_run_whose_best_epoch_is_its_last_should_train_longer() -> None:
    assert train_longer(5, 5) == "the best epoch is the last one, 5: train longer, such as with --trainer.max_epochs 10"
    assert train_longer(4, 5) == ""
