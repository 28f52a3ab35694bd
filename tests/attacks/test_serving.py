"""The server under files, requests and connections that are made to stop it: a real process, raw sockets."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
import requests
from PIL import Image

from lightning_modules.inference import MAX_BODY
from tests.attacks.hostile_pictures import jpeg_with, png_with, refused
from tests.pictures import encoded, jpeg_bytes, smooth_picture
from tests.servers import SERVER, Server, serving
from tests.unit.lightning_modules.test_export import export, tiny_network

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MOST_SECONDS = 3.0
"""Of processor time, for each request."""
MOST_BYTES = 1_000_000_000
"""For each request."""
TYPES = {b"\xff\xd8": "image/jpeg", b"\x89P": "image/png", b"RI": "image/webp"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ml")
    export(tiny_network(), folder / "model")
    return folder


@pytest.fixture(scope="module")
def server(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("log") / "server.log"
    with serving(base, log, command=SERVER, SERVING_DECODE_THREADS="2") as running:
        yield running


@dataclass
class Watched:
    """What a watcher saw."""

    bytes: int = 0
    """Most memory of all processes together, beyond that at the beginning."""
    pings: list[tuple[int, float]] = field(default_factory=list)
    """Status and seconds."""


@contextmanager
def watching(server: Server) -> Iterator[Watched]:
    """Measure memory every 5 ms, and ask for /ping all the time."""
    seen, over, before = Watched(), threading.Event(), server.memory()

    def memory() -> None:
        while not over.wait(0.005):
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                seen.bytes = max(seen.bytes, server.memory() - before)

    def ping() -> None:
        while not over.wait(0.05):
            started = time.monotonic()
            seen.pings.append((server.ping().status_code, time.monotonic() - started))

    threads = [threading.Thread(target=one) for one in (memory, ping)]
    for one in threads:
        one.start()
    try:
        yield seen
    finally:
        over.set()
        for one in threads:
            one.join()


def decoders(server: Server) -> list[psutil.Process]:
    """The processes that decode."""
    (forker,) = psutil.Process(server.process.pid).children()
    return forker.children()


def kill(process: psutil.Process) -> None:
    process.kill()
    with contextlib.suppress(psutil.NoSuchProcess):
        process.wait(10)


def processor_seconds(server: Server) -> float:
    used = 0.0
    for one in server.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            used += sum(one.cpu_times()[:2])
    return used


def post(server: Server, data: bytes) -> requests.Response:
    return server.post(data, TYPES.get(data[:2], "application/json"))


def expensive() -> bytes:
    """A request within all counts whose decoding takes some ten seconds."""
    # Each text unpacks to 16 MB and then fails, so that Pillow does not count it.
    content = refused()["texts of 16 MB that fail to unpack"][0][33:]
    text = content[: 12 + int.from_bytes(content[:4])]
    file = base64.b64encode(png_with(text * 64)).decode()
    return json.dumps({"images": [file] * 4}).encode()


@pytest.mark.parametrize("name", refused())
def test_no_file_costs_more_than_a_second_or_a_gigabyte(server: Server, name: str) -> None:
    data, says = refused()[name]
    used = processor_seconds(server)
    with watching(server) as seen:
        answer = post(server, data)
    assert answer.status_code == 400
    assert any(word in answer.json()["error"] for word in says.split("|"))
    assert processor_seconds(server) - used < MOST_SECONDS
    assert seen.bytes < MOST_BYTES
    assert {status for status, _ in seen.pings} <= {200}
    assert server.post(jpeg_bytes()).status_code == 200


def test_the_largest_photos_are_answered_within_the_limits(server: Server) -> None:
    plain = smooth_picture(6_320, 6_320)
    alpha = Image.radial_gradient("L").resize(plain.size)
    transparent = Image.merge("RGBA", (*plain.split(), alpha))
    wide = Image.fromarray(np.add.outer(np.arange(6_320), np.arange(6_320)).astype("<u2") * 5)
    for picture, kind, options in (
        (plain, "JPEG", {"progressive": True, "quality": 20}),
        (transparent, "WEBP", {"quality": 5, "method": 0}),
        (transparent, "PNG", {"compress_level": 1}),
        (wide, "PNG", {"compress_level": 1}),
    ):
        data = encoded(picture, kind, **options)
        assert len(data) < MAX_BODY
        used = processor_seconds(server)
        with watching(server) as seen:
            assert server.post(data, f"image/{kind.lower()}").status_code == 200, (kind, picture.mode)
        assert processor_seconds(server) - used < MOST_SECONDS + 1
        assert seen.bytes < MOST_BYTES


def test_both_decoders_are_back_within_a_second_of_their_limit(server: Server) -> None:
    body, old = expensive(), decoders(server)
    used = processor_seconds(server)
    with watching(server) as seen, ThreadPoolExecutor(2) as clients:
        answers = list(clients.map(lambda _: post(server, body), range(2)))
        ended = time.monotonic()
        while len(decoders(server)) < 2 or set(decoders(server)) & set(old):
            assert time.monotonic() - ended < 3, "1 s on a machine that does nothing else"
        assert server.post(jpeg_bytes()).status_code == 200
    for answer in answers:
        assert answer.status_code == 400
        assert answer.json() == {"error": "decoding the request takes more than 3 s"}
    assert processor_seconds(server) - used < 2 * (MOST_SECONDS + 1)
    assert seen.bytes < 2 * MOST_BYTES
    assert {status for status, _ in seen.pings} == {200}, "what could be replaced is no reason to fail"
    assert max(seconds for _, seconds in seen.pings) < 2  # as long as SageMaker waits


@pytest.mark.parametrize("command", ["image", "serve"])
@pytest.mark.parametrize("busy", ["decoding", "stopped decoders", "loading"])
def test_sigterm_ends_it_within_ten_seconds(base: Path, tmp_path: Path, command: str, busy: str) -> None:
    model = tmp_path / "ml" / "model"
    shutil.copytree(base / "model", model)
    if busy == "loading":
        (model / "golden" / "image.jpg").unlink()
        os.mkfifo(model / "golden" / "image.jpg")  # to read it waits forever
    program = SERVER if command == "image" else (sys.executable, "-m", "sagemaker_launch", "serve", str(model))
    with serving(tmp_path / "ml", tmp_path / "log", command=program, ready=False, SERVING_DECODE_THREADS="2") as server:
        if busy != "loading":
            until = time.monotonic() + 60
            while server.ping().status_code != 200:
                assert time.monotonic() < until
            running = server.processes()
            with ThreadPoolExecutor(4) as clients:
                for _ in range(4):
                    clients.submit(post, server, expensive())
                time.sleep(0.5)
                if busy == "stopped decoders":
                    for process in decoders(server):
                        process.suspend()
                started = time.monotonic()
                server.process.send_signal(signal.SIGTERM)
                assert server.process.wait(timeout=10) == 0
        else:
            while server.ping().status_code != 503:
                pass
            running = server.processes()
            started = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(timeout=10) == 0
        print(f"{command}, {busy}: {time.monotonic() - started:.1f} s")
        _, living = psutil.wait_procs([one for one in running if one.pid != server.process.pid], timeout=1)
        assert not [one for one in living if one.status() != psutil.STATUS_ZOMBIE]


def test_a_decoder_that_hangs_costs_its_request_only(base: Path, tmp_path: Path) -> None:
    options = {"SERVING_DECODE_THREADS": "1", "SERVING_TIMEOUT_SECONDS": "1.5"}
    with serving(base, tmp_path / "log", command=SERVER, **options) as server:
        (old,) = decoders(server)
        old.suspend()  # it uses no processor time either
        assert server.post(jpeg_bytes()).status_code == 503
        ended = time.monotonic()
        assert server.post(jpeg_bytes()).status_code == 200
        assert time.monotonic() - ended < 1
        assert not old.is_running() or old.status() == psutil.STATUS_ZOMBIE


def test_ping_fails_only_while_no_decoder_can_be_started(base: Path, tmp_path: Path) -> None:
    options = {"SERVING_DECODE_THREADS": "1", "SERVING_TIMEOUT_SECONDS": "2"}
    with serving(base, tmp_path / "log", command=SERVER, **options) as server:
        kill(decoders(server)[0])
        assert server.ping().status_code == 200
        assert server.post(jpeg_bytes()).status_code == 200
        (decoder,) = decoders(server)
        (forker,) = psutil.Process(server.process.pid).children()
        forker.kill()  # as the kernel does without memory
        assert server.post(jpeg_bytes()).status_code == 200, "the decoders live on"
        kill(decoder)
        until = time.monotonic() + 5
        while server.ping().status_code == 200:
            server.post(jpeg_bytes())
            assert time.monotonic() < until
        assert server.ping().json() == {"error": "no image can be decoded: the system gives no process"}
        assert server.post(jpeg_bytes()).status_code == 503
        time.sleep(3)
        assert server.log.read_text().count("no process for decoding can be started") == 1
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=10) == 0


def connect(server: Server) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname or "", address.port or 0), timeout=10)


def is_closed(stream: socket.socket) -> bool:
    stream.setblocking(False)
    try:
        while True:
            if not stream.recv(1 << 16):
                return True
    except BlockingIOError:
        return False
    except OSError:
        return True


HEAD = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 100\r\n"
SILENT = {
    "nothing": b"",
    "half a head": HEAD,
    "an answered request": b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n",
    "a refused request without its body": b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n",
    "a body of a wrong encoding": HEAD + b"Content-Encoding: gzip\r\n\r\n",
}


@pytest.mark.parametrize("name", SILENT)
def test_of_many_silent_connections_256_stay_open_and_each_for_its_time(base: Path, tmp_path: Path, name: str) -> None:
    with (
        serving(base, tmp_path / "log", command=SERVER, SERVING_IDLE_SECONDS="4") as server,
        contextlib.ExitStack() as stack,
    ):
        lines = len(server.log.read_text().splitlines())
        streams = []
        for _ in range(600):
            stream = stack.enter_context(connect(server))
            stream.sendall(SILENT[name])
            streams.append(stream)
        assert server.post(jpeg_bytes()).status_code == 200
        opened = time.monotonic()
        still = [stream for stream in streams if not is_closed(stream)]
        assert len(still) <= 257
        files = psutil.Process(server.process.pid).num_fds()
        assert files < 400
        # Whoever sends a byte now and then is silent too.
        while time.monotonic() - opened < 6:
            for stream in still:
                with contextlib.suppress(OSError):
                    stream.setblocking(True)
                    stream.sendall(b"x")
            time.sleep(0.5)
        assert all(is_closed(stream) for stream in streams)
        requests_logged = server.log.read_text().count('"status"')
        assert len(server.log.read_text().splitlines()) - lines - requests_logged <= 1


def test_a_client_that_reads_no_answers_is_silent_too(base: Path, tmp_path: Path) -> None:
    with (
        serving(base, tmp_path / "log", command=SERVER, SERVING_IDLE_SECONDS="2") as server,
        contextlib.ExitStack() as stack,
    ):
        before = server.memory()
        streams = [stack.enter_context(connect(server)) for _ in range(8)]
        many = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 3_000
        for stream in streams:
            stream.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                stream.send(many)
        until = time.monotonic() + 60
        while psutil.Process(server.process.pid).net_connections("tcp")[1:]:
            assert time.monotonic() < until, "they are never closed"
            assert server.memory() - before < 100e6
            time.sleep(0.2)
        assert server.ping().status_code == 200


def test_a_low_limit_of_open_files_does_not_fill_the_log(base: Path, tmp_path: Path) -> None:
    command = ("prlimit", "--nofile=64:64", *SERVER)
    if shutil.which("prlimit") is None:
        pytest.skip("needs prlimit")
    with serving(base, tmp_path / "log", command=command) as server, contextlib.ExitStack() as stack:
        for _ in range(500):
            stack.enter_context(connect(server))
        assert server.post(jpeg_bytes()).status_code == 200
        assert len(server.log.read_text().splitlines()) < 10
        assert "Traceback" not in server.log.read_text()


def malformed_requests() -> Iterator[bytes]:
    """Fifty requests that are no HTTP."""
    ends = b"\r\nHost: x\r\n\r\n"
    yield from (
        b"\0" * 100 + ends,
        b"GET" + ends,
        b"GET /ping" + ends,
        b"GET /ping HTTP/9.9" + ends,
        b"GET  /ping HTTP/1.1" + ends,
        b"GET /ping HTTP/1.1\r\n\r\n",
        b"GET /ping HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /ping HTTP/1.1\nHost: x\n\n",
        b"GET /p\xffng HTTP/1.1" + ends,
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1" + ends,
        b"GET /ping HTTP/1.1\r\n" + b"A: b\r\n" * 10_000 + b"\r\n",
        b"GET /ping HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 100_000 + b"\r\n\r\n",
        b"GET /ping HTTP/1.1\r\n Host: x\r\n\r\n",
        b"GET /ping HTTP/1.1\r\nHost x\r\n\r\n",
        b"GET /ping HTTP/1.1\r\nHost: x\r\nA\0: b\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(200),
        b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1" + ends,
        b"OPTIONS * HTTP/1.1" + ends,
        b"TRACE / HTTP/1.1" + ends,
        b"GET http://other/ping HTTP/1.1" + ends,
        b"GET /%zz HTTP/1.1" + ends,
        b"GET /..%2f..%2fetc/passwd HTTP/1.1" + ends,
    )
    post = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
    yield from (
        post + b"Content-Length: -1\r\n\r\n",
        post + b"Content-Length: 1e3\r\n\r\n",
        post + b"Content-Length: 5, 6\r\n\r\nhello",
        post + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        post + b"Content-Length: 99999999999999999999\r\n\r\n",
        post + b"Content-Length: \xd9\xa3\r\n\r\n",
        post + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        post + b"Transfer-Encoding: gzip\r\n\r\n",
        post + b"Transfer-Encoding: chunked, identity\r\n\r\n",
        post + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        post + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n",
        post + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        post + b"Transfer-Encoding: chunked\r\n\r\n5;" + b"a" * 100_000 + b"\r\nhello\r\n0\r\n\r\n",
        post + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n",
        post + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"A: b\r\n" * 10_000 + b"\r\n",
        post + b"Expect: 200-ok\r\nContent-Length: 5\r\n\r\nhello",
        post + b"Content-Length: 0\r\n\r\n",
        post + b"\r\n",
    )
    draw = random.Random(0)
    for _ in range(7):
        yield draw.randbytes(300) + b"\r\n\r\n"


def test_fifty_malformed_requests_are_refused(server: Server) -> None:
    bodies = list(malformed_requests())
    assert len(bodies) == 50
    lines = server.log.read_text().splitlines()
    for body in bodies:
        with connect(server) as stream:
            stream.sendall(body)
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_WR)
            stream.settimeout(10)
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                while received := stream.recv(1 << 16):
                    answer += received
        status = answer.split(b" ", 2)[1:2]
        assert not status or status[0][:1] in b"245", (body[:80], answer[:200])
        assert b"500" not in status and b"Traceback" not in answer, (body[:80], answer[:300])
    assert server.post(jpeg_bytes()).status_code == 200
    said = server.log.read_text().splitlines()[len(lines) :]
    assert all(line.startswith('{"status"') for line in said), said
    assert server.metric("serving_requests_in_progress") == 0


def malformed_json() -> Iterator[bytes]:
    """Fifty bodies that are not `{"images": [base64, ...]}` of pictures."""
    good = base64.b64encode(jpeg_bytes()).decode()
    yield from (
        b"",
        b"{",
        b"[]",
        b"null",
        b"NaN",
        b"1e999999",
        b"9" * 1_000_000,
        b'"' + b"a" * 1_000_000,
        b'{"images"',
        b'{"images": null}',
        b'{"images": {}}',
        b'{"images": 1}',
        b'{"images": "abcd"}',
        b'{"images": []}',
        b'{"images": [[]]}',
        b'{"images": [null]}',
        b'{"images": [1]}',
        b'{"images": [NaN]}',
        b'{"images": [Infinity]}',
        b'{"images": [true]}',
        b'{"images": [""]}',
        b'{"images": ["="]}',
        b'{"images": ["abc"]}',
        b'{"images": ["ab c"]}',
        b'{"images": ["\\u0000"]}',
        b'{"images": ["\\ud800"]}',
        b'{"images": ["\xff\xfe"]}',
        b'{"images": [{"a": 1}]}',
        b'{"images": [1e400]}',
        b'{"images": [' + b"9" * 5_000 + b"]}",
        b'{"images": [' + b'"",' * 1_000_000 + b'""]}',
        b'{"images": ' + b"[" * 1_000_000,
        b'{"a":' * 500_000,
        b'{"images": [' + b"[" * 100_000 + b"]" * 100_000 + b"]}",
        b'{"images": ["' + b"A" * 5_000_000 + b'"]}',
        b"{" + b",".join(b'"%d": 0' % index for index in range(300_000)) + b"}",
        b'{"images": [], "images": 1}',
        b"\xef\xbb\xbf{}",
        json.dumps({"images": ["abcd"]}).encode("utf-16"),
        json.dumps({"images": ["abcd"]}).encode("utf-32"),
        json.dumps({"Images": [good]}).encode(),
        json.dumps([good]).encode(),
        json.dumps({"images": [good] * 33}).encode(),
        json.dumps({"images": ["file:///etc/passwd"]}).encode(),
        json.dumps({"images": ["data:image/jpeg;base64," + good]}).encode(),
        json.dumps({"images": [good[:-8]]}).encode(),
        json.dumps({"images": [good[::-1]]}).encode(),
        json.dumps({"images": [base64.b64encode(b"%!PS-Adobe-3.0").decode()]}).encode(),
        json.dumps({"images": [base64.b64encode(b"\x93NUMPY\1\0").decode()]}).encode(),
        json.dumps({"images": [base64.urlsafe_b64encode(b"\xff\xfe\xfd" * 10).decode()]}).encode(),
    )


def test_fifty_malformed_json_bodies_are_refused(server: Server) -> None:
    bodies = list(malformed_json())
    assert len(bodies) == 50
    with watching(server) as seen:
        for body in bodies:
            started = processor_seconds(server)
            answer = server.post(body, "application/json")
            assert answer.status_code == 400, (body[:80], answer.text[:200])
            assert list(answer.json()) == ["error"] and "\n" not in answer.json()["error"]
            assert processor_seconds(server) - started < MOST_SECONDS, body[:80]
    assert seen.bytes < MOST_BYTES
    assert server.post(jpeg_bytes()).status_code == 200
    assert "Traceback" not in server.log.read_text()


def test_it_serves_without_shared_memory_and_on_a_disk_that_is_read_only(base: Path, tmp_path: Path) -> None:
    """As a container of a serverless endpoint may be."""
    script = 'mount -t tmpfs -o ro none /dev/shm && mount -o remount,ro,bind / && exec "$@"'
    command = ("unshare", "--mount", "sh", "-c", script, "sh", *SERVER)
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    tried = subprocess.run([*command[:6], "true"], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip("needs the right to mount")
    with serving(base, tmp_path / "log", command=command) as server:
        assert server.post(jpeg_bytes()).status_code == 200
        assert post(server, jpeg_with(scans=200)).status_code == 400
        kill(decoders(server)[0])
        assert [server.post(jpeg_bytes()).status_code for _ in range(3)] == [200] * 3


def test_what_is_left_when_the_server_is_killed_ends(base: Path, tmp_path: Path) -> None:
    with serving(base, tmp_path / "log", command=SERVER) as server:
        children = server.processes()[1:]
        with ThreadPoolExecutor(1) as clients:
            clients.submit(post, server, expensive())
            time.sleep(0.5)
            server.process.kill()
        _, living = psutil.wait_procs(children, timeout=5)
        assert not [one for one in living if one.status() != psutil.STATUS_ZOMBIE]
