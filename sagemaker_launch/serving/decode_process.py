"""A process that decodes, and the process that forks it. Nothing here runs in the server."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import struct
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, Protocol

import torch
from PIL import Image
from torch import Tensor

from lightning_modules.inference import (
    BadImageError,
    OutOfMemoryError,
    Preprocessing,
    decode_request,
    read_request,
)

DECODE_SECONDS = 3
"""Processor time that the images of one request may take. The slowest honest ones, of 40 million pixels, take 1.4 s."""
DECODE_BYTES = 1_000_000_000
"""Memory that a process may take to decode: the largest honest image, a PNG of 16 bits, takes 660 MB."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt(3)."""
KEPT_BLOCK, KEPT_BYTES = 1 << 25, 1 << 26
"""Freed blocks of up to 32 MB, the most that mallopt takes, stay with the process, but for more than 64 MB together. A
photo of 2.8 million pixels has such a block."""
HEAD = struct.Struct("<IQ")
"""In front of each message: the bytes of its text, and of its content."""


class Stream(Protocol):
    """The file of a socket."""

    def read(self, size: int, /) -> bytes:
        """Wait for this many bytes, or for the end."""
        ...

    def write(self, data: bytes, /) -> int:
        """Write to the buffer."""
        ...

    def flush(self) -> None:
        """Send what is in the buffer."""
        ...


def start_forker() -> tuple[socket.socket, int]:
    """Start the process that forks others. The caller must not have threads yet: a fork copies their locks only.

    Returns:
        A socket, and the number of the process, which leads the group of all of them. Each socket sent through this one
        gets a process that decodes, which ends when that socket closes. All are killed when this one closes.
    """
    ours, theirs = socket.socketpair()
    sys.stdout.flush()
    sys.stderr.flush()
    number = os.fork()
    if number == 0:
        _run(theirs, _fork_for_each)
    theirs.close()
    os.setpgid(number, number)
    return ours, number


def _run(stream: socket.socket, work: Callable[[socket.socket], None]) -> NoReturn:
    """Work in a new process, which has no other file open but the standard ones."""
    code = 1
    try:
        kept = stream.fileno()
        os.closerange(3, kept)
        os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))
        work(stream)
        code = 0
    except ConnectionError:
        pass  # the server has closed the socket
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _fork_for_each(server: socket.socket) -> None:
    # In a group of its own: Ctrl-C is for the server, which decides when its processes end.
    os.setpgid(0, 0)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no process is waited for
    with Path(os.devnull).open("r+b", buffering=0) as nothing:
        for standard in (0, 1):
            os.dup2(nothing.fileno(), standard)
    warnings.simplefilter("ignore")  # Pillow's, about images of clients; the answer says what is wrong with them
    # One thread for torch's resizing: the cores are the network's.
    torch.set_num_threads(1)
    # Of Pillow's blocks of 16 MB glibc kept 370 MB after some 500 requests.
    Image.core.set_block_size(1 << 26)  # type: ignore[attr-defined]
    _keep_memory()
    while True:
        message, files, _, _ = socket.recv_fds(server, 1, 1)
        if not message:
            os.killpg(0, signal.SIGKILL)
        stream = socket.socket(fileno=files[0])
        # Without memory for a process this one ends, and the server hears of it.
        if os.fork() == 0:
            _run(stream, _decode_all)
        stream.close()


def _keep_memory() -> None:
    """Keep what one photo needs for the next one, instead of new pages for each.

    glibc, left alone, gives the top of its heap back as soon as it exceeds twice the largest block so far. With another
    C library, nothing happens.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, KEPT_BLOCK)
        library.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def _decode_all(server: socket.socket) -> None:
    """Decode requests until the server closes the socket. The first message has the preprocessing as its text."""
    _limit_memory()
    with server.makefile("rwb") as stream:
        stream.write(struct.pack("<Q", os.getpid()))
        stream.flush()
        first = _receive(stream)
        if first is None:
            return
        preprocessing = Preprocessing.from_dict(json.loads(first[0]))
        while (request := _receive(stream)) is not None:
            # The kernel ends the process, also within a decoder.
            signal.setitimer(signal.ITIMER_PROF, DECODE_SECONDS)
            images = _decode(*request, preprocessing)
            signal.setitimer(signal.ITIMER_PROF, 0)
            _send(stream, *_answer(images))


def _limit_memory() -> None:
    statistics = Path("/proc/self/statm")
    if statistics.is_file():  # elsewhere the kernel does not limit it
        now = int(statistics.read_text().split()[5]) * resource.getpagesize()
        limit = now + DECODE_BYTES
        # To raise the hard limit, which a service manager or `ulimit -d` may have set, a process needs a privilege.
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _decode(content_type: str, body: bytes, preprocessing: Preprocessing) -> list[Tensor | BadImageError]:
    try:
        return [
            preprocessing.crop(image) if isinstance(image, Tensor) else image
            for image in decode_request(read_request(body, content_type))
        ]
    except BadImageError as error:
        return [error]
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return [OutOfMemoryError("the request can't be decoded now: out of memory")]
        raise


def _answer(images: list[Tensor | BadImageError]) -> tuple[str, bytes]:
    """For each image null, or the name and sentence of an error; and the crops."""
    text = [[type(one).__name__, str(one)] if isinstance(one, BadImageError) else None for one in images]
    return json.dumps(text), b"".join(one.numpy().tobytes() for one in images if isinstance(one, Tensor))


def _send(stream: Stream, text: str, content: bytes = b"") -> None:
    """Write a message."""
    encoded = text.encode()
    stream.write(HEAD.pack(len(encoded), len(content)) + encoded)
    stream.write(content)
    stream.flush()


def _receive(stream: Stream) -> tuple[str, bytes] | None:
    head = stream.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    text, content = HEAD.unpack(head)
    return stream.read(text).decode(), stream.read(content)
