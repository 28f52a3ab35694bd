"""Small pictures and class folders for tests."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

SPLIT_SIZES: Mapping[str, int] = {"train": 8, "valid": 4, "test": 4}
"""Photos a class that `make_class_folders` puts into each split by default."""

Colour = tuple[int, int, int]


def class_colour(index: int, classes: int) -> Colour:
    """A colour of its own for each class: the hues are spread evenly."""
    red, green, blue = colorsys.hsv_to_rgb(index / classes, 0.8, 0.8)
    return round(255 * red), round(255 * green), round(255 * blue)


def smooth_picture(width: int = 24, height: int = 16) -> Image.Image:
    """An RGB picture without edges that looks different after every turn and mirroring.

    JPEG compression and scaling leave it almost unchanged, so that it can be compared after them.
    """
    across = np.linspace(30, 220, width)[None, :]
    down = np.linspace(40, 200, height)[:, None]
    red = np.broadcast_to(across, (height, width))
    green = np.broadcast_to(down, (height, width))
    blue = across * down / 220
    return Image.fromarray(np.stack([red, green, blue], axis=-1).round().astype(np.uint8))


def noisy_picture(colour: Colour, size: int = 24, seed: int = 0, noise: float = 20.0) -> Image.Image:
    """A square RGB picture of one colour with noise, so that no two seeds give the same file."""
    random = np.random.default_rng(seed)
    pixels = np.array(colour) + random.normal(0, noise, (size, size, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encoded(picture: Image.Image, format: str, **options: object) -> bytes:
    """The bytes of an image file; `options` go to Pillow's `save`."""
    stream = io.BytesIO()
    picture.save(stream, format, **options)
    return stream.getvalue()


def jpeg_bytes(colour: Colour = (200, 40, 40), size: int = 24, seed: int = 0) -> bytes:
    """A JPEG file of one colour with noise."""
    return encoded(noisy_picture(colour, size, seed), "JPEG", quality=90)


def make_class_folders(
    root: Path,
    classes: int = 3,
    per_class: Mapping[str, int] = SPLIT_SIZES,
    size: int = 24,
    seed: int = 0,
) -> Path:
    """Write `root/SPLIT/NNN.ClassN/photo_I.jpg`; the classes can be told apart by their colour.

    No two photos have the same bytes. The folders are named as in dogImages: `001.Class1` is class 1.

    Args:
        per_class: photos a class in each split; a split that is not named gets no folder.
        size: side of the photos in pixels.

    Returns:
        `root`.
    """
    for split_index, (split, count) in enumerate(per_class.items()):
        for class_index in range(classes):
            folder = root / split / f"{class_index + 1:03d}.Class{class_index + 1}"
            folder.mkdir(parents=True)
            for index in range(count):
                picture_seed = ((seed * 10 + split_index) * 1_000 + class_index) * 10_000 + index
                data = jpeg_bytes(class_colour(class_index, classes), size, picture_seed)
                (folder / f"photo_{index}.jpg").write_bytes(data)
    return root
