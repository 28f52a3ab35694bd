"""Score images with an export folder. Stands alone: torch, torchvision, Pillow and the standard library only.

What Ray Serve calls, at the end, imports Ray and Starlette too, which are where Ray Serve runs.

This file is copied into every export as `code/inference.py` and is what an endpoint runs; training, `predict` and the
registered MLflow model decode and crop through the same functions, so serving cannot drift from training.
"""

import asyncio
import base64
import enum
import functools
import hashlib
import io
import json
import math
import os
import re
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from PIL import ExifTags, Image, ImageFile, PngImagePlugin, UnidentifiedImageError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision import models
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

WEIGHTS_FILE = "model.safetensors"
MANIFEST_FILE = "model.json"
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
REQUEST_FORMATS = ("JPEG", "PNG", "WEBP")
"""What an endpoint decodes: the fewer decoders strangers reach, the better."""
MAX_PIXELS = 40_000_000
"""Pixels that an image may have before it is decoded: a small file can unpack to gigabytes."""
MAX_SIDE = 16_384
MAX_SCANS = 100
"""Scans that a JPEG may have: each passes over all its pixels. Encoders write at most 14."""
MAX_METADATA = 64
"""APP segments that a JPEG may have, and compressed texts and profiles a PNG: Pillow joins the first at a cost that
grows with their square, and unpacks up to 16 MB of each of the others. 64 segments hold 4 MB."""
MAX_PARTS = 50_000
"""Segments of a JPEG, chunks of a PNG, strips or tiles of a TIFF, beside one per KB: Pillow takes some microseconds for
each. A TIFF of MAX_SIDE rows may have as many strips, in each of three planes."""
MAX_BODY = 6 * 1024 * 1024
"""Bytes of a request (SageMaker's own limit for real-time endpoints was 6 MB for years)."""
MAX_IMAGES = 32
"""Images that one JSON request may hold; together they may have MAX_PIXELS."""
MAX_QUEUED = 64
"""Requests that may wait for a replica of Ray Serve; beyond it the answer is 503. Each has up to MAX_BODY in memory."""
MAX_HEADER = 1024 * 1024
"""Bytes of a safetensors header. The longest of torchvision's classifiers has 160 KB."""
MAX_JSON = 16 * 1024 * 1024
"""Bytes of a JSON file in an export: 20,000 class names, and the results of a long training, take one."""
MAX_GOLDEN = 64 * 1024 * 1024
"""Bytes of the golden photo, a JPEG of at most MAX_PIXELS."""
MAX_INPUT_SIDE = 4096
"""Pixels of a network's input; `data.image_size` is at most 1,024, and resizing before a crop takes a little more."""
GOLDEN_TOLERANCE = 1e-4
"""How far the logits of the golden photo may be from the trainer's, wherever it is scored."""
CONTENT_TYPES = ("image/jpeg", "image/png", "image/webp", "application/json")
ATTRIBUTES_HEADER = "x-amzn-sagemaker-custom-attributes"
DECODER_VERSION = 3
"""To be raised where some file gives other pixels than before, or another verdict: caches depend on it."""
PIXELS_AT_ONCE = 2**18
"""That become floats before they are resized: 3 MB."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Photo editors write colour profiles and texts of several megabytes; Pillow takes 1 MiB each, and 64 MiB in all.
PngImagePlugin.MAX_TEXT_CHUNK = 16 * 1024 * 1024

# Tags of a TIFF. Source: TIFF 6.0, sections 8 and 19. Its tags 280 and 281, which some take for a range, are statistics
# of one picture that "should not affect the visual appearance".
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT, _LEAST, _MOST = 258, 262, 339, 340, 341
_STRIP_OFFSETS, _TILE_OFFSETS = 273, 324
_WHITE_IS_ZERO, _SIGNED = 0, 2

_EXPORT = Path(__file__).resolve().parents[1]
"""The export folder, for the copy of this file that is in it."""

_NO_MEMORY = (MemoryError, RuntimeError)
"""RuntimeError is torch's; Pillow's decoders say it by an OSError too."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# safetensors' header names; source: github.com/huggingface/safetensors, README 'Format'.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Interpolation(enum.StrEnum):
    """How an image is resized; always with antialiasing."""

    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BILINEAR_UINT8 = "bilinear_uint8"
    """Of exports that name none: bilinear by PyTorch's kernel for bytes, which rounds some pixels otherwise."""


class BadImageError(ValueError):
    """The bytes are not an image that can be scored; the message is one plain sentence."""

    status = 400
    """Of HTTP."""

    pixels = 0
    """Decoded in vain."""


class OutOfMemoryError(BadImageError):
    """This machine has too little memory for the image now; nothing is known about its bytes."""

    status = 503


class BadTypeError(BadImageError):
    """A content type that is not taken."""

    status = 415


class TooLargeError(BadImageError):
    """More bytes than a request may have."""

    status = 413


