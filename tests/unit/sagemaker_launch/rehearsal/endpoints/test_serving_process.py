"""What a container of an endpoint gets from the service."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sagemaker_launch.rehearsal.endpoints import serving_process
from sagemaker_launch.rehearsal.endpoints.serving_process import ServingProcess, ServingSpec


@pytest.mark.parametrize(
    ("has_gpu", "without_gpu", "device"),
    [
        (False, False, "cuda"),  # its server finds no GPU, and the endpoint fails as on AWS
        (False, True, None),
        (True, False, "cuda"),
        (True, True, "cuda"),
    ],
)
def test_a_container_needs_the_gpu_of_its_instance_unless_the_rehearsal_was_told_otherwise(
    has_gpu: bool, without_gpu: bool, device: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(serving_process, "GPU", tmp_path if has_gpu else tmp_path / "none")
    machine: Any = SimpleNamespace(settings=SimpleNamespace(without_gpu=without_gpu))
    container = {"Environment": {"SERVING_DEVICE": "cuda", "LEVEL": "1"}}
    spec = ServingSpec("dogs", "main", "us-east-1", container, isolated=False, role="arn")
    given = ServingProcess(tmp_path, spec, machine)._given_environment()
    assert (given.get("SERVING_DEVICE"), given["LEVEL"]) == (device, "1")
    assert container["Environment"]["SERVING_DEVICE"] == "cuda"
