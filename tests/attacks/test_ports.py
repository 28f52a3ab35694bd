"""Every port that the project opens for this machine only: what web pages get from it, and who keeps it."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.integration.test_ui import free_port, ui, with_studies
from tests.servers import SERVER, serving
from tests.unit.lightning_modules.test_export import export, tiny_network

pytestmark = pytest.mark.slow

EXAMPLES = 200
STUDY = "a-secret-study"


@dataclass(frozen=True)
class Pages:
    """A running `ui --dashboard`."""

    process: subprocess.Popen[str]
    mlflow: int
    dashboard: int


def start(output_dir: Path, mlflow_database: Path) -> Pages:
    with_studies(output_dir, STUDY)
    shutil.copy(mlflow_database, output_dir / "mlflow.db")
    mlflow, dashboard = free_port(), free_port()
    options = ("--port", str(mlflow), "--dashboard", "--dashboard-port", str(dashboard))
    process = ui(output_dir, *options)
    assert process.stdout is not None
    next(itertools.islice((line for line in process.stdout if "MLflow at http" in line), 1))
    # MLflow notes each request; a full pipe would stop it.
    threading.Thread(target=process.stdout.read, daemon=True).start()
    return Pages(process, mlflow, dashboard)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path) -> Iterator[Pages]:
    running = start(tmp_path_factory.mktemp("ui"), mlflow_database)
    with running.process:
        yield running
        running.process.terminate()
        running.process.wait(60)


def ask(port: int, headers: Sequence[tuple[str, str]], method: str = "GET", path: str = "/", body: str = "") -> bytes:
    """The answer to a request as a browser sends it, byte for byte; nothing is added to the headers."""
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    lines += [f"Content-Length: {len(body)}", "Connection: close", "", body]
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall("\r\n".join(lines).encode("latin-1"))
        return b"".join(iter(lambda: client.recv(65536), b""))


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


NAMES = st.sampled_from(["127.0.0.1", "localhost", "LocalHost", "[::1]", "127.1.2.3"])
PORTS = st.integers(1, 65535)
WORDS = st.from_regex("[a-z]{3,9}", fullmatch=True).filter(lambda word: word != "localhost")


@st.composite
def foreign_hosts(draw: st.DrawFn) -> str:
    """Names that a page of an attacker may have, and addresses of other machines."""
    word = draw(WORDS)
    name = draw(
        st.sampled_from(
            [
                *(f"{word}.com", f"127.0.0.1.{word}.com", f"localhost.{word}.com", f"{word}localhost"),
                # MLflow's own check takes these for addresses of private networks.
                *(f"10.{word}.com", f"192.168.{word}.com", f"172.16.{word}.com", f"10.0.0.1.{word}.com"),
                *(
                    "10.0.0.1",
                    "192.168.1.2",
                    "169.254.169.254",
                    "0.0.0.0",
                    "8.8.8.8",
                    "[fd00::1]",
                    "[::]",
                    "2130706433",
                ),
                *(f"localhost@{word}.com", f"{word}@localhost", f"127.0.0.1, {word}.com", f"127.0.0.1/{word}", ""),
            ]
        )
    )
    return f"{name}:{draw(PORTS)}" if draw(st.booleans()) else name


@st.composite
def foreign_origins(draw: st.DrawFn) -> str:
    word, port = draw(WORDS), draw(PORTS)
    forms = [
        *(f"http://{word}.com", f"https://{word}.com:{port}", f"http://127.0.0.1.{word}.com", "null", f"file://{word}"),
        *(f"http://{word}.localhost:{port}", "https://127.0.0.1", f"http://localhost:{port}", f"http://10.{word}.com"),
        *(f"http://127.0.0.1@{word}.com", f"chrome-extension://{word}", f"http://[::1]:{port}"),
    ]
    return draw(st.sampled_from(forms))


PATHS = {
    "mlflow": (
        *(
            "/",
            "/health",
            "/version",
            "/graphql",
            "/v1/traces",
            "/gateway/x/mlflow/invocations",
            "/get-artifact?path=a",
        ),
        *("/api/2.0/mlflow/experiments/create", "/ajax-api/2.0/mlflow/experiments/search", "/static-files/index.html"),
        "/api/2.0/mlflow-artifacts/artifacts/a",
    ),
    "dashboard": ("/", "/dashboard", "/api/studies", "/api/studies/0", "/static/bundle.js", "/csv/0"),
}
REQUESTS = [(name, path) for name, paths in PATHS.items() for path in paths]
METHODS = st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])


@settings(max_examples=EXAMPLES, deadline=None)
@given(request=st.sampled_from(REQUESTS), method=METHODS, host=foreign_hosts(), own_origin=st.booleans())
def test_a_page_whose_name_was_made_to_resolve_to_this_machine_gets_nothing(
    pages: Pages, request: tuple[str, str], method: str, host: str, own_origin: bool
) -> None:
    headers = [("Host", host), *([("Origin", f"http://{host}")] if own_origin else [])]
    answer = ask(getattr(pages, request[0]), headers, method, request[1])
    assert status(answer) in (400, 403), (headers, answer)
    assert STUDY.encode() not in answer
    assert b"access-control-allow-origin" not in answer.lower()


@settings(max_examples=EXAMPLES, deadline=None)
@given(request=st.sampled_from(REQUESTS), method=METHODS, origin=foreign_origins())
def test_a_page_of_another_server_gets_nothing(
    pages: Pages, request: tuple[str, str], method: str, origin: str
) -> None:
    port = getattr(pages, request[0])
    answer = ask(port, [("Host", f"127.0.0.1:{port}"), ("Origin", origin)], method, request[1])
    assert status(answer) == 403, (origin, answer)
    assert STUDY.encode() not in answer
    assert b"access-control-allow-origin" not in answer.lower()


@pytest.mark.parametrize("name", PATHS)
def test_two_hosts_or_none_are_refused(name: str, pages: Pages) -> None:
    port = getattr(pages, name)
    own = ("Host", f"localhost:{port}")
    for headers in ([own, ("Host", "example.com")], [("Host", "example.com"), own], []):
        assert status(ask(port, headers)) in (400, 403), headers


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/json"]
)
def test_a_form_of_another_page_creates_no_experiment(content_type: str, pages: Pages) -> None:
    """What a browser sends without asking first."""
    host = ("Host", f"127.0.0.1:{pages.mlflow}")
    path = "/api/2.0/mlflow/experiments/create"
    headers = [host, ("Content-Type", content_type)]
    body = json.dumps({"name": f"planted by {content_type.replace('/', ' ')}"})
    assert status(ask(pages.mlflow, [*headers, ("Origin", "https://example.com")], "POST", path, body)) == 403
    listed = ask(pages.mlflow, [host], "GET", "/api/2.0/mlflow/experiments/search?max_results=1000")
    assert status(listed) == 200
    assert b"planted" not in listed


@settings(max_examples=40, deadline=None)
@given(name=NAMES, port=PORTS, page=st.booleans())
def test_programs_of_this_machine_its_own_pages_and_tunnels_are_answered(
    pages: Pages, name: str, port: int, page: bool
) -> None:
    headers = [("Host", f"{name}:{port}"), *([("Origin", f"http://{name.lower()}:{port}")] if page else [])]
    answer = ask(pages.dashboard, headers, path="/api/studies")
    assert status(answer) == 200
    assert STUDY.encode() in answer
    assert status(ask(pages.mlflow, headers, path="/health")) == 200
    # Its own names only are known to MLflow's check, too.
    known = name in ("127.0.0.1", "localhost", "[::1]")
    answer = ask(pages.mlflow, headers, path="/ajax-api/2.0/mlflow/experiments/search?max_results=1")
    assert status(answer) == (200 if known else 403)


def is_listening(process: psutil.Process) -> bool:
    return any(one.status == psutil.CONN_LISTEN for one in process.net_connections("tcp"))


@pytest.mark.parametrize(
    ("number", "victim"),
    [(signal.SIGKILL, "ui"), (signal.SIGKILL, "MLflow"), (signal.SIGKILL, "both"), (signal.SIGHUP, "ui")],
)
def test_a_killed_ui_keeps_no_port(victim: str, number: signal.Signals, tmp_path: Path, mlflow_database: Path) -> None:
    # Below nohup, which a run of the tests may be, children would ignore it.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    running = start(tmp_path, mlflow_database)
    signal.signal(signal.SIGHUP, before)
    with running.process as process:
        own = psutil.Process(process.pid)
        children = own.children(recursive=True)
        try:
            listening = [
                one for one in children if any(c.status == psutil.CONN_LISTEN for c in one.net_connections("tcp"))
            ]
            assert len(listening) == 1, "MLflow's server is one process"
            for one in {"ui": [own], "MLflow": listening, "both": [*listening, own]}[victim]:
                one.send_signal(number)
            begun = time.monotonic()
            _, alive = psutil.wait_procs([own, *children], timeout=20)
            print(f"{victim} {number.name}: {time.monotonic() - begun:.1f} s")
            assert alive == []
        finally:
            for one in [own, *children]:
                if one.is_running():
                    one.kill()
        for port in (running.mlflow, running.dashboard):
            with socket.socket() as tried:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tried.bind(("127.0.0.1", port))


def test_variables_of_the_shell_weaken_no_check(
    tmp_path: Path, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE", "true")
    monkeypatch.setenv("MLFLOW_SERVER_CORS_ALLOWED_ORIGINS", "*")
    monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", "*")
    running = start(tmp_path, mlflow_database)
    with running.process as process:
        try:
            environment = psutil.Process(process.pid).children()[-1].environ()
            assert not {name for name in environment if name.startswith("MLFLOW_SERVER_") and "JOB" not in name}
            assert status(ask(running.mlflow, [("Host", "example.com")])) == 403
            arguments = psutil.Process(process.pid).children()[-1].cmdline()
            assert not any("sqlite" in one for one in arguments), "a database URL may have a password"
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture(scope="module")
def model_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of our server of a model, as `serve` starts it."""
    folder = tmp_path_factory.mktemp("ml")
    export(tiny_network(), folder / "model")
    with serving(folder, folder / "log", command=SERVER) as server:
        yield int(server.url.rpartition(":")[2])


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    path=st.sampled_from(["/ping", "/invocations", "/metrics", "/", "/docs", "/openapi.json", "/../etc/passwd"]),
    method=METHODS,
    host=foreign_hosts(),
    origin=foreign_origins(),
)
def test_no_page_of_others_can_read_what_a_server_of_a_model_answers(
    model_server: int, path: str, method: str, host: str, origin: str
) -> None:
    """Its clients come through any name. So it checks none, and lets no browser hand its answers to another page."""
    asks_first = [("Access-Control-Request-Method", "POST"), ("Access-Control-Request-Headers", "x-amzn-trace-id")]
    answer = ask(model_server, [("Host", host), ("Origin", origin), *asks_first], method, path)
    head = answer.partition(b"\r\n\r\n")[0].lower()
    assert b"access-control-allow" not in head
    assert status(answer) in (200, 400, 404, 405, 415), answer
    assert status(answer) != 200 or path in ("/ping", "/metrics")
