"""A rehearsal runs in any folder and beside any settings of AWS, and nothing of it leaves this machine (`f05`)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sagemaker_launch.rehearse import misleading_variables
from tests.cloud import Cloud
from tests.conftest import REPOSITORY
from tests.e2e.conftest import cloud, flow, service_environment  # noqa: F401  # fixtures
from tests.hostile_aws import FOREIGN_URL, HOSTILE_VARIABLES, Trap, hostile_files, proxy_trap

FOREIGN = {"AWS_ENDPOINT_URL_S3": FOREIGN_URL, "AWS_ENDPOINT_URL_SAGEMAKER": FOREIGN_URL}


@pytest.mark.slow
@pytest.mark.timeout(1800)  # nine commands in nine processes
def test_a_whole_rehearsal_needs_no_option_and_no_usual_folder(tmp_path: Path, default_job_images: Path) -> None:
    out = tmp_path / "it's my dir, ü" / ("x" * 100)
    (out / "rehearsal").mkdir(parents=True)
    for image in default_job_images.glob("image-*/complete"):  # built once for all tests
        (out / "rehearsal" / image.parent.name).symlink_to(image.parent)
    command = [sys.executable, "-m", "sagemaker_launch", "rehearse", "--all"]
    command += ["--sweep.n_trials=1", "--trainer.max_epochs=1", f"--output_dir={out}"]
    with proxy_trap() as (proxies, asked):
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            env=os.environ | HOSTILE_VARIABLES | FOREIGN | hostile_files(tmp_path) | proxies,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=1700,
        )  # fmt: skip
    verdicts = re.findall(r"^(\w+) +(passed|FAILED) \(", done.stdout, re.MULTILINE)
    assert [verdict for _, verdict in verdicts] == ["passed"] * 9, done.stdout[-6000:]
    assert done.returncode == 0
    assert asked == []


COMMANDS: tuple[tuple[int, tuple[str, ...]], ...] = (
    (0, ("status",)),
    (0, ("cost",)),
    (0, ("policy",)),
    (0, ("image",)),
    (2, ("image", "--push")),
    (0, ("sync", "--models")),
    (0, ("tune", "--dry-run")),
    (0, ("train", "--dry-run")),
)
"""Exit codes and commands; all make their clients in one place, which a unit test shows."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_command_calls_anything_but_the_rehearsal(
    flow: Cloud,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with flow.in_reach(), proxy_trap() as (proxies, asked):
        for name, value in {**HOSTILE_VARIABLES, **hostile_files(tmp_path), **proxies}.items():
            monkeypatch.setenv(name, value)
        with Trap(monkeypatch) as trap:
            for code, words in COMMANDS:
                assert flow.run(*words) == code, (words, capsys.readouterr().err)
    assert trap.foreign == []
    assert asked == []


def test_variables_that_mislead_other_programs_are_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {"AWS_REGION": "eu-north-1", "AWS_PROFILE": "mine", **FOREIGN}.items():
        monkeypatch.setenv(name, value)
    assert misleading_variables({"AWS_REGION": "us-east-1"}) == [*sorted(FOREIGN), "AWS_PROFILE"]
