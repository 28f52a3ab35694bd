"""The processes that decode requests: what they answer, and what happens to one that hangs or ends."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest
import torch
from PIL import Image

from lightning_modules.inference import BadImageError, Preprocessing, decode_image
from sagemaker_launch.serving import decode_process, decoder
from sagemaker_launch.serving.decoder import Decoder, DecoderError, TooSlowError
from tests.pictures import encoded, jpeg_bytes

PREPROCESSING = Preprocessing(image_size=32, resize_size=36)
FORKER: list[int] = []
"""The process that forks those that decode."""
MANY = json.dumps({"images": [base64.b64encode(encoded(Image.new("RGB", (1000, 1000)), "PNG")).decode()] * 32}).encode()


@asynccontextmanager
async def decoding(processes: int = 1) -> AsyncIterator[Decoder]:
    one = Decoder(processes)
    FORKER[:] = [one._forker_number]  # tests before this one may have left other children
    try:
        await one.start(PREPROCESSING)
        yield one
    finally:
        one.close()


def processes_of_mine() -> list[psutil.Process]:
    """Those that decode: a child of this process forks them."""
    return psutil.Process(FORKER[0]).children() if FORKER and psutil.pid_exists(FORKER[0]) else []


async def replaced(old: list[psutil.Process], seconds: float = 5) -> None:
    """Wait until other processes are there."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        now = processes_of_mine()
        if len(now) == len(old) and not set(now) & set(old):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{old} is not replaced")


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    yield
    end = time.monotonic() + 5
    while processes_of_mine() and time.monotonic() < end:
        time.sleep(0.01)
    assert not processes_of_mine()


def test_images_come_back_cropped_and_in_order() -> None:
    async def check() -> None:
        photos = [jpeg_bytes(size=50), b"none", jpeg_bytes(size=90)]
        body = json.dumps({"images": [base64.b64encode(one).decode() for one in photos]}).encode()
        async with decoding(2) as one:
            first, second, third = (await one.decode(body, "application/json")).images
        assert isinstance(second, BadImageError)
        for got, photo in ((first, photos[0]), (third, photos[2])):
            assert (got == PREPROCESSING.crop(decode_image(photo))).all()

    asyncio.run(check())


@pytest.mark.parametrize(
    ("body", "content_type", "status"), [(b"{}", "application/json", 400), (b"", "text/html", 415), (b"", "é", 415)]
)
def test_a_body_that_is_wrong_as_a_whole_is_one_error(body: bytes, content_type: str, status: int) -> None:
    async def check() -> None:
        async with decoding() as one:
            (error,) = (await one.decode(body, content_type)).images
        assert isinstance(error, BadImageError) and error.status == status

    asyncio.run(check())


def test_a_request_that_is_cancelled_costs_nothing_more() -> None:
    async def check() -> None:
        async with decoding() as one:
            whole = (await one.decode(MANY, "application/json")).seconds
            task = asyncio.create_task(one.decode(MANY, "application/json"))
            waiting = [asyncio.create_task(one.decode(MANY, "application/json")) for _ in range(20)]
            await asyncio.sleep(0.02)
            for cancelled in (task, *waiting):
                cancelled.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await cancelled
            started = time.perf_counter()
            assert not isinstance((await one.decode(jpeg_bytes(), "image/jpeg")).images[0], BadImageError)
            assert time.perf_counter() - started < whole

    asyncio.run(check())


