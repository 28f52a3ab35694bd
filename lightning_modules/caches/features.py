"""The feature cache: the output of a frozen backbone per photo, computed once for all trials of all sweeps."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_modules import augmentation
from lightning_modules.augmentation import Augment
from lightning_modules.caches.array_cache import open_array
from lightning_modules.caches.photos import Progress, cache_key
from lightning_modules.cores import has_int8
from lightning_modules.data import IGNORED_LABEL, ClassFolderData, EpochBatches, ShardedSampler
from lightning_modules.errors import UserError
from lightning_modules.folders import Split
from lightning_modules.network import find_head
from lightning_modules.openvino_cpu import OpenVino, Precision, convert, quantize
from lightning_modules.precision import exact_float32

_log = logging.getLogger(__name__)
CALIBRATION_PHOTOS = 64
"""Photos from which the ranges of int8 are measured. With 300, NNCF's default, it takes four times as long."""
IMAGES_AT_ONCE = 4096
"""Images whose features are gathered at once: 34 MB for a ResNet50."""


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Features of a data set by the frozen backbone of a network."""

    train: Tensor
    """(V, N, F) float32: V augmented views of each training image."""
    train_labels: Tensor
    """(N,) int64."""
    valid: Tensor
    """(1, M, F) float32."""
    valid_labels: Tensor
    """(M,) int64."""
    head: nn.Linear
    """The network's head before training."""

    def to(self, device: torch.device) -> FeatureSet:
        """The set on a device; the last copy is kept."""
        return _to_device(self, device)


@functools.lru_cache(maxsize=1)
def _to_device(features: FeatureSet, device: torch.device) -> FeatureSet:
    return FeatureSet(
        features.train.to(device),
        features.train_labels.to(device),
        features.valid.to(device),
        features.valid_labels.to(device),
        features.head,
    )


def compute_features(
    network: nn.Module,
    data: ClassFolderData,
    *,
    backbone: str,
    views: int,
    device: torch.device,
    autocast: torch.dtype | None,
    openvino: Precision | None = None,
    cache_dir: Path,
    max_gb: float,
    progress: Progress,
) -> FeatureSet:
    """The features of the training and validation photos: read from disk, or computed and stored there.

    Args:
        network: a classifier with a linear head; everything but the head is frozen.
        data: the photos; its augmentation is that of the training views.
        backbone: the network's name.
        views: augmented views to keep of each training image; without augmentation there is one.
        device: where the pass runs.
        autocast: data type in which the training views are computed where that is safe; None is float32 throughout.
            Validation photos are always computed in float32: their scores are those of the exported network.
        openvino: precision in which OpenVINO computes the training views on the CPU; None leaves them to PyTorch.

    Raises:
        CacheTooSmallError: if `max_gb` is less than one split's features.
        UserError: if OpenVINO can't run the network.
    """
    head_name = find_head(network)
    head = network.get_submodule(head_name)
    assert isinstance(head, nn.Linear), "the caller has checked it"
    trunk_digest = _digest_of({k: v for k, v in network.state_dict().items() if not k.startswith(f"{head_name}.")})

    def features(
        split: Split,
        count: int,
        inputs: Iterable[Iterable[Tensor]],
        augment: Augment,
        autocast: torch.dtype | None = None,
        openvino: Precision | None = None,
    ) -> Tensor:
        key = cache_key("features", split) | {
            "backbone": [backbone, trunk_digest],
            "preprocessing": data.preprocessing.to_dict(),
            "views": [augment, augmentation.VERSION, count, data.seed] if augment != "none" else [],
            "precision": str(autocast) if openvino is None else _of_openvino(openvino),
            "device": device.type,
        }

        def fill(values: NDArray[Any]) -> None:
            start = 0
            trunk = network if openvino is None else _compiled(network, data, openvino)
            with progress("features", count * len(split)) as advance, _before_each_layer(trunk, lambda: advance(0)):
                for views_of_batch in inputs:
                    for view, images in enumerate(views_of_batch):
                        with torch.autocast(device.type, autocast, enabled=autocast is not None):
                            found = trunk(images)
                        values[view, start : start + len(found)] = found.float().cpu().numpy()
                        advance(len(found))
                    start += len(found)

        shape = (count, len(split), head.in_features)
        return torch.from_numpy(
            open_array(cache_dir / "arrays", key, shape=shape, dtype="float32", fill=fill, max_gb=max_gb)
        )

    folders, count = data.folders, 1 if data.augment == "none" else views
    with _without_head(network, head_name), torch.inference_mode():
        network.eval().to(device).to(memory_format=torch.channels_last)
        views_of_train = data.training_views(device, count)
        train = features(folders.train, count, views_of_train, data.augment, autocast, openvino)
        views_of_valid = ([images] for images in data.validation_inputs(device))
        with exact_float32():
            valid = features(folders.valid, 1, views_of_valid, "none")
    network.cpu()
    return FeatureSet(train, torch.tensor(folders.train.labels), valid, torch.tensor(folders.valid.labels), head)


def _of_openvino(precision: Precision) -> dict[str, object]:
    """What decides about the features that OpenVINO computes, beside the network and the photos."""
    packages = ("openvino", "nncf") if precision == "int8" else ("openvino",)
    found: dict[str, object] = {"openvino": precision, "packages": {name: metadata.version(name) for name in packages}}
    if precision == "int8":
        # Processors without these instructions add in 16 bits: their features differ by a percent.
        found |= {"calibration": CALIBRATION_PHOTOS, "has_int8": has_int8()}
    return found


