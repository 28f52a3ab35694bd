"""How well an accuracy is known, as a person sees it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.runs.intervals import interval_text, metric_interval, metric_text, selection_text, wilson_interval

FACTS = {"data.valid_images": "341", "data.test_images": 0}


@pytest.mark.parametrize(
    ("right", "photos", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_wilsons(right: int, photos: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17, 857-872, Table I, method 3."""
    assert wilson_interval(right / photos, photos) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_an_interval_holds_its_accuracy_and_stays_within_0_and_1(photos: int, accuracy: float) -> None:
    low, high = wilson_interval(accuracy, photos)
    assert 0 <= low <= accuracy + 1e-12
    assert accuracy - 1e-12 <= high <= 1


@pytest.mark.parametrize(
    ("metric", "shown"),
    [
        ("val_accuracy", " [0.755, 0.840]"),
        ("best_val_accuracy", " [0.755, 0.840]"),
        ("highest_val_accuracy", " [0.755, 0.840]"),
        ("val_top5_accuracy", " [0.755, 0.840]"),
        ("val_loss", ""),
        ("train_accuracy", ""),
        ("test_accuracy", ""),  # no test photos
    ],
)
def test_accuracies_on_photos_of_known_number_have_an_interval(metric: str, shown: str) -> None:
    assert interval_text(metric, 0.801, FACTS) == shown
    assert metric_text(metric, 0.801, FACTS) == f"{metric} 0.8010{shown}"
    assert (metric_interval(metric, 0.801, FACTS) is None) == (shown == "")
    assert interval_text(metric, 0.801, {}) == interval_text(metric, None, FACTS) == ""


def test_the_best_of_several_is_said_to_be_optimistic() -> None:
    assert selection_text(20, "trial", FACTS) == "best of 20 trials on 341 photos: optimistic"
    assert selection_text(1, "run", {}) == "best of 1 run: optimistic"
