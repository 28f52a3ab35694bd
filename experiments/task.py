"""What a run trains: photos through the network, or a head on the features of its frozen backbone.

`task_of` decides which one, once. A task opens nothing until it is asked to. It has the module, the data,
the precision and the way to the whole network, so training does not ask again.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from experiments.callbacks.compiling import compile_network
from experiments.config import RunConfig
from experiments.data.inputs import (
    new_network,
    open_data_once,
    open_decoded_once,
    open_features_once,
    photo_data,
    precision,
    training_device,
)
from experiments.errors import UserError
from lightning_modules.caches.features import FeatureData, FeatureSet
from lightning_modules.classifier import ImageClassifier
from lightning_modules.data import ClassFolderData
from lightning_modules.folders import ClassFolders
from lightning_modules.heads.head import HeadClassifier
from lightning_modules.insight.profile_verdict import Settings
from lightning_modules.network import DropoutLinear, check_backbone, find_head, network_on_meta, trains_batch_norm


def task_of(config: RunConfig, *, single_steps: bool = False) -> Task:
    """The task of a config.

    Args:
        single_steps: whether callbacks must see each step; a head on cached features takes many at once otherwise.

    Raises:
        UserError: if `data.cache` is features and the head of the network is not linear.
    """
    cache, backbone, trainer = config.data.cache, config.model.backbone, config.trainer
    if cache == "features" and not _has_linear_head(backbone):
        raise UserError(f"data.cache features needs a linear head, which {backbone} lacks: set data.cache none")
    if cache == "features" or (cache == "auto" and config.model.trainable == "head" and _has_linear_head(backbone)):
        single_steps |= trainer.record != "none" or trainer.profile or trainer.num_processes > 1
        return HeadTask(config, steps_at_once=not single_steps)
    return PhotoTask(config)


@dataclass(frozen=True)
class PhotoTask:
    """Train the network, or its last layers, on photos."""

    config: RunConfig

    @property
    def folders(self) -> ClassFolders:
        """The photos."""
        return open_data_once(self.config)

    @property
    def precision(self) -> Any:
        """Lightning's precision."""
        return precision(self.config)

    @property
    def gradient_clip(self) -> float | None:
        """The largest gradient norm for Lightning to clip to."""
        return self.config.trainer.gradient_clip or None

    @property
    def compiles_when_it_pays(self) -> bool:
        """Whether the network is compiled once the duration of an epoch is known."""
        return self.config.trainer.compile == "auto" and training_device(self.config).type == "cuda"

    @property
    def profile_settings(self) -> Settings:
        """The settings of the run that the advice of a profile depends on."""
        return Settings(
            batch_size=self.config.data.batch_size,
            trainable=self.config.model.trainable,
            cache="decoded" if open_decoded_once(self.config) else "none",
            precision=self.precision,
            compiled=self.config.trainer.compile is True,
        )

    @property
    def loading_threads(self) -> int:
        """Threads that assemble batches."""
        return self.config.data.num_workers or torch.get_num_threads()

    def open(self) -> None:
        """Open the data that all trials of a process share."""
        open_data_once(self.config)
        open_decoded_once(self.config)

    def build(self) -> tuple[ImageClassifier, ClassFolderData]:
        """The module before training, and its data.

        Raises:
            ValueError: for data or weights that do not fit the config.
            FileNotFoundError: if data or weights are missing.
        """
        config, folders, trainable = self.config, self.folders, self.config.model.trainable
        network = new_network(config, len(folders.class_names))
        no_single_image = trains_batch_norm(network, trainable)
        data = photo_data(config, folders, open_decoded_once(config), no_single_image=no_single_image)
        if config.trainer.compile is True:
            compile_network(network)
        return ImageClassifier(network, trainable=trainable, **_module_options(config, folders)), data

    def assemble(self, trained: Mapping[str, Tensor]) -> nn.Module:
        """The whole network with the weights that training has changed."""
        network = new_network(self.config, len(self.folders.class_names))
        network.load_state_dict(trained, strict=False)
        return network


@dataclass(frozen=True)
class HeadTask:
    """Train the head alone, on the features that the frozen backbone computes once."""

    config: RunConfig
    steps_at_once: bool = True
    """Whether a batch of Lightning's loop contains many steps."""
    precision: ClassVar[Literal["32-true"]] = "32-true"
    """Lightning's precision: a head gains nothing from another one."""
    compiles_when_it_pays: ClassVar = False
    loading_threads: ClassVar = 0

    @property
    def folders(self) -> ClassFolders:
        """The photos."""
        return open_data_once(self.config)

    @property
    def features(self) -> FeatureSet:
        """The features of the photos, and the untrained head."""
        return open_features_once(self.config)

    @property
    def gradient_clip(self) -> float | None:
        """The largest gradient norm for Lightning to clip to; `HeadClassifier` clips by itself."""
        return None if self.steps_at_once else self.config.trainer.gradient_clip or None

    @property
    def profile_settings(self) -> Settings:
        """The settings of the run that the advice of a profile depends on."""
        return Settings(
            batch_size=self.config.data.batch_size,
            trainable=self.config.model.trainable,
            cache="features",
            precision=precision(self.config),
            compiled=False,
        )

    def open(self) -> None:
        """Open the data that all trials of a process share."""
        open_data_once(self.config)
        open_features_once(self.config)

    def build(self) -> tuple[ImageClassifier, FeatureData]:
        """The module before training, and its data.

        Raises:
            ValueError: for data or weights that do not fit the config.
            FileNotFoundError: if data or weights are missing.
        """
        config, folders, features = self.config, self.folders, self.features
        size = config.data.batch_size
        data = FeatureData(features, batch_size=size, seed=config.seed, steps_at_once=self.steps_at_once)
        head = copy.deepcopy(features.head)
        if config.model.dropout:
            head = DropoutLinear(head, config.model.dropout)
        options = _module_options(config, folders)
        if not self.steps_at_once:
            return ImageClassifier(head, trainable="all", **options), data
        steps, clip = math.ceil(len(folders.train) / size), config.trainer.gradient_clip
        return HeadClassifier(head, trainable="all", steps_per_epoch=steps, gradient_clip=clip, **options), data

    def assemble(self, trained: Mapping[str, Tensor]) -> nn.Module:
        """The whole network with the trained head."""
        network = new_network(self.config, len(self.folders.class_names))
        network.get_submodule(find_head(network)).load_state_dict(trained)
        return network


Task = PhotoTask | HeadTask


def _module_options(config: RunConfig, folders: ClassFolders) -> dict[str, Any]:
    """Options of the modules of both tasks."""
    return {
        "num_classes": len(folders.class_names),
        "optimizer": config.optimizer.name,
        "learning_rate": config.optimizer.learning_rate,
        "weight_decay": config.optimizer.weight_decay,
        "backbone_learning_rate_scale": config.optimizer.backbone_learning_rate_scale,
        "schedule": config.optimizer.schedule,
        "warmup_epochs": config.optimizer.warmup_epochs,
        "label_smoothing": config.model.label_smoothing,
        "seed": config.seed,
    }


@functools.cache
def _has_linear_head(backbone: str) -> bool:
    check_backbone(backbone)
    network = network_on_meta(backbone)
    return isinstance(network.get_submodule(find_head(network)), nn.Linear)
