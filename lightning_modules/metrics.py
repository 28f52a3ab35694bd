"""The metrics, defined once: their names in MLflow, Optuna and a job's metric lines, and which may be the objective."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

TRAIN_LOSS: Final = "train_loss"
TRAIN_ACCURACY: Final = "train_accuracy"
VAL_LOSS: Final = "val_loss"
"""Average cross entropy over the validation split; the default objective, minimised."""
VAL_ACCURACY: Final = "val_accuracy"
VAL_TOP5_ACCURACY: Final = "val_top5_accuracy"
TEST_LOSS: Final = "test_loss"
TEST_ACCURACY: Final = "test_accuracy"
TEST_TOP5_ACCURACY: Final = "test_top5_accuracy"
LEARNING_RATE: Final = "learning_rate"
EPOCH_SECONDS: Final = "epoch_seconds"
"""Wall-clock seconds of the training part of an epoch."""
IMAGES_PER_SECOND: Final = "images_per_second"
BEST: Final = "best_"
"""Prefix of the objectives of a run's best epoch, which are logged beside the metrics of each epoch."""
Direction = Literal["minimize", "maximize"]
DIRECTIONS: Final[Mapping[str, Direction]] = MappingProxyType({VAL_LOSS: "minimize", VAL_ACCURACY: "maximize"})
"""Metrics that may decide which epoch, trial and model is the best, and their direction."""
OBJECTIVES: Final = tuple(DIRECTIONS)
HIGHEST_VAL_ACCURACY: Final = "highest_val_accuracy"
"""The highest val_accuracy of all epochs. `best_val_accuracy` is that of the best epoch, whose weights are kept."""


def to_minimize(value: float, direction: Direction) -> float:
    """A value of a metric as a number of which the smallest is the best; NaN is the worst."""
    if math.isnan(value):
        return math.inf
    return value if direction == "minimize" else -value


SUMMARY: Final[Mapping[str, str]] = MappingProxyType(
    {f"{BEST}{name}": name for name in OBJECTIVES} | {HIGHEST_VAL_ACCURACY: HIGHEST_VAL_ACCURACY}
)
"""Summary metrics of a run, and of the best run of a search: name of the metric, and its name in the outcome."""


def summary(outcome: Mapping[str, float]) -> dict[str, float]:
    """The entries of SUMMARY.

    Args:
        outcome: the metrics of a run's best epoch, and the highest accuracy.
    """
    return {shown: outcome[name] for shown, name in SUMMARY.items() if name in outcome}
