"""A job on a GPU instance trains on its GPU, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from experiments.errors import UserError
from sagemaker_launch.container.entry import Job
from sagemaker_launch.container.machines import REHEARSED_WITHOUT_GPU, has_gpu


def job(base: Path, **resources: object) -> Job:
    """A job as the service describes its machine."""
    config = base / "input" / "config"
    config.mkdir(parents=True, exist_ok=True)
    (config / "hyperparameters.json").write_text("{}")
    (config / "resourceconfig.json").write_text(json.dumps({"hosts": ["algo-1"], **resources}))
    return Job.read(base)


@pytest.mark.parametrize(
    "instance_type", ["ml.g5.xlarge", "ml.g4dn.12xlarge", "ml.p4d.24xlarge", "ml.p6-b200.48xlarge"]
)
def test_a_gpu_that_pytorch_does_not_see_fails_the_job(
    instance_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert has_gpu(instance_type)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=rf"{instance_type} must show PyTorch a GPU, got none \(PyTorch .*built for"):
        job(tmp_path, current_instance_type=instance_type).require_gpu()
    job(tmp_path, current_instance_type=instance_type, **{REHEARSED_WITHOUT_GPU: True}).require_gpu()
    assert "is rehearsed without a GPU: the job trains on the CPU" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    job(tmp_path, current_instance_type=instance_type).require_gpu()
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    "resources", [{}, {"current_instance_type": "ml.m5.large"}, {"current_instance_type": "ml.c5.p"}]
)
def test_other_instances_need_no_gpu(
    resources: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    job(tmp_path, **resources).require_gpu()
