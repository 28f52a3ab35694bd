"""The archive on AWS's maintained inference container: AWS's script and adapter, and Ray Serve from the index."""

from __future__ import annotations

import base64
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from lightning_modules.inference import MAX_BODY
from sagemaker_launch.rehearsal.endpoints.aws_server import AwsServer
from sagemaker_launch.shipping.archive import pack_model, unpack_model
from tests.shared_run import SharedRun
from tests.unit.lightning_modules.test_export import CLASS_NAMES, export, tiny_network

pytestmark = pytest.mark.slow  # a start takes half a minute, most of it AWS's own pauses

Answer = tuple[int, str, str]
"""Status, content type and text."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What AWS puts at /opt/ml/model: an archive as `deploy` packs it for Ray Serve, unpacked."""
    folder = tmp_path_factory.mktemp("archive")
    exported = export(tiny_network(), folder / "export")
    (exported / "config.yaml").unlink()  # as exports of 0.1.0 are
    return unpack_model(pack_model(exported, folder / "model.tar.gz", for_ray_serve=True), folder / "model")


@pytest.fixture(scope="module")
def server(
    model: Path,
    start_ray_serve: Callable[[Path, Path], AwsServer],
    tmp_path_factory: pytest.TempPathFactory,
    shared_run: SharedRun,
) -> Iterator[AwsServer]:
    shared_run.note_build("Ray Serve")
    with start_ray_serve(tmp_path_factory.mktemp("server") / "tree", model) as started:
        started.wait_until_ready()
        yield started


@pytest.fixture(scope="module")
def golden(model: Path) -> bytes:
    return (model / "golden" / "image.jpg").read_bytes()


def call(server: AwsServer, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
    connection = server.connection()
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.headers.get("Content-Type", ""), answer.read().decode()
    finally:
        connection.close()


def post(server: AwsServer, body: bytes, kind: str = "image/jpeg", **headers: str) -> Answer:
    return call(server, "POST", "/invocations", body, Content_Type=kind, **headers)


def test_the_golden_photo_gets_the_trainers_scores(server: AwsServer, model: Path, golden: bytes) -> None:
    status, kind, text = post(server, golden)
    assert (status, kind) == (200, "application/json"), text
    (logits,) = json.loads(text)
    assert logits == pytest.approx(json.loads((model / "golden" / "scores.json").read_text())["logits"], abs=1e-4)


def test_classes_are_named_where_a_forwarded_header_asks_for_them(
    server: AwsServer, model: Path, golden: bytes
) -> None:
    answer = json.loads(post(server, golden, X_Amzn_SageMaker_Custom_Attributes="top_k=2")[2])
    assert answer["model_version"] == json.loads((model / "model.json").read_text())["sha256"]
    (prediction,) = answer["predictions"]
    names = [one["name"] for one in prediction["classes"]]
    assert len(names) == 2 and set(names) < set(CLASS_NAMES)


def test_a_bad_image_of_a_batch_leaves_its_neighbours_alone(server: AwsServer, golden: bytes) -> None:
    images = [base64.b64encode(image).decode() for image in (golden, b"no image", golden)]
    status, _, text = post(server, json.dumps({"images": images}).encode(), "application/json")
    first, bad, last = json.loads(text)
    assert status == 200 and bad is None
    assert first == pytest.approx(last, abs=1e-5) and len(first) == len(CLASS_NAMES)


@pytest.mark.parametrize(
    ("body", "kind", "headers", "status", "reason"),
    [
        (b"no image", "image/jpeg", {}, 400, "not a JPEG, PNG or WEBP image"),
        (b"{}", "application/json", {}, 400, "the JSON must be"),
        (b"\xff", "application/json", {}, 400, "the JSON must be"),
        (b"\x93NUMPY", "application/x-npy", {}, 415, "content type 'application/x-npy' is not one of"),
        (b"no image", "image/jpeg", {"X_Amzn_SageMaker_Custom_Attributes": "top_k=none"}, 400, "top_k must be"),
        (b"no image", "image/jpeg", {"Accept": "text/csv"}, 406, "does not allow application/json"),
        (bytes(MAX_BODY + 1), "image/jpeg", {}, 413, "at most 6291456 are taken"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_one_sentence(
    server: AwsServer, body: bytes, kind: str, headers: dict[str, str], status: int, reason: str
) -> None:
    found, answered, text = post(server, body, kind, **headers)
    assert (found, answered) == (status, "application/json"), text
    assert list(json.loads(text)) == ["error"] and reason in json.loads(text)["error"]


def test_ping_answers_and_no_port_is_open_outside_its_network(server: AwsServer) -> None:
    assert call(server, "GET", "/ping")[0] == 200
    own = {process.pid for process in psutil.Process(server.pid).children(recursive=True)}
    assert own and not [one for one in psutil.net_connections("tcp") if one.pid in own]


def test_a_model_that_scores_otherwise_is_never_healthy_and_leaves_no_process(
    model: Path, start_ray_serve: Callable[[Path, Path], AwsServer], tmp_path: Path
) -> None:
    changed = Path(shutil.copytree(model, tmp_path / "model"))
    scores = json.loads((changed / "golden" / "scores.json").read_text())
    scores["logits"] = [logit + 1 for logit in scores["logits"]]
    (changed / "golden" / "scores.json").write_text(json.dumps(scores))
    with start_ray_serve(tmp_path / "tree", changed) as server:
        until = time.monotonic() + 240
        while "the golden photo scores" not in server.log:
            assert time.monotonic() < until, server.log[-4000:]
            time.sleep(0.5)
        assert call(server, "GET", "/ping")[0] == 503
        processes = psutil.Process(server.pid).children(recursive=True)
        assert len(processes) > 5
    assert not [process for process in processes if process.is_running()]
