"""AWS's container with TorchServe, without a process."""

from __future__ import annotations

from pathlib import Path

import pytest

from sagemaker_launch.rehearsal.endpoints import torchserve
from sagemaker_launch.rehearsal.machine.image import Image
from sagemaker_launch.rehearsal.machine.namespaces import Namespaces


def test_a_machine_without_java_is_told_so_at_each_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchserve.shutil, "which", lambda name: None)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="TorchServe needs Java 11 or newer"):
            torchserve.start(tmp_path / "tree", tmp_path, Image(tmp_path), Namespaces(("unshare",), root=True))
    assert not (tmp_path / "tree").exists()
