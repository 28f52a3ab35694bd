"""The code of a job."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from sagemaker_launch.shipping.bundle import make_bundle, pack, requirements_file, shipped_files
from tests.conftest import REPOSITORY

# Put together here, so that no scanner takes this file for a leak.
PLANTED = {
    "an AWS access key": "AKIA" + "Q3EXAMPLE7WXYZ12",
    "an AWS secret key": "aws_secret_access_key = " + "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "a private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "a token": "ghp_" + "a1B2" * 9,
    "a password in a URL": "postgresql://me:" + "hunter22@db/x",
}


def test_the_same_files_give_the_same_bytes() -> None:
    assert make_bundle() == make_bundle()
    code = "from sagemaker_launch.shipping.bundle import make_bundle; print(make_bundle().sha256)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == make_bundle().sha256


def test_another_content_gives_another_name() -> None:
    assert pack({"a.py": b"1"}).sha256 != pack({"a.py": b"2"}).sha256 != pack({"b.py": b"2"}).sha256


def test_only_what_ships_is_packed() -> None:
    with tarfile.open(fileobj=BytesIO(make_bundle().archive)) as archive:
        names = archive.getnames()
    assert {"entry.py", "requirements.txt", "experiments/train.py", "sagemaker_launch/container/entry.py"} <= set(names)
    assert "sagemaker_launch/cli.py" not in names
    for name in names:
        assert name.endswith((".py", "requirements.txt")), name
        assert not name.startswith(("tests", "runs", ".")), name


def test_a_job_that_is_debugged_gets_smdebug_with_its_licence_and_nothing_else(tmp_path: Path) -> None:
    wheel = tmp_path / "smdebug-1.0.34-py2.py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.writestr("smdebug/__init__.py", "")
        packed.writestr("smdebug-1.0.34.dist-info/LICENSE", "Apache")
    with tarfile.open(fileobj=BytesIO(make_bundle().archive)) as archive:
        without = set(archive.getnames())
    with tarfile.open(fileobj=BytesIO(make_bundle(debugger=wheel).archive)) as archive:
        added = set(archive.getnames()) - without
    assert added == {"smdebug/__init__.py", "smdebug-1.0.34.dist-info/LICENSE"}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_secret_is_refused_without_being_shown(kind: str) -> None:
    with pytest.raises(ValueError, match=rf"settings\.py, line 3, holds what looks like {kind}") as caught:
        pack({"settings.py": f"import os\n\nKEY = '{PLANTED[kind]}'\n".encode()})
    assert PLANTED[kind] not in str(caught.value)


def test_what_we_ship_holds_no_secret() -> None:
    pack(shipped_files())


def test_a_job_installs_the_versions_that_are_pinned_here() -> None:
    def pins(path: Path) -> dict[str, str]:
        lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
        return {
            name.lower().replace("_", "-"): version
            for name, _, version in (line.partition("==") for line in lines if line)
        }

    pinned = pins(REPOSITORY / "constraints.txt")
    for name, version in pins(requirements_file()).items():
        assert pinned[name] == version, name
