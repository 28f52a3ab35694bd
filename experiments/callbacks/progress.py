"""Progress of a run: a line per epoch, and a bar with an ETA on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from tqdm import tqdm

from experiments.console import duration, say
from experiments.runs.intervals import metric_text
from lightning_modules import metrics


class EpochProgress(Callback):
    """Shows the progress of one run, and the metrics of each epoch.

    Args:
        name: of the run.
        facts: what is known of its photos, as `data_facts`.
        position: of its bar, from the top.
    """

    def __init__(self, name: str, facts: Mapping[str, object], position: int = 0) -> None:
        self.name, self.facts, self.position = name, facts, position
        self._bar: tqdm[Any] | None = None
        self._started, self._epochs_before = 0.0, 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin, maybe from a checkpoint."""
        batches, seen = int(trainer.num_training_batches), trainer.global_step
        self._started, self._epochs_before = time.monotonic(), seen / batches
        if seen:
            epochs, within = divmod(seen, batches)
            completed = f"{within / batches:.0%} of epoch {epochs + 1}" if within else f"epoch {epochs}"
            say(f"{self.name}: resumes from its checkpoint after {completed}")
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=batches * (trainer.max_epochs or 1),
                initial=seen,
                desc=self.name,
                unit="batch",
                position=self.position,
                leave=False,
            )

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the metrics of the epoch."""
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        done, of = trainer.current_epoch + 1, trainer.max_epochs or 1
        text = " ".join(metric_text(name, values[name], self.facts) for name in metrics.OBJECTIVES)
        each = (time.monotonic() - self._started) / (done - self._epochs_before)
        pace = f"{each:.1f}" if each < 9.95 else f"{each:.0f}"
        say(f"{self.name}: epoch {done}/{of} {text} ({pace} s an epoch, {duration(each * (of - done))} to go)")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remove the bar."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Remove the bar; Lightning calls no `teardown` after an exception, such as that of a pruned trial."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
