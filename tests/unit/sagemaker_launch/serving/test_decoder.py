"""The threads that decode requests."""

from __future__ import annotations

import asyncio
import base64
import json
import time

import pytest
from PIL import Image

from lightning_modules.inference import BadImageError, Preprocessing
from sagemaker_launch.serving.decoder import Decoder
from tests.pictures import encoded, jpeg_bytes

PREPROCESSING = Preprocessing(image_size=32, resize_size=36)
MANY = json.dumps({"images": [base64.b64encode(encoded(Image.new("RGB", (1000, 1000)), "PNG")).decode()] * 32}).encode()


def test_images_come_back_cropped_and_in_order() -> None:
    photos = [base64.b64encode(one).decode() for one in (jpeg_bytes(size=50), b"none", jpeg_bytes(size=90))]
    body = json.dumps({"images": photos}).encode()
    decoded = asyncio.run(Decoder(2).decode(body, "application/json", PREPROCESSING))
    first, second, third = decoded.images
    assert isinstance(second, BadImageError)
    assert [getattr(one, "shape", None) for one in (first, third)] == [(3, 32, 32)] * 2


def test_a_body_that_is_wrong_as_a_whole_is_one_error() -> None:
    decoded = asyncio.run(Decoder(1).decode(b"{}", "application/json", PREPROCESSING))
    assert [type(one) for one in decoded.images] == [BadImageError]


def test_a_cancelled_request_frees_its_thread_after_the_image_that_it_is_at() -> None:
    async def check() -> tuple[float, float]:
        decoder = Decoder(1)
        whole = (await decoder.decode(MANY, "application/json", PREPROCESSING)).seconds
        task = asyncio.create_task(decoder.decode(MANY, "application/json", PREPROCESSING))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        started = time.perf_counter()
        await decoder.decode(jpeg_bytes(), "image/jpeg", PREPROCESSING)
        return whole, time.perf_counter() - started

    whole, waited = asyncio.run(check())
    assert waited < whole / 2


def test_who_leaves_while_waiting_for_a_thread_takes_no_turn() -> None:
    async def check() -> None:
        decoder = Decoder(1)
        busy = asyncio.create_task(decoder.decode(MANY, "application/json", PREPROCESSING))
        waiting = [asyncio.create_task(decoder.decode(MANY, "application/json", PREPROCESSING)) for _ in range(20)]
        await asyncio.sleep(0.01)
        for one in waiting:
            one.cancel()
        seconds = (await busy).seconds
        started = time.perf_counter()
        await decoder.decode(jpeg_bytes(), "image/jpeg", PREPROCESSING)
        assert time.perf_counter() - started < seconds

    asyncio.run(check())
