"""The server process: listen, load, serve, and on SIGTERM answer the accepted requests."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TextIO

import torch
import uvicorn
from fastapi import FastAPI

from lightning_modules.inference import BadExportError
from sagemaker_launch.serving.app import make_app
from sagemaker_launch.serving.connections import connection_class
from sagemaker_launch.serving.engine import why_no_gpu
from sagemaker_launch.serving.service import Service
from sagemaker_launch.serving.settings import Settings

BACKLOG = 128
"""Connections that the system accepts before the server handles them."""
LOG_SECONDS = 60.0
"""At most one line in that time says that no connection can be accepted."""
_NO_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

log = logging.getLogger("serving")


class ServingError(RuntimeError):
    """There is no model or no port, or the server fails; the message is one line."""

    def __init__(self, reason: str) -> None:
        super().__init__(" ".join(reason.split())[:1000])


def run(
    settings: Settings,
    on_ready: Callable[[str], None] = lambda address: log.info(f"ready at {address}"),
    *,
    log_file: TextIO | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Args:
        on_ready: gets the server's address when it answers.
        log_file: gets a line per request; by default standard output, which becomes the log of a container.

    Raises:
        ServingError: if there is no model or no port, or the server fails.
    """
    _log_to(log_file or sys.stdout)
    try:
        listener = listen(settings.host, settings.port)
        # Connections inherit it. asyncio sets it only on sockets that name TCP as their protocol, and without it an
        # answer's body waits 40 ms for the client to acknowledge its head.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise ServingError(f"can't listen on {settings.host} port {settings.port}: {reason}") from error
    asyncio.run(_serve(settings, listener, on_ready))


def url_of(listener: socket.socket) -> str:
    """Where a client finds the server."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"http://{host}:{port}"


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on an address of IPv4 or IPv6; a name that has both takes IPv4, and `::` takes both.

    Raises:
        OSError: if there is no such address, or the port is taken.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    both = host == "::" and socket.has_dualstack_ipv6()
    return socket.create_server(address, family=family, backlog=BACKLOG, dualstack_ipv6=both)


async def _serve(settings: Settings, listener: socket.socket, on_ready: Callable[[str], None]) -> None:
    asyncio.get_running_loop().set_exception_handler(_log_failures())
    service = Service(settings)
    app = make_app(service)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=connection_class(settings.idle_seconds),
            backlog=BACKLOG,
            loop="asyncio",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=math.ceil(settings.idle_seconds),
            timeout_graceful_shutdown=1,  # accepted requests have been answered by then
        )
    )
    address = url_of(listener)
    log.info(f"loading {settings.model}, listening at {address}")
    living: list[asyncio.Task[None]] = []

    async def live() -> None:
        try:
            await _live(service, lambda: on_ready(address))
        finally:
            server.should_exit = True

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # Begun by uvicorn when its own signal handlers are set, which end a process with -15.
        living.append(asyncio.create_task(live()))
        yield

    app.router.lifespan_context = lifespan
    await server.serve([listener])
    service.close()
    try:
        await living[0]
    except BadExportError as error:
        raise ServingError(str(error)) from error
    except Exception as error:
        log.exception("the server failed")
        raise ServingError(f"the server failed: {error}") from error


def _log_failures() -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """What the event loop does with failures. Without a free file it would log a traceback for each try to accept."""
    logged = -math.inf

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal logged
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in _NO_FILES):
            loop.default_exception_handler(context)
        elif loop.time() - logged > LOG_SECONDS:
            logged = loop.time()
            log.error(f"no connection can be accepted now: {error}")

    return handle


async def _live(service: Service, on_ready: Callable[[], None]) -> None:
    """Load and serve. Return after SIGTERM, when all accepted requests are answered."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    stopping = asyncio.create_task(stop.wait())
    if service.state == "no_gpu":
        log.error(f"this instance has a GPU, and PyTorch {torch.__version__} sees none: {why_no_gpu()}")
        await stopping  # /ping answers 503, so the instance never becomes healthy
        return
    loading = asyncio.create_task(service.load())
    await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not loading.done():
        return
    loading.result()
    batching = asyncio.create_task(service.batcher.run())
    on_ready()
    await asyncio.wait({batching, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if batching.done():
        batching.result()  # it ends by an error only
    await service.drain()
    batching.cancel()


def _log_to(file: TextIO) -> None:
    handler = logging.StreamHandler(file)
    handler.setFormatter(logging.Formatter("%(message)s"))
    # uvicorn warns of each request that is none, with which strangers would fill the log.
    for name, level in (("serving", logging.INFO), ("uvicorn.error", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
