"""The server of our own image: a real process on loopback."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import signal
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
import torch

from lightning_modules.inference import MAX_BODY, Model, decode_image, load_export
from tests.mutations import large_files
from tests.pictures import encoded, jpeg_bytes, smooth_picture
from tests.servers import PROGRAM, SERVER, Server, environ, serving
from tests.unit.lightning_modules.test_export import export, tiny_network
from tests.warm import run_warm

LARGE = large_files()[0][0]
"""A PNG of 156 kB that takes most of a second to decode."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What SageMaker mounts as /opt/ml."""
    folder = tmp_path_factory.mktemp("ml")
    export(tiny_network(), folder / "model")
    return folder


@pytest.fixture(scope="module")
def server(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("log") / "server.log"
    with serving(base, log, command=SERVER, SERVING_BODY_TIMEOUT_SECONDS="1") as running:
        yield running


@pytest.fixture(scope="module")
def model(base: Path) -> Model:
    return load_export(base / "model")


@pytest.fixture
def own_base(base: Path, tmp_path: Path) -> Path:
    """An export that a test may break."""
    shutil.copytree(base / "model", tmp_path / "ml" / "model")
    return tmp_path / "ml"


def golden(base: Path) -> tuple[bytes, dict[str, object]]:
    folder = base / "model" / "golden"
    return (folder / "image.jpg").read_bytes(), json.loads((folder / "scores.json").read_text())


def logits(model: Model, data: bytes) -> list[float]:
    row: list[float] = model.score([decode_image(data)])[0].tolist()
    return row


@pytest.mark.slow
def test_a_gpu_that_pytorch_does_not_see_fails_the_health_check(base: Path, tmp_path: Path) -> None:
    hidden = {"CUDA_VISIBLE_DEVICES": "", "SERVING_DEVICE": "cuda"}
    with serving(base, tmp_path / "log", command=SERVER, ready=False, **hidden) as server:
        why = server.wait_for("sees none")
        assert f"PyTorch {torch.__version__} sees none: " in why and why.rpartition(": ")[2]
        for _ in range(3):
            answer = server.ping()
            assert answer.status_code == 503
            assert "has a GPU, and PyTorch sees none" in answer.text
        assert server.post(golden(base)[0]).status_code == 503
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0


def test_the_golden_photo_scores_as_it_did_for_the_trainer(server: Server, base: Path) -> None:
    photo, wanted = golden(base)
    answer = server.post(photo)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json() == [pytest.approx(wanted["logits"], abs=1e-4)]


def test_many_at_once_get_their_own_answers_from_common_batches(server: Server, model: Model) -> None:
    photos = [jpeg_bytes((40 * index % 256, 90, 200), size=40 + index, seed=index) for index in range(40)]
    before = server.metric("serving_batch_size_count"), server.metric("serving_batch_size_sum")
    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(server.post, photos))
    for photo, answer in zip(photos, answers, strict=True):
        assert answer.json() == [pytest.approx(logits(model, photo), abs=1e-4)]
    batches = server.metric("serving_batch_size_count") - before[0]
    assert server.metric("serving_batch_size_sum") - before[1] == 40
    assert batches < 40


def test_top_k_names_the_best_classes(server: Server, base: Path) -> None:
    photo, wanted = golden(base)
    answer = server.post(photo, **{"X-Amzn-SageMaker-Custom-Attributes": "top_k=2"}).json()
    assert answer["predictions"][0]["classes"][0]["name"] == wanted["class_name"]
    assert len(answer["predictions"][0]["classes"]) == 2
    assert answer["model_version"] == json.loads((base / "model" / "model.json").read_text())["sha256"]


def test_a_bad_image_in_a_request_leaves_its_neighbours_alone(server: Server, model: Model) -> None:
    photos = [jpeg_bytes(seed=1), b"no image", jpeg_bytes(seed=2)]
    body = json.dumps({"images": [base64.b64encode(one).decode() for one in photos]})
    first, second, third = server.post(body, "application/json").json()
    assert second is None
    for got, photo in ((first, photos[0]), (third, photos[2])):
        assert got == pytest.approx(logits(model, photo), abs=1e-4)


