"""Decoding: every kind of image file reads right, every kind of bad one is refused with a sentence."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from lightning_modules.inference import BadImageError, Preprocessing, decode_image
from tests.pictures import encoded, smooth_picture

PICTURE = smooth_picture(24, 16)
JPEG = encoded(PICTURE, "JPEG", quality=95)


def pixels(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).permute(2, 0, 1)


def off(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.float() - other.float()).abs().mean())


def test_a_plain_jpeg_has_the_pixels_that_pillow_gives() -> None:
    assert torch.equal(decode_image(JPEG), pixels(Image.open(io.BytesIO(JPEG))))


@pytest.mark.parametrize(
    "data",
    [
        encoded(PICTURE, "JPEG", progressive=True, quality=95),
        encoded(PICTURE.convert("CMYK"), "JPEG", quality=95),
        encoded(PICTURE, "PNG"),
        encoded(PICTURE.convert("RGBA"), "PNG"),
        encoded(PICTURE, "WEBP", quality=95),
        encoded(PICTURE, "BMP"),
        encoded(PICTURE, "TIFF"),
    ],
    ids=["progressive", "cmyk", "png", "rgba", "webp", "bmp", "tiff"],
)
def test_every_format_shows_the_same_picture(data: bytes) -> None:
    decoded = decode_image(data)
    assert decoded.shape == (3, 16, 24)
    assert decoded.dtype == torch.uint8
    assert off(decoded, pixels(PICTURE)) < 6


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA"])
def test_modes_without_three_colours_become_rgb(mode: str) -> None:
    picture = PICTURE.convert(mode) if mode != "LA" else PICTURE.convert("L").convert("LA")
    decoded = decode_image(encoded(picture, "PNG"))
    assert off(decoded, pixels(picture)) < 1


def test_a_grayscale_jpeg_becomes_rgb() -> None:
    decoded = decode_image(encoded(PICTURE.convert("L"), "JPEG"))
    assert torch.equal(decoded[0], decoded[2])


def test_sixteen_bits_are_scaled_and_not_cut() -> None:
    gray = Image.fromarray(np.full((8, 8), 128 * 257, dtype=np.uint16))
    decoded = decode_image(encoded(gray, "PNG"))
    assert decoded.float().mean() == pytest.approx(128, abs=1)


def test_transparency_lies_on_white() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert torch.equal(decode_image(encoded(clear, "PNG")), torch.full((3, 4, 4), 255, dtype=torch.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(PICTURE, "JPEG", quality=95, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert torch.equal(decode_image(data), pixels(upright))


def test_the_first_frame_of_a_gif_counts() -> None:
    first, second = Image.new("RGB", (6, 6), "red"), Image.new("RGB", (6, 6), "blue")
    decoded = decode_image(encoded(first, "GIF", save_all=True, append_images=[second]))
    assert decoded[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("cut", [1, 10, 0.5, 0.8, 0.9])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_file_is_refused(cut: float, kind: str) -> None:
    data = encoded(smooth_picture(60, 40), kind)
    kept = int(cut if cut >= 1 else cut * len(data))
    with pytest.raises(BadImageError):
        decode_image(data[:kept])


@pytest.mark.parametrize("data", [b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", bytes(range(256))])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(BadImageError, match="not a JPEG, PNG"):
        decode_image(data)


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(BadImageError, match="40000000 in all"):
        decode_image(encoded(Image.new("1", (8000, 8000)), "PNG"))
    with pytest.raises(BadImageError, match="16384 a side"):
        decode_image(encoded(Image.new("1", (16_385, 2)), "PNG"))


SEEDS = [encoded(PICTURE, kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF")]


# Pillow warns of damaged EXIF data and reads the picture all the same.
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=400, deadline=None)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=12), st.data())
def test_damaged_bytes_decode_or_are_refused_and_nothing_else(
    seed: bytes, changes: list[tuple[int, int]], data: st.DataObject
) -> None:
    damaged = bytearray(seed)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    cut = data.draw(st.integers(0, len(damaged)))
    with contextlib.suppress(BadImageError):
        decoded = decode_image(bytes(damaged[:cut]))
        assert decoded.dtype == torch.uint8
        assert decoded.shape[0] == 3


def test_a_large_jpeg_may_be_decoded_at_a_fraction_of_its_size() -> None:
    large = encoded(smooth_picture(800, 600), "JPEG", quality=95)
    small = decode_image(large, short_side=100)
    assert small.shape == (3, 150, 200)
    assert decode_image(large, short_side=599).shape == (3, 600, 800)


def test_preprocessing_crops_the_centre_and_normalises() -> None:
    preprocessing = Preprocessing(image_size=32, resize_size=40)
    image = decode_image(encoded(smooth_picture(90, 60), "PNG"))
    crop = preprocessing.crop(image)
    assert crop.shape == (3, 32, 32)
    assert crop.dtype == torch.uint8
    white = preprocessing.normalise(torch.full((2, 3, 4, 4), 255, dtype=torch.uint8))
    assert white.dtype == torch.float32
    assert white[0, :, 0, 0].tolist() == pytest.approx([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    assert Preprocessing.from_dict(preprocessing.to_dict()) == preprocessing
