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

from sagemaker_launch.bundle import make_bundle

FORBIDDEN = ("boto3", "botocore", "mlflow", "optuna", "moto", "sklearn", "sagemaker")


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
        archive.extractall(code, filter="data")
    return code


def start_job(base: Path, code: Path, *, name: str = "job") -> subprocess.Popen[str]:
    """Run the bundle's entry as the toolkit does, where what a container lacks can't be imported."""
    blocked = "; ".join(f"sys.modules[{module!r}] = None" for module in FORBIDDEN)
    # The checkout is installed in this environment: the bundle goes first, as the script's own folder does in a job.
    path = f"sys.path.insert(0, {str(code)!r})"
    start = f"import runpy, sys; {blocked}; {path}; runpy.run_path('entry.py', run_name='__main__')"
    environment = {
        "PATH": os.environ["PATH"],
        "OMP_NUM_THREADS": "1",
        "SAGEMAKER_BASE_DIR": str(base),
        "TRAINING_JOB_NAME": name,
        "TMPDIR": str(base / "tmp"),
    }
    (base / "tmp").mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-P", "-c", start],
        cwd=code,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
