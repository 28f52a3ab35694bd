"""The LightningModule: fine-tunes a torchvision classifier."""

from __future__ import annotations

import math
import time
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric

from lightning_modules import metrics
from lightning_modules.data import IGNORED_LABEL, Batch, seed_draws, step_seed
from lightning_modules.lightning_private import restore_data_position
from lightning_modules.network import Trainable, find_head, trainable_modules

Schedule = Literal["constant", "cosine", "one_cycle"]

NOT_DECAYED = ("layer_scale", "class_token", "pos_embedding", "relative_position_bias_table", "logit_scale")
"""Scales and positions: of two or more dimensions, but not weights of a layer. The names are torchvision's.

Source: the training code of ConvNeXt (arXiv:2201.03545), ViT (arXiv:2010.11929) and Swin (arXiv:2103.14030 and
2111.09883) does not decay them; torchvision's own references exempt class tokens, positions and bias tables (2026-11).
"""
EPOCH_SO_FAR = "epoch_so_far"
"""Key of a checkpoint: the running sums of an unfinished epoch."""


class ImageClassifier(pl.LightningModule):
    """Cross-entropy fine-tuning of the head, the last block or all of a network.

    Frozen layers stay in eval mode, so neither their weights nor their BatchNorm statistics change. Checkpoints leave
    them out: they contain what training changes, and are loaded into a network that was built the same way.
    """

    strict_loading = False

    def __init__(
        self,
        network: nn.Module,
        *,
        num_classes: int,
        trainable: Trainable = "head",
        optimizer: Literal["sgd", "adamw"] = "adamw",
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        backbone_learning_rate_scale: float = 1.0,
        schedule: Schedule = "constant",
        warmup_epochs: float = 0.0,
        label_smoothing: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.optimizer_name, self.schedule = optimizer, schedule
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.backbone_learning_rate_scale, self.warmup_epochs = (
            backbone_learning_rate_scale,
            warmup_epochs,
        )
        self.seed = seed
        # Modules, not functions: SageMaker's debugger finds a loss by its module.
        self.train_criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self.criterion = nn.CrossEntropyLoss(ignore_index=IGNORED_LABEL)
        self._trained = trainable_modules(network, trainable)
        network.requires_grad_(False)
        for module in self._trained:
            module.requires_grad_(True)
        self.num_classes = num_classes
        self.train_loss, self.train_accuracy = Average(), Average()
        self.val_loss, self.val_accuracy, self.val_top5_accuracy = Average(), Average(), Average()
        self._epoch_started, self._epoch_seconds = 0.0, 0.0
        self._epoch_loss, self._epoch_images = 0.0, 0

    def forward(self, images: Tensor) -> Tensor:
        """Score a batch of images.

        Args:
            images: (B, 3, H, W) float32, normalised with the statistics in `model.json`.

        Returns:
            (B, num_classes) float32 logits.
        """
        scores: Tensor = self.network(images)
        return scores.float()

    def train(self, mode: bool = True) -> ImageClassifier:
        """Switch to training mode, except for frozen layers."""
        super().train(mode)
        self.network.eval()
        for module in self._trained:
            module.train(mode)
        return self

    def on_fit_start(self) -> None:
        """Freeze before the first batch: Lightning keeps the modes that it finds and does not call `train`."""
        self.train()

    def on_train_start(self) -> None:
        """Resume within an epoch; Lightning does not call `on_train_epoch_start` for it."""
        restore_data_position(self.trainer)
        # The epoch's duration is that before the checkpoint plus that from now on, without lost steps and the pause.
        self._epoch_started = time.perf_counter() - self._epoch_seconds

    def on_train_epoch_start(self) -> None:
        """Start the epoch's clock."""
        self._epoch_started, self._epoch_images = time.perf_counter(), 0

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch; metrics stay on the device until the epoch's end."""
        del batch_idx
        images, labels = batch
        # Dropout depends on the step only, so that a resumed run draws what the uninterrupted one did.
        seed_draws(step_seed(self.seed, self.global_step, self.global_rank), self.device)
        scores = self(images)
        loss: Tensor = self.train_criterion(scores, labels)
        self.train_loss.update(loss.detach() * len(labels), len(labels))
        # Of mixed images the larger share counts.
        truth = labels if labels.ndim == 1 else labels.argmax(dim=1)
        self.train_accuracy.update((scores.detach().argmax(dim=1) == truth).sum(), len(labels))
        self._epoch_images += len(labels)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Stop the clock of the training epoch: Lightning validates inside it."""
        if self._epoch_images:
            self._epoch_loss = float(self.train_loss.compute())  # waits for the device
            self._epoch_seconds = time.perf_counter() - self._epoch_started

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Add one batch to the validation metrics; callbacks get its loss."""
        del batch_idx
        images, labels = batch
        scores = self(images)
        counted = (labels != IGNORED_LABEL).sum()
        # A batch of padding only has no mean. It counts as 0 images, but must be a number.
        loss = torch.where(counted > 0, self.criterion(scores, labels), 0.0)
        self.val_loss.update(loss * counted, counted)
        best = scores.topk(min(5, self.num_classes), dim=1).indices
        # The label of padding is not a class, so it is never counted as correct.
        self.val_accuracy.update((scores.argmax(dim=1) == labels).sum(), counted)
        self.val_top5_accuracy.update((best == labels[:, None]).sum(), counted)
        return loss

    def on_validation_epoch_end(self) -> None:
        """Log the averages over the whole validation split, and the training metrics of the epoch, if there was one."""
        values = {
            metrics.VAL_LOSS: float(self.val_loss.compute()),
            metrics.VAL_ACCURACY: float(self.val_accuracy.compute()),
            metrics.VAL_TOP5_ACCURACY: float(self.val_top5_accuracy.compute()),
        }
        if self._epoch_images:
            images = self._epoch_images * self.trainer.world_size
            values |= {
                metrics.TRAIN_LOSS: self._epoch_loss,
                metrics.TRAIN_ACCURACY: float(self.train_accuracy.compute()),
                metrics.LEARNING_RATE: self._head_learning_rate(),
                metrics.EPOCH_SECONDS: self._epoch_seconds,
                metrics.IMAGES_PER_SECOND: images / self._epoch_seconds,
            }
        # torchmetrics has already reduced them over all devices.
        self.log_dict(values)
        for metric in (self.train_loss, self.train_accuracy, self.val_loss, self.val_accuracy, self.val_top5_accuracy):
            metric.reset()
        self._epoch_images = 0

    def configure_optimizers(self) -> Any:
        """The optimiser with its parameter groups, and the learning-rate schedule."""
        options: dict[str, Any] = {"lr": self.learning_rate}
        # Lightning refuses a fused optimiser with gradient clipping in mixed precision.
        if self.device.type in ("cuda", "cpu") and not self.trainer.gradient_clip_val:
            options["fused"] = True
        optimizer: Optimizer
        if self.optimizer_name == "sgd":
            optimizer = torch.optim.SGD(self._parameter_groups(), momentum=0.9, nesterov=True, **options)
        else:
            optimizer = torch.optim.AdamW(self._parameter_groups(), **options)
        total = self._total_steps()
        warmup = round(self.warmup_epochs * total / (self.trainer.max_epochs or 1))
        scheduler = LambdaLR(
            optimizer,
            lambda step: learning_rate_factor(step, total, schedule=self.schedule, warmup_steps=warmup),
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _total_steps(self) -> int:
        return int(self.trainer.estimated_stepping_batches)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remove what training does not change, and add the sums of the epoch so far."""
        trained = {id(tensor) for module in self._trained for tensor in module.state_dict(keep_vars=True).values()}
        tensors = self.state_dict(keep_vars=True)
        checkpoint["state_dict"] = {
            name: value for name, value in checkpoint["state_dict"].items() if id(tensors[name]) in trained
        }
        checkpoint[EPOCH_SO_FAR] = {
            # The sums of all devices, as one process writes for all; at the end of an epoch they have just been reset.
            "metrics": self.all_gather([metric.metric_state for metric in self._epoch_metrics()]),
            "images": self._epoch_images,
            "seconds": time.perf_counter() - self._epoch_started,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the sums of the epoch."""
        so_far = checkpoint[EPOCH_SO_FAR]
        for metric, saved in zip(self._epoch_metrics(), so_far["metrics"], strict=True):
            for name, of_devices in saved.items():
                state = getattr(metric, name)
                own_sum = of_devices.reshape(self.trainer.world_size, *state.shape)[self.global_rank]
                setattr(metric, name, own_sum.to(state.device))
        self._epoch_images, self._epoch_seconds = so_far["images"], so_far["seconds"]

    def _epoch_metrics(self) -> tuple[Metric, Metric]:
        return self.train_loss, self.train_accuracy

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Head and backbone, each with and without decay: norms and biases (one dimension) are not decayed."""
        head = {id(parameter) for parameter in self.network.get_submodule(find_head(self.network)).parameters()}
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad:
                is_decayed = parameter.ndim > 1 and name.rpartition(".")[2] not in NOT_DECAYED
                groups.setdefault((id(parameter) in head, is_decayed), []).append(parameter)
        return [
            {
                "params": parameters,
                "lr": self.learning_rate * (1.0 if in_head else self.backbone_learning_rate_scale),
                "weight_decay": self.weight_decay if decayed else 0.0,
                "name": f"{'head' if in_head else 'backbone'}{'' if decayed else ' (norms and biases)'}",
            }
            for (in_head, decayed), parameters in sorted(groups.items(), reverse=True)
        ]

    def _head_learning_rate(self) -> float:
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        return float(optimizer.param_groups[0]["lr"])


class Average(Metric):
    """Mean over images, of a loss or of hits; NaN stays NaN, and no update waits for the device.

    torchmetrics' MeanMetric drops NaN, so that a diverged run looks good, and with `nan_strategy="disable"` it drops
    the weights instead; its accuracies with `ignore_index` select by a mask, which waits for the device (1.9.0).
    """

    total: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, total: Tensor, images: Tensor | int) -> None:
        """Add the sum over a batch and its number of images."""
        self.total += total
        self.images += images

    def compute(self) -> Tensor:
        """Mean over all images so far."""
        return self.total / self.images


def learning_rate_factor(step: int, total_steps: int, *, schedule: Schedule, warmup_steps: int) -> float:
    """Learning rate of `step` (0-based), as a share of its peak.

    A pure function of the step, so that it can be computed for many trials at once and after any resume.

    Source: cosine, Loshchilov & Hutter 2016, arXiv:1608.03983; one-cycle, Smith & Topin 2017, arXiv:1708.07120, with
    the constants of `torch.optim.lr_scheduler.OneCycleLR` (start at 1/25 of the peak, end at 1e-4 of the start).
    """
    if schedule == "one_cycle":
        rise = warmup_steps or 0.3 * total_steps
        start, end = 1 / 25, 1 / 25 * 1e-4
        if step < rise - 1:
            return _cosine(start, 1.0, step / (rise - 1))
        return _cosine(1.0, end, min(1.0, (step - rise + 1) / (total_steps - rise if total_steps > rise else 1.0)))
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    return _cosine(1.0, 0.0, min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps)))


def _cosine(start: float, end: float, share: float) -> float:
    """Half a cosine wave from start (share 0) to end (share 1)."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
