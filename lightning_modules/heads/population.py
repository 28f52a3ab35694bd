"""Many linear heads trained at once on the same cached features, with one product per step and batch size.

Each member ends with the weights that it would have alone: it has its own batch size, learning rate, decay, dropout and
label smoothing, and the epochs are shuffled alike.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from lightning_modules import metrics
from lightning_modules.caches.features import FeatureSet
from lightning_modules.classifier import Schedule, learning_rate_factor
from lightning_modules.data import ShardedSampler, seed_draws, step_seed
from lightning_modules.process import at_most_threads

ONE_THREAD_WEIGHTS = 2**18
"""Weights of all members up to which a step has too little work for several threads: they gain nothing on idle cores,
and beside other processes, such as those that draw, each step waits for the slowest thread."""


@dataclass(frozen=True)
class Member:
    """The settings of one head; fields as in `ImageClassifier`."""

    learning_rate: float
    weight_decay: float
    batch_size: int
    max_epochs: int
    warmup_epochs: float = 0.0
    dropout: float = 0.0
    label_smoothing: float = 0.0


class HeadPopulation:
    """K linear heads and the state of their optimiser.

    Rows are sorted by batch size, smallest first, so that the members that still have a batch left in an
    epoch are always the first rows of every tensor.

    Args:
        features: training and validation features; the heads train on their device.
        members: their settings.
        optimizer: of all members, like the schedule.
        seed: of the order of images, the augmented views and dropout.
        gradient_clip: largest gradient norm of a member; 0 does not clip.
    """

    def __init__(
        self,
        features: FeatureSet,
        members: Sequence[Member],
        *,
        optimizer: Literal["sgd", "adamw"],
        schedule: Schedule,
        seed: int,
        gradient_clip: float = 0.0,
    ) -> None:
        self.features, self.schedule, self.seed, self.gradient_clip = features, schedule, seed, gradient_clip
        self.member_indices = sorted(range(len(members)), key=lambda index: members[index].batch_size)
        """Per row, the index of its member in the argument `members`."""
        self.members = [members[index] for index in self.member_indices]
        self.epoch = 0
        self._update = _sgd if optimizer == "sgd" else _adamw
        head, device = features.head, features.train.device
        bias = torch.zeros(head.out_features) if head.bias is None else head.bias
        # (K, C, F) weights and (K, C, 1) biases, each with its first and second moment.
        self._parameters = [
            [initial.clone(), torch.zeros_like(initial), torch.zeros_like(initial)]
            for initial in (
                head.weight.detach().to(device).expand(len(members), -1, -1).contiguous(),
                bias.detach().to(device)[:, None].expand(len(members), -1, -1).contiguous(),
            )
        ]

    def head(self, index: int) -> tuple[Tensor, Tensor]:
        """Copies of the (C, F) weight and (C,) bias of a member, on the CPU."""
        row = self.member_indices.index(index)
        (weight, *_), (bias, *_) = self._parameters
        return weight[row].cpu().clone(), bias[row, :, 0].cpu().clone()

    def keep(self, indices: Sequence[int]) -> None:
        """Remove all members but those with these indices."""
        rows = [row for row, index in enumerate(self.member_indices) if index in indices]
        self.member_indices = [self.member_indices[row] for row in rows]
        self.members = [self.members[row] for row in rows]
        self._parameters = [[tensor[rows] for tensor in tensors] for tensors in self._parameters]

    def train_epoch(self) -> dict[int, dict[str, float]]:
        """Train every member for one epoch and validate it.

        Returns:
            The epoch's metrics by the member's index.
        """
        (weights, *_), _ = self._parameters
        with at_most_threads(1 if weights.numel() <= ONE_THREAD_WEIGHTS else torch.get_num_threads()):
            return self._train_epoch()

    def _train_epoch(self) -> dict[int, dict[str, float]]:
        started = time.perf_counter()
        device = self.features.train.device
        images = self.features.train.shape[1]
        sampler = ShardedSampler(images, seed=self.seed, shuffle=True)
        sampler.set_epoch(self.epoch)
        image_indices, seeds, _ = sampler.draws()
        order = (seeds % len(self.features.train)).to(device), image_indices.to(device)
        # The epochs of members differ in length: row k has steps_per_epoch[k] batches, sorted from most to fewest.
        steps_per_epoch = [-(-images // member.batch_size) for member in self.members]
        # The batches are laid out once per epoch, so that no step waits for the host.
        self._columns = {
            name: torch.tensor([getattr(member, name) for member in self.members]).to(device)[:, None, None]
            for name in ("weight_decay", "dropout", "label_smoothing")
        }
        rates = torch.tensor(
            [
                [self._rate(member, self.epoch * steps + step, steps) for step in range(steps_per_epoch[0])]
                for member, steps in zip(self.members, steps_per_epoch, strict=True)
            ]
        ).to(device)
        done = torch.tensor([self.epoch * steps for steps in steps_per_epoch]).to(device)
        loss, right = torch.zeros(2, len(self.members), device=device)
        for step in range(steps_per_epoch[0]):
            rows = sum(step < steps for steps in steps_per_epoch)
            losses, hits, gradients = self._gradients(order, rows, step, steps_per_epoch)
            for (values, first, second), gradient, decayed in zip(
                self._parameters, gradients, (True, False), strict=True
            ):
                self._update(
                    values[:rows],
                    gradient,
                    first[:rows],
                    second[:rows],
                    rate=rates[:rows, step, None, None],
                    decay=self._columns["weight_decay"][:rows] if decayed else 0.0,
                    step=(done[:rows] + step + 1)[:, None, None],
                )
            loss[:rows] += losses
            right[:rows] += hits
        train_loss, train_accuracy = (loss / images).tolist(), (right / images).tolist()  # waits for the device
        seconds = time.perf_counter() - started
        self.epoch += 1
        rate = [
            self._rate(member, self.epoch * steps, steps)
            for member, steps in zip(self.members, steps_per_epoch, strict=True)
        ]
        columns = zip(self.member_indices, rate, train_loss, train_accuracy, *self._validate(), strict=True)
        return {
            index: {
                metrics.VAL_LOSS: val_loss,
                metrics.VAL_ACCURACY: val_accuracy,
                metrics.VAL_TOP5_ACCURACY: top5,
                metrics.TRAIN_LOSS: mean_loss,
                metrics.TRAIN_ACCURACY: accuracy,
                metrics.LEARNING_RATE: next_rate,
                metrics.EPOCH_SECONDS: seconds,
                metrics.IMAGES_PER_SECOND: images / seconds,
            }
            for index, next_rate, mean_loss, accuracy, val_loss, val_accuracy, top5 in columns
        }

    def _gradients(
        self, order: tuple[Tensor, Tensor], rows: int, step: int, steps_per_epoch: Sequence[int]
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Summed loss (rows,), hits (rows,), and the gradients of weights and biases, in closed form."""
        first, batches = 0, []
        # Members of one batch size see the same images.
        for batch_size, group in itertools.groupby(self.members[:rows], key=lambda member: member.batch_size):
            members = slice(first, first + len(list(group)))
            batch = slice(step * batch_size, (step + 1) * batch_size)
            views, image_indices = order[0][batch], order[1][batch]
            inputs, labels = self.features.train[views, image_indices], self.features.train_labels[image_indices]
            batches.append(self._gradients_of(members, inputs, labels, step, steps_per_epoch[first]))
            first = members.stop
        losses, hits, weights, biases = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
        if self.gradient_clip:
            norms = sum((gradient**2).sum(dim=(1, 2), keepdim=True) for gradient in (weights, biases)) ** 0.5
            scale = (self.gradient_clip / (norms + 1e-6)).clamp(max=1.0)
            weights, biases = weights * scale, biases * scale
        return losses, hits, (weights, biases)

    def _gradients_of(
        self, rows: slice, inputs: Tensor, labels: Tensor, step: int, steps_per_epoch: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The result of `_gradients` for members that share a batch: (B, F) inputs and (B,) labels."""
        (weight, *_), (bias, *_) = self._parameters
        weight, bias = weight[rows], bias[rows]
        count, classes, width = weight.shape
        dropped = None
        if any(member.dropout for member in self.members[rows]):
            dropped = inputs * self._dropout(inputs.shape, rows, step, steps_per_epoch)  # (count, B, F)
            scores = dropped @ weight.transpose(1, 2)
        else:
            scores = (inputs @ weight.reshape(count * classes, width).T).view(-1, count, classes).transpose(0, 1)
        scores = scores + bias[:, None, :, 0]
        smoothing = self._columns["label_smoothing"][rows]
        targets = functional.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes
        logs = scores.log_softmax(dim=2)
        losses = -(targets * logs).sum(dim=(1, 2))
        hits = (scores.argmax(dim=2) == labels).sum(dim=1)
        slopes = (logs.exp() - targets) / len(labels)
        if dropped is None:
            weights = (slopes.transpose(1, 2).reshape(count * classes, -1) @ inputs).view(count, classes, width)
        else:
            weights = slopes.transpose(1, 2) @ dropped
        return losses, hits, weights, slopes.sum(dim=1)[:, :, None]

    def _dropout(self, shape: torch.Size, rows: slice, step: int, steps_per_epoch: int) -> Tensor:
        """The factors of the inputs: (count, B, F), from the same draws as `DropoutLinear` makes alone."""
        device = self.features.train.device
        seed_draws(step_seed(self.seed, self.epoch * steps_per_epoch + step), device)
        drawn = torch.rand(*shape, device=device)
        rates = self._columns["dropout"][rows]
        return (drawn >= rates) / (1 - rates)

    def _validate(self) -> tuple[list[float], list[float], list[float]]:
        """val_loss, val_accuracy and val_top5_accuracy of each row."""
        (weight, *_), (bias, *_) = self._parameters
        rows, classes, width = weight.shape
        totals = torch.zeros(3, rows, device=weight.device)
        for start in range(0, len(self.features.valid_labels), 1024):
            inputs = self.features.valid[0, start : start + 1024]
            labels = self.features.valid_labels[start : start + 1024]
            flat = inputs @ weight.reshape(rows * classes, width).T
            scores = flat.view(-1, rows, classes) + bias[None, :, :, 0]  # (B, rows, C)
            truth = labels[:, None, None].expand(-1, rows, 1)
            best = scores.topk(min(5, classes), dim=2).indices
            totals[0] -= scores.log_softmax(dim=2).gather(2, truth).sum(dim=(0, 2))
            totals[1] += (best[:, :, :1] == truth).sum(dim=(0, 2))
            totals[2] += (best == truth).sum(dim=(0, 2))
        loss, top1, top5 = (totals / len(self.features.valid_labels)).tolist()
        return loss, top1, top5

    def _rate(self, member: Member, step: int, steps_per_epoch: int) -> float:
        total = member.max_epochs * steps_per_epoch
        warmup = round(member.warmup_epochs * total / member.max_epochs)
        factor = learning_rate_factor(step, total, schedule=self.schedule, warmup_steps=warmup)
        return member.learning_rate * factor


def _adamw(
    values: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    *,
    rate: Tensor,
    decay: Tensor | float,
    step: Tensor,
) -> None:
    """One step of `torch.optim.AdamW` with its defaults, with one learning rate per row."""
    values.mul_(1 - rate * decay)
    first.lerp_(gradient, 0.1)
    second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
    spread = second.sqrt().div_((1 - 0.999**step) ** 0.5).add_(1e-8)
    values.addcdiv_(first, spread.div_(rate / (1 - 0.9**step)), value=-1)


def _sgd(
    values: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    *,
    rate: Tensor,
    decay: Tensor | float,
    step: Tensor,
) -> None:
    """One step of `torch.optim.SGD` with Nesterov momentum 0.9."""
    del second, step
    gradient = gradient + decay * values
    first.mul_(0.9).add_(gradient)
    values.sub_((gradient + 0.9 * first) * rate)