class NotAcceptableError(BadImageError):
    """An answer is wanted in a form that there is not."""

    status = 406


class BadExportError(ValueError):
    """The folder is not a whole, unchanged export."""


@functools.cache
@torch.inference_mode(False)
def _scale_and_shift(preprocessing: "Preprocessing", full: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(3, 1, 1) each, sent to a device once: a batch that brings its own waits for the device each time."""
    mean, std = torch.tensor([preprocessing.mean, preprocessing.std], dtype=torch.float64)[:, :, None, None]
    # MPS has no float64.
    return (1 / (full * std)).float().to(device), (-mean / std).float().to(device)


def _floats(image: Tensor) -> Tensor:
    """Float32, channel by channel in memory, which PyTorch resizes faster than pixel by pixel."""
    return image.to(torch.float32, memory_format=torch.contiguous_format)


def _middle(side: int, crop: int) -> int:
    """Where the middle `crop` pixels of a side begin, rounded as torchvision's `center_crop` does."""
    return round((side - crop) / 2)


def _needed(side: int, resized: int, crop: int) -> tuple[int, int]:
    """Half-open range of the pixels from which the middle `crop` pixels of the resized side are computed."""
    scale, first = side / resized, _middle(resized, crop)
    reach = 2 * max(scale, 1) + 1  # of bicubic interpolation, and one for rounding
    start, stop = int((first + 0.5) * scale - reach), math.ceil((first + crop - 0.5) * scale + reach)
    # A part whose length stays the same is not resized by PyTorch: then the whole side is taken.
    return max(0, start), stop if stop < side and int(stop / scale) != stop else side


def _scaled(floats: Tensor, axis: int, side: int, resized: int, mode: InterpolationMode) -> Tensor:
    """Resize one axis of an image from `side` to `resized` pixels; pixels may be missing at its end.

    Args:
        axis: 0 for rows, 1 for columns.
    """
    factors = [1.0, 1.0]
    # PyTorch rounds length times factor down, which would lose the last pixel if the factor was rounded down too.
    factors[axis] = math.nextafter(resized / side, math.inf)
    options = {"mode": mode.value, "align_corners": False, "antialias": True}
    return nn.functional.interpolate(floats[None], scale_factor=factors, **options)[0]


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input."""

    image_size: int
    """Side of the square crop in pixels."""
    resize_size: int
    """Short side after resizing, before the crop."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: Interpolation = Interpolation.BILINEAR

    def crop(self, image: Tensor) -> Tensor:
        """Resize the short side and cut out the centre.

        Args:
            image: (3, H, W) uint8.

        Returns:
            (3, image_size, image_size) uint8.
        """
        longest = 8 * min(image.shape[-2:])
        if max(image.shape[-2:]) > longest:
            # Only the middle stays: resizing all of a 1x16384 strip would take gigabytes.
            image = F.center_crop(image, [min(side, longest) for side in image.shape[-2:]])
        if self.interpolation == Interpolation.BILINEAR_UINT8:
            resized = F.resize(image, [self.resize_size], antialias=True)
        else:
            resized = self._resized_middle(image).round_().clamp_(0, 255).to(torch.uint8)
        return F.center_crop(resized, [self.image_size, self.image_size])

    def _resized_middle(self, image: Tensor) -> Tensor:
        """The centre of the resized float32 image, with torchvision's values, without computing what is around it.

        Each row is resized first, as in PyTorch. A few rows at a time stay in the processor's cache as floats.
        """
        mode, (height, width) = InterpolationMode(self.interpolation), image.shape[-2:]
        new_height, new_width = (int(self.resize_size * side / min(height, width)) for side in (height, width))
        crop_height, crop_width = min(self.image_size, new_height), min(self.image_size, new_width)
        begin, end = _needed(height, new_height, crop_height)
        left, right = _middle(new_width, crop_width), _needed(width, new_width, crop_width)[1]
        # Rows above `begin` stay zero: no pixel of the crop depends on them.
        narrow = torch.zeros(3, end, crop_width, dtype=torch.float32, device=image.device)
        rows = max(1, PIXELS_AT_ONCE // width)
        for start in range(begin, end, rows):
            stop = min(start + rows, end)
            band = _scaled(_floats(image[:, start:stop, :right]), 1, width, new_width, mode)
            narrow[:, start:stop] = band[..., left : left + crop_width]
        top = _middle(new_height, crop_height)
        return _scaled(narrow, 0, height, new_height, mode)[:, top : top + crop_height]

    def normalise(self, images: Tensor) -> Tensor:
        """Scale bytes to what the network was trained on.

        Args:
            images: (B, 3, H, W) uint8, or float32 in [0, 1].

        Returns:
            (B, 3, H, W) float32, channels last.
        """
        scale, shift = _scale_and_shift(self, 1 if images.is_floating_point() else 255, images.device)
        images = images.to(torch.float32)
        return torch.addcmul(shift, images, scale, out=torch.empty_like(images, memory_format=torch.channels_last))

    def to_dict(self) -> dict[str, object]:
        """For `model.json`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Preprocessing":  # type: ignore[type-arg]
        """From `model.json`.

        Raises:
            ValueError, KeyError, TypeError: naming the value that can't be used.
        """
        mean, std = ([float(number) for number in values[name]] for name in ("mean", "std"))
        for name in ("image_size", "resize_size"):
            # PyTorch 2.14 resizes rows of one pixel wrongly.
            if type(values[name]) is not int or not 2 <= values[name] <= MAX_INPUT_SIDE:
                raise ValueError(f"preprocessing.{name} must be 2..{MAX_INPUT_SIDE}, got {str(values[name])[:50]}")
        if len(mean) != 3 or len(std) != 3 or not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
            raise ValueError("preprocessing must have three numbers as mean, and three above 0 as std")
        return cls(
            values["image_size"],
            values["resize_size"],
            (mean[0], mean[1], mean[2]),
            (std[0], std[1], std[2]),
            Interpolation(values.get("interpolation", Interpolation.BILINEAR_UINT8)),
        )


def decode_image(
    data: bytes, short_side: int = 0, *, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] = FORMATS
) -> Tensor:
    """Decode one image file, as `open_image`, to (3, H, W) uint8."""
    return F.pil_to_tensor(open_image(data, short_side, max_pixels=max_pixels, formats=formats))


def open_image(
    data: bytes, short_side: int = 0, *, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] = FORMATS
) -> Image.Image:
    """Decode one image file to RGB: EXIF-rotated, first frame, transparency on white, more than 8 bits scaled to 8.

    Integers are scaled by the range that the file states, or else by that of their type; floats from 0 to 1. No photo
    is scaled by its own least and largest value, which would make two photos of different light look alike.

    Args:
        data: the file's bytes.
        short_side: a JPEG may be decoded at a fraction of its size as long as its short side stays this long or
            longer; 0 decodes at full size.
        max_pixels: refuse an image with more, before it is decoded.
        formats: what may be decoded, in Pillow's names.

    Raises:
        BadImageError: if the bytes are no whole image of a known format, too large, or without a range by this rule.
        OutOfMemoryError: if there is too little memory.
        OSError: if the machine fails otherwise.
    """
    decoded = 0
    try:
        _check_declared(data, max_pixels)
        with Image.open(io.BytesIO(data), formats=formats) as image:
            width, height = image.size
            _check_size(width, height, max_pixels)
            _check_tiles(image)
            decoded = width * height
            if short_side:
                # libjpeg scales by 1/2, 1/4 or 1/8 while decoding: the pixels that a resize would drop cost nothing.
                shortest = min(width, height)
                image.draft(None, (-(-width * short_side // shortest), -(-height * short_side // shortest)))
            image.load()
            turn, photo = _turn(image), _to_rgb(image)
        del image  # with the decoder's own pixels, as much memory again
        return photo if turn is None else photo.transpose(turn)
    except BadImageError:
        raise
    except UnidentifiedImageError as error:
        raise BadImageError(f"the bytes are not a {', '.join(formats[:-1])} or {formats[-1]} image") from error
    except (Image.DecompressionBombError, OverflowError) as error:
        raise BadImageError(f"the image is too large: {error}") from error
    # Pillow's decoders raise these for damaged files; SyntaxError is its word for a broken PNG or TIFF.
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, *_NO_MEMORY) as error:
        if isinstance(error, MemoryError) or re.search("(out of|allocate|enough) memory", str(error)):
            raise OutOfMemoryError("the image can't be decoded now: out of memory") from error
        if isinstance(error, RuntimeError) or (isinstance(error, OSError) and error.errno):
            raise
        damaged = BadImageError(f"the image is damaged: {error}")
        damaged.pixels = decoded
        raise damaged from error


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if max(width, height) > MAX_SIDE or width * height > max_pixels:
        raise BadImageError(f"the image has {width}x{height} pixels; at most {MAX_SIDE} a side and {max_pixels} in all")


def _check_declared(data: bytes, max_pixels: int) -> None:
    """Refuse a file by the sizes and counts that it declares, where Pillow itself would spend memory or time on them.

    Raises:
        BadImageError: naming the count and its limit.
    """
    if data.startswith(b"\xff\xd8"):
        _check_jpeg(data)
    elif data.startswith(b"\x89PNG\r\n\x1a\n"):
        _check_png(data)
    elif data.startswith((b"II", b"MM")):
        _check_tiff(data)
    elif data.startswith(b"RIFF") and (size := _webp_size(data)):
        _check_size(*size, max_pixels)  # Pillow allocates the canvas when it opens the file


# A marker of a JPEG: not an escaped byte of the pixels, no fill byte, no restart, which has nothing after it.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_START_OF_SCAN, _END_OF_IMAGE, _APP = 0xDA, 0xD9, range(0xE0, 0xF0)
_WITH_LENGTH = frozenset({*range(0xC0, 0xD0), *range(0xDA, 0xF0), 0xFE} - {0xC8})
"""Markers that Pillow and libjpeg skip by their length."""


def _check_jpeg(data: bytes) -> None:
    """Count markers as Pillow, up to the first scan, and libjpeg read them."""
    scans = apps = parts = 0
    most = _most_parts(data)
    for marker, gap in _markers(data):
        # Before the first scan Pillow reads the bytes between segments one by one.
        parts += 1 if scans else 1 + gap
        scans += marker == _START_OF_SCAN
        apps += marker in _APP
        if scans > MAX_SCANS:
            raise BadImageError(f"the image has more than {MAX_SCANS} scans")
        if apps > MAX_METADATA:
            raise BadImageError(f"the image has more than {MAX_METADATA} APP segments")
        if parts > most:
            raise BadImageError(f"the image has more than {most} segments")
        if scans and marker == _END_OF_IMAGE:
            return  # phones put films behind it


def _markers(data: bytes) -> Iterator[tuple[int, int]]:
    """The markers of a JPEG, and the number of bytes in front of each that belong to no segment."""
    place = 2
    while found := _MARKER.search(data, place):
        marker, gap = data[found.end() - 1], found.start() - place
        place = found.end()
        if marker in _WITH_LENGTH:
            place += max(2, int.from_bytes(data[place : place + 2]))
        yield marker, gap
    yield _END_OF_IMAGE, max(0, len(data) - place)


def _check_png(data: bytes) -> None:
    parts = packed = 0
    place, most = 8, _most_parts(data)
    while place + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        if name == b"IEND":
            break
        parts += 1
        packed += name in (b"iCCP", b"zTXt", b"iTXt")
        place += 12 + length
        if packed > MAX_METADATA:
            raise BadImageError(f"the image has more than {MAX_METADATA} compressed texts and profiles")
        if parts > most:
            raise BadImageError(f"the image has more than {most} chunks")


def _most_parts(data: bytes) -> int:
    return MAX_PARTS + len(data) // 1024


def _check_tiff(data: bytes) -> None:
    """Count strips or tiles of the first picture. Source: TIFF 6.0, section 2, and BigTIFF."""
    order = "<" if data.startswith(b"II") else ">"
    is_big = data[2:4] in (b"\x2b\0", b"\0\x2b")
    head, number, entry = ("8xQ", "Q", "HHQ8x") if is_big else ("4xI", "H", "HHI4x")
    try:
        (place,) = struct.unpack_from(order + head, data)
        (entries,) = struct.unpack_from(order + number, data, place)
        place += struct.calcsize(order + number)
        step = struct.calcsize(order + entry)
        for start in range(place, min(place + entries * step, len(data) - step + 1), step):
            tag, _, count = struct.unpack_from(order + entry, data, start)
            if tag in (_STRIP_OFFSETS, _TILE_OFFSETS) and count > (most := _most_parts(data)):
                raise BadImageError(f"the image has more than {most} strips or tiles")
    except (struct.error, OverflowError) as error:
        raise BadImageError(f"the image is damaged: {error}") from error


def _check_tiles(image: ImageFile.ImageFile) -> None:
    """Refuse a file whose strips or tiles overlap: each is decoded."""
    places = (tile[1] or (0, 0, *image.size) for tile in image.tile)
    area = sum((right - left) * (lower - upper) for left, upper, right, lower in places)
    layers = max(4, len(image.getbands()))
    if area > layers * image.width * image.height:
        raise BadImageError("the image has strips or tiles that overlap")


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a WebP; None for what libwebp refuses by its header. Source: RFC 9649, section 2."""
    kind, head = data[8:16], data[20:30]
    if len(head) < 10:
        return None
    if kind == b"WEBPVP8X":
        return int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1
    if kind == b"WEBPVP8L":
        bits = int.from_bytes(head[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"WEBPVP8 ":
        return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF
    return None


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What EXIF says. Pillow's exif_transpose rewrites the EXIF too, and fails on tags that it can't write."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF costs no photo; Pillow raises SyntaxError, struct.error and more for it
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_eight_bits(image)
    elif image.mode == "L" and _tag(image, _SAMPLE_FORMAT) == _SIGNED:
        image = image.point([value ^ 0x80 for value in range(256)])  # -128 is black
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return _on_white(image)
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """Some rows at a time: the whole image four times would be 640 MB beside it."""
    flat = Image.new("RGB", image.size)
    rows = max(1, 4 * PIXELS_AT_ONCE // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        layer = image.crop(box).convert("RGBA")
        flat.paste(Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB"), box)
    return flat


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits, on white where it is transparent.

    Raises:
        BadImageError: for floats beyond 0 to 1, and for integers of which a single grey would be left.
    """
    is_float = image.mode == "F"
    kind = torch.float32 if is_float else torch.int32
    stored = torch.frombuffer(bytearray((image if is_float else image.convert("I")).tobytes()), dtype=kind)
    values = stored.reshape(image.height, image.width).to(torch.float32)
    least, most, is_stated = (0.0, 1.0, True) if is_float else _integer_range(image)
    if not is_float and _tag(image, _SAMPLE_FORMAT) != _SIGNED:
        values[values < 0] += 2**32  # Pillow reads unsigned integers of 32 bits as signed ones
    lowest, highest = (float(value) for value in values.aminmax())
    if is_float and not 0 <= lowest <= highest <= 1:  # NaN is not within
        raise BadImageError(f"the image has float values from {lowest:g} to {highest:g}; 0 to 1 are taken")
    if not is_stated and 0 < highest - lowest < (most - least) / 255:
        raise BadImageError(
            f"the image has values from {lowest:.0f} to {highest:.0f}, a single grey in {least:.0f} to {most:.0f}, the "
            f"range of its type; it must state its range (TIFF tags {_LEAST} and {_MOST}) or have 8 bits"
        )
    grey = ((values - least) * (255 / (most - least))).round_().clamp_(0, 255).to(torch.uint8)
    if _tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = 255 - grey
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey.numpy())


def _integer_range(image: Image.Image) -> tuple[float, float, bool]:
    """Least and largest value that an image of integers may have, and whether the file states them.

    Raises:
        BadImageError: if it states no range.
    """
    least, most = _tag(image, _LEAST), _tag(image, _MOST)
    if least is not None and most is not None:
        if not least < most:
            raise BadImageError(f"the image states a range from {least} to {most}, which is none")
        return float(least), float(most), True
    bits = _tag(image, _BITS) or 16  # a PNG, of whose modes no other is that wide
    if _tag(image, _SAMPLE_FORMAT) == _SIGNED:
        return -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1, False
    return 0.0, 2.0**bits - 1, False


def _tag(image: Image.Image, number: int):  # type: ignore[no-untyped-def]
    """A TIFF's tag, of the first channel; None where there is none."""
    value = getattr(image, "tag_v2", {}).get(number)
    return value[0] if isinstance(value, tuple) else value


def classifier_names() -> list[str]:
    """The architectures that an export may name: torchvision's classifiers.

    Its networks for detection and segmentation download and unpickle a backbone while they are built. Another source
    joins this list only with networks that are built without weights.
    """
    return models.list_models(module=models)


def build_network(backbone: str, num_classes: int, *, image_size: int | None = None) -> nn.Module:
    """A torchvision classifier with random weights and `num_classes` outputs. Nothing is downloaded.

    Args:
        image_size: side of the images in pixels, for the networks that are built for one size (ViT, MaxViT); None
            builds them for torchvision's 224. All others ignore it.

    Raises:
        ValueError, AssertionError: if torchvision knows no such classifier, or can't build it for that size.
    """
    if backbone not in classifier_names():
        raise ValueError(f"backbone must be a torchvision classifier, got {backbone!r}")
    options: dict[str, object] = {}
    family = backbone.partition("_")[0]
    if image_size is not None and family == "vit":
        options["image_size"] = image_size
    if image_size is not None and family == "maxvit":
        options["input_size"] = (image_size, image_size)
    if family in ("googlenet", "inception"):
        # No auxiliary heads, and the input statistics that their published weights were trained on.
        options = {"aux_logits": False, "init_weights": False, "transform_input": True}
    network = models.get_model(backbone, weights=None, num_classes=num_classes, **options)
    if backbone.startswith("mnasnet"):
        # Theirs wants to know which version saved a state dict, which neither safetensors nor our checkpoints tell.
        network._load_from_state_dict = functools.partial(nn.Module._load_from_state_dict, network)
    return network


class _Unallocated(TorchFunctionMode):
    """Build a network without memory for its parameters, whose values come from a file."""

    def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        # Not a device of "meta", on which torchvision's RegNets can't compute their widths.
        place = {"device": "meta"} if function is torch.empty else {}
        return function(*args, **(kwargs or {}) | place)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a .safetensors file without the package, which AWS's inference images lack.

    Raises:
        BadExportError: if the file is not whole: its tensors must follow each other and fill it.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header_size = int.from_bytes(file.read(8), "little")
            if header_size > MAX_HEADER:
                raise ValueError(f"its header has {header_size} bytes; at most {MAX_HEADER}")
            parts = _parts(json.loads(file.read(header_size)), size - 8 - header_size)
            return {name: _tensor(file, *part) for name, part in parts.items()}
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise BadExportError(f"{path} is not a whole safetensors file: {_one_line(error)}") from error


def _parts(header: dict, size: int) -> dict[str, tuple[torch.dtype, list[int]]]:  # type: ignore[type-arg]
    """Type and shape of each tensor, in the order of the file; memory is allocated only for what the file has.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: if the tensors overlap, leave a gap, or their sizes disagree.
    """
    header.pop("__metadata__", None)
    parts, place = {}, 0
    for name, part in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        (start, end), dtype, shape = part["data_offsets"], _DTYPES[part["dtype"]], part["shape"]
        if not all(type(number) is int and number >= 0 for number in (start, end, *shape)):
            raise ValueError(f"tensor {name[:100]!r} must have whole numbers as its place and shape")
        if start != place or end - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"tensor {name[:100]!r} must begin where another ends, and be as long as its shape says")
        parts[name], place = (dtype, shape), end
    if place != size:
        raise ValueError(f"its tensors must have {size} bytes, got {place}")
    return parts


def _tensor(file: BinaryIO, dtype: torch.dtype, shape: list[int]) -> Tensor:
    data = bytearray(math.prod(shape) * dtype.itemsize)
    if file.readinto(data) != len(data):  # type: ignore[attr-defined]
        raise ValueError("it was cut off while it was read")
    # frombuffer takes no empty buffer.
    return (torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)).reshape(shape)


@dataclass(frozen=True)
class Model:
    """A loaded export folder."""

    network: nn.Module
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    version: str
    """SHA-256 of the weights."""

    def score(self, images: list[Tensor]) -> Tensor:
        """Score decoded images.

        Args:
            images: each (3, H, W) uint8, of any size.

        Returns:
            (len(images), num_classes) float32 logits.
        """
        return self.score_crops([self.preprocessing.crop(one) for one in images])

    def score_crops(self, crops: Sequence[Tensor]) -> Tensor:
        """Score what `Preprocessing.crop` made of images."""
        # What a compiler made of a network for the CPU has no parameters.
        device = next((one.device for one in self.network.parameters()), torch.device("cpu"))
        batch = torch.stack(list(crops)).to(device)
        with torch.inference_mode():
            return self.network(self.preprocessing.normalise(batch)).float().cpu()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of an export.

    Raises:
        BadExportError: if it is missing, too large, or no JSON object.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_JSON + 1)
        if len(text) > MAX_JSON:
            raise ValueError(f"it has more than {MAX_JSON} bytes")
        values = json.loads(text)
        if not isinstance(values, dict):
            raise TypeError(f"it must have an object, got {type(values).__name__}")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise BadExportError(f"{path.parent} is not an export folder: {path.name}: {_one_line(error)}") from error
    return values


def load_export(folder: Path, device: str = "cpu") -> Model:
    """Load an export folder: checks the hash, never unpickles, never downloads.

    Raises:
        BadExportError: if a part is missing, changed or of the wrong shape.
    """
    manifest = read_json(folder / MANIFEST_FILE)
    try:
        class_names, version, backbone = manifest["class_names"], manifest["sha256"], manifest["backbone"]
        if not (isinstance(class_names, list) and class_names and all(isinstance(name, str) for name in class_names)):
            raise ValueError("class_names must be a list of names")
        preprocessing = Preprocessing.from_dict(manifest["preprocessing"])
        with (folder / WEIGHTS_FILE).open("rb") as weights:
            digest = hashlib.file_digest(weights, "sha256").hexdigest()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise BadExportError(f"{folder} is not an export folder: {_one_line(error)}") from error
    if digest != version:
        raise BadExportError(
            f"{folder / WEIGHTS_FILE} has SHA-256 {digest}, but {MANIFEST_FILE} says {str(version)[:100]!r}"
        )
    try:
        with _Unallocated():
            network = build_network(str(backbone)[:100], len(class_names), image_size=preprocessing.image_size)
    except (ValueError, AssertionError, RuntimeError) as error:
        raise BadExportError(f"{folder / MANIFEST_FILE}: {_one_line(error)}") from error
    try:
        wanted = network.state_dict()
        state = {
            name: value.to(wanted[name].dtype) if name in wanted else value
            for name, value in read_safetensors(folder / WEIGHTS_FILE).items()
        }
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise BadExportError(f"{folder} holds weights of another network: {_one_line(error)}") from error
    network = network.eval().to(device).to(memory_format=torch.channels_last)
    return Model(network, preprocessing, tuple(class_names), version)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__} {error}".split() if isinstance(error, KeyError) else str(error).split())[
        :500
    ]


def check_golden(folder: Path, model: Model, tolerance: float = GOLDEN_TOLERANCE) -> float:
    """Score the export's golden photo.

    Returns:
        The largest difference of a logit from what the trainer computed.

    Raises:
        BadExportError: if it is above `tolerance`, or the best class is another one.
    """
    wanted = read_json(folder / "golden" / "scores.json")
    try:
        class_name, logits = wanted["class_name"], wanted["logits"]
        if not (isinstance(logits, list) and all(type(logit) in (int, float) for logit in logits)):
            raise TypeError("logits must be a list of numbers")
        expected = torch.tensor([float(logit) for logit in logits])
        with (folder / "golden" / "image.jpg").open("rb") as file:
            image = decode_image(file.read(MAX_GOLDEN))
        scores = model.score([image])[0]
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RuntimeError) as error:
        raise BadExportError(f"{folder} has no whole golden photo and scores: {_one_line(error)}") from error
    difference = float((scores - expected).abs().max()) if scores.shape == expected.shape else float("inf")
    name = model.class_names[int(scores.argmax())]
    if not difference <= tolerance or name != class_name:  # NaN is not within any tolerance
        raise BadExportError(
            f"{folder}: the golden photo scores {name[:100]!r}, off by {difference:.2g}; the trainer got "
            f"{str(class_name)[:100]!r}"
        )
    return difference


