"""An /opt/ml as SageMaker lays it out, for tests that run a job without the service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

from sagemaker_launch.rehearsal.endpoints.serving_process import extract_all
from sagemaker_launch.shipping.bundle import make_bundle
from tests.warm import run_warm

ENTRY = Path(__file__).with_name("job_entry.py")


def lay_out(
    base: Path, hyperparameters: Mapping[str, str], channels: Mapping[str, Path], *, debugger: Path | None = None
) -> Path:
    """Write what the service writes before it starts a container; returns the folder of the unpacked bundle.

    Args:
        debugger: the wheel of smdebug, for a job that is debugged.
    """
    config = base / "input" / "config"
    config.mkdir(parents=True)
    (config / "hyperparameters.json").write_text(json.dumps(hyperparameters))
    (config / "resourceconfig.json").write_text(json.dumps({"hosts": ["algo-1"], "current_host": "algo-1"}))
    (base / "input" / "data").mkdir()
    for name, folder in channels.items():
        (base / "input" / "data" / name).symlink_to(folder)
    code = base / "code"
    with tarfile.open(fileobj=BytesIO(make_bundle(debugger=debugger).archive)) as archive:
        extract_all(archive, code)
    return code


def start_job(base: Path, code: Path, *, name: str = "job") -> subprocess.Popen[str]:
    """Run the bundle's entry as the toolkit does, where what a container lacks can't be imported."""
    return subprocess.Popen(
        [sys.executable, "-P", ENTRY, code],
        cwd=code,
        env=_environment(base, name),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run_job(base: Path, code: Path) -> subprocess.CompletedProcess[str]:
    """The same to its end, from a process that has imported PyTorch."""
    return run_warm("tests.job_entry", [str(code)], folder=code, environment=_environment(base, "job"))


def _environment(base: Path, name: str) -> dict[str, str]:
    (base / "tmp").mkdir(exist_ok=True)
    return {
        "PATH": os.environ["PATH"],
        "OMP_NUM_THREADS": "1",
        "SAGEMAKER_BASE_DIR": str(base),
        "TRAINING_JOB_NAME": name,
        "TMPDIR": str(base / "tmp"),
    }
