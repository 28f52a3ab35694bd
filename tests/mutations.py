"""Requests that nobody means well: a stream of bodies and headers, the same for the same seed, for any server."""

from __future__ import annotations

import base64
import io
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from tests.pictures import encoded, smooth_picture

TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
JSON = "application/json"
ODD_TYPES = (
    "",
    "text/plain",
    "application/x-npy",
    "image/gif",
    "image/jpeg; q=1",
    "IMAGE/PNG",
    "a" * 300,
    "é",
    ";",
    "*/*",
)
ODD_ACCEPTS = ("*/*", JSON, "", "text/html", "application/x-npy", ",;,", "application/*;q=0.1", "é" * 50)
ODD_ATTRIBUTES = (
    "",
    "top_k=1",
    "top_k=3",
    "top_k=0",
    "top_k=-1",
    "top_k=99999",
    "top_k=1e9",
    "top_k=x",
    "top_k",
    "a=b;=,",
)
LARGE_EVERY = 250
"""One body in so many unpacks to just under 40 million pixels, which costs a server a second and some hundred MB."""


@dataclass(frozen=True)
class Attack:
    """One request."""

    kind: str
    """The function that made it, for the message of a test that fails."""
    body: bytes
    content_type: str
    accept: str = "*/*"
    attributes: str = ""


def attacks(count: int, seed: int = 0) -> Iterator[Attack]:
    """Make `count` requests."""
    for index in range(count):
        draw = random.Random(f"{seed}-{index}")
        kind = _large if index % LARGE_EVERY == LARGE_EVERY - 1 else draw.choice(KINDS)
        body, content_type = kind(draw)
        if draw.random() < 0.1:
            content_type = draw.choice((*ODD_TYPES, *TYPES.values(), JSON))
        accept = draw.choice(ODD_ACCEPTS) if draw.random() < 0.1 else "*/*"
        attributes = draw.choice(ODD_ATTRIBUTES) if draw.random() < 0.2 else ""
        yield Attack(kind.__name__.strip("_"), body, content_type, accept, attributes)


@cache
def _whole() -> tuple[tuple[bytes, str], ...]:
    """Files that are right, of every mode that the formats have."""
    picture = smooth_picture(48, 40)
    files = [(encoded(picture.convert(mode), "JPEG"), "JPEG") for mode in ("RGB", "L", "CMYK")]
    files += [(encoded(picture, "JPEG", progressive=True), "JPEG")]
    files += [(encoded(picture.convert(mode), "PNG"), "PNG") for mode in ("RGB", "RGBA", "L", "LA", "P", "1")]
    files += [(encoded(picture.convert("I;16" if mode == "I;16" else mode), "PNG"), "PNG") for mode in ("I;16",)]
    files += [(encoded(picture, "WEBP", lossless=lossless), "WEBP") for lossless in (True, False)]
    frames = [smooth_picture(20, 20 + step).resize((20, 20)) for step in range(3)]
    files += [(encoded(frames[0], kind, save_all=True, append_images=frames[1:]), kind) for kind in ("PNG", "WEBP")]
    exif = Image.Exif()
    exif[0x0112] = 6
    files += [(encoded(picture, "JPEG", exif=exif.tobytes()), "JPEG")]
    return tuple((data, TYPES[kind]) for data, kind in files)


def _right(draw: random.Random) -> tuple[bytes, str]:
    return draw.choice(_whole())


def _truncated(draw: random.Random) -> tuple[bytes, str]:
    data, kind = _right(draw)
    return data[: draw.randrange(len(data))], kind


def _flipped(draw: random.Random) -> tuple[bytes, str]:
    data, kind = _right(draw)
    changed = bytearray(data)
    for _ in range(draw.choice((1, 2, 8, 64))):
        # Most of what a decoder believes stands at the beginning.
        changed[draw.randrange(draw.choice((min(64, len(changed)), len(changed))))] = draw.randrange(256)
    return bytes(changed), kind


def _spliced(draw: random.Random) -> tuple[bytes, str]:
    (first, kind), (second, _) = _right(draw), _right(draw)
    return first[: draw.randrange(len(first))] + second[draw.randrange(len(second)) :], kind


def _repeated(draw: random.Random) -> tuple[bytes, str]:
    data, kind = _right(draw)
    start = draw.randrange(len(data))
    part = data[start : start + draw.choice((1, 16, 256))]
    return data[:start] + part * draw.choice((2, 100, 10_000)) + data[start:], kind


def _noise(draw: random.Random) -> tuple[bytes, str]:
    return draw.randbytes(draw.choice((0, 1, 7, 100, 10_000))), draw.choice((*TYPES.values(), JSON))


def _headed_noise(draw: random.Random) -> tuple[bytes, str]:
    data, kind = _right(draw)
    return data[: draw.randrange(8, 40)] + draw.randbytes(500), kind


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png(width: int, height: int, rows: bytes, *extra: bytes, depth: int = 8, colour: int = 0) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


@cache
def _zeros(count: int) -> bytes:
    return zlib.compress(bytes(count), 9)