@dataclass(frozen=True)
class Prediction:
    """What a model makes of the images of one request."""

    logits: tuple[tuple[float, ...] | BadImageError, ...]
    """For each image in the request's order: a logit a class, or why it can't be scored."""
    class_names: tuple[str, ...]
    version: str
    """SHA-256 of the weights."""

    def answer(self, accept: str, attributes: str = "") -> tuple[int, str]:
        """The answer to the request.

        Args:
            accept: the Accept header.
            attributes: SageMaker's custom attributes; with `top_k=K` the K best classes of each image are named.

        Returns:
            Status code and JSON. Without `top_k` that is a list with a row of logits an image, so that
            `np.argmax(response[0]) + 1` is the class number. An image that can't be scored has null or an error in
            its place; if none can, the status is 4xx and the JSON `{"error": SENTENCE}`.
        """
        try:
            top_k = _top_k(accept, attributes)
        except BadImageError as error:
            return error.status, json.dumps({"error": str(error)})
        errors = [one for one in self.logits if isinstance(one, BadImageError)]
        if len(errors) == len(self.logits):
            return errors[0].status, json.dumps({"error": str(errors[0])})
        if top_k is None:
            return 200, json.dumps([None if isinstance(one, BadImageError) else one for one in self.logits])
        named = [
            {"error": str(one)} if isinstance(one, BadImageError) else {"classes": self._best(one, top_k)}
            for one in self.logits
        ]
        return 200, json.dumps({"predictions": named, "model_version": self.version})

    def _best(self, logits: tuple[float, ...], top_k: int) -> list[dict[str, object]]:
        scores = torch.softmax(torch.tensor(logits, dtype=torch.float64), dim=0)
        best = scores.argsort(descending=True)[:top_k].tolist()
        return [{"name": self.class_names[index], "score": float(scores[index])} for index in best]