@pytest.mark.parametrize(
    ("body", "content_type", "headers", "status", "says"),
    [
        (b"no image", "image/jpeg", {}, 400, "not a JPEG, PNG or WEBP"),
        (b"", "image/png", {}, 400, "not a JPEG, PNG or WEBP"),
        (LARGE[:5000], "image/png", {}, 400, "damaged"),
        (b"\x93NUMPY", "application/x-npy", {}, 415, "application/x-npy"),
        (b"{}", "application/json", {}, 400, "must be"),
        (b"x", "", {}, 415, "content type"),
        (jpeg_bytes(), "image/jpeg", {"Accept": "text/html"}, 406, "text/html"),
        (jpeg_bytes(), "image/jpeg", {"X-Amzn-SageMaker-Custom-Attributes": "top_k=0"}, 400, "top_k"),
        (encoded(smooth_picture(20, 20), "GIF"), "image/png", {}, 400, "not a JPEG, PNG or WEBP"),
    ],
)
def test_what_is_wrong_with_a_request_is_one_plain_sentence(
    server: Server, body: bytes, content_type: str, headers: dict[str, str], status: int, says: str
) -> None:
    answer = server.post(body, content_type, **headers)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert says in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/", 404), ("GET", "/invocations", 405)])
def test_what_is_not_served_is_said_as_json_too(server: Server, method: str, path: str, status: int) -> None:
    answer = requests.request(method, server.url + path, timeout=10)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]


def test_a_body_in_chunks_is_taken(server: Server, base: Path) -> None:
    photo, wanted = golden(base)
    assert server.post(iter([photo[:100], photo[100:]])).json() == [pytest.approx(wanted["logits"], abs=1e-4)]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_refused_and_not_kept(server: Server, chunked: bool) -> None:
    before = server.memory()
    size = 4 * MAX_BODY if chunked else MAX_BODY + 1
    answer = server.post((bytes(1 << 16) for _ in range(size >> 16)) if chunked else bytes(size))
    assert answer.status_code == 413
    assert str(MAX_BODY) in answer.json()["error"]
    # uvicorn reads on, and drops what it reads.
    assert server.memory() - before < 2 * MAX_BODY
    assert server.ping().status_code == 200


@pytest.mark.parametrize("path", ["/ping", "/metrics"])
def test_a_monitor_may_ask_with_head(server: Server, path: str) -> None:
    answer = requests.head(f"{server.url}{path}", timeout=10)
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("encoding", ["gzip", "BR", "identity, deflate"])
def test_a_packed_body_is_refused_by_its_encoding(server: Server, base: Path, encoding: str) -> None:
    answer = server.post(golden(base)[0], **{"Content-Encoding": encoding})
    assert answer.status_code == 415
    assert answer.json() == {"error": f"the Content-Encoding {encoding} is not supported: send the body as it is"}
    assert server.post(golden(base)[0], **{"Content-Encoding": "identity"}).status_code == 200


def test_a_slow_body_is_given_up(server: Server) -> None:
    with connection(server) as stream:
        stream.sendall(b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nbegun")
        started = time.monotonic()
        assert read_all(stream).startswith(b"HTTP/1.1 408")
        assert 0.9 < time.monotonic() - started < 5
    assert server.metric("serving_requests_in_progress") == 0


def test_the_log_has_one_line_a_request_and_nothing_of_the_image(server: Server, base: Path) -> None:
    photo, _ = golden(base)
    seen = server.log.read_bytes()
    secret = {"X-Amzn-SageMaker-Custom-Attributes": "top_k=1,secret=abc", "Authorization": "abc"}
    server.post(photo, **secret)
    server.ping()
    lines = server.log.read_bytes().removeprefix(seen).splitlines()
    assert len(lines) == 1
    line = json.loads(lines[0])
    assert (line["status"], line["bytes"], line["images"], line["batch_size"]) == (200, len(photo), 1, 1)
    assert line["total_ms"] >= line["decode_ms"] + line["network_ms"]
    assert set(line) == {
        "status",
        "bytes",
        "images",
        "queue_ms",
        "decode_ms",
        "network_ms",
        "total_ms",
        "batch_size",
    }


def test_an_answer_is_sent_in_one_go(server: Server) -> None:
    with closing(http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)) as client:

        def seconds() -> float:
            started = time.perf_counter()
            client.request("POST", "/invocations", jpeg_bytes(), {"Content-Type": "image/jpeg"})
            client.getresponse().read()
            taken = time.perf_counter() - started
            return taken - float(json.loads(server.log.read_text().splitlines()[-1])["total_ms"]) / 1000

        # Nagle's algorithm would hold the second part back for 40 ms.
        assert statistics.median(seconds() for _ in range(15)) < 0.03