def _compiled(trunk: nn.Module, data: ClassFolderData, precision: Precision) -> OpenVino:
    """The network without its head, for this CPU."""
    # Outside of what is caught: a photo that can't be read is no fault of the network.
    calibration = []
    if precision == "int8":
        if not has_int8():
            _log.warning("data.feature_precision int8: this processor has no VNNI, without which int8 is not faster")
        photos = data.folders.train.sample(CALIBRATION_PHOTOS)
        calibration = list(data.split_inputs(photos, torch.device("cpu")))
    try:
        converted = convert(trunk, data.preprocessing.image_size)
        if precision == "int8":
            converted = quantize(converted, calibration)
        return OpenVino(converted, torch.get_num_threads(), precision)
    except ImportError:
        raise
    except Exception as error:  # a converter may fail on any layer with any error
        reason = " ".join(str(error).split())[:500]
        raise UserError(
            f"data.feature_precision must be auto or float32 for this network, got {precision!r}: OpenVINO can't run "
            f"it: {reason}"
        ) from error


class Steps(NamedTuple):
    """Consecutive batches of an epoch in one tensor."""

    inputs: Tensor
    """(N, F) float32."""
    labels: Tensor
    """(N,) int64."""
    size: int
    """Images of a batch; the last one may have fewer."""
    first: int
    """Index of the first batch in its epoch, from 0."""


class FeatureBatches(EpochBatches):
    """Batches of features, sliced from tensors on the training device, without collation."""

    def __init__(self, features: Tensor, labels: Tensor, batch_size: int, sampler: ShardedSampler) -> None:
        super().__init__(batch_size, sampler)
        self.features, self.labels = features, labels

    def __iter__(self) -> Iterator[Any]:
        self._begin()
        indices, seeds, padding = self.sampler.draws()
        # The same (seed, epoch, image) as for an uncached photo.
        views = (seeds % len(self.features)).to(self.features.device)
        indices, padding = indices.to(self.features.device), padding.to(self.features.device)
        labels = self.labels[indices].masked_fill(padding, IGNORED_LABEL)
        rows, flat = views * self.features.shape[1] + indices, self.features.flatten(0, 1)
        for start in range(self._given * self.batch_size, len(indices), self.batch_size):
            batch = slice(start, start + self.batch_size)
            self._given += 1
            yield flat.index_select(0, rows[batch]), labels[batch]


class FeatureSteps(FeatureBatches):
    """Several batches at once, of about `IMAGES_AT_ONCE` images together."""

    def __init__(self, features: Tensor, labels: Tensor, batch_size: int, sampler: ShardedSampler) -> None:
        super().__init__(features, labels, max(1, IMAGES_AT_ONCE // batch_size) * batch_size, sampler)
        self.step_size = batch_size

    def __iter__(self) -> Iterator[Steps]:
        steps_a_piece = self.batch_size // self.step_size
        for inputs, labels in super().__iter__():
            yield Steps(inputs, labels, self.step_size, (self._given - 1) * steps_a_piece)


class FeatureData(pl.LightningDataModule):
    """Features in place of photos, in the order in which `ClassFolderData` would give the photos.

    Args:
        steps_at_once: give training batches as `HeadClassifier` takes them, not one by one.
    """

    def __init__(self, features: FeatureSet, *, batch_size: int, seed: int, steps_at_once: bool = False) -> None:
        super().__init__()
        self.features, self.batch_size, self.seed = features, batch_size, seed
        self.steps_at_once = steps_at_once

    def train_dataloader(self) -> FeatureBatches:
        """Shuffled; each epoch draws one view of each image."""
        features, loader_type = self._on_training_device(), FeatureSteps if self.steps_at_once else FeatureBatches
        return loader_type(
            features.train, features.train_labels, self.batch_size, self._sampler(features.train, shuffle=True)
        )

    def val_dataloader(self) -> FeatureBatches:
        """In the order of the photos."""
        features, size = self._on_training_device(), IMAGES_AT_ONCE if self.steps_at_once else self.batch_size
        return FeatureBatches(features.valid, features.valid_labels, size, self._sampler(features.valid, shuffle=False))

    def validation_inputs(self, device: torch.device) -> Iterator[Tensor]:
        """The whole validation split in order, not divided between devices."""
        yield self.features.valid[0].to(device)

    def _on_training_device(self) -> FeatureSet:
        assert self.trainer is not None
        return self.features.to(self.trainer.strategy.root_device)

    def _sampler(self, features: Tensor, *, shuffle: bool) -> ShardedSampler:
        assert self.trainer is not None
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        return ShardedSampler(features.shape[1], seed=self.seed, shuffle=shuffle, rank=rank, world_size=world_size)


@contextlib.contextmanager
def _before_each_layer(network: nn.Module, call: Callable[[], object]) -> Iterator[None]:
    """Call a function before each layer: a batch of large photos takes seconds, and the function may raise to stop."""

    def hook(*_: object) -> None:
        call()

    handles = [layer.register_forward_pre_hook(hook) for layer in network.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _without_head(network: nn.Module, name: str) -> Iterator[None]:
    head = network.get_submodule(name)
    network.set_submodule(name, nn.Identity())
    try:
        yield
    finally:
        network.set_submodule(name, head)


def _digest_of(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
