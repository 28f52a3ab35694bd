"""AWS's files for Ray Serve, and the container around them."""

from __future__ import annotations

import hashlib
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sagemaker_launch.rehearsal.endpoints import ray_serve
from sagemaker_launch.rehearsal.machine.image import Image
from sagemaker_launch.rehearsal.machine.namespaces import Namespaces

AT_AWS = {
    "sagemaker_entrypoint.sh": "719c6a82ee25f5842ece62c8a858b660dfc5515c",
    "sagemaker_serve.py": "5a65d714a75c31f5cc29cf791d316da87c424b2f",
}
"""Git's hashes of the files in aws/deep-learning-containers at the commit that ray_serve.py names."""


@pytest.mark.parametrize("name", ray_serve.FILES)
def test_awss_files_are_unchanged(name: str) -> None:
    content = Path(ray_serve.__file__).with_name(f"{name}.txt").read_bytes()
    assert hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == AT_AWS[name]


def test_a_container_runs_awss_script_with_its_adapter_and_nothing_else_changed(tmp_path: Path) -> None:
    tree = tmp_path / "a tree"
    (tree / "venv").mkdir(parents=True)
    (tmp_path / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    lines = ray_serve.init_script(tree, tmp_path / "model", Image(tmp_path), ())
    assert lines[-2:] == [f"cd '{tree}/app'", "exec bash sagemaker_entrypoint.sh serve"]
    own = (tree / "app" / "sagemaker_entrypoint.sh").read_text().splitlines()
    awss = Path(ray_serve.__file__).with_name("sagemaker_entrypoint.sh.txt").read_text().splitlines()
    changed = [(a, b) for a, b in zip(awss, own, strict=True) if a != b]
    assert changed == [("    python /app/sagemaker_serve.py", f"    python '{tree}/app/sagemaker_serve.py'")]


def test_an_ordinary_user_is_told_what_is_missing() -> None:
    with pytest.raises(RuntimeError, match="needs a network of its own: start it as root"):
        ray_serve.require_machine(Namespaces(("unshare",), root=False))


def test_what_is_pinned_is_not_linked_and_has_what_the_linked_packages_need() -> None:
    pins = {canonicalize_name(one.name): one for one in map(Requirement, ray_serve.contents().pinned)}
    assert not pins.keys() & set(ray_serve.LINKED)
    for name in ray_serve.LINKED:
        for text in requires(name) or ():
            needed = Requirement(text)
            pin = pins.get(canonicalize_name(needed.name))
            if pin is not None and needed.marker is None:
                (exact,) = pin.specifier
                assert needed.specifier.contains(exact.version), f"{name} {version(name)} needs {needed}"
