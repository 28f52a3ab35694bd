"""The callback of a debug job, which records the training with smdebug."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from experiments.console import say
from lightning_modules.classifier import ImageClassifier
from sagemaker_launch.container.smdebug.recorder import TensorRecorder


class DebuggerHook(Callback):
    """Records the trained network, on rank 0.

    With cached features the network is the head alone.

    Args:
        config_file: the JSON that the service writes, with collections and save intervals.
    """

    def __init__(self, config_file: Path) -> None:
        self._config_file = config_file
        self._recorder: TensorRecorder | None = None
        self._steps: Mapping[str, int] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Place the hooks: the model is on its device now, and a checkpoint is loaded."""
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, ImageClassifier)
        recorder = self._recorder = TensorRecorder(self._config_file)
        if self._steps:
            recorder.resume(self._steps)
        recorder.watch(pl_module.network, [pl_module.train_criterion, pl_module.criterion])
        recorder.set_mode("TRAIN")
        say(f"smdebug watches {type(pl_module.network).__name__} and saves to {recorder.folder}")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The next steps are EVAL."""
        if self._recorder:
            self._recorder.set_mode("EVAL")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The next steps are TRAIN."""
        if self._recorder:
            self._recorder.set_mode("TRAIN")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove the hooks: scores and export follow, which are not training."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Keep the tensors of a failed training too."""
        self._close()

    def check(self) -> None:
        """Check that the tensors were saved.

        Raises:
            DebuggerError: if they are not.
        """
        if self._recorder:
            self._recorder.check()

    def state_dict(self) -> dict[str, Mapping[str, int]]:
        """The steps so far, for a checkpoint."""
        return {"steps": self._recorder.steps if self._recorder else self._steps}

    def load_state_dict(self, state_dict: dict[str, Mapping[str, int]]) -> None:
        """Continue after the steps of a checkpoint."""
        self._steps = state_dict["steps"]

    def _close(self) -> None:
        if self._recorder:
            self._recorder.close()
