"""The life of the process: listen, load, serve, and on SIGTERM answer what is in."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI

from lightning_modules.inference import BadExportError
from sagemaker_launch.serving.app import make_app
from sagemaker_launch.serving.service import Service
from sagemaker_launch.serving.settings import Settings

KEEP_ALIVE_SECONDS = 75
"""More than SageMaker's 60, so that it is never us who close a connection that it is about to use."""

log = logging.getLogger("serving")


def run(settings: Settings, on_ready: Callable[[str], None] = lambda address: log.info(f"ready at {address}")) -> int:
    """Serve until told to stop.

    Args:
        on_ready: gets the server's address when it answers.

    Returns:
        0 after SIGTERM or Ctrl-C, 1 if there is no model or no port.
    """
    _log_to_stdout()
    try:
        listener = socket.create_server((settings.host, settings.port))
    except OSError as error:
        return _explain(f"can't listen on {settings.host} port {settings.port}: {error.strerror}")
    return asyncio.run(_serve(settings, listener, on_ready))


async def _serve(settings: Settings, listener: socket.socket, on_ready: Callable[[str], None]) -> int:
    service = Service(settings)
    app = make_app(service)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http="h11",
            loop="asyncio",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=1,  # what is in has been waited for by then
        )
    )
    host, port = listener.getsockname()[:2]
    living: list[asyncio.Task[None]] = []

    async def live() -> None:
        try:
            await _live(service, lambda: on_ready(f"http://{host}:{port}"))
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
        return _explain(str(error))
    except Exception as error:
        log.exception("the server can't go on")
        return _explain(f"the server can't go on: {error}")
    return 0


async def _live(service: Service, on_ready: Callable[[], None]) -> None:
    """Load, serve, and return when told to stop and everybody is answered."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    stopping = asyncio.create_task(stop.wait())
    loading = asyncio.create_task(service.load())
    await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not loading.done():
        return
    loading.result()
    batching = asyncio.create_task(service.batcher.run())
    on_ready()
    await asyncio.wait({batching, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if batching.done():
        batching.result()  # it never ends but by an error
    await service.drain()
    batching.cancel()


def _explain(reason: str) -> int:
    """One line for whoever reads the log."""
    print(f"error: {' '.join(reason.split())[:1000]}", file=sys.stderr, flush=True)
    return 1


def _log_to_stdout() -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name, level in (("serving", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
