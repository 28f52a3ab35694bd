"""Augmentation in batches: every image in its own way, decided by its own numbers, and by nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from lightning_modules.augmentation import DRAWS, Augment, augment, draw_numbers
from lightning_modules.inference import Interpolation
from tests.pictures import noisy_picture, smooth_picture

SIZE = 32
MIDDLE = 0.5
"""Draws that change nothing where a strength is symmetric; the crop stays in the middle."""


def photo(width: int = 48, height: int = 40) -> Tensor:
    """(h, w, 3) uint8."""
    return F.pil_to_tensor(smooth_picture(width, height)).permute(1, 2, 0)


def draws(**values: float) -> Tensor:
    """One image's numbers: a crop of all of the photo, not mirrored, nothing erased."""
    names = ["area", "ratio", "y", "x", "flip", "brightness", "contrast", "saturation"]
    names += ["first", "second", "first_strength", "second_strength", "erased", "erased_y", "erased_x", "erased_ratio"]
    plain = dict.fromkeys(names, MIDDLE) | {"area": 1.0, "ratio": MIDDLE, "erased": 1.0}
    assert len(names) == DRAWS
    assert not set(values) - set(names)
    return torch.tensor([[(plain | values)[name] for name in names]])


def augment_one(picture: Tensor, numbers: Tensor, level: Augment = "light") -> Tensor:
    """(3, SIZE, SIZE) float32 in [0, 1]."""
    sizes = torch.tensor([picture.shape[:2]])
    return augment(picture[None], sizes, numbers, level=level, image_size=SIZE)[0]


def resized(picture: Tensor) -> Tensor:
    """The whole picture scaled by torchvision: what a crop of everything comes to."""
    return F.resize(picture.permute(2, 0, 1).float() / 255, [SIZE, SIZE], antialias=False)


def test_a_crop_of_everything_is_the_photo_scaled() -> None:
    square = photo(40, 40)
    assert torch.allclose(augment_one(square, draws()), resized(square), atol=0.01)


def test_a_crop_is_at_the_drawn_position() -> None:
    square = photo(64, 64)
    # 0.35 + 0.65 * draw = 0.5 of the area: a side of 64 * sqrt(0.5).
    numbers = {"area": 0.15 / 0.65, "y": 0.0, "x": 1.0}
    side = round(64 * 0.5**0.5)
    corner = square[:side, -side:]
    assert torch.allclose(augment_one(square, draws(**numbers)), resized(corner), atol=0.02)


def test_a_flip_mirrors() -> None:
    square = photo(40, 40)
    assert torch.allclose(augment_one(square, draws(flip=0.1)), augment_one(square, draws()).flip(2), atol=1e-5)


@pytest.mark.parametrize("interpolation", [Interpolation.BILINEAR, Interpolation.BICUBIC])
def test_what_fills_up_the_batch_is_never_seen(interpolation: Interpolation) -> None:
    wide, high = photo(60, 40), photo(30, 44)
    canvas = torch.full((2, 44, 60, 3), 255, dtype=torch.uint8)
    canvas[0, :40, :60], canvas[1, :44, :30] = wide, high
    numbers = draw_numbers(torch.tensor([5, 6]))
    for level in ("light", "strong"):
        options = {"level": level, "image_size": SIZE, "interpolation": interpolation}
        together = augment(canvas, torch.tensor([[40, 60], [44, 30]]), numbers, **options)
        for index, picture in enumerate((wide, high)):
            own = numbers[index : index + 1]
            alone = augment(picture[None], torch.tensor([picture.shape[:2]]), own, **options)[0]
            assert torch.allclose(together[index], alone, atol=1e-5)


def test_a_bicubic_crop_is_sharper_than_a_bilinear_one() -> None:
    picture = F.pil_to_tensor(noisy_picture((120, 120, 120), 64, noise=60.0)).permute(1, 2, 0)
    options = {"level": "light", "image_size": SIZE}
    bilinear, bicubic = (
        augment(picture[None], torch.tensor([[64, 64]]), draws(area=0.3), interpolation=interpolation, **options)
        for interpolation in (Interpolation.BILINEAR, Interpolation.BICUBIC)
    )
    assert float(bilinear.std()) < float(bicubic.std())


