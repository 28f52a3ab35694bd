"""What a debug job adds to a training: a callback that has smdebug watch it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from experiments.console import say
from lightning_modules.classifier import ImageClassifier
from sagemaker_launch.container.smdebug.recorder import TensorRecorder


class DebuggerHook(Callback):
    """Records what is trained, by the first process of several.

    With cached features that is the head alone: its layers are all that the tensors tell of.

    Args:
        config_file: the JSON that the service writes, with collections and save intervals.
    """

    def __init__(self, config_file: Path) -> None:
        self._config_file = config_file
        self._recorder: TensorRecorder | None = None
        self._steps: Mapping[str, int] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the hooks on: by now the model is on its device, and a checkpoint is loaded."""
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, ImageClassifier)
        recorder = self._recorder = TensorRecorder(self._config_file)
        if self._steps:
            recorder.go_on(self._steps)
        recorder.watch(pl_module.network, [pl_module.train_criterion, pl_module.criterion])
        recorder.set_mode("TRAIN")
        say(f"smdebug watches {type(pl_module.network).__name__} and saves to {recorder.folder}")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What follows is EVAL."""
        if self._recorder:
            self._recorder.set_mode("EVAL")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What follows is TRAIN."""
        if self._recorder:
            self._recorder.set_mode("TRAIN")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the hooks off: what comes now, scores and the export, is no training."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Keep what was saved of a training that failed: that is the one to look into."""
        self._close()

    def check(self) -> None:
        """Make sure that the tensors are there.

        Raises:
            DebuggerError: if they are not.
        """
        if self._recorder:
            self._recorder.check()

    def state_dict(self) -> dict[str, Mapping[str, int]]:
        """The steps so far, for a checkpoint."""
        return {"steps": self._recorder.steps if self._recorder else self._steps}

    def load_state_dict(self, state_dict: dict[str, Mapping[str, int]]) -> None:
        """Go on after the steps of a checkpoint."""
        self._steps = state_dict["steps"]

    def _close(self) -> None:
        if self._recorder:
            self._recorder.close()
