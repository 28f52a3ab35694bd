"""The environment of one container: scripts that start wherever the environment is."""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path

import pytest

from sagemaker_launch.rehearsal.machine.image import Image

LONG = "long " + "x" * 240
BODY = "import sys\nprint(sys.prefix, *sys.argv[1:])\n"
STARTS = {
    "short": "#!/image/bin/python3.11\n",
    "spaced": "#!/usr/bin/env python \n",
    "by_a_shell": "#!/bin/sh\n'''exec' \"/a long folder/bin/python\" \"$0\" \"$@\"\n' '''\n",
}
"""How pip starts a script: in a usual folder, and in one whose path is long or has a space."""


@pytest.mark.parametrize("folder", ["usual", LONG])
def test_every_script_of_the_image_runs_in_the_container_s_own_environment(tmp_path: Path, folder: str) -> None:
    image, root = Image(tmp_path / "image"), tmp_path / folder / "environment"
    venv.EnvBuilder(symlinks=True, with_pip=False).create(image.root)
    for name, start in STARTS.items():
        (image.root / "bin" / name).write_text(start + BODY)
    (image.root / "bin" / "other").write_text("#!/bin/sh\nexec true\n")
    (image.root / "bin" / "binary").write_bytes(bytes(range(256)))
    (image.root / "bin" / "__pycache__").mkdir()  # pip makes it for scripts
    image.make_environment(root, root)
    for name in STARTS:
        done = subprocess.run([root / "bin" / name, "a b", "c"], capture_output=True, text=True, check=True)
        assert done.stdout == f"{root} a b c\n"
    assert not (root / "bin" / "other").exists() and not (root / "bin" / "binary").exists()
