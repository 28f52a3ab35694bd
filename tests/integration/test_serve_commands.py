"""`python -m sagemaker_launch serve | image`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests
import torch

from experiments.config import RunConfig
from sagemaker_launch.cli import main
from sagemaker_launch.shipping.archive import pack_model
from tests.conftest import REPOSITORY
from tests.unit.lightning_modules.test_export import export, tiny_network
from tests.warm import run_warm

ROLE = "arn:aws:iam::123456789012:role/serving"


@pytest.mark.parametrize("packed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_serve_answers_as_an_endpoint_and_ends_with_ctrl_c(tmp_path: Path, packed: bool) -> None:
    model = export(tiny_network(), tmp_path / "export")
    photo = (model / "golden" / "image.jpg").read_bytes()
    served = pack_model(model, tmp_path / "model.tar.gz") if packed else model
    # No region and no credentials: at home nothing of AWS is needed.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    own_tmp = tmp_path / "tmp"
    own_tmp.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "sagemaker_launch", "serve", str(served)],
        cwd=REPOSITORY,
        env=environment | {"TMPDIR": str(own_tmp)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:")
        answer = requests.post(f"{url}/invocations", photo, headers={"Content-Type": "image/jpeg"}, timeout=30)
        assert answer.status_code == 200
        # Asked as an endpoint is, with neither settings nor a name.
        assert main(["query", "--url", url, str(model / "golden" / "image.jpg")]) == 0
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
        assert process.returncode == 0
        assert "curl --data-binary @PHOTO.jpg --header 'Content-Type: image/jpeg'" in said
        assert f"{url}/invocations" in said
        assert not list(own_tmp.glob("*/model"))
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("uri", ["models:/dogs@champion", "models:/dogs/3", "runs:/abc/model"])
def test_serve_takes_a_registered_model(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = export(tiny_network(), tmp_path / "export")
    asked: list[tuple[str, Path]] = []
    served: list[Path] = []

    def locate(name: str, config: RunConfig) -> Path:
        asked.append((name, config.output_dir))
        return model

    monkeypatch.setattr("experiments.tracking.exports.locate_export", locate)
    monkeypatch.setattr("sagemaker_launch.serving.server.run", lambda settings, _, **to: served.append(settings.model))
    ended: list[int] = []
    monkeypatch.setattr("os._exit", ended.append)
    assert main(["serve", uri, "--output_dir", str(tmp_path)]) == 0
    assert ended == [0]
    assert (asked, served) == ([(uri, tmp_path)], [model])


@pytest.mark.parametrize(
    ("variables", "options", "message"),
    [
        ({"SERVING_MAX_BATCH": "many"}, [], "SERVING_MAX_BATCH must be a number 1..1024, got 'many'"),
        ({}, ["--cloud.endpoint.precision", "bf16"], "SERVING_PRECISION may be bf16 on a GPU only"),
        ({"SERVING_PRECISION": "int8"}, [], "SERVING_PRECISION must be left out of the environment"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_serve_refuses_a_wrong_setting_of_the_server(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variables: dict[str, str],
    options: list[str],
    message: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["serve", "export", *options]) == 2
    assert f"error: {message}" in capsys.readouterr().err


def test_serve_says_what_is_wrong_with_an_export(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = run_warm("sagemaker_launch", ["serve", str(tmp_path / "empty")])
    assert done.returncode == 1
    *logged, said = done.stderr.splitlines()
    assert said.startswith(f"error: {tmp_path / 'empty'} is not an export folder")
    assert [line.split()[0] for line in logged] == ["loading"]
    assert done.stdout == "", "results go to standard output"


def test_image_prints_commands_for_the_role_s_account(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--cloud.role_arn", ROLE, "--cloud.region", "eu-west-1"]
    assert main(["image", *options]) == 0
    assert "123456789012.dkr.ecr.eu-west-1.amazonaws.com/local-first-experiments-serving:" in capsys.readouterr().out
    assert main(["image", *options, "--cloud.endpoint.instance_type", "ml.g5.xlarge"]) == 0
    assert "DEVICE=cuda" in capsys.readouterr().out


def test_image_needs_an_account(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["image", "--cloud.region", "eu-west-1"]) == 2
    assert "cloud.role_arn must be set" in capsys.readouterr().err


def test_push_without_docker_says_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["image", "--push", "--cloud.role_arn", ROLE, "--cloud.region", "eu-west-1"]) == 2
    assert "--push needs the program docker" in capsys.readouterr().err
