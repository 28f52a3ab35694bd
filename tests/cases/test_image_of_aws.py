"""A job in an environment made after AWS's PyTorch 2.14 image: its Python, its toolkit and its packages."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sagemaker_launch.rehearsal.machine.training_image import listed, training_python
from sagemaker_launch.rehearse import TOOLKITS
from sagemaker_launch.shipping.bundle import requirements
from tests.conftest import REPOSITORY


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("isolated", [False, True])
def test_a_job_keeps_the_packages_of_the_image_and_installs_what_it_lacks(
    default_job_images: Path, tmp_path: Path, isolated: bool
) -> None:
    image, python = listed(), training_python()
    if python.minor != image["python"]:
        pytest.skip(f"needs Python {image['python']}, as AWS's image has")
    (tmp_path / "rehearsal").mkdir()
    for built in default_job_images.glob("image-*/complete"):
        (tmp_path / "rehearsal" / built.parent.name).symlink_to(built.parent)
    command = [sys.executable, "-m", "sagemaker_launch", "rehearse", "--all", "--toolkit", TOOLKITS[0]]
    command += ["--python", str(python.path), "--sweep.n_trials=1", "--trainer.max_epochs=1"]
    command += [f"--output_dir={tmp_path}", f"--tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}"]
    command += [f"--cloud.network_isolation={isolated}"]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False, timeout=1700,
    )  # fmt: skip
    verdicts = re.findall(r"^(\w+) +(passed|FAILED) \(", done.stdout, re.MULTILINE)
    assert [verdict for _, verdict in verdicts] == ["passed"] * 9, done.stdout[-6000:]
    has = {**image["toolkit"], **image["jobs"], **image["packages"]}
    runs = [json.loads(path.read_text()) for path in (tmp_path / "cloud").glob("*/run.json")]
    of_jobs = [run["tags"] for run in runs if run["tags"].get("origin") == "rehearsal" and "python" in run["tags"]]
    assert len(of_jobs) == 2  # of the search, and the best one trained again
    for tags in of_jobs:
        assert tags["python"] == python.version
        for needed in requirements():
            pinned = next((each.version for each in needed.specifier if each.operator == "=="), None)
            assert tags[f"package.{needed.name}"] == (pinned or has[needed.name]), needed
        for name in ("mlflow", "numpy", "pillow", "torch", "torchvision"):
            assert tags[f"package.{name}"].partition("+")[0] == has[name], name
