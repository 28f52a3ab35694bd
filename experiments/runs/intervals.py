"""Confidence intervals of accuracies, and a note on the best of several."""

from __future__ import annotations

import math
from collections.abc import Mapping

Z = 1.959964
"""Standard normal deviate of a 95 % interval."""
COUNTS: Mapping[str, str] = {"val_": "data.valid_images", "test_": "data.test_images"}
"""Prefix of a metric's name, and the param that says on how many photos the metric was measured."""


def wilson_interval(accuracy: float, photos: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy that was measured on some photos.

    It also holds near 0 and 1 and for few photos, where two standard errors do not.

    Source: E. B. Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    shrunk = 1 / (1 + Z**2 / photos)
    middle = shrunk * (accuracy + Z**2 / (2 * photos))
    half = shrunk * Z * math.sqrt(accuracy * (1 - accuracy) / photos + (Z / (2 * photos)) ** 2)
    return max(0.0, middle - half), min(1.0, middle + half)


def bracketed(interval: tuple[float, float], form: str = ".3f") -> str:
    """An interval as text."""
    return f"[{interval[0]:{form}}, {interval[1]:{form}}]"


def metric_interval(metric: str, value: float, facts: Mapping[str, object]) -> tuple[float, float] | None:
    """The interval of an accuracy; None for other metrics, and where the number of photos is not known.

    Args:
        facts: what a run notes about its data (`data_facts`), as numbers or text.
    """
    photos = next((int(str(facts.get(key, 0))) for begin, key in COUNTS.items() if begin in metric), 0)
    return wilson_interval(value, photos) if photos and metric.endswith("accuracy") else None


def interval_text(metric: str, value: float | None, facts: Mapping[str, object], form: str = ".3f") -> str:
    """Suffix of a metric's value: ` [low, high]`, or nothing if `metric_interval` has none."""
    interval = None if value is None else metric_interval(metric, value, facts)
    return "" if interval is None else f" {bracketed(interval, form)}"


def metric_text(metric: str, value: float, facts: Mapping[str, object]) -> str:
    """A metric in a line of a terminal, an accuracy with its interval."""
    return f"{metric} {value:.4f}{interval_text(metric, value, facts)}"


def selection_text(count: int, of: str, facts: Mapping[str, object]) -> str:
    """A caution about the best of several: it was selected by its score on the same photos.

    Args:
        count: how many there were to select from.
        of: what was selected, such as `trial`.
        facts: as for `metric_interval`.
    """
    photos = facts.get(COUNTS["val_"])
    basis = "" if photos is None else f" on {int(str(photos)):,} photos"
    return f"best of {count:,} {of}{'s' if count > 1 else ''}{basis}: optimistic"
