"""The server's socket and its connections: IPv4 and IPv6, and clients that keep silent."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from sagemaker_launch.serving.connections import connection_class
from sagemaker_launch.serving.server import listen, url_of


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as one:
            one.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_name_that_has_both_addresses_listens_on_ipv4(host: str) -> None:
    with listen(host, 0) as listener:
        assert url_of(listener).startswith("http://0.0.0.0:" if host == "0.0.0.0" else "http://127.0.0.1:")


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize(("host", "clients"), [("::1", ["::1"]), ("::", ["::1", "127.0.0.1"])])
def test_an_ipv6_address_is_listened_on_and_named_in_brackets(host: str, clients: list[str]) -> None:
    with listen(host, 0) as listener:
        port = listener.getsockname()[1]
        assert url_of(listener) == f"http://[{host}]:{port}"
        for client in clients:
            socket.create_connection((client, port), timeout=5).close()


def test_a_port_that_is_taken_stays_an_error() -> None:
    with listen("127.0.0.1", 0) as listener, pytest.raises(OSError, match="in use"):
        listen("127.0.0.1", listener.getsockname()[1])


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["path"] == "/slow":
        await asyncio.sleep(0.6)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@asynccontextmanager
async def serving(idle_seconds: float, most: int) -> AsyncIterator[int]:
    kind = connection_class(idle_seconds)
    kind.most = most
    server = uvicorn.Server(uvicorn.Config(app, http=kind, lifespan="off", log_config=None, ws="none"))
    with listen("127.0.0.1", 0) as listener:
        running = asyncio.create_task(server.serve([listener]))
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await running


async def ask(port: int, path: str = "/") -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    answer = await asyncio.wait_for(reader.readuntil(b"ok"), 5)
    writer.close()
    return answer


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_a_connection_without_a_request_ends(sent: bytes) -> None:
    async def run() -> None:
        async with serving(idle_seconds=0.2, most=100) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()

    asyncio.run(run())


def test_a_request_may_take_longer_than_its_head_and_its_connection_is_kept() -> None:
    async def run() -> None:
        async with serving(idle_seconds=0.3, most=100) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for path in ("/slow", "/"):
                await asyncio.sleep(0.1)
                writer.write(f"GET {path} HTTP/1.1\r\n".encode())
                await asyncio.sleep(0.1)
                writer.write(b"Host: x\r\n\r\n")
                assert (await asyncio.wait_for(reader.readuntil(b"ok"), 5)).startswith(b"HTTP/1.1 200")
            assert await asyncio.wait_for(reader.read(), 5) == b"", "it is closed when no further request comes"
            writer.close()

    asyncio.run(run())


def test_a_client_is_answered_behind_more_silent_connections_than_there_may_be() -> None:
    async def run() -> None:
        async with serving(idle_seconds=60, most=5) as port:
            busy = asyncio.create_task(ask(port, "/slow"))
            await asyncio.sleep(0.1)
            silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
            assert (await ask(port)).startswith(b"HTTP/1.1 200")
            assert (await busy).startswith(b"HTTP/1.1 200"), "a request in progress is left alone"
            assert await asyncio.wait_for(silent[0][0].read(), 5) == b"", "the oldest one has ended"
            for _, writer in silent:
                writer.close()

    asyncio.run(run())
