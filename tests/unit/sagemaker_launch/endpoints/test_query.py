"""Asking for photos: which are sent, how, what an answer means, and what a busy server is told."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from experiments.errors import UserError
from lightning_modules.listing import find_photos
from sagemaker_launch.aws.api_model import service_model
from sagemaker_launch.endpoints import query
from sagemaker_launch.endpoints.photo_grid import MAX_PHOTOS, photo_grid
from sagemaker_launch.endpoints.query import (
    MAX_BODY,
    SUFFIXES,
    PhotoAnswer,
    QueryError,
    UrlTarget,
    answer_table,
    query_photos,
    read_photo,
    true_name,
)
from sagemaker_launch.settings.cloud import load_cloud
from tests.pictures import encoded, jpeg_bytes, smooth_picture

NAMES = ["001.Affenpinscher", "Welsh_springer_spaniel", "Curly-coated retriever"]


@pytest.fixture
def server() -> Iterator[Any]:
    """A server that answers what stands in its list, one answer after the other, and keeps what it was sent."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            http.asked.append((self.path, dict(self.headers), body))
            status, content = http.answers.pop(0) if len(http.answers) > 1 else http.answers[0]
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.answers = [(200, named(("Briard", 0.9), ("Collie", 0.1)))]
    http.asked = []
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield http
    http.shutdown()
    thread.join()
    http.server_close()


def named(*classes: tuple[str, float]) -> dict[str, Any]:
    return {"predictions": [{"classes": [{"name": name, "score": score} for name, score in classes]}]}


def target(server: Any) -> UrlTarget:
    return UrlTarget(f"http://127.0.0.1:{server.server_port}/")


def test_a_photo_goes_as_it_is_and_comes_back_with_names(server: Any, tmp_path: Path) -> None:
    (tmp_path / "Collie").mkdir()
    photo = tmp_path / "Collie" / "1.jpg"
    photo.write_bytes(jpeg_bytes())
    (answer,) = query_photos(target(server), [photo], top_k=1, parallel=2)
    assert answer.classes == (("Briard", 0.9),)
    assert answer.true_name == "Collie"
    assert answer.latency_ms > 0
    ((path, headers, body),) = server.asked
    assert path == "/invocations" and headers["Content-Type"] == "image/jpeg" and body == jpeg_bytes()
    assert headers["X-Amzn-SageMaker-Custom-Attributes"].startswith("top_k=")
    assert "Briard" in answer_table([answer]) and "0 of 1 with a known name are right" in answer_table([answer])


