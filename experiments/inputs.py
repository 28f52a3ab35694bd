"""What a run opens before it trains: photos, network, features. Trials of one process share what they can."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from tqdm import tqdm

from experiments.config import (
    DataConfig,
    OptimizerConfig,
    RunConfig,
    SweepConfig,
    TrackingConfig,
    TrainerConfig,
    override,
)
from experiments.datasets import open_data
from experiments.progress import say
from lightning_modules.data import Batch, ClassFolderData
from lightning_modules.features import FeatureData, FeatureSet, compute_features
from lightning_modules.folders import ClassFolders
from lightning_modules.inference import Preprocessing, build_network
from lightning_modules.network import DropoutLinear, classifier_names, create_network, find_head


def forget_opened() -> None:
    """Look at the files again: a process that runs several sweeps must see what changed between them."""
    _open_data.cache_clear()
    _open_features.cache_clear()


def open_data_once(config: RunConfig) -> ClassFolders:
    """The data set, looked through once for all trials of this process.

    Raises:
        FileNotFoundError, ValueError, DownloadError: as `open_data`.
    """
    data = config.data
    key = DataConfig(
        name=data.name,
        root=data.root,
        fraction=data.fraction,
        valid_fraction=data.valid_fraction,
        max_bad_fraction=data.max_bad_fraction,
        cache_dir=data.cache_dir,
    )
    return _open_data(key, config.seed)


def photo_data(config: RunConfig, folders: ClassFolders) -> ClassFolderData:
    """Batches of photos as the config wants them."""
    return ClassFolderData(
        folders,
        preprocessing=Preprocessing(config.data.image_size, round(config.data.image_size / config.data.crop_fraction)),
        batch_size=config.data.batch_size,
        num_workers=config.data.num_workers,
        augment=config.data.augment,
        seed=config.seed,
    )


def new_network(config: RunConfig, num_classes: int) -> nn.Module:
    """The network before training; its random parts depend on the seed only."""
    torch.manual_seed(config.seed)
    return create_network(
        config.model.backbone, num_classes, weights=config.model.weights, dropout=config.model.dropout
    )


def caching(config: RunConfig) -> Literal["none", "features"]:
    """What `data.cache` comes to for this config."""
    if config.data.cache != "auto":
        return config.data.cache
    return "features" if config.model.trainable == "head" and _has_linear_head(config.model.backbone) else "none"


def open_features_once(config: RunConfig) -> FeatureSet:
    """The features of the config's photos, opened once for all trials of this process.

    Raises:
        ValueError: if the network's head is not linear, or the cache is too small.
    """
    # What a trial may tune without another backbone or other photos leaves the key as it is.
    key = replace(
        config,
        data=replace(config.data, batch_size=1),
        model=replace(config.model, dropout=0.0, label_smoothing=0.0),
        optimizer=OptimizerConfig(),
        trainer=TrainerConfig(accelerator=config.trainer.accelerator, precision=config.trainer.precision),
        tracking=TrackingConfig(),
        sweep=SweepConfig(),
        search=None,
        output_dir=Path(),
    )
    return _open_features(key)


def open_inputs_once(config: RunConfig) -> None:
    """Open whatever trials of this config share."""
    open_data_once(config)
    if caching(config) == "features":
        open_features_once(config)


def training_device(config: RunConfig) -> torch.device:
    """Where one process trains."""
    return torch.device("cuda" if _on_gpu(config) else "cpu")


def new_head(features: FeatureSet, dropout: float) -> nn.Linear:
    """A copy of the untrained head, to be trained."""
    head = copy.deepcopy(features.head)
    return DropoutLinear(head, dropout) if dropout else head


def feature_data(config: RunConfig, features: FeatureSet) -> FeatureData:
    """Batches of features as the config wants them."""
    return FeatureData(features, batch_size=config.data.batch_size, seed=config.seed)


def precision(config: RunConfig) -> Any:
    """Lightning's precision for this machine."""
    if config.trainer.precision != "auto":
        return config.trainer.precision
    return "bf16-mixed" if _on_gpu(config) and torch.cuda.is_bf16_supported() else "32-true"


def _on_gpu(config: RunConfig) -> bool:
    return config.trainer.accelerator in ("auto", "gpu") and torch.cuda.is_available()


@functools.lru_cache(maxsize=4)
def _open_data(config: DataConfig, seed: int) -> ClassFolders:
    return open_data(config, seed=seed)


@functools.lru_cache(maxsize=4)
def _open_features(config: RunConfig) -> FeatureSet:
    folders = open_data_once(config)
    on_gpu = _on_gpu(config)
    return compute_features(
        new_network(config, len(folders.class_names)),
        photo_data(override(config, {"data.batch_size": 256 if on_gpu else 32}), folders),
        backbone=config.model.backbone,
        views=config.data.cache_views,
        device=training_device(config),
        autocast={"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision(config)),
        cache_dir=config.data.cache_dir,
        max_gb=config.data.cache_max_gb,
        progress=_progress,
    )


@functools.cache
def _has_linear_head(backbone: str) -> bool:
    if backbone not in classifier_names():
        return False  # `create_network` says what is wrong with it
    with torch.device("meta"):
        network = build_network(backbone, 2)
    return isinstance(network.get_submodule(find_head(network)), nn.Linear)


def _progress(batches: Iterable[Batch], total: int) -> Iterator[Batch]:
    on_terminal = sys.stderr.isatty()
    if not on_terminal:
        say(f"features: computing those of {total} photos, once for all trials")
    with tqdm(total=total, desc="features", unit="photo", disable=not on_terminal) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch[1]))
