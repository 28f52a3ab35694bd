"""What a container of an endpoint gets from the service."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sagemaker_launch.rehearsal.endpoints import serving_process
from sagemaker_launch.rehearsal.endpoints.serving_process import ServingProcess, ServingSpec, UnhealthyError


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


@pytest.mark.parametrize(
    ("image", "asked", "waited"),
    [("rehearsal.local/serving", 600, 60), ("1.ecr/ray:cpu-v1", 600, 180), ("1.ecr/ray:cpu-v1", 90, 90)],
)
def test_ray_serve_has_more_time_to_start_than_other_images(
    image: str, asked: float, waited: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = [0.0]
    clock = SimpleNamespace(
        monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + 1), time_ns=lambda: 0
    )
    monkeypatch.setattr(serving_process, "time", clock)
    monkeypatch.setattr(ServingProcess, "running", True)
    monkeypatch.setattr(ServingProcess, "_ping", lambda self: False)
    machine: Any = SimpleNamespace(settings=SimpleNamespace(health_check_seconds=60.0))
    spec = ServingSpec("dogs", "main", "us-east-1", {"Image": image}, isolated=False, role="arn")
    with pytest.raises(UnhealthyError, match="did not pass the ping health check"):
        ServingProcess(tmp_path, spec, machine).wait_until_healthy(asked, lambda: False)
    assert now[0] == waited
