"""The inputs of a run: photos, network, features. The trials of a process share them where possible."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from experiments.config import DataConfig, ModelConfig, RunConfig, TrainerConfig, override
from experiments.console import progress, say
from experiments.data.datasets import open_data, photo_root
from experiments.interrupts import raise_if_interrupted
from lightning_modules.caches.array_cache import CacheError
from lightning_modules.caches.features import FeatureSet, compute_features
from lightning_modules.caches.photos import DecodedPhotos, PhotoFiles, open_decoded
from lightning_modules.data import ClassFolderData
from lightning_modules.folders import ClassFolders
from lightning_modules.inference import Preprocessing
from lightning_modules.network import create_network, recipe
from lightning_modules.openvino_cpu import Precision


def forget_opened() -> None:
    """Scan the files again: a process that runs several sweeps must see changes between them."""
    _open_data.cache_clear()
    _open_features.cache_clear()
    _open_decoded.cache_clear()


def open_data_once(config: RunConfig) -> ClassFolders:
    """The data set, scanned once for all trials of this process.

    Raises:
        UserError, DownloadError: as `open_data`.
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


def say_data(config: RunConfig) -> None:
    """Print the data set of a command, its classes, and the number of photos of train, valid and test."""
    folders = open_data_once(config)
    splits = (folders.train, folders.valid, folders.test)
    photos = "/".join(str(len(split)) if split else "0" for split in splits)
    say(f"{photo_root(config.data)}: {len(folders.class_names)} classes, {photos} photos (train/valid/test)")


def preprocessing(config: RunConfig) -> Preprocessing:
    """How a photo becomes the network's input: by the recipe of the backbone's weights, in the sizes of the config."""
    size, crop = config.data.image_size, config.data.crop_fraction
    assert size is not None and crop is not None, "resolve_config() comes first"
    return replace(recipe(config.model.backbone), image_size=size, resize_size=round(size / crop))


def photo_data(
    config: RunConfig,
    folders: ClassFolders,
    decoded: tuple[DecodedPhotos, DecodedPhotos] | None = None,
    *,
    no_single_image: bool = False,
) -> ClassFolderData:
    """Batches of photos as the config wants them.

    Args:
        decoded: training and validation photos that were decoded before; None decodes the files.
        no_single_image: as for `ClassFolderData`.
    """
    return ClassFolderData(
        folders,
        preprocessing=preprocessing(config),
        batch_size=config.data.batch_size,
        num_threads=config.data.num_workers,
        augment=config.data.augment,
        seed=config.seed,
        no_single_image=no_single_image,
        decoded=decoded,
    )


def new_network(config: RunConfig, num_classes: int) -> nn.Module:
    """The network before training; its random parts depend on the seed only."""
    torch.manual_seed(config.seed)
    return create_network(
        config.model.backbone,
        num_classes,
        weights=config.model.weights,
        image_size=preprocessing(config).image_size,
        dropout=config.model.dropout,
    )


def open_features_once(config: RunConfig) -> FeatureSet:
    """The features of the config's photos, opened once for all trials of this process.

    Raises:
        ValueError: if the network's head is not linear, or the cache is too small.
    """
    # Fields that change neither backbone nor photos do not change the key.
    key = replace(
        _photos_only(config),
        model=replace(config.model, dropout=0.0, label_smoothing=0.0),
        trainer=TrainerConfig(accelerator=config.trainer.accelerator, precision=config.trainer.precision),
    )
    return _open_features(key)


def open_decoded_once(config: RunConfig) -> tuple[DecodedPhotos, DecodedPhotos] | None:
    """The decoded training and validation photos, opened once for all trials of this process.

    None if `data.cache` excludes them, or is auto and they do not fit.

    Raises:
        CacheError: if they were asked for, and do not fit or cannot be written.
    """
    return _open_decoded(_photos_only(config)) if config.data.cache != "none" else None


def _photos_only(config: RunConfig) -> RunConfig:
    """The config without fields that do not change the photos. The backbone's recipe says how they are resized."""
    model = ModelConfig(backbone=config.model.backbone)
    return RunConfig(data=replace(config.data, batch_size=1), model=model, seed=config.seed)


def training_device(config: RunConfig) -> torch.device:
    """The device of a process that trains."""
    return torch.device("cuda" if on_gpu(config) else "cpu")


def precision(config: RunConfig) -> Any:
    """Lightning's precision for this machine."""
    if config.trainer.precision != "auto":
        return config.trainer.precision
    return "bf16-mixed" if on_gpu(config) and torch.cuda.is_bf16_supported() else "32-true"


def on_gpu(config: RunConfig) -> bool:
    """Whether a process trains on a CUDA GPU."""
    return config.trainer.accelerator in ("auto", "gpu") and torch.cuda.is_available()


@functools.lru_cache(maxsize=4)
def _open_data(config: DataConfig, seed: int) -> ClassFolders:
    return open_data(config, seed=seed)


@functools.lru_cache(maxsize=4)
def _open_features(config: RunConfig) -> FeatureSet:
    folders = open_data_once(config)
    gpu = on_gpu(config)
    return compute_features(
        new_network(config, len(folders.class_names)),
        photo_data(override(config, {"data.batch_size": 256 if gpu else 32}), folders),
        backbone=config.model.backbone,
        views=config.data.cache_views,
        device=training_device(config),
        autocast=_autocast(config),
        openvino=openvino_precision(config),
        cache_dir=config.data.cache_dir,
        max_gb=config.data.cache_max_gb,
        progress=_progress,
    )


def _autocast(config: RunConfig) -> torch.dtype | None:
    """The data type in which PyTorch computes the training images' features, where that is safe; None is float32."""
    if config.data.feature_precision != "auto":
        return torch.bfloat16 if config.data.feature_precision == "bf16" and on_gpu(config) else None
    return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision(config))


def openvino_precision(config: RunConfig) -> Precision | None:
    """The precision in which OpenVINO computes them in PyTorch's place."""
    wanted = config.data.feature_precision
    return wanted if wanted in ("bf16", "int8") and not on_gpu(config) else None


@functools.lru_cache(maxsize=4)
def _open_decoded(config: RunConfig) -> tuple[DecodedPhotos, DecodedPhotos] | None:
    folders = open_data_once(config)
    train = PhotoFiles(folders.train, preprocessing(config), augmented=config.data.augment != "none")
    valid = PhotoFiles(folders.valid, preprocessing(config), augmented=False)
    try:
        train_photos, valid_photos = open_decoded(
            [train, valid],
            cache_dir=config.data.cache_dir,
            max_gb=config.data.cache_max_gb,
            progress=_progress,
        )
    except CacheError as error:
        if config.data.cache != "auto":
            raise
        say(f"photos are decoded in every epoch: {error}")
        return None
    return train_photos, valid_photos


@contextlib.contextmanager
def _progress(description: str, total: int) -> Iterator[Callable[[int], object]]:
    say(f"{description}: {total} photos, once for all trials")
    with progress(description, total, "photo") as advance:

        def update(photos: int) -> None:
            advance(photos)
            raise_if_interrupted()

        yield update
