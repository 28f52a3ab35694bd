"""The data module over class folders: batches of photos whose order and augmentation depend on seed and epoch only.

A resumed run therefore sees the same batches as an uninterrupted one, with any number of threads, and with cached or
uncached photos.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torchvision.transforms import v2

from lightning_modules.augmentation import Augment, augment, draw_numbers
from lightning_modules.caches.photos import PhotoFiles, Photos
from lightning_modules.folders import ClassFolders, Split
from lightning_modules.inference import Preprocessing
from lightning_modules.process import default_threads, open_threads

IGNORED_LABEL = -100
"""Label of padding in the last shard of a distributed evaluation; losses and metrics skip it."""

PHOTOS_PER_TASK = 8
"""Fewest photos of a batch that one thread decodes in one task."""

Batch = tuple[Tensor, Tensor]
"""(B, 3, S, S) float32 images, or features, and their labels: (B,) int64, or (B, C) shares where images are mixed."""


class ShardedSampler:
    """Draws this process's share of a split, shuffled by seed and epoch when training.

    Every process draws equally many images, as DDP's collectives need; padding of the last share is marked.
    """

    def __init__(self, length: int, *, seed: int, shuffle: bool, rank: int = 0, world_size: int = 1) -> None:
        self.length, self.seed, self.shuffle = length, seed, shuffle
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch, also when it resumes from a checkpoint."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.length / self.world_size)

    def draws(self) -> tuple[Tensor, Tensor, Tensor]:
        """The draws of the whole epoch, each (len(self),).

        Returns:
            Indices in the split (int64), a seed for the augmentation of each image in this epoch (int64), and which
            images only fill up the share (bool).
        """
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        order = torch.randperm(self.length, generator=generator) if self.shuffle else torch.arange(self.length)
        seeds = torch.randint(2**62, (self.length,), generator=generator)
        positions = torch.arange(self.rank, len(self) * self.world_size, self.world_size)
        photos = order[positions % self.length]
        padding = (positions >= self.length) & torch.tensor(not self.shuffle)
        return photos, seeds[photos], padding


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Seed of the random draws of a training step."""
    return (seed * 1_000_003 + step) * 1024 + rank


def seed_draws(seed: int, device: torch.device) -> None:
    """Seed the random generators of the CPU and of `device`.

    `torch.manual_seed` also seeds types of devices that are absent, which takes longer than a step of a head.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


class PhotoBatch(NamedTuple):
    """A batch as it is sent to the device: uint8, a quarter of the size of float32."""

    pixels: Tensor
    """(B, H, W, 3) uint8; each photo in the upper left corner."""
    sizes: Tensor
    """(B, 2) int64: height and width of each photo."""
    draws: Tensor
    """(B, DRAWS) float32 for the augmentation; (B, 0) for photos without augmentation."""
    labels: Tensor
    """(B,) int64."""


def batch_sizes(images: int, batch_size: int, *, no_single: bool = False) -> list[int]:
    """Images of each batch of an epoch.

    Args:
        no_single: merge a last batch of one image with the batch before it.
    """
    sizes = [min(batch_size, images - start) for start in range(0, images, batch_size)]
    if no_single and sizes[-1] == 1 < batch_size and len(sizes) > 1:
        sizes[-2:] = [sizes[-2] + 1]
    return sizes


class EpochBatches:
    """The batches of an epoch, which can resume within the epoch: a loader for Lightning without worker processes."""

    batch_sampler = None  # Lightning reads it from a loader with a sampler

    def __init__(self, batch_size: int, sampler: ShardedSampler, *, no_single: bool = False) -> None:
        self.batch_size = batch_size
        self.sampler = sampler  # Lightning sets its epoch
        self.sizes = batch_sizes(len(sampler), batch_size, no_single=no_single)
        """Images of each batch."""
        self._given, self._skipped = 0, 0

    def __len__(self) -> int:
        return len(self.sizes)

    def state_dict(self) -> dict[str, int]:
        """Number of batches of this epoch so far; Lightning stores it in checkpoints."""
        return {"batches": self._given}

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Start the next epoch after this many batches; Lightning calls it for a checkpoint within an epoch."""
        self._skipped = state_dict["batches"]

    def _begin(self) -> None:
        """Start the epoch at its first batch: Lightning creates the iterator before it sets epoch and position."""
        self._given, self._skipped = self._skipped, 0


