"""The names of the metrics, defined once. MLflow, Optuna and a job's metric lines all use these."""

from typing import Final

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
"""Prefix under which the objectives of a run's best epoch stand beside their course."""
OBJECTIVES: Final = (VAL_LOSS, VAL_ACCURACY)