def test_prometheus_counts_requests_by_status(server: Server) -> None:
    before = [server.metric(f'serving_requests_total{{status="{status}"}}') for status in (200, 400)]
    server.post(jpeg_bytes())
    server.post(b"no image")
    after = [server.metric(f'serving_requests_total{{status="{status}"}}') for status in (200, 400)]
    assert [second - first for first, second in zip(before, after, strict=True)] == [1, 1]
    assert server.metric('serving_request_duration_seconds_bucket{le="+Inf"}') >= 2
    assert server.metric("process_resident_memory_bytes") > 1e8


def test_it_answers_pings_with_200_only_when_the_golden_photo_is_checked(own_base: Path, tmp_path: Path) -> None:
    path = own_base / "model" / "golden" / "image.jpg"
    photo = path.read_bytes()
    path.unlink()
    os.mkfifo(path)  # whoever reads it waits for a writer
    with serving(own_base, tmp_path / "log", ready=False) as server:
        for answer in (server.ping(), server.post(photo)):
            assert answer.status_code == 503
            assert answer.json() == {"error": "the model is being loaded"}
        path.write_bytes(photo)
        # It is read once more, for the engine that takes over from PyTorch.
        path.unlink()
        path.write_bytes(photo)
        server.wait_for("ready at ")
        assert server.ping().status_code == 200
        assert server.post(photo).status_code == 200


def test_sigterm_while_the_model_is_loaded_ends_it_at_once(own_base: Path, tmp_path: Path) -> None:
    path = own_base / "model" / "golden" / "image.jpg"
    path.unlink()
    os.mkfifo(path)
    with serving(own_base, tmp_path / "log", ready=False) as server:
        assert server.ping().status_code == 503
        server.process.terminate()
        assert server.process.wait(timeout=10) == 0


def test_beyond_the_queue_the_answer_is_503_at_once_and_the_accepted_are_right(
    base: Path, model: Model, tmp_path: Path
) -> None:
    options = {"SERVING_MAX_QUEUE": "3", "SERVING_DECODE_THREADS": "1"}
    with serving(base, tmp_path / "log", **options) as server:

        def ask(_: int) -> tuple[int, object, float]:
            answer = server.post(LARGE, "image/png")
            if answer.status_code == 503:
                assert answer.headers["Retry-After"] == "1"
            return answer.status_code, answer.json(), answer.elapsed.total_seconds()

        with ThreadPoolExecutor(8) as clients:
            answers = list(clients.map(ask, range(8)))
        accepted = [answer for status, answer, _ in answers if status == 200]
        assert len(accepted) == 3
        assert accepted == [[pytest.approx(logits(model, LARGE), abs=1e-4)]] * 3
        refused = [(answer, seconds) for status, answer, seconds in answers if status == 503]
        assert len(refused) == 5
        # The accepted take most of a second each, one after another.
        assert min(seconds for _, seconds in refused) < 0.5
        assert refused[0][0] == {"error": "the server has its 3 requests: try again later"}
        assert server.post(jpeg_bytes()).status_code == 200


def test_what_timed_out_or_whose_client_left_is_not_computed_any_more(base: Path, tmp_path: Path) -> None:
    options = {"SERVING_TIMEOUT_SECONDS": "0.4", "SERVING_DECODE_THREADS": "1"}
    with serving(base, tmp_path / "log", **options) as server:
        with ThreadPoolExecutor(4) as clients:
            answers = list(clients.map(lambda _: server.post(LARGE, "image/png"), range(4)))
        refused = [answer.json() for answer in answers if answer.status_code == 503]
        assert refused == [{"error": "the request was not answered within 0.4 s: try again later"}] * len(refused)
        assert len(refused) >= 3
        with connection(server) as stream:
            head = f"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(LARGE)}"
            stream.sendall(head.encode() + b"\r\n\r\n" + LARGE)
        server.wait_for('"status": 499')
        # The thread is free when it is through with the image that it is at.
        until = time.monotonic() + 60
        while (answer := server.post(jpeg_bytes())).status_code != 200:
            assert time.monotonic() < until
        scored = sum(one.status_code == 200 for one in (*answers, answer))
        assert server.metric("serving_batch_size_sum") == scored