class PhotoBatches(EpochBatches):
    """Batches of photos, loaded by threads while earlier batches train.

    Threads suffice: reading, decoding and copying release the GIL, and a photo takes a few lines of Python.
    """

    def __init__(
        self,
        photos: Photos,
        labels: Sequence[int],
        batch_size: int,
        sampler: ShardedSampler,
        *,
        augmented: bool,
        threads: int,
        no_single: bool = False,
    ) -> None:
        super().__init__(batch_size, sampler, no_single=no_single)
        self.photos, self.labels = photos, torch.tensor(labels)
        self.augmented, self.threads = augmented, threads

    def __iter__(self) -> Iterator[PhotoBatch]:
        self._begin()
        drawn = zip(*(torch.split(draws, self.sizes) for draws in self.sampler.draws()), strict=True)
        remaining = deque(islice(drawn, self._given, None))
        pool = open_threads(self.threads)
        coming: deque[tuple[PhotoBatch, list[Future[None]]]] = deque()
        try:
            while remaining or coming:
                while remaining and sum(len(tasks) for _, tasks in coming) < 3 * self.threads:
                    coming.append(self._assemble(pool, *remaining.popleft()))
                batch, tasks = coming.popleft()
                for task in tasks:
                    task.result()
                self._given += 1
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)

    def _assemble(
        self, pool: ThreadPoolExecutor, indices: Tensor, seeds: Tensor, padding: Tensor
    ) -> tuple[PhotoBatch, list[Future[None]]]:
        """A batch, and the tasks that fill it. All threads share the first batch, so an epoch starts at once."""
        photo_indices = indices.tolist()
        sizes = np.array([self.photos.size(index) for index in photo_indices])
        height, width = sizes.max(axis=0).tolist()
        pixels = torch.empty(
            len(photo_indices), height, width, 3, dtype=torch.uint8, pin_memory=torch.cuda.is_available()
        )
        # numpy: each torch operation releases the GIL and waits to get it back.
        canvas, shapes = pixels.numpy(), sizes.tolist()
        share = max(PHOTOS_PER_TASK, -(-len(photo_indices) // self.threads))

        def fill(slots: range) -> None:
            for slot in slots:
                high, wide = shapes[slot]
                canvas[slot, :high, :wide] = self.photos[photo_indices[slot]]

        all_slots = range(len(photo_indices))
        tasks = [pool.submit(fill, all_slots[start : start + share]) for start in range(0, len(photo_indices), share)]
        draws = draw_numbers(seeds) if self.augmented else torch.empty(len(seeds), 0)
        labels = self.labels[indices].masked_fill(padding, IGNORED_LABEL)
        return PhotoBatch(pixels, torch.from_numpy(sizes), draws, labels), tasks


class ClassFolderData(pl.LightningDataModule):
    """Train, validation and test batches of a scanned data set.

    Args:
        folders: the data set.
        preprocessing: the size that the network sees.
        batch_size: images per step and device.
        num_threads: threads that load batches; 0 takes `default_threads`.
        augment: augmentation of training images; see `augmentation.py`. `strong` also mixes half of the batches.
        seed: seed of order and augmentation.
        no_single_image: merge a last training batch of one image with the one before it; see `trains_batch_norm`.
        decoded: training and validation photos that were decoded before.
    """

    def __init__(
        self,
        folders: ClassFolders,
        *,
        preprocessing: Preprocessing,
        batch_size: int,
        num_threads: int = 0,
        augment: Augment = "none",
        seed: int = 0,
        no_single_image: bool = False,
        decoded: tuple[Photos, Photos] | None = None,
    ) -> None:
        super().__init__()
        self.no_single_image = no_single_image
        self.folders, self.preprocessing = folders, preprocessing
        self.batch_size, self.num_threads = batch_size, num_threads or default_threads()
        self.augment, self.seed = augment, seed
        self._train, self._valid = decoded or (
            self.files(folders.train, augmented=augment != "none"),
            self.files(folders.valid),
        )
        mixing = {"num_classes": len(folders.class_names)}
        self._mix = v2.RandomChoice([v2.MixUp(**mixing, alpha=0.2), v2.CutMix(**mixing, alpha=1.0)])

    def files(self, split: Split, *, augmented: bool = False) -> PhotoFiles:
        """A split's photos from their files."""
        return PhotoFiles(split, self.preprocessing, augmented=augmented)

    def train_dataloader(self) -> PhotoBatches:
        """Shuffled and augmented."""
        return self._batches(self._train, self.folders.train, shuffle=True, augmented=self.augment != "none")

    def val_dataloader(self) -> PhotoBatches:
        """In the order of the paths."""
        return self._batches(self._valid, self.folders.valid)

    def transfer_batch_to_device(self, batch: PhotoBatch, device: torch.device, dataloader_idx: int) -> Batch:
        """Send to the device; augment and normalise there.

        On a GPU this runs on a separate stream, while the previous batch trains.
        """
        del dataloader_idx
        stream = self._stream if device.type == "cuda" else None
        with torch.cuda.stream(stream):
            on_device = _on_device(batch, device)
            ready = self._inputs(on_device), on_device.labels
            if self.augment == "strong" and batch.draws.shape[1]:
                ready = self._mixed(*ready)
        if stream is not None:
            training = torch.cuda.current_stream(device)
            training.wait_stream(stream)
            for tensor in ready:
                tensor.record_stream(training)  # its memory is not free before training has read it
        return ready

    def validation_inputs(self, device: torch.device) -> Iterator[Tensor]:
        """The whole validation split in order, not divided between devices, as input of the network."""
        for batch in self._batches(self._valid, self.folders.valid, divided=False):
            yield self._inputs(_on_device(batch, device))

    def split_inputs(self, split: Split, device: torch.device) -> Iterator[Tensor]:
        """A whole split in order, as input of the network: (B, 3, S, S) float32 on `device`."""
        for batch in self._batches(self.files(split), split, divided=False):
            yield self._inputs(_on_device(batch, device))

    def training_views(self, device: torch.device, views: int) -> Iterator[Iterator[Tensor]]:
        """The whole training split in order, with this many augmented views per batch, which is decoded once."""
        augmented = self.augment != "none"
        sampler = ShardedSampler(len(self.folders.train), seed=self.seed, shuffle=False)
        seeds = []
        for view in range(views):
            sampler.set_epoch(view)
            seeds.append(torch.split(sampler.draws()[1], self.batch_size))
        for batch, *seeds_by_view in zip(
            self._batches(self._train, self.folders.train, divided=False), *seeds, strict=True
        ):
            on_device = _on_device(batch, device)
            if augmented:
                yield (
                    self._inputs(on_device._replace(draws=draw_numbers(view_seeds).to(device)))
                    for view_seeds in seeds_by_view
                )
            else:
                yield (self._inputs(on_device) for _ in seeds_by_view)

    def _inputs(self, batch: PhotoBatch) -> Tensor:
        """The input of the network: (B, 3, S, S) float32, normalised."""
        if batch.draws.shape[1]:
            assert self.augment != "none"
            images = augment(
                batch.pixels,
                batch.sizes,
                batch.draws,
                level=self.augment,
                image_size=self.preprocessing.image_size,
                interpolation=self.preprocessing.interpolation,
            )
        else:
            images = batch.pixels.permute(0, 3, 1, 2)
        return self.preprocessing.normalise(images)

    @functools.cached_property
    def _stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def _mixed(self, images: Tensor, labels: Tensor) -> Batch:
        """MixUp or CutMix in every second batch; its random numbers depend on the step only."""
        assert self.trainer is not None
        with torch.random.fork_rng(devices=[]):
            step = step_seed(self.seed, self.trainer.global_step, self.trainer.global_rank)
            seed_draws(step, torch.device("cpu"))  # the draws of MixUp and CutMix are made there
            mixed: Batch = self._mix(images, labels) if float(torch.rand(())) < 0.5 else (images, labels)
        return mixed

    def _batches(
        self, photos: Photos, split: Split, *, shuffle: bool = False, augmented: bool = False, divided: bool = True
    ) -> PhotoBatches:
        trainer = self.trainer if divided else None
        sampler = ShardedSampler(
            len(split),
            seed=self.seed,
            shuffle=shuffle,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )
        return PhotoBatches(
            photos,
            split.labels,
            self.batch_size,
            sampler,
            augmented=augmented,
            threads=self.num_threads,
            no_single=self.no_single_image and shuffle,
        )


def _on_device(batch: PhotoBatch, device: torch.device) -> PhotoBatch:
    return PhotoBatch(*(tensor.to(device, non_blocking=True) for tensor in batch))