def _top_k(accept: str, attributes: str) -> int | None:
    """How many classes are to be named; None for the plain list.

    Raises:
        BadImageError: if it is no number, or if JSON is not accepted.
    """
    kinds = {part.split(";")[0].strip().lower() for part in accept.split(",")}
    if not kinds & {"application/json", "application/*", "*/*", ""}:
        raise NotAcceptableError(f"accept {accept} does not allow application/json, the only form of an answer")
    for part in attributes.replace(";", ",").split(","):
        name, _, value = part.partition("=")
        if name.strip().lower() == "top_k":
            if re.fullmatch(r"[1-9][0-9]{0,4}", value.strip()) is None:
                raise BadImageError(f"custom attribute top_k must be a whole number from 1, got {value[:100]!r}")
            return int(value)
    return None


# The four functions that SageMaker's inference toolkit looks for. It answers an exception with status 500 and a
# traceback, so what is wrong with a request is passed on as a value and set as the status at the end.


def model_fn(model_dir: str) -> Model:
    """Load the model of an endpoint, which has to score the golden photo as the trainer did.

    Raises:
        BadExportError: if the folder is not whole, the scores are others, or PyTorch does not see the instance's GPU.
    """
    _require_gpu(torch.cuda.is_available())
    torch.backends.cudnn.allow_tf32 = False  # with its 10 bits logits are off by more than GOLDEN_TOLERANCE
    model = load_export(Path(model_dir), "cuda" if torch.cuda.is_available() else "cpu")
    check_golden(Path(model_dir), model)
    return model