def test_a_busy_server_is_asked_again_and_an_angry_one_is_not(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    server.answers = [(503, {"error": "the queue is full"})] * 2 + server.answers
    assert target(server).ask(jpeg_bytes(), "image/jpeg", top_k=1).content == named(("Briard", 0.9), ("Collie", 0.1))
    assert len(server.asked) == 3
    server.answers = [(503, {"error": "the queue is full"})]
    with pytest.raises(QueryError, match=r"^the queue is full$"):
        target(server).ask(jpeg_bytes(), "image/jpeg")
    assert len(server.asked) == 3 + query.TRIES
    server.answers = [(400, {"error": "the image is damaged"})]
    with pytest.raises(QueryError, match=r"^the image is damaged$"):
        target(server).ask(jpeg_bytes(), "image/jpeg")
    assert len(server.asked) == 4 + query.TRIES


def test_one_photo_without_an_answer_does_not_stop_the_others(server: Any, tmp_path: Path) -> None:
    for name, data in (("a.jpg", jpeg_bytes()), ("b.jpg", b"text"), ("c.png", encoded(smooth_picture(), "PNG"))):
        (tmp_path / name).write_bytes(data)
    answers = query_photos(target(server), find_photos([tmp_path], SUFFIXES), top_k=5, parallel=2)
    assert [one.error for one in answers] == ["", "the file is not a JPEG, PNG or WebP image", ""]
    nobody = query_photos(UrlTarget("http://127.0.0.1:1"), [tmp_path / "a.jpg"], top_k=5, parallel=1)
    assert "gives no answer" in nobody[0].error


@pytest.mark.parametrize(
    ("photo", "name"),
    [
        ("train/001.Affenpinscher/x.jpg", "001.Affenpinscher"),
        ("affenpinscher/x.jpg", "001.Affenpinscher"),
        ("images/Welsh_springer_spaniel_08203.jpg", "Welsh_springer_spaniel"),
        ("images/Curly-coated_retriever_03896.jpg", "Curly-coated retriever"),
        ("images/holiday.jpg", None),
        ("images/Welsh_08203.jpg", None),
    ],
)
def test_a_photos_true_name_is_what_its_folder_or_file_says(photo: str, name: str | None) -> None:
    assert true_name(Path(photo), NAMES) == name


def test_a_photo_of_too_many_bytes_is_scaled_down(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2400, 3200, 3), dtype=np.uint8)
    path = tmp_path / "large.png"
    Image.fromarray(noise).save(path, compress_level=0)
    assert path.stat().st_size > MAX_BODY
    body, kind = read_photo(path)
    assert kind == "image/jpeg" and len(body) <= query.MAX_SERVERLESS_BODY
    with Image.open(io.BytesIO(body)) as image:
        assert max(image.size) == query.SENT_SIDE


@pytest.mark.parametrize(
    ("kind", "content_type"), [("JPEG", "image/jpeg"), ("PNG", "image/png"), ("WEBP", "image/webp")]
)
def test_the_content_type_is_what_the_bytes_are_not_what_the_name_says(
    tmp_path: Path, kind: str, content_type: str
) -> None:
    path = tmp_path / "photo.txt"
    path.write_bytes(encoded(smooth_picture(), kind))
    assert read_photo(path) == (path.read_bytes(), content_type)


def test_a_missing_photo_does_not_stop_the_others(server: Any, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(jpeg_bytes())
    missing, present = query_photos(
        target(server), [tmp_path / "nowhere.jpg", tmp_path / "photo.jpg"], top_k=1, parallel=1
    )
    assert missing.error == "the file can't be opened: No such file or directory"
    assert not present.error


def test_a_folder_without_photos_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "photo.gif").write_bytes(encoded(smooth_picture(), "GIF"))
    with pytest.raises(UserError, match=r"PHOTO must be a file or a folder with photos \(.*\), got"):
        find_photos([tmp_path], SUFFIXES)


def test_the_picture_shows_what_is_right_what_is_wrong_and_what_failed(tmp_path: Path) -> None:
    photo = tmp_path / "x.jpg"
    photo.write_bytes(jpeg_bytes(size=40))
    right = PhotoAnswer(photo, (("Briard", 0.9),), "Briard")
    wrong = PhotoAnswer(photo, (("Briard", 0.9),), "Collie")
    failed = PhotoAnswer(tmp_path / "gone.jpg", error="the image is damaged")
    figure = photo_grid([right, wrong, failed])
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["is Briard\nsays Briard (90%)", "is Collie\nsays Briard (90%)", "gone.jpg\nthe image is damaged"]
    assert len({axes.title.get_color() for axes in figure.axes}) == 2
    figure.savefig(tmp_path / "grid.png")
    assert len(photo_grid([right] * (MAX_PHOTOS + 5)).axes) == MAX_PHOTOS


def test_a_serverless_endpoint_takes_smaller_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query.aws, "client", lambda *_, **__: None)
    kinds = ("realtime", "serverless", "async")
    most = [query.open_target(load_cloud(None, {"bucket": "my-bucket"}), "dogs", kind).max_body for kind in kinds]
    assert most == [MAX_BODY, 4_000_000, MAX_BODY]
    assert service_model("sagemaker-runtime").shape_for("BodyBlob").metadata["max"] == MAX_BODY
