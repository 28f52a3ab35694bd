"""The only training path there is: `train()`.

A local run calls it, every Optuna trial calls it, and the SageMaker container calls it. It reads no environment
variable and no command line, and does not know where it runs: what differs comes in as a logger or a callback.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import Logger

from experiments.config import RunConfig, TrainerConfig, to_public
from experiments.datasets import open_data
from lightning_modules import metrics
from lightning_modules.classifier import ImageClassifier
from lightning_modules.data import ClassFolderData
from lightning_modules.export import write_export
from lightning_modules.folders import ClassFolders
from lightning_modules.inference import Preprocessing
from lightning_modules.network import create_network

CHECKPOINT_FOLDER = "checkpoints"

_log = logging.getLogger(__name__)


class NotANumberError(ValueError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class TrainResult:
    """What training came to: the weights of the best epoch and what was measured."""

    model: ImageClassifier
    """In eval mode, with the weights of the best epoch, on the CPU."""
    data: ClassFolderData
    config: RunConfig
    history: Mapping[int, Mapping[str, float]]
    """Metrics by epoch; epochs count from 1."""
    best_epoch: int

    @property
    def metrics(self) -> Mapping[str, float]:
        """The metrics of the best epoch."""
        return self.history[self.best_epoch]


def train(config: RunConfig, *, output_dir: Path, logger: Logger, callbacks: Sequence[Callback] = ()) -> TrainResult:
    """Train one classifier, from the last checkpoint in `output_dir` if there is one.

    Args:
        config: what to train.
        output_dir: where checkpoints go; a run that was killed goes on from here.
        logger: gets the metrics of each epoch.
        callbacks: pruning, progress, debugging: what the caller wants to happen on the way.

    Raises:
        ValueError: for data or weights that do not fit the config.
        FileNotFoundError: if data or weights are missing.
        NotANumberError: if the loss is no longer a number.
    """
    pl.seed_everything(config.seed, verbose=False)
    folders = open_data(config.data, seed=config.seed)
    logger.log_hyperparams(data_facts(folders))
    preprocessing = Preprocessing(config.data.image_size, round(config.data.image_size / config.data.crop_fraction))
    data = ClassFolderData(
        folders,
        preprocessing=preprocessing,
        batch_size=config.data.batch_size,
        num_workers=config.data.num_workers,
        augment=config.data.augment,
        seed=config.seed,
    )
    network = create_network(
        config.model.backbone,
        len(folders.class_names),
        weights=config.model.weights,
        dropout=config.model.dropout,
    )
    model = ImageClassifier(
        network,
        num_classes=len(folders.class_names),
        trainable=config.model.trainable,
        optimizer=config.optimizer.name,
        learning_rate=config.optimizer.learning_rate,
        weight_decay=config.optimizer.weight_decay,
        backbone_learning_rate_scale=config.optimizer.backbone_learning_rate_scale,
        schedule=config.optimizer.schedule,
        warmup_epochs=config.optimizer.warmup_epochs,
        label_smoothing=config.model.label_smoothing,
        seed=config.seed,
    )
    if config.trainer.compile:
        network.compile()

    checkpoint_dir = output_dir / CHECKPOINT_FOLDER
    history = History()
    # Two callbacks, because save_last writes only when there is a new best; both after all else of an epoch.
    saving: dict[str, Any] = {
        "dirpath": checkpoint_dir,
        "save_on_train_epoch_end": True,
        "enable_version_counter": False,
    }
    best_checkpoint = ModelCheckpoint(
        filename="best", monitor=config.sweep.metric, mode=config.sweep.direction[:3], **saving
    )
    own: list[Callback] = [history, *callbacks, best_checkpoint, ModelCheckpoint(filename="last", **saving)]
    if config.trainer.early_stopping_patience:
        own.append(EarlyStopping(metrics.VAL_LOSS, patience=config.trainer.early_stopping_patience))
    trainer = pl.Trainer(
        max_epochs=config.trainer.max_epochs,
        accelerator=config.trainer.accelerator,
        devices=config.trainer.devices,
        num_nodes=config.trainer.num_nodes,
        precision=_precision(config.trainer),
        gradient_clip_val=config.trainer.gradient_clip or None,
        logger=logger,
        callbacks=own,
        plugins=[AtomicCheckpointIO()],
        use_distributed_sampler=False,  # the data module divides the images itself, without counting one twice
        num_sanity_val_steps=0,
        log_every_n_steps=1,  # nothing is logged in a step, and larger values draw a warning
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    last = checkpoint_dir / "last.ckpt"
    trainer.fit(model, datamodule=data, ckpt_path=str(last) if last.is_file() else None)

    best = torch.load(checkpoint_dir / "best.ckpt", map_location="cpu", weights_only=True)
    model.load_state_dict(best["state_dict"], strict=False)
    best_epoch = int(best["epoch"]) + 1
    return TrainResult(model.cpu().eval(), data, config, history.epochs, best_epoch)


def export(result: TrainResult, folder: Path, extra_metrics: Mapping[str, float] | None = None) -> Path:
    """Write the export folder of a finished run.

    Args:
        extra_metrics: what was measured after training, such as the test score.
    """
    return write_export(
        result.model.network,
        folder,
        backbone=result.config.model.backbone,
        class_names=result.data.folders.class_names,
        preprocessing=result.data.preprocessing,
        metrics={**result.metrics, **(extra_metrics or {})},
        config=to_public(result.config),
        golden_photo=result.data.folders.valid.paths[0],
    )


def data_facts(folders: ClassFolders) -> dict[str, str | int]:
    """What a run notes about its data beside its config."""
    return {
        "data.fingerprint": folders.fingerprint,
        "data.classes": len(folders.class_names),
        "data.train_images": len(folders.train),
        "data.valid_images": len(folders.valid),
        "data.test_images": len(folders.test) if folders.test else 0,
        "data.bad_files": len(folders.bad_files),
        "data.leaked_images": folders.leaked,
    }


class History(Callback):
    """Keeps the metrics of each epoch, also across a resume, and stops at a loss that is no number."""

    def __init__(self) -> None:
        self.epochs: dict[int, dict[str, float]] = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the metrics of the epoch; the checkpoint is written after this."""
        epoch = trainer.current_epoch + 1
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.epochs[epoch] = values
        if not math.isfinite(values[metrics.VAL_LOSS]):
            raise NotANumberError(
                f"val_loss is {values[metrics.VAL_LOSS]} after epoch {epoch}: lower optimizer.learning_rate "
                "or set trainer.gradient_clip"
            )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.epochs = state_dict["epochs"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it, so that a kill never leaves half a file under its name.

    Lightning's own writer goes through a temporary folder, which may be on another file system.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to `path` whole or not at all."""
        del storage_options
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        with part.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)


def _precision(config: TrainerConfig) -> Any:
    if config.precision != "auto":
        return config.precision
    on_gpu = config.accelerator in ("auto", "gpu") and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"