def test_a_process_beyond_its_time_is_killed_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (decode_process, decoder):
        monkeypatch.setattr(module, "DECODE_SECONDS", 0.05)

    async def check() -> None:
        async with decoding() as one:
            old = processes_of_mine()
            started = time.monotonic()
            (error,) = (await one.decode(MANY, "application/json")).images
            assert isinstance(error, TooSlowError)
            assert str(error) == "decoding the request takes more than 0.05 s"
            await replaced(old, 1)
            assert time.monotonic() - started < 1
            assert one.is_working
            decoded = await one.decode(jpeg_bytes(), "image/jpeg")
            assert not isinstance(decoded.images[0], BadImageError)

    asyncio.run(check())


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_memory_beyond_the_limit_is_an_answer(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(
        decode_process, "decode_request", Mock(side_effect=[error, [torch.zeros(3, 40, 40, dtype=torch.uint8)]])
    )

    async def check() -> None:
        async with decoding() as one:
            (process,) = processes_of_mine()
            if sys.platform == "linux":
                assert process.rlimit(psutil.RLIMIT_DATA)[0] < 2 * decode_process.DECODE_BYTES + 2**32
            (refused,) = (await one.decode(jpeg_bytes(), "image/jpeg")).images
            assert isinstance(refused, BadImageError) and refused.status == 503
            assert not isinstance((await one.decode(jpeg_bytes(), "image/jpeg")).images[0], BadImageError)
            assert processes_of_mine() == [process]

    asyncio.run(check())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel does not limit the memory of a process")
@pytest.mark.parametrize("hard_bytes", [decode_process.DECODE_BYTES // 2, 2**50], ids=["below_ours", "above_ours"])
def test_a_hard_limit_of_memory_stays_and_the_smaller_limit_counts(
    monkeypatch: pytest.MonkeyPatch, hard_bytes: int
) -> None:
    now = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    hard, setrlimit = now + hard_bytes, resource.setrlimit

    def set_without_privilege(number: int, limits: tuple[int, int]) -> None:
        if not 0 <= limits[0] <= limits[1] <= hard:
            raise ValueError("not allowed to raise maximum limit")
        setrlimit(number, limits)

    monkeypatch.setattr(decode_process.resource, "getrlimit", lambda number: (hard, hard))
    monkeypatch.setattr(decode_process.resource, "setrlimit", set_without_privilege)

    async def check() -> None:
        async with decoding() as one:
            (process,) = processes_of_mine()
            soft, kept = process.rlimit(psutil.RLIMIT_DATA)
            assert kept == hard
            assert soft == hard if hard_bytes < decode_process.DECODE_BYTES else now < soft < hard
            assert not isinstance((await one.decode(jpeg_bytes(), "image/jpeg")).images[0], BadImageError)

    asyncio.run(asyncio.wait_for(check(), 20))


def test_a_process_that_fails_prints_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decode_process, "decode_request", Mock(side_effect=RuntimeError("no such operator")))

    async def check() -> None:
        async with decoding() as one:
            old = processes_of_mine()
            (error,) = (await one.decode(jpeg_bytes(), "image/jpeg")).images
            assert isinstance(error, DecoderError)
            await replaced(old)

    # A process closes all files but the standard ones, and pytest's stderr is another one.
    with open(2, "w", buffering=1, closefd=False) as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        asyncio.run(check())
    printed = capfd.readouterr().err
    assert printed.startswith("Traceback (most recent call last):\n")
    assert printed.endswith("\nRuntimeError: no such operator\n")


def test_a_process_whose_socket_is_closed_prints_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    async def check() -> None:
        async with decoding() as one:
            (process,) = old = processes_of_mine()
            ours, theirs = socket.socketpair()
            ours.close()
            with theirs:
                socket.send_fds(one._forker, [b"1"], [theirs.fileno()])
            process.kill()
            process.wait(5)
            await one.decode(jpeg_bytes(), "image/jpeg")
            await replaced(old)

    with open(2, "w", buffering=1, closefd=False) as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        asyncio.run(check())
    assert capfd.readouterr().err == ""


def test_a_process_that_is_killed_is_replaced_and_only_its_request_fails() -> None:
    async def check() -> None:
        async with decoding() as one:
            old = processes_of_mine()
            task = asyncio.create_task(one.decode(MANY, "application/json"))
            await asyncio.sleep(0.02)
            old[0].kill()
            (error,) = (await task).images
            assert isinstance(error, DecoderError) and error.status == 500
            await replaced(old)
            for process in processes_of_mine():
                process.kill()  # while it has nothing to do: the next request does not notice
                process.wait(5)
            assert not isinstance((await one.decode(jpeg_bytes(), "image/jpeg")).images[0], BadImageError)

    asyncio.run(check())


def test_without_a_new_process_it_does_not_work_until_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "START_SECONDS", 1)
    monkeypatch.setattr(decoder, "RETRY_SECONDS", 0.05)

    async def check() -> None:
        async with decoding() as one:
            forker = psutil.Process(FORKER[0])
            (process,) = processes_of_mine()
            forker.suspend()
            task = asyncio.create_task(one.decode(MANY, "application/json"))
            await asyncio.sleep(0.02)
            process.kill()
            assert isinstance((await task).images[0], DecoderError)
            while one.is_working:
                await asyncio.sleep(0.01)
            os.kill(forker.pid, signal.SIGCONT)
            while not one.is_working:
                await asyncio.sleep(0.01)
            assert not isinstance((await one.decode(jpeg_bytes(), "image/jpeg")).images[0], BadImageError)

    asyncio.run(asyncio.wait_for(check(), 40))


def test_the_processes_end_with_their_server_only() -> None:
    async def check() -> None:
        async with decoding(2) as one:
            for process in (psutil.Process(FORKER[0]), *processes_of_mine()):
                process.terminate()
                process.send_signal(signal.SIGINT)
            await asyncio.sleep(0.1)
            assert len(processes_of_mine()) == 2
            assert not isinstance((await one.decode(jpeg_bytes(), "image/jpeg")).images[0], BadImageError)

    asyncio.run(check())
