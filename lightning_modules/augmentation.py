"""Training augmentation, batched on the device: crop, flip and colour; for `strong` random operations and erasing.

The numbers that decide it are drawn for each image from a seed of its own, on the CPU; the rest is a pure function of
tensors. So an image looks alike in an epoch whatever the batch size, the number of threads and the number of devices.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Augment = Literal["none", "light", "strong"]

VERSION = 1
"""Part of a feature cache's key: raise it when the same draws make another picture."""
DRAWS = 16
"""Random numbers an image needs."""
CROP_AREA = (0.35, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
COLOUR = 0.2
"""How far brightness, contrast and saturation of `light` stray from 1."""
_OPERATIONS = ("rotate", "shear_x", "shear_y", "brightness", "contrast", "saturation", "posterize", "solarize")
_ERASED_SHARE = 0.25


def draw_numbers(seeds: Tensor) -> Tensor:
    """The random numbers of each image: (B, DRAWS) float32 in [0, 1), from (B,) int64 seeds."""
    return torch.from_numpy(
        np.stack([np.random.default_rng(seed).random(DRAWS, dtype=np.float32) for seed in seeds.tolist()])
    )


def augment(pixels: Tensor, sizes: Tensor, draws: Tensor, *, level: Augment, image_size: int) -> Tensor:
    """Crop, flip and colour every image of a batch in its own way.

    Args:
        pixels: (B, H, W, 3) uint8; each image in the upper left corner.
        sizes: (B, 2) height and width of each image.
        draws: (B, DRAWS) numbers in [0, 1), as `draw_numbers` gives them.
        level: `light`, or `strong` with two random operations and, for a quarter of the images, an erased rectangle.
        image_size: side of the result.

    Returns:
        (B, 3, image_size, image_size) float32 in [0, 1].

    Source: crop, Szegedy et al. 2014, arXiv:1409.4842; two random operations, RandAugment, Cubuk et al. 2019,
    arXiv:1909.13719; erasing, Zhong et al. 2017, arXiv:1708.04896.
    """
    strength = _strengths(draws[:, 8:12]) if level == "strong" else draws.new_zeros(len(draws), len(_OPERATIONS))
    by_name = dict(zip(_OPERATIONS, strength.T[:, :, None, None, None], strict=True))  # each (B, 1, 1, 1)
    images = _sample(pixels, sizes, draws[:, :5], strength[:, :3], image_size)
    jitter = COLOUR * (2 * draws[:, 5:8].T[:, :, None, None, None] - 1)
    images = _blend(images, 0.0, jitter[0] + 0.9 * by_name["brightness"])
    images = _blend(images, _grey(images).mean(dim=(2, 3), keepdim=True), jitter[1] + 0.9 * by_name["contrast"])
    images = _blend(images, _grey(images), jitter[2] + 0.9 * by_name["saturation"])
    if level == "light":
        return images
    steps = 2 ** (4 * by_name["posterize"].abs()).round()
    images = torch.where(steps > 1, (images * (255 / steps)).floor_().mul_(steps / 255), images)
    images = torch.where(images > 1 - by_name["solarize"].abs(), 1 - images, images)
    return images.mul_(~_erased(draws[:, 12:16], image_size))


def _strengths(draws: Tensor) -> Tensor:
    """Two operations an image, drawn with their strengths in [-1, 1]: (B, len(_OPERATIONS)), 0 for the others."""
    chosen = (draws[:, :2] * len(_OPERATIONS)).long()
    return draws.new_zeros(len(draws), len(_OPERATIONS)).scatter_add(1, chosen, 2 * draws[:, 2:] - 1).clamp(-1, 1)


def _sample(pixels: Tensor, sizes: Tensor, draws: Tensor, geometry: Tensor, image_size: int) -> Tensor:
    """Cut a random box out of each image, turned, sheared and flipped, and scale it: one bilinear sampling for all.

    There is no low-pass filter: boxes are at most a little larger than the result, as photos come scaled down.
    """
    height, width = sizes.float().T
    low, high = CROP_AREA
    area = height * width * (low + (high - low) * draws[:, 0])
    low, high = (math.log(bound) for bound in CROP_RATIO)
    ratio = (low + (high - low) * draws[:, 1]).exp()
    # A side that would stick out is cut.
    box_height, box_width = torch.minimum((area / ratio).sqrt(), height), torch.minimum((area * ratio).sqrt(), width)
    middle_y = box_height / 2 + draws[:, 2] * (height - box_height)
    middle_x = box_width / 2 + draws[:, 3] * (width - box_width)
    mirrored = torch.where(draws[:, 4] < 0.5, -1.0, 1.0)
    angle, shear_x, shear_y = math.pi / 6 * geometry[:, 0], 0.3 * geometry[:, 1], 0.3 * geometry[:, 2]

    # Places of the result's pixels: a share of the box's height and width each, down and across from its middle.
    along = (torch.arange(image_size, device=pixels.device) + 0.5) / image_size - 0.5
    down, across = box_height[:, None] * along, (box_width * mirrored)[:, None] * along
    sine, cosine = angle.sin()[:, None], angle.cos()[:, None]
    y_down, y_across = down * (cosine + sine * shear_x[:, None]), across * (cosine * shear_y[:, None] + sine)
    x_down, x_across = down * (cosine * shear_x[:, None] - sine), across * (cosine - sine * shear_y[:, None])
    y = (y_down + middle_y[:, None])[:, :, None] + y_across[:, None, :]
    x = (x_down + middle_x[:, None])[:, :, None] + x_across[:, None, :]
    # What lies outside shows the nearest pixel, and nothing of what fills up the batch.
    places = []
    for place, side, canvas in ((x, width, pixels.shape[2]), (y, height, pixels.shape[1])):
        inside = torch.minimum(place.clamp_(min=0.5), (side - 0.5)[:, None, None])
        places.append(inside.mul_(2 / canvas).sub_(1))
    images = pixels.permute(0, 3, 1, 2).to(torch.float32).div_(255)
    return functional.grid_sample(images, torch.stack(places, dim=3), align_corners=False)


def _blend(images: Tensor, other: Tensor | float, strength: Tensor) -> Tensor:
    """Away from `other` for positive strengths, towards it for negative ones. In place: copies cost more than sums."""
    return images.sub_(other).mul_(1 + strength).add_(other).clamp_(0, 1)


def _grey(images: Tensor) -> Tensor:
    """(B, 1, S, S) luma, ITU-R BT.601."""
    return 0.299 * images[:, :1] + 0.587 * images[:, 1:2] + 0.114 * images[:, 2:]


def _erased(draws: Tensor, image_size: int) -> Tensor:
    """(B, 1, S, S): a rectangle of 2 to 33 % of the area in `_ERASED_SHARE` of the images."""
    some = draws[:, 0, None] < _ERASED_SHARE
    # The number that chose the image is uniform below the threshold: it decides the area too.
    side = (0.02 + 0.31 * draws[:, 0] / _ERASED_SHARE).sqrt()
    stretch = ((2 * draws[:, 3] - 1) * math.log(2)).exp()
    along = (torch.arange(image_size, device=draws.device) + 0.5) / image_size
    inside = []
    for place, extent in ((draws[:, 1], (side * stretch).clamp(max=1)), (draws[:, 2], (side / stretch).clamp(max=1))):
        start = (place * (1 - extent))[:, None]
        inside.append(some & (along >= start) & (along < start + extent[:, None]))
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]
