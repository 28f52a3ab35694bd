"""Thumbnails show what the network was shown, without the network's library."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.figures.pictures import thumbnail
from lightning_modules.inference import BadImageError, Preprocessing, decode_image
from tests.pictures import encoded, smooth_picture
from tests.unit.lightning_modules.test_inference import ORIENTATION, STORED_AS, png_chunk, raw_exif, stored_turned


def turned(orientation: int) -> bytes:
    picture, exif = stored_turned(smooth_picture(300, 200), orientation)
    return encoded(picture, "JPEG", quality=95, exif=exif)


def palette() -> bytes:
    picture = Image.new("P", (40, 30), 0)
    picture.putpalette([200, 100, 0, 10, 20, 30])
    picture.paste(1, (10, 10, 40, 30))
    return encoded(picture, "PNG", transparency=bytes([51, 255]))


def sixteen_bit(mode: str, format: str) -> bytes:
    values = np.linspace(0, 65_535, 40 * 30).reshape(30, 40)
    dtype = {"I;16": "<u2", "I;16B": ">u2"}[mode]
    return encoded(Image.fromarray(values.astype(dtype)), format)


def damaged_exif() -> bytes:
    data = encoded(smooth_picture(), "PNG")
    return data[:33] + png_chunk(b"eXIf", b"II*\0\xff\xff\xff\xff") + data[33:]


FILES = {
    **{f"orientation {orientation}": turned(orientation) for orientation in STORED_AS},
    "large": encoded(smooth_picture(1600, 1000), "JPEG", quality=95),
    "strip": encoded(smooth_picture(600, 3), "PNG"),
    "grey": encoded(smooth_picture().convert("L"), "JPEG"),
    "alpha": encoded(smooth_picture().convert("RGBA").rotate(30), "PNG"),
    "grey alpha": encoded(smooth_picture().convert("RGBA").rotate(30).convert("LA"), "PNG"),
    "palette": palette(),
    "16 bit": sixteen_bit("I;16", "PNG"),
    "16 bit TIFF": sixteen_bit("I;16B", "TIFF"),
    "float TIFF": encoded(Image.fromarray(np.linspace(0, 1, 40 * 30, dtype="float32").reshape(30, 40)), "TIFF"),
    "long colour profile": encoded(smooth_picture(), "PNG", icc_profile=bytes(1_100_000)),
    "CMYK": encoded(smooth_picture().convert("CMYK"), "JPEG", quality=95),
    "GIF": encoded(smooth_picture(), "GIF"),
    "WEBP": encoded(smooth_picture(), "WEBP", lossless=True),
    "damaged EXIF": damaged_exif(),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning")
@pytest.mark.parametrize("name", FILES)
def test_a_thumbnail_shows_what_inference_reads(name: str, tmp_path: Path) -> None:
    path = tmp_path / "photo"
    path.write_bytes(FILES[name])
    crop = Preprocessing(image_size=160, resize_size=160).crop(decode_image(FILES[name]))
    shown = thumbnail(path)
    assert (shown.shape, shown.dtype) == ((160, 160, 3), np.uint8)
    difference = np.abs(shown.astype(float) - crop.permute(1, 2, 0).numpy()).mean()
    assert difference < 2.5


def test_odd_exif_is_read_by_the_one_decoder(tmp_path: Path) -> None:
    exif = raw_exif((ORIENTATION, 3, 1, b"\6\0"), (330, 7, 2, b"\0\0"))  # exif_transpose can't write this
    data = encoded(stored_turned(smooth_picture(), 6)[0], "JPEG", quality=95, exif=exif)
    (tmp_path / "photo").write_bytes(data)
    shown = thumbnail(tmp_path / "photo").astype(float)
    crop = Preprocessing(image_size=160, resize_size=160).crop(decode_image(data))
    assert np.abs(shown - crop.permute(1, 2, 0).numpy()).mean() < 2.5


@pytest.mark.parametrize("data", [None, b"", b"no image", turned(1)[:400]])
def test_a_thumbnail_of_what_is_no_photo_is_refused(data: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "photo"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises((OSError, ValueError), match=r"photo|damaged|not a JPEG"):
        thumbnail(path)


def test_what_the_one_reader_refuses_has_no_thumbnail(tmp_path: Path) -> None:
    small = encoded(smooth_picture(), "JPEG", progressive=True)
    start, end = small.rindex(b"\xff\xda"), small.rindex(b"\xff\xd9")
    refused = {
        "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a JPEG"),
        "pixels": (encoded(Image.new("1", (8_000, 8_000)), "PNG"), "64000000|8000x8000"),
        "scans": (small[:end] + small[start:end] * 200 + small[end:], "100 scans"),
    }
    for name, (data, says) in refused.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BadImageError, match=says):
            thumbnail(tmp_path / name)
    os.mkfifo(tmp_path / "pipe")  # to read it would wait forever
    with pytest.raises(ValueError, match="named pipe"):
        thumbnail(tmp_path / "pipe")
