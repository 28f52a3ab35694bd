"""Decode the bodies of requests to crops of the network's size, in processes that can be killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lightning_modules.inference import (
    BadImageError,
    BadTypeError,
    OutOfMemoryError,
    Preprocessing,
    TooLargeError,
)
from sagemaker_launch.serving.decode_process import DECODE_SECONDS, HEAD, start_forker

START_SECONDS = 5.0
"""Time limit of a new process to say that it is there, which takes some 20 ms on an idle machine."""
RETRY_SECONDS = 1.0
"""Pause before a process that could not be started is tried again."""

log = logging.getLogger("serving")


class TooSlowError(BadImageError):
    """Decoding takes longer than a request may."""


class DecoderError(BadImageError):
    """The process that decoded the request ended."""

    status = 500


_ERRORS = {kind.__name__: kind for kind in (BadImageError, BadTypeError, OutOfMemoryError, TooLargeError)}


@dataclass(frozen=True)
class Decoded:
    """The images of a body."""

    images: list[Tensor | BadImageError]
    """For each image: (3, S, S) uint8, or why it can't be scored; one error for a body that is wrong as a whole."""
    seconds: float


@dataclass(frozen=True, eq=False)
class _Process:
    """A process that decodes, as the server sees it."""

    stream: socket.socket
    number: int
    side: int

    @classmethod
    async def start(cls, forker: socket.socket, preprocessing: Preprocessing) -> Self:
        """Start one.

        Raises:
            OSError, EOFError: if the system gives no process.
        """
        stream, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(forker, [b"1"], [theirs.fileno()])
        try:
            stream.setblocking(False)
            number = int.from_bytes(await _receive(stream, 8), "little")
            one = cls(stream, number, preprocessing.image_size)
            await one._send(json.dumps(preprocessing.to_dict()))
        except BaseException:
            stream.close()
            raise
        return one

    async def decode(self, body: bytes, content_type: str) -> list[Tensor | BadImageError]:
        """Decode a request.

        Raises:
            BrokenPipeError: if the process ended before.
            EOFError, OSError: if it ends now.
        """
        await self._send(content_type, body)
        text, content = HEAD.unpack(await _receive(self.stream, HEAD.size))
        errors = json.loads(await _receive(self.stream, text))
        crops: Iterator[Tensor] = iter(())
        if content:
            received = torch.frombuffer(await _receive(self.stream, content), dtype=torch.uint8)
            crops = iter(received.reshape(-1, 3, self.side, self.side))
        return [next(crops) if one is None else _ERRORS[one[0]](one[1]) for one in errors]

    def kill(self) -> None:
        """End it, whatever it does."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.number, signal.SIGKILL)
        self.stream.close()

    async def _send(self, text: str, content: bytes = b"") -> None:
        encoded = text.encode()
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self.stream, HEAD.pack(len(encoded), len(content)) + encoded)
        await loop.sock_sendall(self.stream, content)


async def _receive(stream: socket.socket, size: int) -> bytearray:
    received = bytearray(size)
    left = memoryview(received)
    while left:
        count = await asyncio.get_running_loop().sock_recv_into(stream, left)
        if not count:
            raise EOFError
        left = left[count:]
    return received


class Decoder:
    """Some processes that decode. One that takes too long, or whose request is cancelled, is killed and replaced.

    Must be made before the server has threads; everything else runs on its event loop.
    """

    def __init__(self, processes: int) -> None:
        self._count = processes
        self._forker, self._forker_number = start_forker()
        # The one that was used last is taken first: its memory is in use already.
        self._free: asyncio.LifoQueue[_Process] = asyncio.LifoQueue()
        self._all: set[_Process] = set()
        self._starting: set[asyncio.Task[None]] = set()
        self.is_working = True
        """Whether each process that ended could be replaced."""

    async def start(self, preprocessing: Preprocessing) -> None:
        """Start the processes."""
        self._preprocessing = preprocessing
        await asyncio.gather(*(self._add() for _ in range(self._count)))

    async def decode(self, body: bytes, content_type: str) -> Decoded:
        """Decode a request. If it is cancelled, its process ends at once."""
        while True:
            process = await self._free.get()
            started = time.perf_counter()
            try:
                images = await process.decode(body, content_type)
            except BrokenPipeError:
                self._replace(process)  # it ended while it had nothing to do
            except (EOFError, OSError):
                self._replace(process)
                seconds = time.perf_counter() - started
                return Decoded([_reason(seconds)], seconds)
            except BaseException:
                self._replace(process)
                raise
            else:
                self._free.put_nowait(process)
                return Decoded(images, time.perf_counter() - started)

    def close(self) -> None:
        """End the processes."""
        for task in self._starting:
            task.cancel()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._forker_number, signal.SIGKILL)
        os.waitpid(self._forker_number, 0)
        for stream in (self._forker, *(process.stream for process in self._all)):
            stream.close()

    def _replace(self, process: _Process) -> None:
        process.kill()
        self._all.discard(process)
        task = asyncio.create_task(self._add())
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    async def _add(self) -> None:
        while True:
            try:
                async with asyncio.timeout(START_SECONDS):
                    process = await _Process.start(self._forker, self._preprocessing)
                break
            except (OSError, EOFError, TimeoutError) as error:
                if self.is_working:
                    log.error(f"no process for decoding can be started: {error!r}: trying again each second")
                self.is_working = False
                await asyncio.sleep(RETRY_SECONDS)
        self.is_working = True
        self._all.add(process)
        self._free.put_nowait(process)


def _reason(seconds: float) -> BadImageError:
    """Why a process ended: the kernel tells its parent only, but the time limit can't be reached earlier."""
    if seconds >= DECODE_SECONDS:
        return TooSlowError(f"decoding the request takes more than {DECODE_SECONDS} s")
    log.error("a process for decoding ended while it decoded a request")
    return DecoderError("the server failed while it decoded the request")