def _require_gpu(is_seen: bool) -> None:
    # `deploy` sets it for instances with GPUs. On the CPU they would be slow, and nothing would say why.
    if os.environ.get("SERVING_DEVICE") == "cuda" and not is_seen:
        raise BadExportError("this instance has a GPU, and PyTorch sees none: the driver must fit its CUDA")


def input_fn(body: bytes | str, content_type: str | None) -> list[Tensor | BadImageError]:
    """Decode a request: one image's bytes, or JSON `{"images": [base64, ...]}`.

    Returns:
        For each image: (3, H, W) uint8, or why it can't be scored; for a request that is wrong as a whole, one error.
    """
    try:
        return list(decode_request(read_request(body, content_type)))
    except BadImageError as error:
        return [error]


def decode_request(files: Iterable[bytes]) -> Iterator[Tensor | BadImageError]:
    """Decode the image files of a request one by one; together, damaged ones too, they may have MAX_PIXELS."""
    left = MAX_PIXELS
    for file in files:
        try:
            image = decode_image(file, max_pixels=left, formats=REQUEST_FORMATS)
            left -= image.shape[-2] * image.shape[-1]
            yield image
        except BadImageError as error:
            left -= error.pixels
            # A new one: the traceback of this one keeps the half-decoded pixels.
            yield type(error)(str(error))


