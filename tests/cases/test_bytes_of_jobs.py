"""Files of jobs on their way between this machine, S3 and a job, on other days.

After public reports, and further instances of the same classes. `test_interruptions.py` has what an interrupted job
finds in S3.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from moto import mock_aws
from safetensors.torch import save_file

from experiments.config import load_config
from experiments.errors import UserError
from sagemaker_launch.container.entry import Job, job_config, write_failure
from sagemaker_launch.container.hyperparameters import encode
from sagemaker_launch.rehearsal.machine.training_image import build_training_image
from sagemaker_launch.settings.cloud import load_cloud
from sagemaker_launch.shipping import shipment as shipment_module
from sagemaker_launch.shipping.bundle import Bundle
from sagemaker_launch.shipping.download import fetch_folder
from sagemaker_launch.shipping.shipment import make_shipment
from sagemaker_launch.shipping.storage import Shipment, Storage, read_photo_set
from tests.conftest import tiny
from tests.interruptions import JobOnThisMachine
from tests.job_tree import lay_out
from tests.unit.sagemaker_launch.jobs.test_requests import BASIC

SETTINGS = load_cloud(None, BASIC)
HOSTILE = (
    "my model (2).pth",
    "a$(touch ran).pth",
    "a`touch ran`.pth",
    "a;touch ran;.pth",
    "a\ntouch ran\n.pth",
    "'\"; touch ran #.pth",
    "-rf.pth",
    "~.pth",
    "*.pth",
    "caf\udce9.pth",
    "写真.pth",
)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with mock_aws():
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket=str(SETTINGS.bucket))
        yield client


def keys(s3: Any, prefix: str = "") -> list[str]:
    """The keys in the bucket."""
    found = s3.list_objects_v2(Bucket=SETTINGS.bucket, Prefix=f"{SETTINGS.prefix}/{prefix}").get("Contents", [])
    return [entry["Key"] for entry in found]


def small_bundle(*_: object) -> Bundle:
    """Stands for the code of a job, which takes a second to pack."""
    return Bundle(b"code", "c" * 64)


@pytest.mark.parametrize("marker", ["sagemaker-uploading", "sagemaker-uploaded"])
def test_the_uploader_is_done_with_a_checkpoint_while_the_job_deletes_its_folder(
    marker: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(None, tiny(photos, tmp_path) | {"trainer.max_epochs": 1})
    unlink, added = os.unlink, list[str]()

    def watched(path: str | Path, *, dir_fd: int | None = None) -> None:
        unlink(path, dir_fd=dir_fd)
        if str(path).endswith(".ckpt"):
            added.append(f"{path}.{marker}")
            os.close(os.open(added[-1], os.O_CREAT | os.O_WRONLY, dir_fd=dir_fd))

    monkeypatch.setattr(os, "unlink", watched)
    assert JobOnThisMachine(tmp_path, photos, config).run({}).completed
    assert len(added) == 2


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("photos/caf\udce9.jpg can't be read"), "ValueError: photos/caf\\udce9.jpg can't be read"),
        (FileNotFoundError(2, "No such file or directory", "caf\udce9.jpg"), "caf"),
        (ValueError("naïve 写真"), "ValueError: naïve 写真"),
        (AssertionError(), "AssertionError"),
        (RuntimeError("\udce9" * 5000), "RuntimeError"),
    ],
)
def test_a_failure_always_has_a_reason(error: Exception, text: str, tmp_path: Path) -> None:
    write_failure(tmp_path, error)
    left = (tmp_path / "output" / "failure").read_text(encoding="utf-8")
    assert text in left
    assert len(left) <= 1024


def test_a_failure_on_a_full_disk_leaves_no_empty_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS's toolkit writes the reason where there is no file."""

    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_failure(tmp_path, ValueError("photos/a.jpg can't be read"))
    assert not list((tmp_path / "output").iterdir())


