"""The command of a rehearsal: its folder is closed to other users, and its help is quick."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sagemaker_launch.rehearsal.__main__ import make_private


@pytest.mark.parametrize("before", [None, 0o777, 0o700])
def test_only_its_user_opens_the_folder(tmp_path: Path, before: int | None) -> None:
    root = tmp_path / "rehearsal"
    if before is not None:
        root.mkdir()
        root.chmod(before)
    make_private(root)
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


def test_the_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o755)
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(PermissionError, match="belongs to another user: name a folder of your own"):
        make_private(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_the_help_needs_neither_moto_nor_boto3_nor_optuna() -> None:
    code = (
        "import sys\n"
        "for name in ('moto', 'boto3', 'botocore', 'optuna'):\n"
        "    sys.modules[name] = None\n"
        "from sagemaker_launch.rehearsal.__main__ import main\n"
        "sys.argv = ['rehearsal', '--help']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.partition(" ")[0]) == (0, "usage:"), done.stderr
