"""The pixels of a split: from photo files, or from a cache of decoded photos."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from lightning_modules.caches.array_cache import GB, CacheTooSmallError, open_array
from lightning_modules.folders import Split, read_photo
from lightning_modules.inference import DECODER_VERSION, BadImageError, Preprocessing, open_image
from lightning_modules.process import open_threads
from lightning_modules.threads import map_in_order

SHORT_SIDE = 1.15
"""Short side of a photo before a random crop, as a multiple of image_size."""
LONGEST = 1.5
"""Longest side of such a photo, as a multiple of the short one: of a longer photo the middle is kept, as a crop without
augmentation shows no more. It limits the canvas that the photos of a batch share."""
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]
"""Shows the progress over a number of photos: yields a function that takes the number of newly finished ones."""


class Photos(Protocol):
    """The photos of a split, ready to be put into a batch."""

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """One photo, (h, w, 3)."""
        ...

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of a photo, without reading its pixels."""
        ...


class PhotoFiles:
    """Decodes a photo on each access.

    Args:
        split: the photos.
        preprocessing: the size that the network sees.
        augmented: whether the photo is to be cropped at random; otherwise it is cropped as an endpoint does it.
    """

    def __init__(self, split: Split, preprocessing: Preprocessing, *, augmented: bool) -> None:
        self.split, self.preprocessing, self.augmented = split, preprocessing, augmented
        self._short_side = round(SHORT_SIDE * preprocessing.image_size)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """One photo, (h, w, 3).

        Raises:
            BadImageError, OSError: if the file changed since the scan; the message names it.
        """
        path = self.split.paths[index]
        try:
            photo = open_image(read_photo(path), short_side=self._short_side if self.augmented else 0)
        except BadImageError as error:
            raise type(error)(f"{path}: {error}") from error
        # Not pil_to_tensor: each of its torch operations releases the GIL, and sixteen threads would wait longer for
        # it than they decode.
        image = torch.from_numpy(np.array(photo)).permute(2, 0, 1)
        if not self.augmented:
            return _pixels(self.preprocessing.crop(image))
        longest = round(LONGEST * min(image.shape[1:]))
        if max(image.shape[1:]) > longest:
            image = F.center_crop(image, [min(side, longest) for side in image.shape[1:]])
        size = self.size(index)
        mode = InterpolationMode(self.preprocessing.interpolation)
        return _pixels(image if image.shape[1:] == size else F.resize(image, list(size), mode, antialias=True))

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of a photo: never larger than the file's."""
        if not self.augmented:
            return self.preprocessing.image_size, self.preprocessing.image_size
        height, width = self.split.sizes[index]
        short = min(height, width)
        longest, scale = round(LONGEST * short), min(1.0, self._short_side / short)
        return round(min(height, longest) * scale), round(min(width, longest) * scale)


class DecodedPhotos:
    """Photos that were decoded once: one (T,) array of all their pixels, as a rule a memory map."""

    def __init__(self, pixels: NDArray[np.uint8], sizes: NDArray[np.int64]) -> None:
        self.pixels, self._sizes = np.asarray(pixels), sizes.tolist()  # slicing a memmap takes three times as long
        self._ends = (sizes.prod(axis=1) * 3).cumsum().tolist()

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """One photo, (h, w, 3): a view of the file's pages, nothing is copied."""
        (height, width), end = self._sizes[index], self._ends[index]
        return self.pixels[end - 3 * height * width : end].reshape(height, width, 3)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of a photo."""
        height, width = self._sizes[index]
        return height, width


def cache_key(content: str, split: Split) -> dict[str, object]:
    """The part of a cache key that is common to all arrays of a split's photos."""
    return {
        "kind": content,
        "decoder": DECODER_VERSION,
        "photos": hashlib.sha256("".join(split.hashes).encode()).hexdigest(),
        "packages": {name: metadata.version(name) for name in ("torch", "torchvision", "pillow")},
    }


def open_decoded(
    splits: Sequence[PhotoFiles], *, cache_dir: Path, max_gb: float, progress: Progress
) -> list[DecodedPhotos]:
    """The decoded photos of some splits from disk; decoded by all cores and saved there if they are missing.

    Raises:
        CacheTooSmallError: if all of them together do not fit.
        BadImageError, OSError: if a file changed since the scan.
    """
    sizes = [np.array([files.size(index) for index in range(len(files))], dtype=np.int64) for files in splits]
    needed = 3 * sum(int(split_sizes.prod(axis=1).sum()) for split_sizes in sizes) / GB
    if needed > max_gb:
        raise CacheTooSmallError(
            f"data.cache_max_gb must be at least {needed:.3g} for the decoded photos, got {max_gb}"
        )
    return [
        _open(files, split_sizes, cache_dir=cache_dir, max_gb=max_gb, progress=progress)
        for files, split_sizes in zip(splits, sizes, strict=True)
    ]


def _open(
    files: PhotoFiles, sizes: NDArray[np.int64], *, cache_dir: Path, max_gb: float, progress: Progress
) -> DecodedPhotos:
    key = cache_key("decoded", files.split) | {
        "sizes": hashlib.sha256(sizes.tobytes()).hexdigest(),
        "interpolation": files.preprocessing.interpolation,
        "crop": [] if files.augmented else [files.preprocessing.image_size, files.preprocessing.resize_size],
    }

    def fill(values: NDArray[Any]) -> None:
        decoded = DecodedPhotos(values, sizes)

        def decode(index: int) -> None:
            decoded[index][:] = files[index]

        pool = open_threads()  # decoding and scaling release the GIL
        try:
            with progress("decoding", len(files)) as advance:
                for _ in map_in_order(pool, decode, range(len(files))):
                    advance(1)
        finally:
            pool.shutdown(cancel_futures=True)

    shape = (3 * int(sizes.prod(axis=1).sum()),)
    pixels = open_array(cache_dir / "arrays", key, shape=shape, dtype="uint8", fill=fill, max_gb=max_gb)
    return DecodedPhotos(pixels, sizes)


def _pixels(image: Tensor) -> NDArray[np.uint8]:
    """(3, h, w) to (h, w, 3)."""
    pixels: NDArray[np.uint8] = image.permute(1, 2, 0).numpy()
    return pixels
