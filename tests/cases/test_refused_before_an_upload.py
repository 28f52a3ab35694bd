"""Requests that AWS would refuse after an upload, or that would cost money for nothing: each is refused by a dry run.

After public records of AWS's answers, and further instances of the same classes. Nothing here needs a service.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.errors import EXIT_USAGE
from sagemaker_launch.cli import main
from sagemaker_launch.shipping import shipment
from sagemaker_launch.shipping.bundle import Bundle
from tests.conftest import REPOSITORY, own_flags, tiny

PRESETS = REPOSITORY / "conf" / "cloud"


@pytest.fixture
def photos_are_hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders whose photos were hashed; a refusal comes before that."""
    hashed: list[Path] = []
    real = shipment.read_photo_set
    monkeypatch.setattr(shipment, "read_photo_set", lambda root: hashed.append(root) or real(root))
    monkeypatch.setattr(shipment, "make_bundle", lambda *_: Bundle(b"", "0" * 64))
    return hashed


@pytest.fixture
def fields(photos: Path, tmp_path: Path) -> list[str]:
    return [f"--{name}={value}" for name, value in tiny(photos, tmp_path).items()]


def dry_run(command: str, preset: str, fields: list[str], *words: str) -> int:
    flags = own_flags(f"cloud {command}", [f"--cloud={PRESETS / preset}", *fields])
    return main([command, "--dry-run", *flags, "--price-per-hour=1", *words])


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("train", ["--cloud.instance_type=ml.m5.larg"], "such as ml.m5.large"),
        ("train", ["--cloud.subnets=[subnet_a]", "--cloud.security_group_ids=[sg-1]"], "cloud.subnets must have"),
        ("train", ['--cloud.environment={"MY-VAR": "x"}'], "cloud.environment must have"),
        ("train", ["--cloud.volume_kms_key=my_key!"], "cloud.volume_kms_key must be the id or the ARN"),
        ("train", ['--cloud.tags={"team": "R&D"}'], "'R&D'"),
        ("train", ["--cloud.volume_kms_key=alias/x", "--cloud.instance_type=ml.g5.xlarge"], "its own NVMe disk"),
        ("train", ["--cloud.volume_size_gb=300", "--cloud.instance_type=ml.g5.xlarge"], "more than the 250 GB"),
        ("train", ["--cloud.max_runtime_seconds=2419201"], "28 days"),
        ("train", ["--cloud.keep_alive_seconds=21601"], "cloud.keep_alive_seconds must be 0..21600"),
        ("train", ["--cloud.input_mode=FastFile"], "FastFile streams a prefix of S3"),
        ("train", ["--cloud.bucket=dogs--use1-az4--x-s3"], "cloud.bucket must be the name of a general purpose bucket"),
        ("train", ["--data.root=s3://dogs-s3alias/photos"], "data.root must be the name of a general purpose bucket"),
        ("train", ["--trainer.precision=16-mixed"], "trainer.precision must be auto, 32-true or bf16-mixed"),
        (
            "tune",
            ["--sweep.n_trials=751"],
            "must be at most 750 with strategy Bayesian, got 751",
        ),
        ("tune", ["--sweep.n_trials=10001", "--cloud.strategy=Random"], "at most 10000 with strategy Random"),
        ("tune", ["--sweep.timeout_seconds=99999999"], "15768000"),
        ("tune", ["--cloud.strategy=Hyperband", "--trainer.max_epochs=1"], "MinResource must be less than MaxResource"),
        ("train", ['--cloud.tags={"AWS:team": "x"}'], "aws: prefixed tag key names are not allowed"),
        ("tune", ["--cloud.warm_start_from=[Not_A_Job]"], "Not_A_Job"),
    ],
)
def test_a_dry_run_refuses_what_aws_would_refuse(
    command: str,
    words: list[str],
    message: str,
    fields: list[str],
    photos_are_hashed: list[Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert dry_run(command, "rehearsal.yaml", fields, *words) == EXIT_USAGE
    printed = capsys.readouterr()
    assert message in printed.err and printed.out == ""
    assert photos_are_hashed == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cloud.region=eu-central-1"], "TrainingImage must be in the region eu-central-1"),
        (["--cloud.instance_type=ml.p3.2xlarge"], "must have GPUs of compute capability 7.5 or newer"),
        (["--cloud.instance_type=ml.m5.xlarge"], "must have PyTorch for the CPU"),
        (["--cloud.role_arn=arn:aws-us-gov:iam::123456789012:role/x"], "RoleArn must be an ARN of aws,"),
    ],
)
def test_an_image_that_the_job_can_not_use_is_refused(
    words: list[str],
    message: str,
    fields: list[str],
    photos_are_hashed: list[Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert dry_run("train", "example.yaml", fields, *words) == EXIT_USAGE
    assert message in capsys.readouterr().err
    assert photos_are_hashed == []


def test_more_jobs_than_points_are_refused(
    fields: list[str], tmp_path: Path, photos_are_hashed: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "two.yaml").write_text("data.batch_size: {type: choice, values: [32, 64]}\n")
    words = [f"--search={tmp_path / 'two.yaml'}", "--trainer.max_epochs=2"]
    assert dry_run("tune", "rehearsal.yaml", fields, *words, "--sweep.n_trials=4") == EXIT_USAGE
    assert "2 points, fewer than 4 training jobs" in capsys.readouterr().err
    assert dry_run("tune", "rehearsal.yaml", fields, *words, "--sweep.n_trials=2") == 0


@pytest.mark.parametrize("accelerator", ["mps", "cpu", "gpu"])
def test_the_accelerator_of_a_laptop_stays_at_home(
    accelerator: str, fields: list[str], photos_are_hashed: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert dry_run("train", "rehearsal.yaml", fields, f"--trainer.accelerator={accelerator}") == 0
    printed = capsys.readouterr()
    assert "trainer__accelerator" not in json.loads(printed.out)["HyperParameters"]
    assert f"trainer.accelerator {accelerator} is for this machine" in printed.err


def test_photos_that_do_not_fit_on_the_disk_are_refused(
    fields: list[str],
    photos_are_hashed: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    large = tmp_path / "large.jpg"
    with large.open("wb") as file:
        file.truncate(11 * 10**9)  # no byte of it is written
    monkeypatch.setattr(shipment, "photo_bytes", lambda _: large.stat().st_size)
    assert dry_run("train", "rehearsal.yaml", fields, "--cloud.volume_size_gb=10") == EXIT_USAGE
    assert "cloud.volume_size_gb must hold the 11.0 GB of photos" in capsys.readouterr().err
    assert photos_are_hashed == []
    assert dry_run("train", "rehearsal.yaml", fields, "--cloud.volume_size_gb=11") == 0
    capsys.readouterr()
    with large.open("wb") as file:
        file.truncate(126 * 10**9)
    assert dry_run("train", "rehearsal.yaml", fields, "--cloud.instance_type=ml.g4dn.xlarge") == EXIT_USAGE
    assert "got ml.g4dn.xlarge with 125 GB of its own" in capsys.readouterr().err