def _bomb(draw: random.Random) -> tuple[bytes, str]:
    """A small file that says, or is, more than 40 million pixels, or has a text that unpacks to 100 MB."""
    jpeg = bytearray(_whole()[0][0])
    size = jpeg.index(b"\xff\xc0") + 5
    jpeg[size : size + 4] = b"\xff\xff\xff\xff"
    sides = draw.choice(((40_000, 40_000), (7_000, 7_000), (2**31 - 1, 2**31 - 1), (0, 0), (16_385, 1), (1, 2**31)))
    text = _chunk(b"zTXt", b"a\0\0" + _zeros(100_000_000))
    profile = _chunk(b"iCCP", b"a\0\0" + _zeros(100_000_000))
    bombs = (
        (bytes(jpeg), "image/jpeg"),
        (_png(*sides, _zeros(100_000)), "image/png"),
        (_png(6_400, 6_400, _zeros(6_400 * 6_401)), "image/png"),
        (_png(8, 8, _zeros(72), text), "image/png"),
        (_png(8, 8, _zeros(72), profile), "image/png"),
        # More data than the image has rows for.
        (_png(8, 8, _zeros(100_000_000)), "image/png"),
    )
    return draw.choice(bombs)


@cache
def large_files() -> tuple[tuple[bytes, str], ...]:
    black = Image.fromarray(np.zeros((6_320, 6_320), np.uint8))
    grey = Image.new("L", black.size, 128)
    rgba = _png(6_320, 6_320, _zeros(6_320 * (4 * 6_320 + 1)), colour=6)
    deep = _png(6_320, 6_320, _zeros(6_320 * (2 * 6_320 + 1)), depth=16)
    strip = _png(16_384, 2_440, _zeros(2_440 * (3 * 16_384 + 1)), colour=2)
    return (
        (rgba, "image/png"),
        (deep, "image/png"),
        (strip, "image/png"),
        (rgba[: len(rgba) // 2], "image/png"),
        (encoded(black, "JPEG", quality=20), "image/jpeg"),
        (encoded(black, "JPEG", quality=20, progressive=True), "image/jpeg"),
        (encoded(Image.merge("RGBA", (black, black, black, grey)), "WEBP", lossless=True, method=0), "image/webp"),
        (json.dumps({"images": [base64.b64encode(rgba[: len(rgba) // 2]).decode()] * 8}).encode(), JSON),
    )


def _large(draw: random.Random) -> tuple[bytes, str]:
    return draw.choice(large_files())


def _other_format(draw: random.Random) -> tuple[bytes, str]:
    stream = io.BytesIO()
    if draw.random() < 0.3:
        np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
        return stream.getvalue(), draw.choice(("application/x-npy", *TYPES.values()))
    smooth_picture(20, 20).save(stream, draw.choice(("GIF", "BMP", "TIFF", "PPM", "ICO", "TGA")))
    return stream.getvalue(), draw.choice(tuple(TYPES.values()))


def _json(draw: random.Random) -> tuple[bytes, str]:
    """JSON with images of every kind."""
    makers = (_right, _right, _truncated, _flipped, _noise, _bomb)
    files = [draw.choice(makers)(draw)[0] for _ in range(draw.choice((0, 1, 2, 5, 32, 33)))]
    texts: list[object] = [base64.b64encode(data).decode() for data in files if len(data) < 150_000]
    if draw.random() < 0.2:
        texts.append(draw.choice((None, 1, "", "é", "a===", [], {"b": 1})))
    return json.dumps({"images": texts}).encode(), JSON


def _odd_json(draw: random.Random) -> tuple[bytes, str]:
    """JSON of another shape, or none."""
    odd = (
        b"",
        b"{}",
        b"[]",
        b"null",
        b"NaN",
        b'{"images": null}',
        b'{"images": "abcd"}',
        b'{"images": {}}',
        b'{"images": [[]]}',
        b'{"images": [1e999]}',
        b'{"image": ["abcd"]}',
        b'{"images": ["abcd"]',
        b'{"images": ["\\ud800"]}',
        b'{"images": ["\xff"]}',
        b"\xef\xbb\xbf{}",
        b'{"images": [' + b"9" * 10_000 + b"]}",
        b'{"images": ' + b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"images": [' + b'"",' * 100_000 + b'""]}',
        json.dumps({"images": ["abcd"]}).encode("utf-16"),
    )
    return draw.choice(odd), JSON


def _mutated_json(draw: random.Random) -> tuple[bytes, str]:
    data = bytearray(_json(draw)[0])
    for _ in range(draw.choice((1, 4, 32))):
        data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data), JSON


KINDS: tuple[Callable[[random.Random], tuple[bytes, str]], ...] = (
    _right,
    _truncated,
    _truncated,
    _flipped,
    _flipped,
    _flipped,
    _spliced,
    _repeated,
    _noise,
    _headed_noise,
    _bomb,
    _other_format,
    _json,
    _odd_json,
    _mutated_json,
)
