"""One export behind each serving image, ours and both of AWS's: the same photos get the same scores."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from experiments.config import to_yaml
from sagemaker_launch.rehearsal.machine.namespaces import find_namespaces
from tests.cloud import cloud_in, start_shared
from tests.conftest import JOB_IMAGES, real
from tests.shared_run import SharedRun
from tests.unit.lightning_modules.test_export import CLASS_NAMES, export, tiny_network

TORCHSERVE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-inference:2.6.0-cpu-py312-ubuntu22.04-sagemaker"
IMAGES = {
    "own": ["--image", "own"],
    "aws": ["--image", "aws", "--cloud.endpoint.image_uri=null"],
    "torchserve": ["--image", "torchserve", f"--cloud.endpoint.image_uri={TORCHSERVE}"],
}


@pytest.mark.slow
@pytest.mark.timeout(1800)  # the first run installs two of AWS's images
def test_each_image_gives_the_same_photos_the_same_scores(
    shared_run: SharedRun,
    job_images: Path,
    photos: Path,
    mlflow_database: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    namespaces = find_namespaces()
    if namespaces is None or not namespaces.root or not all(map(shutil.which, ("java", "curl"))):
        pytest.skip("needs root, curl for Ray Serve, and Java (Debian: default-jre-headless) for TorchServe")
    shown = sorted(map(str, real("images").glob("*.jpg")))
    options = ("--inference-images", str(JOB_IMAGES), "--health-check-timeout", "120")
    cloud = cloud_in(tmp_path, photos, start_shared(shared_run, job_images, "serving-images", *options))
    cloud.preset.write_text(to_yaml(cloud.config))
    shutil.copy(mlflow_database, tmp_path / "mlflow.db")
    model = export(tiny_network(), tmp_path / "export")
    (model / "config.yaml").unlink()  # as an export of 0.1.0: deploy adds it
    scores = {}
    with cloud.in_reach():
        for image, given in IMAGES.items():
            assert cloud.run("deploy", f"with-{image}", "--model", str(model), *given) == 0, capsys.readouterr().err
            capsys.readouterr()
            top = ["--json", f"--top-k={len(CLASS_NAMES)}"]
            assert cloud.run("query", f"with-{image}", *shown, *top) == 0, capsys.readouterr().err
            scores[image] = [dict(answer["classes"]) for answer in json.loads(capsys.readouterr().out)]
            assert cloud.run("delete", f"with-{image}") == 0
    assert len(scores["own"]) == len(shown) > 1
    for image in ("aws", "torchserve"):
        for own, other in zip(scores["own"], scores[image], strict=True):
            assert other == pytest.approx(own, abs=1e-4), image
