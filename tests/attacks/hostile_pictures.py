"""Small files that cost a decoder much: for the server, for the reader at home, for thumbnails."""

from __future__ import annotations

import struct
import zlib
from functools import cache

from PIL import Image

from tests.pictures import encoded, smooth_picture

PNG = b"\x89PNG\r\n\x1a\n"
LARGEST = 6_000_000
"""Bytes of a file: nearly as many as a request may have."""


def segment(marker: int, payload: bytes = b"") -> bytes:
    """A segment of a JPEG."""
    return bytes((0xFF, marker)) + struct.pack(">H", len(payload) + 2) + payload


def jpeg_with(before: bytes = b"", *, scans: int = 0, side: int = 64) -> bytes:
    """A progressive JPEG with bytes after its first marker, and with its last scan repeated."""
    data = encoded(smooth_picture(side, side), "JPEG", progressive=True, quality=30)
    start, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:2] + before + data[2:end] + data[start:end] * scans + data[end:]


def chunk(name: bytes, content: bytes = b"") -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_with(before: bytes = b"", after: bytes = b"", *, size: tuple[int, int] = (16, 16)) -> bytes:
    """A grey PNG with bytes before and after its pixels."""
    rows = zlib.compress(bytes(min(1_000_000, size[1] * (size[0] + 1))))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0))
    return PNG + head + before + chunk(b"IDAT", rows) + after + chunk(b"IEND")


def webp(kind: bytes, width: int, height: int) -> bytes:
    """A WebP of some hundred bytes with this canvas: `VP8X`, `VP8L` or `VP8 `."""
    lossy = b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", width & 0x3FFF, height & 0x3FFF) + bytes(30)
    lossless = b"\x2f" + struct.pack("<I", (width - 1 & 0x3FFF) | (height - 1 & 0x3FFF) << 14) + bytes(30)
    canvas = b"\x10\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")

    def part(name: bytes, content: bytes) -> bytes:
        return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)

    parts = {
        b"VP8X": part(b"VP8X", canvas) + part(b"ALPH", b"\0\0") + part(b"VP8 ", lossy),
        b"VP8L": part(b"VP8L", lossless),
        b"VP8 ": part(b"VP8 ", lossy),
    }[kind]
    return b"RIFF" + struct.pack("<I", 4 + len(parts)) + b"WEBP" + parts


def tiff_with_strips(count: int, side: int, order: str = "<") -> bytes:
    """A grey TIFF with this many strips, all in the same place, each of nearly all rows."""
    pixels, offsets = bytes(side * side), struct.pack(f"{order}I", 8) * count
    tags = {256: side, 257: side, 258: 8, 259: 1, 262: 1, 273: 8 + len(pixels), 277: 1, 278: side - 1, 279: 1}
    entries = b"".join(
        struct.pack(f"{order}HHII", tag, 4, count if tag == 273 else 1, value) for tag, value in sorted(tags.items())
    )
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(pixels) + len(offsets))
    return head + pixels + offsets + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


@cache
def refused() -> dict[str, tuple[bytes, str]]:
    """Files, and what the reader says of each."""
    exif = segment(0xE1, b"Exif\0\0II*\0")
    # It unpacks to 16 MB, and then fails: Pillow counts what unpacks only.
    text = b"a\0\0" + zlib.compress(bytes(16 * 2**20 - 10), 9)[:-4] + b"fail"
    return {
        "80,000 scans": (jpeg_with(scans=80_000, side=400), "100 scans"),
        "101 scans": (jpeg_with(scans=101), "100 scans"),
        "APP1 segments": (jpeg_with(exif * (LARGEST // len(exif))), "64 APP"),
        "APP15 segments": (jpeg_with(segment(0xEF) * 65), "64 APP"),
        "comments": (jpeg_with(segment(0xFE) * (LARGEST // 4)), "segments"),
        "quantisation tables": (jpeg_with(segment(0xDB) * (LARGEST // 4)), "segments"),
        "APP segments in a marker that Pillow does not skip": (
            jpeg_with((b"\xff\xf0\xff\xff" + segment(0xE1) * 16_383) * 80),
            "64 APP",
        ),
        "APP segments behind the end": (jpeg_with(b"\xff\xd9" + exif * 65), "64 APP"),
        "fill bytes": (jpeg_with(b"\xff" * LARGEST), "segments"),
        "bytes between segments": (jpeg_with(b"a" * LARGEST), "segments"),
        "bytes and no segment": (b"\xff\xd8\xff" + b"a" * LARGEST, "segments"),
        "empty IDAT chunks": (png_with(after=chunk(b"IDAT") * (LARGEST // 12)), "chunks"),
        "unknown chunks": (png_with(chunk(b"abCd") * (LARGEST // 12)), "chunks"),
        "texts behind the pixels": (png_with(after=chunk(b"tEXt", b"a\0b") * (LARGEST // 15)), "chunks"),
        "colour profiles of 16 MB": (png_with(chunk(b"iCCP", text) * 360), "64 compressed"),
        "texts of 16 MB that fail to unpack": (png_with(chunk(b"zTXt", text) * 360), "64 compressed"),
        "WebP, extended": (webp(b"VP8X", 13_000, 13_000), "13000x13000"),
        "WebP, lossless": (webp(b"VP8L", 13_000, 13_000), "13000x13000"),
        "WebP, lossy": (webp(b"VP8 ", 13_000, 13_000), "13000x13000"),
        "WebP, wide": (webp(b"VP8X", 2**24, 1), "16777216x1"),
        "PNG of many pixels": (png_with(size=(6_400, 6_400)), "6400x6400"),
    }


@cache
def refused_at_home() -> dict[str, tuple[bytes, str]]:
    """The same, of formats that only the reader at home takes."""
    huge = bytearray(encoded(Image.new("L", (8, 8)), "BMP"))
    huge[18:26] = struct.pack("<ii", 30_000, 30_000)
    gif = bytearray(encoded(Image.new("L", (8, 8)), "GIF"))
    frame = gif.index(b",") + 5
    gif[frame : frame + 4] = struct.pack("<HH", 60_000, 60_000)  # larger than the screen, by which it is opened
    return {
        "strips that overlap": (tiff_with_strips(40_000, 1_000), "overlap"),
        "strips that overlap, big-endian": (tiff_with_strips(40_000, 1_000, ">"), "overlap"),
        "millions of strips": (tiff_with_strips(2_000_000, 100), "strips"),
        "BMP of many pixels": (bytes(huge), "too large|30000x30000"),
        "GIF whose frame is larger than its screen": (bytes(gif), "too large|60000x60000"),
    }
