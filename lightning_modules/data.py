"""The data module over class folders: batches of photos whose order and augmentation depend on seed and epoch only.

So a run that was killed and goes on from its last checkpoint sees the same batches as one that was never stopped,
with any number of loader processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from lightning_modules.folders import ClassFolders, Split
from lightning_modules.inference import Preprocessing, decode_image

IGNORED_LABEL = -100
"""Label of the images that fill up the last shard of a distributed evaluation; losses and metrics skip it."""

Augment = Literal["none", "light", "strong"]
Batch = tuple[Tensor, Tensor]
"""(B, 3, S, S) images and (B,) int64 labels."""


class Draw(NamedTuple):
    """One image of an epoch, as a sampler hands it to the data set."""

    photo: int
    """Its place in the split."""
    seed: int
    """Seeds this image's augmentation in this epoch."""
    padding: bool


class ShardedSampler(Sampler[Draw]):
    """Draws this process's share of a split, shuffled by seed and epoch when training.

    Every process draws equally many images, as DDP's collectives need; what fills up the last share is marked.
    """

    def __init__(self, length: int, *, seed: int, shuffle: bool, rank: int = 0, world_size: int = 1) -> None:
        self.length, self.seed, self.shuffle = length, seed, shuffle
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch, also when it goes on from a checkpoint."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.length / self.world_size)

    def __iter__(self) -> Iterator[Draw]:
        yield from map(Draw, *(one.tolist() for one in self.draws()))

    def draws(self) -> tuple[Tensor, Tensor, Tensor]:
        """All draws of the epoch at once: photos (int64), seeds (int64) and padding (bool), each (len(self),)."""
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        order = torch.randperm(self.length, generator=generator) if self.shuffle else torch.arange(self.length)
        seeds = torch.randint(2**62, (self.length,), generator=generator)
        places = torch.arange(self.rank, len(self) * self.world_size, self.world_size)
        photos = order[places % self.length]
        padding = (places >= self.length) & torch.tensor(not self.shuffle)
        return photos, seeds[photos], padding


class PhotoDataset(Dataset[tuple[Tensor, int]]):
    """Decodes, crops and augments the photos of a split."""

    def __init__(self, split: Split, preprocessing: Preprocessing, augment: Augment) -> None:
        self.split, self.preprocessing = split, preprocessing
        self.augmentation = augmentation(augment, preprocessing.image_size)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, int]:
        """One image, (3, S, S) uint8, and its label."""
        data = self.split.paths[draw.photo].read_bytes()
        label = IGNORED_LABEL if draw.padding else self.split.labels[draw.photo]
        if self.augmentation is None:
            return self.preprocessing.crop(decode_image(data)), label  # in full, as an endpoint does
        image = decode_image(data, short_side=2 * self.preprocessing.image_size)
        # Its own random stream: the same image in the same epoch is augmented alike in any loader process.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw.seed)
            return self.augmentation(image), label


def augmentation(augment: Augment, image_size: int) -> v2.Transform | None:
    """The training augmentation of one uint8 image; None where there is none."""
    if augment == "none":
        return None
    light = [
        v2.RandomResizedCrop(image_size, scale=(0.35, 1.0), antialias=True),
        v2.RandomHorizontalFlip(),
    ]
    if augment == "light":
        return v2.Compose(light)
    return v2.Compose([*light, v2.TrivialAugmentWide(), v2.RandomErasing(p=0.25)])


class ClassFolderData(pl.LightningDataModule):
    """Train, validation and test batches of a scanned data set."""

    def __init__(
        self,
        folders: ClassFolders,
        *,
        preprocessing: Preprocessing,
        batch_size: int,
        num_workers: int = 0,
        augment: Augment = "none",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.folders, self.preprocessing = folders, preprocessing
        self.batch_size, self.num_workers = batch_size, num_workers
        self.augment, self.seed = augment, seed

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled and augmented."""
        return self._loader(self.folders.train, self.augment, shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """In the order of the paths."""
        return self._loader(self.folders.valid, "none", shuffle=False)

    def validation_batches(self) -> DataLoader[Batch]:
        """All of the validation split in order, undivided between devices."""
        return self.split_batches(self.folders.valid)

    def split_batches(self, split: Split, *, augmented: bool = False, view: int = 0) -> DataLoader[Batch]:
        """All of a split in order, undivided between devices.

        Args:
            view: which of many random augmentations to make.
        """
        loader = self._loader(split, self.augment if augmented else "none", shuffle=False, distributed=False)
        assert isinstance(loader.sampler, ShardedSampler)
        loader.sampler.set_epoch(view)
        return loader

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Normalise on the device: bytes travel, a quarter of the floats."""
        del dataloader_idx
        images, labels = batch
        return self.preprocessing.normalise(images).contiguous(memory_format=torch.channels_last), labels

    def _loader(self, split: Split, augment: Augment, *, shuffle: bool, distributed: bool = True) -> DataLoader[Batch]:
        divided = distributed and self.trainer is not None
        sampler = ShardedSampler(
            len(split),
            seed=self.seed,
            shuffle=shuffle,
            rank=self.trainer.global_rank if divided and self.trainer else 0,
            world_size=self.trainer.world_size if divided and self.trainer else 1,
        )
        return DataLoader(
            PhotoDataset(split, self.preprocessing, augment),  # type: ignore[arg-type]
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=shuffle and self.num_workers > 0,
        )