def test_what_the_uploader_leaves_never_comes_home(s3: Any, tmp_path: Path) -> None:
    """Nor do folders that somebody made in the console, which are objects whose keys end in a slash."""
    for name in ("", "recording/", "recording/findings.json", "recording/findings.json.sagemaker-uploaded"):
        s3.put_object(Bucket=SETTINGS.bucket, Key=f"job/artifacts/{name}", Body=b"[]")
    for name in ("profile.html.sagemaker-uploading", ".profile.part.sagemaker-ignore/trace.json.gz"):
        s3.put_object(Bucket=SETTINGS.bucket, Key=f"job/artifacts/{name}", Body=b"")
    assert fetch_folder(s3, f"s3://{SETTINGS.bucket}/job/artifacts", tmp_path) == 1
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["findings.json"]


@pytest.mark.parametrize("what", ["a photo", "an archived photo", "the index", "the manifest", "everything"])
def test_photos_that_are_gone_are_sent_again(what: str, s3: Any, photos: Path) -> None:
    """A lifecycle rule or a person has removed objects, or moved them to an archive."""
    found, storage = read_photo_set(photos), Storage(s3, SETTINGS)
    storage.upload_photos(found)
    before = keys(s3)
    (photo, *_) = (key for key in before if "/objects/" in key)
    gone = {
        "a photo": [photo],
        "the index": [key for key in before if key.endswith("index.json")],
        "the manifest": [key for key in before if key.endswith("manifest.json")],
        "everything": before,
    }
    for key in gone.get(what, ()):
        s3.delete_object(Bucket=SETTINGS.bucket, Key=key)
    if what == "an archived photo":
        s3.put_object(Bucket=SETTINGS.bucket, Key=photo, Body=b"", StorageClass="DEEP_ARCHIVE")
    listings: list[str] = []
    s3.meta.events.register("before-call.s3.ListObjectsV2", lambda params, **_: listings.append(params["url_path"]))
    storage.upload_photos(found)
    assert len(listings) == 2
    assert keys(s3) == before
    assert s3.head_object(Bucket=SETTINGS.bucket, Key=photo).get("StorageClass", "STANDARD") == "STANDARD"


def test_another_job_is_not_started_on_photos_that_are_gone(s3: Any, photos: Path) -> None:
    found = read_photo_set(photos)
    Storage(s3, SETTINGS).upload_photos(found)
    shipment = Shipment(f"{SETTINGS.uri}/{found.manifest}", small_bundle(), None)
    shipment.upload(s3, SETTINGS)
    s3.delete_object(Bucket=SETTINGS.bucket, Key=keys(s3, "data/objects/")[0])
    with pytest.raises(UserError, match=f"1 of {len(found.objects) + 1} objects are gone that .* names, such as obj"):
        shipment.upload(s3, SETTINGS)
    s3.delete_object(Bucket=SETTINGS.bucket, Key=f"{SETTINGS.prefix}/{found.manifest}")
    with pytest.raises(UserError, match=r"manifest\.json is gone: run the command that started the first job"):
        shipment.upload(s3, SETTINGS)


