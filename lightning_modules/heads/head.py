"""Heads on cached features, with many optimiser steps per Lightning step."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_modules.caches.features import Steps
from lightning_modules.classifier import ImageClassifier
from lightning_modules.data import seed_draws, step_seed
from lightning_modules.network import DropoutLinear


class HeadClassifier(ImageClassifier):
    """Trains as `ImageClassifier` does, to the same weights, but takes several steps at once.

    Lightning's own work per step takes twice as long as the step of a head. So one batch of Lightning's loop holds many
    of our batches. Callbacks run after each of Lightning's batches, which `trainer.global_step` counts. For one device.

    Args:
        network: the head.
        steps_per_epoch: number of our batches per epoch.
        gradient_clip: largest gradient norm; 0 does not clip. Lightning does not clip with manual optimisation.
        options: as `ImageClassifier`.
    """

    def __init__(self, network: nn.Module, *, steps_per_epoch: int, gradient_clip: float = 0.0, **options: Any) -> None:
        super().__init__(network, **options)
        self.automatic_optimization = False
        self.steps_per_epoch, self.gradient_clip = steps_per_epoch, gradient_clip

    def training_step(self, batch: Steps, batch_idx: int) -> None:  # type: ignore[override]
        """Take the steps of a batch. Their metrics are fetched from the device at the end of the epoch."""
        del batch_idx
        counted, optimizer, scheduler = self.optimizers(), self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
        assert isinstance(counted, LightningOptimizer)
        assert isinstance(optimizer, Optimizer)
        assert isinstance(scheduler, LambdaLR)
        first = self.current_epoch * self.steps_per_epoch + batch.first
        last = first + -(-len(batch.labels) // batch.size) - 1
        draws, smoothing = isinstance(self.network, DropoutLinear), self.train_criterion.label_smoothing
        [group], [peak], [factor] = optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas
        parameters = list(self.network.parameters())
        decayed = [parameter for parameter in parameters if parameter.ndim > 1 and self.weight_decay]
        losses: list[Tensor] = []
        all_scores: list[Tensor] = []
        batches = zip(torch.split(batch.inputs, batch.size), torch.split(batch.labels, batch.size), strict=True)
        for step, (inputs, labels) in enumerate(batches, start=first):
            rate = group["lr"] = float(peak) * factor(step)
            if draws:
                seed_draws(step_seed(self.seed, step), self.device)
            scores = self.network(inputs)
            loss = functional.cross_entropy(scores, labels, label_smoothing=smoothing)
            for parameter in parameters:
                parameter.grad = None
            loss.backward()  # type: ignore[no-untyped-call]
            if self.gradient_clip:
                nn.utils.clip_grad_norm_(parameters, self.gradient_clip)
            for weight in decayed:
                self._decay(weight, rate)
            (counted if step == last else optimizer).step()
            losses.append(loss)
            all_scores.append(scores)
        scheduler.last_epoch = last
        scheduler.step()  # to the next step; checkpoints keep it
        images = len(batch.labels)
        missing = (last + 1 - first) * batch.size - images  # of the last one
        self.train_loss.update(torch.stack(losses).detach().sum() * batch.size - losses[-1].detach() * missing, images)
        self.train_accuracy.update((torch.cat(all_scores).detach().argmax(dim=1) == batch.labels).sum(), images)
        self._epoch_images += images

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """One parameter group: a second one without decay makes a step a tenth longer."""
        parameters = list(self.network.parameters())
        return [{"params": parameters, "lr": self.learning_rate, "weight_decay": 0.0, "name": "head"}]

    def _decay(self, weight: nn.Parameter, rate: float) -> None:
        """Decay a weight as the optimiser would."""
        if self.optimizer_name == "adamw":
            weight.detach().mul_(1 - rate * self.weight_decay)
        else:
            assert weight.grad is not None
            weight.grad.add_(weight.detach(), alpha=self.weight_decay)

    def _total_steps(self) -> int:
        return self.steps_per_epoch * (self.trainer.max_epochs or 1)
