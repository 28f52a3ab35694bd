"""Scores of a split: one definition of the loss, which is finite however wrong a network is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.runs.scoring import Scores, predict_log_probabilities
from lightning_modules.files import replaced_whole

LOGITS = torch.tensor([[0.0, 3e4, -2.0], [1.0, 0.5, 0.0], [0.0, -200.0, 0.0], [5.0, 5.0, 5.0]])
LABELS = np.array([0, 0, 1, 2])
NAMES = ("a", "b", "c")


class Given(nn.Module):
    """Scores its inputs with themselves."""

    def forward(self, scores: Tensor) -> Tensor:
        return scores


@pytest.fixture
def scores() -> Scores:
    log_probabilities = predict_log_probabilities(Given(), [LOGITS[:3], LOGITS[3:]])
    return Scores(Path("root"), tuple(Path(f"{index}.jpg") for index in range(4)), LABELS, log_probabilities, NAMES)


@pytest.mark.parametrize("prefix", ["val", "test"])
def test_the_loss_is_the_cross_entropy_that_training_computes(scores: Scores, prefix: str) -> None:
    expected = float(functional.cross_entropy(LOGITS, torch.from_numpy(LABELS)))
    found = scores.metrics(prefix)
    assert expected > 7000, "a loss that was cut off at 1e-38 would be 22 per photo"
    assert found[f"{prefix}_loss"] == pytest.approx(expected, rel=1e-6)
    assert found[f"{prefix}_accuracy"] == 0.25


def test_scores_are_read_as_they_were_written(scores: Scores, tmp_path: Path) -> None:
    scores.save(tmp_path / "scores.npz")
    loaded = Scores.load(tmp_path / "scores.npz")
    assert np.isfinite(loaded.log_probabilities).all()
    assert loaded.metrics("val") == pytest.approx(scores.metrics("val"), rel=1e-6)
    assert loaded.probabilities.sum(axis=1) == pytest.approx(np.ones(4))
    assert (loaded.paths, loaded.class_names) == (scores.paths, NAMES)


def test_scores_of_an_older_version_are_read(scores: Scores, tmp_path: Path) -> None:
    path = tmp_path / "scores.npz"
    scores.save(path)
    with np.load(path) as saved:
        values = {name: saved[name] for name in saved if name != "log_probabilities"}
    with replaced_whole(path) as part, part.open("wb") as file:
        np.savez(file, probabilities=scores.probabilities.astype("float32"), **values)
    loaded = Scores.load(path)
    assert np.isfinite(loaded.log_probabilities).all()
    assert loaded.probabilities == pytest.approx(scores.probabilities, abs=1e-6)
