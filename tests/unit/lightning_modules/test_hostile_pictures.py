"""The reader counts what a file declares before a decoder acts on it."""

from __future__ import annotations

import contextlib
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_modules.inference import MAX_METADATA, MAX_PIXELS, MAX_SCANS, MAX_SIDE, BadImageError, decode_image
from tests.attacks.hostile_pictures import (
    chunk,
    jpeg_with,
    png_with,
    refused,
    refused_at_home,
    segment,
    tiff_with_strips,
    webp,
)
from tests.pictures import encoded, smooth_picture


@pytest.mark.parametrize("name", [*refused(), *refused_at_home()])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_would_keep_a_decoder_busy_is_refused_at_once(name: str) -> None:
    data, says = (refused() | refused_at_home())[name]
    started = time.process_time()
    with pytest.raises(BadImageError, match=says) as caught:
        decode_image(data)
    assert time.process_time() - started < 1
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_what_encoders_write_is_read() -> None:
    film = jpeg_with()[:-2] + b"\xff\xd9" + random.Random(0).randbytes(8_000_000)  # as phones append one
    assert film.count(b"\xff\xda") > MAX_SCANS
    profile = b"".join(segment(0xE2, b"ICC_PROFILE\0" + bytes((1 + k, 60)) + bytes(60_000)) for k in range(60))
    thumbnails = segment(0xED, bytes(100) + jpeg_with(scans=90) + jpeg_with(scans=90))
    for data in (
        film,
        jpeg_with(profile),
        jpeg_with(thumbnails),
        jpeg_with(scans=MAX_SCANS - 10),
        jpeg_with(b"\xff" * 100),
        png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0text") * MAX_METADATA),
        png_with(after=chunk(b"tEXt", b"a\0b") * 40_000),
        encoded(smooth_picture(300, 200), "TIFF", tiffinfo={278: 1}),
    ):
        assert decode_image(data).shape[0] == 3


SIZES = st.integers(1, 2**14) | st.sampled_from([MAX_SIDE, MAX_SIDE - 1, 6_324, 6_325])


@given(st.sampled_from([b"VP8X", b"VP8L", b"VP8 "]), SIZES, SIZES)
@settings(max_examples=50, deadline=None)
def test_a_webp_opens_a_canvas_of_at_most_the_pixels_that_an_image_may_have(
    kind: bytes, width: int, height: int
) -> None:
    if kind == b"VP8 ":  # has 14 bits
        width, height = min(width, 0x3FFF), min(height, 0x3FFF)
    with pytest.raises(BadImageError) as caught:
        decode_image(webp(kind, width, height))
    assert ("pixels; at most" in str(caught.value)) == (width * height > MAX_PIXELS)


MARKERS = st.integers(0x01, 0xFF)
PIECES = st.one_of(
    st.builds(segment, MARKERS, st.binary(max_size=40)),
    st.builds(lambda marker, length: bytes((0xFF, marker)) + length.to_bytes(2), MARKERS, st.integers(0, 65_535)),
    st.binary(max_size=20),
)


@given(st.lists(PIECES, max_size=6), st.integers(1, 30_000))
@settings(max_examples=40, deadline=None)
def test_no_order_of_markers_keeps_the_reader_busy(pieces: list[bytes], repeats: int) -> None:
    body = b"".join(pieces)
    started = time.process_time()
    with contextlib.suppress(BadImageError):
        decode_image(jpeg_with(body * min(repeats, 1 + 1_000_000 // (1 + len(body)))))
    assert time.process_time() - started < 1


@given(st.binary(max_size=60), st.sampled_from([b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"]))
@settings(max_examples=100, deadline=None)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
def test_any_directory_of_a_tiff_is_read_or_refused(rest: bytes, head: bytes) -> None:
    with pytest.raises(BadImageError):
        decode_image(head + b"\x08\0\0\0" + rest)


def test_a_few_strips_in_one_place_are_refused_too() -> None:
    with pytest.raises(BadImageError, match="overlap"):
        decode_image(tiff_with_strips(20, 50))