@pytest.mark.parametrize("safe", [True, False])
def test_a_checkpoint_under_two_names_is_one_file(
    safe: bool, s3: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name follows from its content: the suffix may be wrong."""
    monkeypatch.setattr(shipment_module, "make_bundle", small_bundle)
    state = {"weight": torch.zeros(2)}
    sent = set[str]()
    for name in ("best.pt", "final model.bin"):
        path = tmp_path / name
        save_file(state, path) if safe else torch.save(state, path)
        (tmp_path / "first").write_bytes(path.read_bytes()) if not sent else path.write_bytes(
            (tmp_path / "first").read_bytes()
        )
        fields = {"data.name": "folder", "data.root": photos, "model.weights": str(path)}
        shipment, config = make_shipment(SETTINGS, load_config(None, {**fields, "data.cache_dir": tmp_path / "cache"}))
        shipment.upload(s3, SETTINGS)
        sent.add(config.model.weights)
    assert sent == {"weights.safetensors" if safe else "weights.pth"}
    (key,) = keys(s3, "initial-weights/")
    assert key.endswith(f"/{sent.pop()}")


def test_a_job_takes_the_checkpoint_of_a_channel_that_has_it_under_two_names(tmp_path: Path) -> None:
    """As channels of older versions may: their folder is named by the content."""
    for name in ("best.pt", "final.pt", "best.pt.sagemaker-uploaded"):
        (tmp_path / "input" / "data" / "weights").mkdir(parents=True, exist_ok=True)
        (tmp_path / "input" / "data" / "weights" / name).write_bytes(b"weights")
    (tmp_path / "input" / "data" / "photos").mkdir()
    job = Job(tmp_path, "job", {}, 1)
    assert job_config(job, tmp_path / "scratch").model.weights.endswith("best.pt")


def hostile_words(folder: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The hyperparameters of jobs whose checkpoint has a hostile name."""
    monkeypatch.setattr(shipment_module, "make_bundle", small_bundle)
    monkeypatch.setattr(shipment_module, "find_photo_set", lambda _config: "s3://my-bucket/photos/")
    for name in HOSTILE:
        (folder / name).write_bytes(b"weights")
        fields = {"data.name": "folder", "data.root": photos, "model.weights": str(folder / name)}
        yield encode(make_shipment(SETTINGS, load_config(None, fields))[1])


def test_the_name_of_a_file_is_never_part_of_a_command(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AWS's toolkit 5.1.1 joins the hyperparameters to a command line, and gives it to a shell."""
    words = [
        word
        for sent in hostile_words(tmp_path, photos, monkeypatch)
        for name, text in sorted(sent.items())
        for word in (f"--{name}", str(json.loads(text)))
    ]
    command = " ".join(["printf", r"'%s\n'", *words])
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == words
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_aws_toolkit_of_today_gives_a_job_the_words_that_were_sent(
    photos: Path, tmp_path: Path, job_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sagemaker-training 5.1.1, which AWS's PyTorch 2.14 image has."""
    image = build_training_image(job_images, "5.1.1", Path(sys.executable))
    program = b"import json, sys\nprint('WORDS', json.dumps(sys.argv[1:]))\n"
    for number, sent in enumerate(
        [*hostile_words(tmp_path, photos, monkeypatch), {"word": json.dumps("$(echo shell)")}]
    ):
        base = tmp_path / f"ml-{number}"
        code = lay_out(base, sent, {"photos": photos})
        (code / "entry.py").write_bytes(program)
        (code / "requirements.txt").unlink()
        archive = base / "code.tar.gz"
        with tarfile.open(archive, "w:gz") as packed:
            packed.add(code / "entry.py", "entry.py")
        shutil.rmtree(code)
        toolkit = {"sagemaker_program": '"entry.py"', "sagemaker_submit_directory": json.dumps(str(archive))}
        settings = base / "input" / "config"
        (settings / "hyperparameters.json").write_text(json.dumps(sent | toolkit))
        (settings / "inputdataconfig.json").write_text("{}")
        hosts = {"hosts": ["localhost"], "current_host": "localhost", "network_interface_name": "lo"}
        (settings / "resourceconfig.json").write_text(json.dumps(hosts))
        image.make_environment(base / "venv", seen_at=base / "venv")
        environment = {
            "PATH": f"{base / 'venv' / 'bin'}:{os.environ['PATH']}",
            "SAGEMAKER_BASE_DIR": str(base),
            "TRAINING_JOB_NAME": "job",
            "AWS_REGION": "us-east-1",
            "SAGEMAKER_TRAINING_MODULE": "sagemaker_pytorch_container.training:main",
        }
        done = subprocess.run(
            [base / "venv" / "bin" / "train"], env=environment, cwd=base, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        (line,) = (line for line in done.stdout.splitlines() if line.startswith("WORDS "))
        received = json.loads(line.removeprefix("WORDS "))
        if "word" in sent:
            assert received == ["--word", "shell"], "this toolkit has no shell: the test shows nothing"
        else:
            texts = {name: value for name, text in sent.items() if isinstance(value := json.loads(text), str)}
            assert texts["model__weights"] == "weights.pth"
            assert texts == {name: received[received.index(f"--{name}") + 1] for name in texts}
        assert not list(tmp_path.rglob("ran"))