def test_after_sigterm_it_answers_what_is_in_and_nobody_else(base: Path, tmp_path: Path) -> None:
    photo, wanted = golden(base)
    with serving(base, tmp_path / "log") as server, connection(server) as stream:
        head = f"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(photo)}"
        stream.sendall(head.encode() + b"\r\n\r\n" + photo[:100])
        while not server.metric("serving_requests_in_progress"):
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        while server.ping().status_code == 200:
            time.sleep(0.01)
        assert server.ping().json() == {"error": "the server is stopping"}
        assert server.post(photo).status_code == 503
        stream.sendall(photo[100:])
        answer = read_all(stream)
        assert answer.startswith(b"HTTP/1.1 200")
        assert json.loads(answer.partition(b"\r\n\r\n")[2]) == [pytest.approx(wanted["logits"], abs=1e-4)]
        assert server.process.wait(timeout=10) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_it_ends_within_its_bound_although_a_client_never_finishes(
    base: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with serving(base, tmp_path / "log", SERVING_STOP_SECONDS="0.5") as server, connection(server) as stream:
        stream.sendall(b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nbegun")
        while not server.metric("serving_requests_in_progress"):
            time.sleep(0.01)
        server.process.send_signal(number)
        assert server.process.wait(timeout=5) == 0


def _without_manifest(model: Path) -> None:
    (model / "model.json").unlink()


def _other_weights(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def _other_golden(model: Path) -> None:
    (model / "golden" / "image.jpg").write_bytes(jpeg_bytes())


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (_without_manifest, "is not an export folder"),
        (_other_weights, "has SHA-256"),
        (_other_golden, "the golden photo scores"),
    ],
)
def test_a_broken_model_ends_it_with_one_line(own_base: Path, break_it: Callable[[Path], object], says: str) -> None:
    break_it(own_base / "model")
    done = run_warm(PROGRAM, environment=environ(SAGEMAKER_BASE_DIR=str(own_base)))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ")
    assert says in done.stderr


def test_a_port_that_is_taken_is_said(base: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run_warm(PROGRAM, environment=environ(SAGEMAKER_BASE_DIR=str(base), SAGEMAKER_BIND_TO_PORT=port))
    assert done.returncode == 1
    assert done.stderr == f"error: can't listen on 127.0.0.1 port {port}: Address already in use\n"


def test_wrong_settings_end_it_before_anything_else() -> None:
    done = run_warm(PROGRAM, ["serve"], environment=environ(SERVING_MAX_BATCH="many"))
    assert done.returncode == 2
    assert done.stderr == "error: SERVING_MAX_BATCH must be a number 1..1024, got 'many'\n"


def test_a_failure_of_the_server_is_500_without_a_traceback_and_it_goes_on(base: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from sagemaker_launch.serving import __main__, service\n"
        "real = service.Service._score\n"
        "calls = []\n"
        "def score(self, crops):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 1: raise RuntimeError('out of memory')\n"
        "    return real(self, crops)\n"
        "service.Service._score = score\n"
        "sys.argv = ['serving']\n"
        "sys.exit(__main__.main())\n"
    )
    with serving(base, tmp_path / "log", command=(SERVER[0], "-c", code)) as server:
        answer = server.post(jpeg_bytes())
        assert answer.status_code == 500
        assert answer.json() == {"error": "the server failed; its log says why"}
        assert "RuntimeError: out of memory" in server.log.read_text()
        assert server.post(jpeg_bytes()).status_code == 200


def connection(server: Server) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname or "", address.port or 0), timeout=10)


def read_all(stream: socket.socket) -> bytes:
    """Read to the end of the answer: the server closes, or the body is whole."""
    data = b""
    while b"\r\n\r\n" not in data or len(data.partition(b"\r\n\r\n")[2]) < _length(data):
        part = stream.recv(1 << 16)
        if not part:
            break
        data += part
    return data


def _length(data: bytes) -> int:
    for line in data.partition(b"\r\n\r\n")[0].lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0
