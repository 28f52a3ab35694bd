"""Decoding: every kind of image file reads right, every kind of bad one is refused with a sentence."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Mapping
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms.v2 import InterpolationMode, functional

from lightning_modules.inference import (
    MAX_PIXELS,
    MAX_SIDE,
    BadExportError,
    BadImageError,
    Interpolation,
    OutOfMemoryError,
    Preprocessing,
    decode_image,
    model_fn,
)
from tests.pictures import encoded, jpeg_bytes, smooth_picture

# What turns an upright picture into the one that a camera stores with this EXIF orientation.
STORED_AS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
ORIENTATION = 0x0112

PICTURE = smooth_picture(24, 16)
JPEG = encoded(PICTURE, "JPEG", quality=95)


def pixels(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


def difference(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    return float((one.float() - other.float()).abs().mean())


def stored_turned(picture: Image.Image, orientation: int) -> tuple[Image.Image, Image.Exif]:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    method = STORED_AS[orientation]
    return (picture if method is None else picture.transpose(method)), exif


def raw_exif(*entries: tuple[int, int, int, bytes], tail: bytes = b"") -> bytes:
    """An EXIF block with exactly these (tag, type, count, value) entries, however wrong they are."""
    directory = b"".join(struct.pack("<HHI", *head) + value.ljust(4, b"\0") for *head, value in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + directory + b"\0\0\0\0" + tail


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def assert_refused(data: bytes, short_side: int = 0) -> str:
    with pytest.raises(BadImageError) as caught:
        decode_image(data, short_side)
    message = str(caught.value)
    assert message.startswith("the ")
    assert len(message) < 200
    assert "\n" not in message
    return message


@pytest.mark.parametrize("orientation", STORED_AS)
def test_exif_orientation_gives_the_upright_picture(orientation: int) -> None:
    upright = smooth_picture(24, 16)
    turned, exif = stored_turned(upright, orientation)
    assert torch.equal(decode_image(encoded(turned, "PNG", exif=exif)), pixels(upright))
    assert difference(decode_image(encoded(turned, "JPEG", quality=95, exif=exif)), pixels(upright)) < 3


@pytest.mark.parametrize("orientation", [6, 8])
def test_orientation_and_fast_decoding_go_together(orientation: int) -> None:
    upright = smooth_picture(200, 100)
    turned, exif = stored_turned(upright, orientation)
    image = decode_image(encoded(turned, "JPEG", quality=95, exif=exif), short_side=40)
    assert image.shape == (3, 50, 100)
    assert difference(image, pixels(upright.resize((100, 50)))) < 4


@pytest.mark.parametrize(
    "exif",
    [
        raw_exif((ORIENTATION, 3, 1, b"\6\0"), (330, 7, 2, b"\0\0")),
        raw_exif((269, 5, 1, struct.pack("<I", 38)), (ORIENTATION, 3, 1, b"\6\0"), tail=struct.pack("<II", 72, 1)),
    ],
    ids=["bytes-for-an-offset", "fraction-for-a-text"],
)
def test_odd_exif_does_not_cost_the_photo(exif: bytes) -> None:
    # Pillow reads such a tag but can't write it again, and exif_transpose writes the EXIF of what it turns.
    turned, _ = stored_turned(smooth_picture(24, 16), 6)
    image = decode_image(encoded(turned, "JPEG", quality=95, exif=exif))
    assert difference(image, pixels(smooth_picture(24, 16))) < 3


@pytest.mark.parametrize("exif", [b"II*\0\x08", b"", b"nonsense", b"II*\0\xff\xff\xff\xff"])
# Pillow warns of each tag that it can't read.
@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning")
def test_damaged_exif_does_not_cost_the_photo(exif: bytes) -> None:
    data = encoded(smooth_picture(), "PNG")
    data = data[:33] + png_chunk(b"eXIf", exif) + data[33:]
    assert torch.equal(decode_image(data), pixels(smooth_picture()))


def test_half_transparent_palette_entry_is_mixed_with_white() -> None:
    picture = Image.new("P", (2, 1), 0)
    picture.putpalette([200, 100, 0, 10, 20, 30])
    picture.putpixel((1, 0), 1)
    image = decode_image(encoded(picture, "PNG", transparency=bytes([51, 255])))
    assert image[:, 0, 0].tolist() == [244, 224, 204]  # 20% of the colour, 80% of white
    assert image[:, 0, 1].tolist() == [10, 20, 30]


@pytest.mark.parametrize(("alpha", "wanted"), [(0, 255), (51, 215), (255, 55)])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_on_white(mode: str, alpha: int, wanted: int) -> None:
    colour = (55, 55, 55, alpha) if mode == "RGBA" else (55, alpha)
    assert decode_image(encoded(Image.new(mode, (3, 2), colour), "PNG")).unique().tolist() == [wanted]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_to_eight(format: str) -> None:
    levels = np.array([[0, 257, 32896, 65278, 65535]], dtype=np.uint16)
    image = decode_image(encoded(Image.fromarray(levels), format))
    assert image[0].tolist() == [[0, 1, 128, 254, 255]]


def test_big_endian_sixteen_bit_tiff_is_scaled_to_eight() -> None:
    picture = Image.fromarray(np.full((4, 4), 32896, dtype=">u2"))
    assert picture.mode == "I;16B"
    assert decode_image(encoded(picture, "TIFF")).unique().tolist() == [128]


def tiff(values: NDArray[Any], bits: int, sample_format: int, tags: Mapping[int, Any] | None = None) -> bytes:
    """A grey TIFF as other programs write it: uncompressed, one strip. Pillow writes few of its kinds.

    Args:
        tags: further ones, by number: a type of `struct`, and a value.
    """
    height, width = values.shape
    plain = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 277: 1, 278: height, 339: sample_format}
    entries: dict[int, tuple[str, float]] = {tag: ("H", value) for tag, value in plain.items()}
    entries |= {273: ("I", 8), 279: ("I", values.nbytes), **(tags or {})}
    directory = b"".join(
        struct.pack("<HHI", tag, {"H": 3, "I": 4, "i": 9}[kind], 1) + struct.pack(f"<{kind}", value).ljust(4, b"\0")
        for tag, (kind, value) in sorted(entries.items())
    )
    head = b"II*\0" + struct.pack("<I", 8 + values.nbytes)
    return head + values.tobytes() + struct.pack("<H", len(entries)) + directory + bytes(4)


def greys(data: bytes) -> list[int]:
    """The first row of a grey image."""
    image = decode_image(data)
    assert torch.equal(image[0], image[2])
    return image[0, 0].tolist()


FLOAT, SIGNED, UNSIGNED = 3, 2, 1
LEAST, MOST = 340, 341


def test_floats_are_scaled_from_0_to_1_and_never_by_their_own_extremes() -> None:
    assert greys(tiff(np.array([[0.0, 0.1, 0.5, 1.0]], "<f4"), 32, FLOAT)) == [0, 26, 128, 255]
    assert greys(tiff(np.array([[0.2, 0.4]], "<f4"), 32, FLOAT)) == [51, 102], "a dark photo stays dark"


@pytest.mark.parametrize("value", [255.0, -0.01, 1.001, np.nan, np.inf])
def test_other_floats_are_refused_with_their_range(value: float) -> None:
    message = assert_refused(tiff(np.array([[0.5, value]], "<f4"), 32, FLOAT))
    assert "0 to 1 are taken" in message


@pytest.mark.parametrize(
    ("dtype", "sample_format"), [("<i4", SIGNED), ("<u4", UNSIGNED), ("<i2", SIGNED), ("<u2", UNSIGNED), ("i1", SIGNED)]
)
def test_integers_are_scaled_by_the_range_of_their_type(dtype: str, sample_format: int) -> None:
    limits = np.iinfo(dtype)
    values = np.array([np.linspace(limits.min, limits.max, 6)], "f8").round().astype(dtype)
    assert greys(tiff(values, limits.bits, sample_format)) == [0, 51, 102, 153, 204, 255]


@pytest.mark.parametrize(
    ("dtype", "sample_format", "kind"),
    [("<i4", SIGNED, "i"), ("<u4", UNSIGNED, "I"), ("<u2", UNSIGNED, "H")],
)
def test_integers_are_scaled_by_the_range_that_their_file_states(dtype: str, sample_format: int, kind: str) -> None:
    values = np.array([[0, 1000, 2000, 5000, 6000]], dtype)
    bits = np.iinfo(dtype).bits
    assert greys(tiff(values, bits, sample_format, {LEAST: (kind, 0), MOST: (kind, 5000)})) == [0, 51, 102, 255, 255]


def test_a_stated_range_may_be_below_zero() -> None:
    values = np.array([[-1000, 0, 1000]], "<i2")  # what computed tomography measures
    assert greys(tiff(values, 16, SIGNED, {LEAST: ("i", -1000), MOST: ("i", 1000)})) == [0, 128, 255]
    assert "is none" in assert_refused(tiff(values, 16, SIGNED, {LEAST: ("i", 5), MOST: ("i", 5)}))


@pytest.mark.parametrize(("dtype", "bits"), [("<i4", 32), ("<u2", 16)])
def test_integers_of_which_one_grey_would_be_left_are_refused(dtype: str, bits: int) -> None:
    # Eight bits in a wider type: black, or one grey, by the type's range.
    message = assert_refused(tiff(np.array([[0, 100, 255]], dtype), bits, SIGNED if dtype == "<i4" else UNSIGNED))
    assert "values from 0 to 255" in message
    assert "must state its range" in message


def test_a_wide_photo_of_one_value_is_a_photo() -> None:
    assert greys(tiff(np.full((2, 3), 32768, "<u2"), 16, UNSIGNED)) == [128] * 3


def test_white_is_zero_where_a_wide_file_says_so() -> None:
    assert greys(tiff(np.array([[0, 65535]], "<u2"), 16, UNSIGNED, {262: ("H", 0)})) == [255, 0]


def test_sixteen_bit_grey_that_is_transparent_is_white() -> None:
    levels = np.array([[0, 257, 65535]], dtype=np.uint16)
    assert greys(encoded(Image.fromarray(levels), "PNG", transparency=257)) == [0, 255, 255]


@pytest.mark.parametrize("megabytes", [1.1, 15.9])
def test_a_png_with_a_long_colour_profile_or_text_is_read(megabytes: float) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("prompt", "x" * int(megabytes * 2**20), zip=True)
    for data in (
        encoded(PICTURE, "PNG", icc_profile=bytes(int(megabytes * 2**20))),
        encoded(PICTURE, "PNG", pnginfo=text),
    ):
        assert torch.equal(decode_image(data), pixels(PICTURE))


def test_memory_that_is_short_is_no_verdict_on_a_photo(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (
        MemoryError(),
        OSError("out of memory when reading image file"),
        RuntimeError("can't allocate memory"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(Image.Image, "convert", Mock(side_effect=error))
            with pytest.raises(OutOfMemoryError, match="out of memory") as caught:
                decode_image(JPEG)
        assert caught.value.status == 503
    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "convert", Mock(side_effect=OSError(5, "Input/output error")))
        with pytest.raises(OSError, match="Input/output error"):
            decode_image(JPEG)


def test_first_picture_of_an_mpo_is_taken() -> None:
    data = encoded(smooth_picture(), "MPO", save_all=True, append_images=[Image.new("RGB", (24, 16), "red")])
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == "MPO"
    assert difference(decode_image(data), pixels(smooth_picture())) < 3


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP"])
def test_cut_file_never_decodes_to_other_pixels(format: str) -> None:
    # What follows the pixels may be lost: an end mark, a checksum.
    data = encoded(smooth_picture(16, 12), format)
    whole = decode_image(data)
    refused = 0
    for length in range(len(data)):
        try:
            image = decode_image(data[:length])
        except BadImageError:
            refused += 1
            continue
        assert torch.equal(image, whole)
    assert refused > 0.85 * len(data)


def test_truncated_jpeg_is_refused_with_fast_decoding_too() -> None:
    data = jpeg_bytes(size=64)
    assert_refused(data[: len(data) // 2], short_side=16)


@pytest.mark.parametrize("start", [b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0"])
# Pillow warns of each TIFF tag that it can't read.
@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
def test_random_bytes_that_start_like_a_picture_are_refused(start: bytes) -> None:
    assert_refused(start + np.random.default_rng(1).bytes(500))


@pytest.mark.parametrize("format", ["ICO", "PPM", "TGA", "PCX"])
def test_rare_formats_of_pillow_are_refused(format: str) -> None:
    assert_refused(encoded(smooth_picture(), format))


def test_broken_png_chunk_is_refused() -> None:
    data = encoded(smooth_picture(), "PNG")
    header, start = data.index(b"IHDR"), data.index(b"IDAT")
    for place in (header + 4, header + 17, start, start + 2, start + 20):
        broken = bytearray(data)
        broken[place] ^= 0xFF
        assert_refused(bytes(broken))


@pytest.mark.parametrize("size", [(12_000, 9_000), (16_384, 16_384), (60_000, 60_000)])
# Between one and two times its own limit Pillow warns; ours is lower and refuses.
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_huge_picture_is_refused_by_its_header(size: tuple[int, int]) -> None:
    assert size[0] * size[1] > MAX_PIXELS
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 1, 0, 0, 0, 0))
    assert_refused(b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", b""))


def test_side_may_be_as_long_as_said_but_no_longer() -> None:
    assert decode_image(encoded(Image.new("1", (MAX_SIDE, 200)), "PNG")).shape == (3, 200, MAX_SIDE)
    assert f"{MAX_SIDE + 1}x200" in assert_refused(encoded(Image.new("1", (MAX_SIDE + 1, 200)), "PNG"))


@pytest.mark.parametrize("size", [(100, 60), (60, 100), (257, 129), (400, 400)])
@pytest.mark.parametrize("short_side", [1, 7, 16, 33, 60, 64, 500])
def test_fast_decoding_keeps_the_short_side_long_enough(size: tuple[int, int], short_side: int) -> None:
    picture = smooth_picture(*size)
    image = decode_image(encoded(picture, "JPEG", quality=95), short_side)
    height, width = image.shape[1:]
    assert min(height, width) >= min(short_side, *size)
    assert difference(image, pixels(picture.resize((width, height), Image.Resampling.BOX))) < 6


@pytest.mark.parametrize(("side", "short_side"), [(512, 60), (450, 224), (448, 224), (512, 256), (128, 16)])
def test_fast_decoding_saves_work_where_it_can(side: int, short_side: int) -> None:
    image = decode_image(encoded(smooth_picture(side, side), "JPEG"), short_side)
    assert short_side <= image.shape[1] < 2 * short_side


class LargestTensor(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_thin_strip_does_not_grow_to_gigabytes() -> None:
    # Within the limits of a side and of all pixels. Refusing such a strip would do as well.
    try:
        image = decode_image(encoded(Image.new("1", (4_096, 1)), "PNG"))
    except BadImageError:
        return
    with LargestTensor() as largest:
        Preprocessing(image_size=16, resize_size=16).crop(image)
    assert largest.elements <= 100 * 3 * 16 * 16


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
    assert difference(decoded, pixels(PICTURE)) < 6


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA"])
def test_modes_without_three_colours_become_rgb(mode: str) -> None:
    picture = PICTURE.convert(mode) if mode != "LA" else PICTURE.convert("L").convert("LA")
    decoded = decode_image(encoded(picture, "PNG"))
    assert difference(decoded, pixels(picture)) < 1


def test_a_grayscale_jpeg_becomes_rgb() -> None:
    decoded = decode_image(encoded(PICTURE.convert("L"), "JPEG"))
    assert torch.equal(decoded[0], decoded[2])


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
# It also warns of sizes above 89 million pixels, which are refused in the next line.
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
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


SIDES = st.one_of(st.integers(1, 60), st.integers(1, 700))


@pytest.mark.parametrize("kind", [Interpolation.BILINEAR, Interpolation.BICUBIC])
@settings(max_examples=60, deadline=None)
# Kept rows that would keep their number; a side that stays; a strip; a crop beyond the image; bands of a large image.
@example(height=145, width=749, image_size=128, resize_size=146)
@example(height=64, width=64, image_size=56, resize_size=64)
@example(height=1, width=600, image_size=5, resize_size=6)
@example(height=9, width=7, image_size=40, resize_size=33)
@example(height=700, width=900, image_size=64, resize_size=73)
@given(height=SIDES, width=SIDES, image_size=st.integers(2, 80), resize_size=st.integers(2, 90))
def test_a_crop_has_the_pixels_of_torchvision_s_resizing(
    kind: Interpolation, height: int, width: int, image_size: int, resize_size: int
) -> None:
    """torchvision resizes the whole image, then crops it. (Its rows of one pixel are wrong.)"""
    generator = torch.Generator().manual_seed(height * width)
    image = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator).permute(2, 0, 1)
    middle = functional.center_crop(image, [min(side, 8 * min(height, width)) for side in (height, width)])
    size = [int(resize_size * side / min(height, width)) for side in middle.shape[1:]]
    resized = functional.resize(middle.float(), size, InterpolationMode(kind), antialias=True)
    wanted = functional.center_crop(resized.round().clamp(0, 255).byte(), [image_size, image_size])
    crop = Preprocessing(image_size=image_size, resize_size=resize_size, interpolation=kind).crop(image)
    assert torch.equal(crop, wanted)


def test_a_model_is_not_served_from_the_cpu_of_an_instance_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVING_DEVICE", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BadExportError, match="this instance has a GPU, and PyTorch sees none"):
        model_fn("nowhere")
