"""Training augmentation, batched on the device: crop, flip and colour; for `strong` random operations and erasing.

The random numbers of each image come from its own seed, on the CPU; the rest is a pure function of tensors. So an image
looks the same in an epoch for every batch size, number of threads and number of devices.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lightning_modules.inference import Interpolation

Augment = Literal["none", "light", "strong"]

VERSION = 2
"""Part of a feature cache's key: raise it when the same draws give other pixels."""
DRAWS = 16
"""Random numbers per image."""
CROP_AREA = (0.35, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
COLOUR = 0.2
"""Largest distance of brightness, contrast and saturation from 1 with `light`."""
_OPERATIONS = ("rotate", "shear_x", "shear_y", "brightness", "contrast", "saturation", "posterize", "solarize")
_ERASED_SHARE = 0.25
_LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601."""
_GAMMA = 0x9E3779B97F4A7C15


def draw_numbers(seeds: Tensor) -> Tensor:
    """The random numbers of each image: (B, DRAWS) float32 in [0, 1), from (B,) int64 seeds.

    A generator for each image takes 13 microseconds of Python, so the generator's arithmetic runs over all of them.

    Source: SplitMix64, Steele, Lea & Flood 2014, doi:10.1145/2660193.2660195.
    """
    bits = seeds.numpy().astype(np.uint64)[:, None] + np.arange(1, DRAWS + 1, dtype=np.uint64) * np.uint64(_GAMMA)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    bits ^= bits >> np.uint64(31)
    return torch.from_numpy((bits >> np.uint64(40)).astype(np.float32) * np.float32(2**-24))


def augment(
    pixels: Tensor,
    sizes: Tensor,
    draws: Tensor,
    *,
    level: Augment,
    image_size: int,
    interpolation: Interpolation = Interpolation.BILINEAR,
) -> Tensor:
    """Crop, flip and colour every image of a batch by its own random numbers.

    Args:
        pixels: (B, H, W, 3) uint8; each image in the upper left corner.
        sizes: (B, 2) height and width of each image.
        draws: (B, DRAWS) numbers in [0, 1), as `draw_numbers` gives them.
        level: `light`, or `strong` with two random operations and, for a quarter of the images, an erased rectangle.
        image_size: side of the result.
        interpolation: how pixels are sampled.

    Returns:
        (B, 3, image_size, image_size) float32 in [0, 1].

    Source: crop, Szegedy et al. 2014, arXiv:1409.4842; two random operations, RandAugment, Cubuk et al. 2019,
    arXiv:1909.13719; erasing, Zhong et al. 2017, arXiv:1708.04896.
    """
    strength = _strengths(draws[:, 8:12]) if level == "strong" else draws.new_zeros(len(draws), len(_OPERATIONS))
    by_name = dict(zip(_OPERATIONS, strength.T[:, :, None, None, None], strict=True))  # each (B, 1, 1, 1)
    upright = level == "light"
    images = _sample(pixels, sizes, draws[:, :5], strength[:, :3], image_size, upright=upright, mode=interpolation)
    jitter = COLOUR * (2 * draws[:, 5:8].T[:, :, None, None, None] - 1)
    # In place and in few passes, as each costs its way through memory: brightness and contrast in one.
    names = ("brightness", "contrast", "saturation")
    brightness, contrast, saturation = (
        1 + own_jitter + 0.9 * by_name[name] for own_jitter, name in zip(jitter, names, strict=True)
    )
    brightness = brightness / 255
    _blend(images, _grey(images.mean(dim=(2, 3), keepdim=True)) * brightness, contrast, scale=brightness)
    _blend(images, _grey(images), saturation)
    images.clamp_(0, 1)
    if level == "light":
        return images
    steps = 2 ** (4 * by_name["posterize"].abs()).round()
    images = torch.where(steps > 1, (images * (255 / steps)).floor_().mul_(steps / 255), images)
    images = torch.where(images > 1 - by_name["solarize"].abs(), 1 - images, images)
    return images.mul_(~_erased(draws[:, 12:16], image_size))


def _strengths(draws: Tensor) -> Tensor:
    """Two operations per image, drawn with their strengths in [-1, 1]: (B, len(_OPERATIONS)), 0 for the others."""
    chosen = (draws[:, :2] * len(_OPERATIONS)).long()
    return draws.new_zeros(len(draws), len(_OPERATIONS)).scatter_add(1, chosen, 2 * draws[:, 2:] - 1).clamp(-1, 1)


def _sample(
    pixels: Tensor, sizes: Tensor, draws: Tensor, geometry: Tensor, image_size: int, *, upright: bool, mode: str
) -> Tensor:
    """Crop, rotate, shear, flip and resize each image, in one call of `grid_sample`.

    The result is (B, 3, image_size, image_size) float32, in [0, 255] except where bicubic sampling overshoots.
    `upright` boxes are neither rotated nor sheared.

    There is no low-pass filter: boxes are at most a little larger than the result, as photos come scaled down.
    """
    height, width = sizes.float().T
    low, high = CROP_AREA
    area = height * width * (low + (high - low) * draws[:, 0])
    low, high = (math.log(bound) for bound in CROP_RATIO)
    ratio = (low + (high - low) * draws[:, 1]).exp()
    # A side that is longer than the photo is shortened.
    box_height, box_width = torch.minimum((area / ratio).sqrt(), height), torch.minimum((area * ratio).sqrt(), width)
    middle_y = box_height / 2 + draws[:, 2] * (height - box_height)
    middle_x = box_width / 2 + draws[:, 3] * (width - box_width)
    mirrored = torch.where(draws[:, 4] < 0.5, -1.0, 1.0)
    angle, shear_x, shear_y = math.pi / 6 * geometry[:, 0], 0.3 * geometry[:, 1], 0.3 * geometry[:, 2]

    # Coordinates of the result's pixels: a share of the box's height and width each, down and across from its middle.
    along = (torch.arange(image_size, device=pixels.device) + 0.5) / image_size - 0.5
    down, across = box_height[:, None] * along, (box_width * mirrored)[:, None] * along
    sine, cosine = angle.sin()[:, None], angle.cos()[:, None]
    y_down, y_across = down * (cosine + sine * shear_x[:, None]), across * (cosine * shear_y[:, None] + sine)
    x_down, x_across = down * (cosine * shear_x[:, None] - sine), across * (cosine - sine * shear_y[:, None])
    # In `grid_sample`'s units, where the canvas reaches from -1 to 1.
    grid = draws.new_empty(len(draws), image_size, image_size, 2)
    for axis, from_down, from_across, middle, side, canvas in (
        (0, x_down, x_across, middle_x, width, pixels.shape[2]),
        (1, y_down, y_across, middle_y, height, pixels.shape[1]),
    ):
        start = (from_down + middle[:, None]) * (2 / canvas) - 1
        step = from_across * (2 / canvas)
        if upright:  # a column shares its x, and a row its y: less to add up and to clamp
            start, step = (start[:, :1], step) if axis == 0 else (start, step[:, :1])
        coordinates = start[:, :, None] + step[:, None, :]
        # Outside of the photo its nearest pixel is shown, never the padding of the batch.
        last = ((side - 0.5) * (2 / canvas) - 1)[:, None, None]
        grid[..., axis] = coordinates.clamp_(torch.full_like(last, 1 / canvas - 1), last)
    padding = "zeros"  # never seen
    if mode == "bicubic":
        pixels, padding = _edges_repeated(pixels, sizes), "border"
    images = pixels.permute(0, 3, 1, 2).to(torch.float32)
    return functional.grid_sample(images, grid, mode=mode, padding_mode=padding, align_corners=False)


def _edges_repeated(pixels: Tensor, sizes: Tensor) -> Tensor:
    """The last row and column of each image in place of the padding: bicubic sampling reads beyond them."""
    height, width = sizes[:, :, None].unbind(dim=1)
    down = torch.arange(pixels.shape[1], device=pixels.device).minimum(height - 1)
    across = torch.arange(pixels.shape[2], device=pixels.device).minimum(width - 1)
    image = torch.arange(len(pixels), device=pixels.device)
    return pixels[image[:, None, None], down[:, :, None], across[:, None, :]]


def _blend(images: Tensor, other: Tensor, share: Tensor, scale: Tensor | float = 1.0) -> None:
    """Scale the images and move them away from `other` (share above 1) or towards it (share below 1), in place."""
    torch.addcmul(other * (1 - share), images, share * scale, out=images)


def _grey(images: Tensor) -> Tensor:
    """(B, 1, H, W) luma."""
    red, green, blue = _LUMA
    return (images[:, :1] * red).add_(images[:, 1:2], alpha=green).add_(images[:, 2:], alpha=blue)


def _erased(draws: Tensor, image_size: int) -> Tensor:
    """(B, 1, S, S): a rectangle of 2 to 33 % of the area in `_ERASED_SHARE` of the images."""
    some = draws[:, 0, None] < _ERASED_SHARE
    # The number that chose the image is uniform below the threshold: it decides the area too.
    side = (0.02 + 0.31 * draws[:, 0] / _ERASED_SHARE).sqrt()
    stretch = ((2 * draws[:, 3] - 1) * math.log(2)).exp()
    along = (torch.arange(image_size, device=draws.device) + 0.5) / image_size
    inside = []
    for position, extent in (
        (draws[:, 1], (side * stretch).clamp(max=1)),
        (draws[:, 2], (side / stretch).clamp(max=1)),
    ):
        start = (position * (1 - extent))[:, None]
        inside.append(some & (along >= start) & (along < start + extent[:, None]))
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]
