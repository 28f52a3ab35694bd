"""Fetching the dog photos against a real web server on loopback that can be told to misbehave."""

from __future__ import annotations

import hashlib
import io
import json
import random
import socket
import stat
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import urllib3

from experiments.data import dog_images as download
from experiments.data.dog_images import DownloadError, fetch_dog_images
from tests.conftest import REPOSITORY

Member = tuple[str | zipfile.ZipInfo, bytes]


def photos(seed: int = 0) -> list[Member]:
    """Twelve incompressible files, as JPEGs are, with two breeds a split."""
    noise = random.Random(seed)
    return [
        (f"dogImages/{split}/{breed}/{breed[4:]}_{number:05}.jpg", noise.randbytes(25_000))
        for split in ("train", "valid", "test")
        for breed in ("001.Affenpinscher", "002.Afghan_hound")
        for number in range(2)
    ]


def zipped(members: Iterable[Member], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Duplicate names are what some tests want.
        for name, content in members:
            archive.writestr(name, content, compression)
    return buffer.getvalue()


def files_under(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def unpacked(members: Iterable[Member]) -> dict[str, bytes]:
    return {str(name).removeprefix("dogImages/"): content for name, content in members}


class Server(ThreadingHTTPServer):
    """Serves one file, and each fault it is told to."""

    daemon_threads = False  # So that server_close waits for the last answer.

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.status = 200
        self.knows_ranges = True
        self.knows_if_range = True
        self.range_shift = 0
        """How far beside the range asked for an answer starts."""
        self.has_etag = True
        self.drops: list[int] = []
        """Bytes to send before the connection drops, one for each coming request."""
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.ranges_asked: list[str | None] = []
        self.bytes_sent: list[int] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/dogImages.zip"

    @property
    def validators(self) -> dict[str, str]:
        digest = hashlib.sha256(self.content).hexdigest()
        if self.has_etag:
            return {"ETag": f'"{digest}"'}
        return {"ETag": 'W/"1"', "Last-Modified": f"Sat, 01 Jan 2022 00:00:{digest[0]:0>2} GMT"}


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, asked = self.server, self.headers["Range"]
        server.ranges_asked.append(asked)
        server.may_answer.wait(5)
        if server.status != 200:
            self.send_error(server.status)
            return
        body, status, extra = server.content, 200, dict(server.validators)
        strong = server.validators.get("Last-Modified", server.validators["ETag"])
        unchanged = self.headers["If-Range"] in (strong, None)
        if asked and server.knows_ranges and (unchanged or not server.knows_if_range):
            start, size = int(asked.removeprefix("bytes=").removesuffix("-")), len(body)
            start += server.range_shift
            status = 206 if start < size else 416
            extra["Content-Range"] = f"bytes {start}-{size - 1}/{size}" if start < size else "*"
            body = body[start:]
        self.send_response(status)
        for name, value in (extra | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        sent = body[: server.drops.pop(0)] if server.drops else body
        server.bytes_sent.append(len(sent))
        self.wfile.write(sent)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(autouse=True)
def _direct_and_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr(download, "FIRST_RETRY_WAIT_SECONDS", 0.0)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(zipped(photos())) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.may_answer.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def closed_url() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/dogImages.zip"


def place_by_hand(root: Path, archive: bytes) -> Path:
    root.mkdir()
    (root / "dogImages.zip").write_bytes(archive)
    return root / "dogImages.zip"


# --- The way it should go ---


def test_photos_arrive_with_a_record_and_nothing_else_stays(server: Server, root: Path) -> None:
    folder = fetch_dog_images(root, url=server.url)

    assert folder == root / "dogImages"
    assert files_under(folder) == unpacked(photos())
    assert {path.name for path in root.iterdir()} - {"dogImages.lock"} == {
        "dogImages",
        "dogImages.json",
    }
    record = json.loads((root / "dogImages.json").read_text())
    assert record.pop("date").endswith("+00:00")
    assert record == {
        "url": server.url,
        "bytes": len(server.content),
        "sha256": hashlib.sha256(server.content).hexdigest(),
        "files": 12,
    }


def test_a_second_call_needs_no_network(server: Server, root: Path, closed_url: str) -> None:
    folder = fetch_dog_images(root, url=server.url)
    assert fetch_dog_images(root, url=closed_url) == folder


def test_what_a_mac_adds_is_left_out(server: Server, root: Path) -> None:
    clutter = ("__MACOSX/dogImages/._train", "dogImages/.DS_Store", "dogImages/test/._001.jpg")
    server.content = zipped([*photos(), ("dogImages/train/", b""), *((c, b"x") for c in clutter)])
    assert files_under(fetch_dog_images(root, url=server.url)) == unpacked(photos())


def test_an_archive_placed_by_hand_needs_no_network(root: Path, closed_url: str) -> None:
    archive = place_by_hand(root, zipped(photos()))
    assert files_under(fetch_dog_images(root, url=closed_url)) == unpacked(photos())
    assert archive.exists(), "what a person placed is theirs to delete"
    assert json.loads((root / "dogImages.json").read_text())["url"] is None


def test_a_folder_unpacked_by_hand_is_taken_as_it_is(root: Path, closed_url: str) -> None:
    for split in ("train", "valid", "test"):
        (root / "dogImages" / split).mkdir(parents=True)
    assert fetch_dog_images(root, url=closed_url) == root / "dogImages"


def test_a_folder_that_lacks_a_split_is_left_alone_and_named(server: Server, root: Path) -> None:
    (root / "dogImages" / "train").mkdir(parents=True)
    with pytest.raises(DownloadError, match="must hold train, valid, test"):
        fetch_dog_images(root, url=server.url)
    assert not server.ranges_asked


def test_a_second_process_waits_and_finds_it_done(server: Server, root: Path) -> None:
    code = (
        "import sys, pathlib, experiments.data.dog_images as d; print('imported', flush=True)\n"
        "print(d.fetch_dog_images(pathlib.Path(sys.argv[1]), url=sys.argv[2]))"
    )
    server.may_answer.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(fetch_dog_images, root, url=server.url)
        with subprocess.Popen(
            [sys.executable, "-c", code, str(root), server.url],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        ) as second:
            assert second.stdout
            assert second.stdout.readline() == "imported\n"
            time.sleep(0.3)
            assert len(server.ranges_asked) == 1
            server.may_answer.set()
            assert second.stdout.read().strip() == str(first.result())
    assert server.ranges_asked == [None]


# --- Progress ---


def test_progress_is_plain_lines_without_a_terminal(
    server: Server, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch_dog_images(root, url=server.url)
    lines = capsys.readouterr().err.splitlines()
    assert f"download: 100 % of {len(server.content):,} B" in lines
    assert "unpack: 50 % of 12 file" in lines
    assert len(lines) <= 20


def test_progress_is_a_bar_on_a_terminal(
    server: Server,
    root: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fetch_dog_images(root, url=server.url)
    assert "unpack: 100%|" in capsys.readouterr().err


# --- A bad connection ---


def test_a_dropped_connection_resumes_where_it_stopped(server: Server, root: Path) -> None:
    server.drops = [200_000, 50_000]
    assert files_under(fetch_dog_images(root, url=server.url)) == unpacked(photos())
    assert len(server.ranges_asked) == 3
    assert None not in server.ranges_asked[1:]
    assert sum(server.bytes_sent) < 1.5 * len(server.content)


def test_a_later_call_resumes_what_an_earlier_one_left(server: Server, root: Path) -> None:
    server.drops = [100_000, 0, 0, 0, 0]
    with pytest.raises(DownloadError, match="dropped 5 times"):
        fetch_dog_images(root, url=server.url)
    assert files_under(fetch_dog_images(root, url=server.url)) == unpacked(photos())
    assert server.bytes_sent[-1] < len(server.content)


def test_a_file_without_etag_resumes_by_its_date(server: Server, root: Path) -> None:
    server.has_etag = False
    server.drops = [200_000]
    assert files_under(fetch_dog_images(root, url=server.url)) == unpacked(photos())
    assert server.bytes_sent[-1] < len(server.content)


@pytest.mark.parametrize("knows_if_range", [True, False])
@pytest.mark.parametrize("changed", [photos(seed=1), photos(seed=1)[::4]], ids=["same size", "shorter"])
def test_a_file_that_changed_on_the_server_starts_over(
    server: Server, root: Path, knows_if_range: bool, changed: list[Member]
) -> None:
    server.drops = [200_000, 0, 0, 0, 0]
    with pytest.raises(DownloadError):
        fetch_dog_images(root, url=server.url)
    server.content, server.knows_if_range = zipped(changed), knows_if_range
    server.bytes_sent.clear()
    assert files_under(fetch_dog_images(root, url=server.url)) == unpacked(changed)
    assert server.bytes_sent[-1] == len(server.content)
    assert len(server.bytes_sent) == (1 if knows_if_range else 2)


def test_a_part_from_another_url_is_not_continued(server: Server, root: Path) -> None:
    server.drops = [200_000, 0, 0, 0, 0]
    with pytest.raises(DownloadError):
        fetch_dog_images(root, url=server.url)
    fetch_dog_images(root, url=server.url + "?v=2")
    assert server.ranges_asked[-1] is None


def test_a_server_without_ranges_sends_it_all_again(server: Server, root: Path) -> None:
    server.knows_ranges = False
    server.drops = [200_000]
    assert files_under(fetch_dog_images(root, url=server.url)) == unpacked(photos())
    assert server.bytes_sent[-1] == len(server.content)


def test_a_range_that_starts_elsewhere_is_not_appended(server: Server, root: Path) -> None:
    server.drops = [200_000]
    server.range_shift = -10
    assert files_under(fetch_dog_images(root, url=server.url)) == unpacked(photos())
    assert len(server.ranges_asked) == 3
    assert server.ranges_asked[-1] is None


def test_an_answer_cut_short_is_noticed_where_urllib3_does_not(
    server: Server, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init = urllib3.HTTPResponse.__init__

    def lenient_init(self: urllib3.HTTPResponse, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **(kwargs | {"enforce_content_length": False}))

    monkeypatch.setattr(urllib3.HTTPResponse, "__init__", lenient_init)
    server.drops = [200_000]
    assert files_under(fetch_dog_images(root, url=server.url)) == unpacked(photos())
    assert len(server.ranges_asked) == 2


def test_no_network_gives_one_line_with_the_remedy(root: Path, closed_url: str) -> None:
    with pytest.raises(DownloadError) as caught:
        fetch_dog_images(root, url=closed_url)
    assert str(caught.value) == (
        f"could not fetch {closed_url} (no connection to 127.0.0.1): download it on another "
        f"machine, unpack it so that {root}/dogImages/train exists, and set data.name: folder, "
        f"data.root: {root}/dogImages"
    )


def test_a_silent_server_times_out(server: Server, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.1)
    server.may_answer.clear()
    with pytest.raises(DownloadError, match=r"no answer within 0\.1 s"):
        fetch_dog_images(root, url=server.url)


@pytest.mark.parametrize("status", [403, 404, 500])
def test_an_http_error_is_named_with_the_remedy(server: Server, root: Path, status: int) -> None:
    server.status = status
    with pytest.raises(DownloadError, match=rf"\(HTTP {status} .+\): download it on another"):
        fetch_dog_images(root, url=server.url)
    assert len(server.ranges_asked) == 1


def test_a_full_disk_is_refused_before_the_download(
    server: Server, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=500_000))
    with pytest.raises(DownloadError, match=r"must have 0\.0 GB free"):
        fetch_dog_images(root, url=server.url)
    assert not (root / "dogImages.zip.part").exists()


# --- A bad archive ---


def special(name: str, file_type: int) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.create_system, member.external_attr = 3, (file_type | 0o777) << 16
    return member


def with_nul(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo("x")
    member.filename = name  # The constructor would cut it.
    return member


UNSAFE: dict[str, list[str | zipfile.ZipInfo]] = {
    "leaves the folder": [
        "/tmp/evil.jpg",
        "//host/share/evil.jpg",
        "../evil.jpg",
        "dogImages/../../evil.jpg",
        "dogImages/train/..",
        "__MACOSX/../../evil.jpg",
        "C:/evil.jpg",
        "C:evil.jpg",
        "dogImages/train/evil.jpg:stream",
        "..\\evil.jpg",
        "dogImages\\..\\..\\evil.jpg",
        with_nul("dogImages/train/evil.jpg\0.png"),
    ],
    "is a link or device": [
        special("dogImages/train/link", stat.S_IFLNK),
        special("dogImages/train/pipe", stat.S_IFIFO),
    ],
    "overwrites another": [
        "dogImages/train/001.Affenpinscher/Affenpinscher_00001.jpg",
        "dogImages/train//001.Affenpinscher/./Affenpinscher_00001.jpg",
        "dogImages/TRAIN/001.affenpinscher/AFFENPINSCHER_00001.JPG",
    ],
}


@pytest.mark.parametrize(
    ("member", "why"),
    [
        pytest.param(member, why, id=ascii(getattr(member, "filename", member)))
        for why, members in UNSAFE.items()
        for member in members
    ],
)
def test_an_unsafe_member_refuses_the_archive_and_nothing_is_written(
    root: Path, tmp_path: Path, member: str | zipfile.ZipInfo, why: str
) -> None:
    archive = place_by_hand(root, zipped([*photos(), (member, b"../../../etc/passwd")]))
    with pytest.raises(DownloadError, match=f"member .+ {why}") as caught:
        fetch_dog_images(root)
    assert "\n" not in str(caught.value)
    assert set(tmp_path.rglob("*")) - {root / "dogImages.lock"} == {root, archive}


def test_a_file_where_others_need_a_folder_is_refused(root: Path) -> None:
    place_by_hand(root, zipped([("dogImages/train", b""), *photos()]))
    with pytest.raises(DownloadError, match="is unusable"):
        fetch_dog_images(root)


def test_a_bomb_is_refused_by_its_ratio(root: Path) -> None:
    bomb = ("dogImages/train/bomb.jpg", bytes(20_000_000))
    place_by_hand(root, zipped([*photos(), bomb], zipfile.ZIP_DEFLATED))
    with pytest.raises(DownloadError, match=r"unpacks to 20,300,000 bytes, more than"):
        fetch_dog_images(root)


def test_a_bomb_is_refused_by_its_size(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MAX_UNPACKED_BYTES", 299_999)
    place_by_hand(root, zipped(photos()))
    with pytest.raises(DownloadError, match="unpacks to 300,000 bytes, more than 299,999"):
        fetch_dog_images(root)


def test_a_packing_that_python_may_lack_is_refused(root: Path) -> None:
    place_by_hand(root, zipped(photos(), zipfile.ZIP_BZIP2))
    with pytest.raises(DownloadError, match="encrypted, oddly packed or damaged"):
        fetch_dog_images(root)


def test_an_archive_of_something_else_is_refused(root: Path) -> None:
    place_by_hand(root, zipped([("cats/train/tom.jpg", b"tom")]))
    with pytest.raises(DownloadError, match="must hold train, valid, test under dogImages/"):
        fetch_dog_images(root)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda whole: whole[: len(whole) // 2], id="truncated"),
        pytest.param(lambda whole: b"<html>Please log in</html>", id="no zip"),
        pytest.param(lambda whole: b"", id="empty"),
        pytest.param(lambda whole: whole[:5000] + b"flip" + whole[5004:], id="one photo damaged"),
    ],
)
def test_a_damaged_download_is_dropped_and_can_be_fetched_again(
    server: Server, root: Path, damage: Callable[[bytes], bytes]
) -> None:
    whole = server.content
    server.content = damage(whole)
    with pytest.raises(DownloadError, match=r"is unusable \(.+\) and was deleted; run again"):
        fetch_dog_images(root, url=server.url)
    assert not (root / "dogImages").exists()

    server.content = whole
    assert files_under(fetch_dog_images(root, url=server.url)) == unpacked(photos())


def test_a_damaged_photo_is_named(root: Path) -> None:
    whole = zipped(photos())
    archive = place_by_hand(root, whole[:5000] + b"flip" + whole[5004:])
    with pytest.raises(DownloadError, match=r"Bad CRC-32 .+Affenpinscher_00000\.jpg.+replace or"):
        fetch_dog_images(root)
    assert archive.exists()


def test_a_kill_while_unpacking_leaves_nothing_in_use_and_no_second_download(
    server: Server, root: Path, closed_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract = zipfile.ZipFile.extract

    def killed_at_the_third(self: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> str:
        if member.filename == photos()[2][0]:
            raise KeyboardInterrupt
        return extract(self, member, path)

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extract", killed_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            fetch_dog_images(root, url=server.url)
    assert not (root / "dogImages").exists()
    assert not (root / "dogImages.json").exists()

    # A harder kill also leaves the half-unpacked photos.
    half = root / "dogImages.unpacking" / "dogImages" / "train" / "half.jpg"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    assert files_under(fetch_dog_images(root, url=server.url)) == unpacked(photos())
    assert len(server.ranges_asked) == 1
