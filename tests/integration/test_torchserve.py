"""The archive on AWS's inference server as AWS ships it: Java, TorchServe and AWS's toolkit, on loopback."""

from __future__ import annotations

import base64
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests

from lightning_modules.inference import MAX_BODY
from sagemaker_launch.rehearsal.endpoints.aws_server import AwsServer
from sagemaker_launch.shipping.archive import pack_model, unpack_model
from tests.mutations import Attack, attacks
from tests.servers import attack
from tests.shared_run import SharedRun
from tests.unit.lightning_modules.test_export import CLASS_NAMES, export, tiny_network

pytestmark = pytest.mark.slow  # for archives that need it; our own server is tested in test_serving

ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What AWS puts at /opt/ml/model: an archive as `deploy` packs it, unpacked."""
    folder = tmp_path_factory.mktemp("archive")
    archive = pack_model(export(tiny_network(), folder / "export"), folder / "model.tar.gz")
    return unpack_model(archive, folder / "model")


@pytest.fixture(scope="module")
def server(
    model: Path,
    start_torchserve: Callable[[Path, Path], AwsServer],
    tmp_path_factory: pytest.TempPathFactory,
    shared_run: SharedRun,
) -> Iterator[AwsServer]:
    shared_run.note_build("TorchServe")
    with start_torchserve(tmp_path_factory.mktemp("server") / "tree", model) as started:
        started.wait_until_ready()
        yield started


@pytest.fixture(scope="module")
def golden(model: Path) -> bytes:
    return (model / "golden" / "image.jpg").read_bytes()


def post(server: AwsServer, body: bytes, kind: str = "image/jpeg", attributes: str = "") -> requests.Response:
    headers = {"Content-Type": kind, ATTRIBUTES: attributes}
    return requests.post(f"{server.url}/invocations", data=body, headers=headers, timeout=60)


def sentence(answer: requests.Response) -> str:
    """The one sentence of a refusal."""
    assert "Traceback" not in answer.text
    (text,) = answer.json().values()
    assert list(answer.json()) == ["error"] and "\n" not in text
    return str(text)


def test_the_golden_photo_gets_the_trainers_scores(server: AwsServer, model: Path, golden: bytes) -> None:
    answer = post(server, golden)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "application/json"
    (logits,) = answer.json()
    assert logits == pytest.approx(json.loads((model / "golden" / "scores.json").read_text())["logits"], abs=1e-4)


def test_classes_are_named_where_the_request_asks_for_them(server: AwsServer, model: Path, golden: bytes) -> None:
    answer = post(server, golden, attributes="top_k=2").json()
    assert answer["model_version"] == json.loads((model / "model.json").read_text())["sha256"]
    (prediction,) = answer["predictions"]
    names = [one["name"] for one in prediction["classes"]]
    assert len(names) == 2 and set(names) < set(CLASS_NAMES)
    assert names[0] == json.loads((model / "golden" / "scores.json").read_text())["class_name"]


def test_a_bad_image_of_a_batch_leaves_its_neighbours_alone(server: AwsServer, golden: bytes) -> None:
    images = [base64.b64encode(image).decode() for image in (golden, b"no image", golden)]
    answer = post(server, json.dumps({"images": images}).encode(), "application/json")
    assert answer.status_code == 200, answer.text
    first, bad, last = answer.json()
    assert bad is None
    assert first == pytest.approx(last, abs=1e-5) and len(first) == len(CLASS_NAMES)


@pytest.mark.parametrize(
    ("body", "kind", "attributes", "status", "reason"),
    [
        (b"no image", "image/jpeg", "", 400, "not a JPEG, PNG or WEBP image"),
        (b"", "image/png", "", 400, "not a JPEG, PNG or WEBP image"),
        (b"{}", "application/json", "", 400, "the JSON must be"),
        (b"\x93NUMPY", "application/x-npy", "", 415, "content type 'application/x-npy' is not one of"),
        (b"--x", "multipart/form-data; boundary=x", "", 415, "content type 'multipart/form-data' is not one of"),
        (b"a=b", "application/x-www-form-urlencoded", "", 415, "is not one of"),
        (b"no image", "image/jpeg", "top_k=none", 400, "top_k must be a whole number"),
        (bytes(MAX_BODY + 1), "image/jpeg", "", 413, "at most 6291456 are taken"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_one_sentence(
    server: AwsServer, body: bytes, kind: str, attributes: str, status: int, reason: str
) -> None:
    answer = post(server, body, kind, attributes)
    assert answer.status_code == status, answer.text
    assert reason in sentence(answer)


def test_a_request_without_a_content_type_is_refused(server: AwsServer, golden: bytes) -> None:
    answer = requests.post(f"{server.url}/invocations", data=golden, timeout=60)
    assert answer.status_code == 415
    assert "content type ''" in sentence(answer)


def test_an_answer_says_what_it_is_whatever_was_asked_for(server: AwsServer, golden: bytes) -> None:
    for accept, status in (("application/*", 200), ("text/csv", 406), ("é" * 50, 406)):
        headers = {"Content-Type": "image/jpeg", "Accept": accept.encode()}
        answer = requests.post(f"{server.url}/invocations", data=golden, headers=headers, timeout=60)
        assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/json")


def test_seven_megabytes_are_refused_by_the_server_itself(server: AwsServer) -> None:
    assert post(server, bytes(7 * 1024 * 1024)).status_code == 413


def test_ping_answers(server: AwsServer) -> None:
    assert requests.get(f"{server.url}/ping", timeout=60).status_code == 200


def test_json_that_is_no_utf8_is_beyond_us(server: AwsServer) -> None:
    # AWS's toolkit decodes it before it calls any function of ours. When this fails one day, `beyond_us` can go.
    answer = post(server, b"\xff", "application/json")
    assert answer.status_code == 500
    assert "'utf-8' codec can't decode" in answer.text
    # With a parameter behind the type the toolkit leaves the bytes to us.
    assert post(server, b"\xff", "application/json; charset=utf-8").status_code == 400


@pytest.mark.slow
def test_two_servers_run_beside_each_other(
    server: AwsServer,
    model: Path,
    golden: bytes,
    start_torchserve: Callable[[Path, Path], AwsServer],
    tmp_path: Path,
) -> None:
    with start_torchserve(tmp_path / "tree", model) as second:
        second.wait_until_ready()
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda one: post(one, golden), [server, second] * 8))
        assert [answer.status_code for answer in answers] == [200] * 16
    with pytest.raises(requests.ConnectionError):
        post(second, golden)


def beyond_us(one: Attack) -> bool:
    """Whether AWS's toolkit answers 500 before it calls any function of ours: it decodes these types itself."""
    try:
        one.body.decode()
    except UnicodeDecodeError:
        return one.content_type in ("application/json", "text/csv")
    return False