@pytest.mark.parametrize("level", ["light", "strong"])
def test_the_result_is_a_square_within_bounds(level: Augment) -> None:
    numbers = draw_numbers(torch.arange(200))
    pixels = torch.stack([photo()] * 200)
    images = augment(pixels, torch.tensor([[40, 48]] * 200), numbers, level=level, image_size=SIZE)
    assert images.shape == (200, 3, SIZE, SIZE)
    assert images.dtype == torch.float32
    assert images.isfinite().all()
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    assert len({float(image.mean()) for image in images}) > 190, "every image is augmented in its own way"
    mirrored = (images[:, 0, :, -8:].mean(dim=(1, 2)) < images[:, 0, :, :8].mean(dim=(1, 2))).float().mean()
    assert level == "strong" or 0.3 < float(mirrored) < 0.7


@pytest.mark.parametrize(("name", "index"), [("brightness", 5), ("contrast", 6), ("saturation", 7)])
def test_colours_move_both_ways(name: str, index: int) -> None:
    picture = photo(40, 40)
    middle = augment_one(picture, draws())
    more, less = augment_one(picture, draws(**{name: 1.0})), augment_one(picture, draws(**{name: 0.0}))
    measure = {
        "brightness": lambda image: image.mean(),
        "contrast": lambda image: image.std(dim=(1, 2)).mean(),
        "saturation": lambda image: (image.amax(dim=0) - image.amin(dim=0)).mean(),
    }[name]
    assert float(measure(less)) < float(measure(middle)) < float(measure(more))
    assert float(draws(**{name: 1.0})[0, index]) == 1.0


@pytest.mark.parametrize("operation", range(8))
@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_each_operation_of_strong_changes_the_image_and_its_middle_does_not(operation: int, strength: float) -> None:
    picture = photo(40, 40)
    chosen = {"first": (operation + 0.5) / 8, "second": (operation + 0.5) / 8}
    plain = augment_one(picture, draws(), "light")
    assert torch.allclose(augment_one(picture, draws(**chosen), "strong"), plain, atol=1e-6)
    changed = augment_one(picture, draws(**chosen, first_strength=strength), "strong")
    assert float((changed - plain).abs().mean()) > 0.004


def test_operations_that_were_not_drawn_do_nothing() -> None:
    picture = photo(40, 40)
    twice = {"first": 0.01, "second": 0.01}  # rotate, and rotate
    turned = augment_one(picture, draws(**twice, first_strength=0.9, second_strength=0.1), "strong")
    assert torch.allclose(turned, augment_one(picture, draws(**twice), "strong"), atol=1e-6), "they add up to nothing"


def test_a_quarter_of_the_images_has_an_erased_rectangle() -> None:
    numbers = draw_numbers(torch.arange(400))
    numbers[:, 8:12] = MIDDLE
    white = torch.full((400, 40, 40, 3), 255, dtype=torch.uint8)
    numbers[:, 5:8] = MIDDLE
    images = augment(white, torch.tensor([[40, 40]] * 400), numbers, level="strong", image_size=SIZE)
    erased = (images == 0).all(dim=1).float().mean(dim=(1, 2))
    assert 0.18 < float((erased > 0).float().mean()) < 0.32
    assert float(erased[erased > 0].min()) > 0.005
    assert float(erased.max()) < 0.4


def test_numbers_depend_on_the_seed_only() -> None:
    seeds = torch.tensor([3, 2**61, 0])
    numbers = draw_numbers(seeds)
    assert numbers.shape == (3, DRAWS)
    assert torch.equal(draw_numbers(seeds.flip(0)).flip(0), numbers)
    many = draw_numbers(torch.arange(2000))
    assert 0 <= float(many.min()) < 0.01
    assert 0.99 < float(many.max()) < 1
    assert torch.allclose(many.mean(dim=0), torch.full((DRAWS,), 0.5), atol=0.03)