def read_request(body: bytes | str, content_type: str | None) -> list[bytes]:
    """The image files that a request holds.

    Args:
        body: AWS's toolkit passes None for a form.
        content_type: None if the request has none.

    Raises:
        BadImageError: if it is wrong as a whole.
    """
    kind = (content_type or "").split(";")[0].strip().lower()
    if kind not in CONTENT_TYPES:
        raise BadTypeError(f"content type {kind!r} is not one of {', '.join(CONTENT_TYPES)}")
    if len(body) > MAX_BODY:
        raise TooLargeError(f"the request has {len(body)} bytes; at most {MAX_BODY} are taken")
    if kind != "application/json":
        return [body.encode() if isinstance(body, str) else bytes(body)]
    try:
        encoded = json.loads(body)["images"]
        if not isinstance(encoded, list):
            raise TypeError(type(encoded))
        files = [base64.b64decode(one, validate=True) for one in encoded]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadImageError('the JSON must be {"images": [base64, ...]}') from error
    if not 1 <= len(files) <= MAX_IMAGES:
        raise BadImageError(f"the request has {len(files)} images; 1 to {MAX_IMAGES} are taken")
    return files


def predict_fn(images: Sequence[Tensor | BadImageError], model: Model) -> Prediction:
    """Score the images of a request; one that is an error leaves the others alone."""
    good = [image for image in images if isinstance(image, Tensor)]
    rows = iter(model.score(good).tolist()) if good else iter(())
    logits = tuple(tuple(next(rows)) if isinstance(image, Tensor) else image for image in images)
    return Prediction(logits, model.class_names, model.version)