def memory(server: AwsServer) -> int:
    """Bytes that all processes of the server hold."""
    first = psutil.Process(server.pid)
    return sum(process.memory_info().rss for process in (first, *first.children(recursive=True)))


@pytest.mark.parametrize(
    ("count", "seed"), [(100, 1), pytest.param(10_000, 2, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_no_body_crashes_it_makes_it_fail_or_fills_its_memory(
    server: AwsServer, golden: bytes, count: int, seed: int
) -> None:
    right = post(server, golden).json()
    workers = {process.pid for process in psutil.Process(server.pid).children(recursive=True)}
    session = threading.local()

    def send(one: Attack) -> tuple[int, float]:
        if not hasattr(session, "own"):
            session.own = requests.Session()
        answer = attack(session.own, server.url, one)
        allowed = {500} if beyond_us(one) else {200, 400, 406, 413, 415}
        assert answer.status_code in allowed, (one.kind, one.content_type, one.accept, answer.text[:2000])
        if answer.status_code not in (200, 500):
            sentence(answer)
        return answer.status_code, answer.elapsed.total_seconds()

    with ThreadPoolExecutor(4) as clients:
        for first in attacks(50, 0):  # what a process takes once
            send(first)
        before = memory(server)
        answers = list(clients.map(send, attacks(count, seed)))
    statuses, grown = Counter(status for status, _ in answers), memory(server) - before
    slowest = max(seconds for _, seconds in answers)
    print(f"{count} bodies: {statuses}, slowest {slowest:.1f} s, kept {grown / 1e6:.0f} MB")
    assert statuses[200] > count / 10
    assert statuses[400] > count / 10
    assert statuses[500] < count / 10
    assert slowest < 50
    # Java's heap, and what the allocators of two workers keep for later: some 400 MB each after the largest images.
    assert grown < 900e6
    assert post(server, golden).json() == right
    assert {process.pid for process in psutil.Process(server.pid).children(recursive=True)} == workers