def output_fn(prediction: Prediction, accept: str, context: object = None) -> tuple[str, str]:
    """The JSON of `Prediction.answer` and its content type.

    Left to itself the toolkit sends the Accept header back as content type, and one that is no ASCII hangs TorchServe.

    Args:
        context: the server's, which gives the request's headers and takes the status.
    """
    if context is None:
        return prediction.answer(accept)[1], "application/json"
    headers: Mapping[str, str] = context.get_all_request_header(0)  # type: ignore[attr-defined]
    attributes = next((value for name, value in headers.items() if name.lower() == ATTRIBUTES_HEADER), "")
    status, text = prediction.answer(accept, attributes)
    if status != 200:
        context.set_response_status(status, "Bad Request")  # type: ignore[attr-defined]
    return text, "application/json"


# What Ray Serve calls, which is in AWS's `ray` images. `config.yaml` of the export names `ray_application`.


class RayReplica:
    """A process of Ray Serve with the model: it decodes some requests at once, and scores one at a time."""

    def __init__(self) -> None:
        self._model = model_fn(str(_EXPORT))
        self._network = threading.Lock()

    async def __call__(self, request: Any) -> Any:
        """Answer a request of Starlette with a response of Starlette."""
        from starlette.responses import Response

        body, headers = await request.body(), request.headers
        status, text = await asyncio.to_thread(self._answer, body, headers)
        return Response(text, status, media_type="application/json")

    def _answer(self, body: bytes, headers: Mapping[str, str]) -> tuple[int, str]:
        images = input_fn(body, headers.get("content-type"))
        with self._network:
            prediction = predict_fn(images, self._model)
        return prediction.answer(headers.get("accept", ""), headers.get(ATTRIBUTES_HEADER, ""))


def ray_application(args: dict) -> Any:  # type: ignore[type-arg]
    """The application of Ray Serve: a replica per GPU, or one that uses all processors.

    It scores the golden photo first, on a processor. Until it returns, Ray has no route, so that `/ping` of AWS's
    container answers 503 for a model that scores otherwise. Each replica scores the photo again, where it computes.

    Args:
        args: of `config.yaml`, which has none.

    Raises:
        BadExportError: if the export is not whole, its scores are others, or Ray sees no GPU of an instance that has.
    """
    import ray
    from ray import serve

    del args
    resources = ray.cluster_resources()
    cpus, gpus = int(resources["CPU"]), int(resources.get("GPU", 0))
    _require_gpu(gpus > 0)
    check_golden(_EXPORT, load_export(_EXPORT))
    replicas = max(1, gpus)
    # Ray gives a replica as many threads of OpenMP as it has processors.
    cpus_each = max(1, cpus // replicas)
    deployed = serve.deployment(
        RayReplica,
        num_replicas=replicas,
        ray_actor_options={"num_cpus": cpus_each, "num_gpus": 1 if gpus else 0},
        max_ongoing_requests=cpus_each,
        max_queued_requests=MAX_QUEUED,
    )
    return deployed.bind()
