"""What the image of rehearsed jobs has, and which Python it is built with."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from sagemaker_launch.rehearsal.machine import training_image
from sagemaker_launch.rehearsal.machine.image import Contents, Interpreter, _closure, _link_first
from sagemaker_launch.rehearsal.machine.training_image import contents_of, listed, training_python
from sagemaker_launch.rehearse import TOOLKITS

HAS = ("toolkit", "jobs", "packages", "unread", "gpu")
OWN = f"{sys.version_info.major}.{sys.version_info.minor}"


def versions(contents: Contents) -> dict[str, str]:
    return dict(line.split("==") for line in contents.pinned)


def fake_python(folder: Path, version: str, answer: str) -> None:
    folder.mkdir(parents=True)
    path = folder / f"python{version}"
    path.write_text(f"#!/bin/sh\n{answer}\n")
    path.chmod(0o755)


@pytest.fixture
def image_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """AWS's image has a Python that this machine can't have, and only fake ones are looked at."""
    monkeypatch.setattr(training_image, "listed", lambda: {"python": "3.99"})
    monkeypatch.setenv("PATH", f"{tmp_path / 'shims'}:{tmp_path / 'bin'}")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    return "3.99"


def test_the_list_names_each_package_once() -> None:
    image = listed()
    names = [name for table in (*HAS, "left_out") for name in image[table]] + image["lacks"]
    assert len(names) == len(set(names))
    assert image["toolkit"]["sagemaker-training"] == TOOLKITS[0]


@pytest.mark.parametrize("toolkit", TOOLKITS)
@pytest.mark.parametrize("minor", [OWN, "3.99"])
def test_an_image_has_all_that_is_listed_and_nothing_that_aws_image_lacks(toolkit: str, minor: str) -> None:
    image = listed()
    contents = contents_of(toolkit, Interpreter(Path("python"), f"{minor}.0"))
    linked = _closure(contents)
    pinned = versions(contents)
    assert pinned.keys() | linked.keys() >= {name for table in HAS for name in image[table]}
    assert not (pinned.keys() | linked.keys()) & set(image["lacks"])
    assert pinned["sagemaker-training"] == toolkit
    # What decides whether a job replaces a package is of AWS's version, wherever the image is built.
    assert image["jobs"].items() <= pinned.items()
    if minor != OWN:  # compiled packages can't be linked
        assert (image["packages"] | image["unread"]).items() <= pinned.items()
        assert set(linked) <= set(image["gpu"]) - {"triton", "cuda-bindings"}


def test_an_image_of_a_machine_without_gpu_libraries_asks_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch for CPUs, or a machine for which NVIDIA makes none."""
    gpu = listed()["gpu"]
    monkeypatch.setattr(training_image, "is_installed", lambda name: name not in gpu)
    contents = contents_of(TOOLKITS[0], Interpreter(Path("python"), f"{OWN}.0"))
    assert not (versions(contents).keys() | set(contents.linked)) & gpu.keys()
    foreign = Interpreter(Path("python"), "3.99.0")
    assert gpu.items() <= versions(contents_of(TOOLKITS[0], foreign)).items()
    monkeypatch.setattr(training_image, "LINUX", False)
    assert not versions(contents_of(TOOLKITS[0], foreign)).keys() & gpu.keys()


def test_no_line_of_an_image_has_anything_but_a_version() -> None:
    for line in contents_of("5.1.4", Interpreter(Path("python"), "3.99.0")).pinned:
        assert [each.operator for each in Requirement(line).specifier] == ["=="]


def test_the_python_of_aws_image_is_found_among_those_that_do_not_run(image_of: str, tmp_path: Path) -> None:
    # What pyenv puts into PATH for a version that is not selected, and a Python without venv.
    fake_python(tmp_path / "shims", image_of, "echo 'pyenv: command not found' >&2; exit 127")
    fake_python(tmp_path / "bin", image_of, "echo \"No module named 'ensurepip'\" >&2; exit 1")
    fake_python(tmp_path / "pyenv" / "versions" / "3.99.4" / "bin", image_of, "echo '\"3.99.4\"'")
    fake_python(tmp_path / "pyenv" / "versions" / "3.9.4" / "bin", "3.9", "echo '\"3.9.4\"'")
    found = training_python()
    assert (found.version, found.path.parts[-4:-1]) == ("3.99.4", ("versions", "3.99.4", "bin"))


def test_another_python_than_that_of_aws_image_is_said(image_of: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert training_python().path == Path(sys.executable)
    (line,) = caplog.messages
    assert line.startswith(
        "AWS's image has Python 3.99, which is neither in PATH nor in pyenv: jobs run with Python 3."
    )


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("echo '\"3.10.2\"'", r"--python must be Python 3\.11, 3\.12, 3\.13, got .*: Python 3\.10\.2"),
        ("echo 'no venv here' >&2; exit 1", r"--python must be a Python with venv and pip .*: no venv here"),
    ],
)
def test_a_python_that_jobs_can_not_have_is_refused(tmp_path: Path, answer: str, message: str) -> None:
    fake_python(tmp_path / "bin", "3", answer)
    with pytest.raises(ValueError, match=message):
        training_image.build_training_image(tmp_path, TOOLKITS[0], tmp_path / "bin" / "python3")
    with pytest.raises(ValueError, match="--python must be a Python that runs, got /nowhere"):
        training_image.build_training_image(tmp_path, TOOLKITS[0], Path("/nowhere"))


def test_packages_that_share_a_folder_are_linked_beside_what_is_installed(tmp_path: Path) -> None:
    for name in ("google/auth/a.py", "google/cloud/b.py"):
        path = tmp_path / "home" / name
        path.parent.mkdir(parents=True)
        path.touch()
    installed = tmp_path / "image" / "google" / "protobuf"
    installed.mkdir(parents=True)
    for name in ("google/auth/a.py", "google/cloud/b.py", "google/auth/a.py"):
        _link_first(tmp_path / "home", Path(name).parts, tmp_path / "image")
    assert (tmp_path / "image" / "google" / "auth").is_symlink() and (tmp_path / "image/google/cloud/b.py").is_file()
    assert installed.is_dir() and not (tmp_path / "home" / "google" / "protobuf").exists()
    (tmp_path / "image" / "six.py").touch()
    (tmp_path / "home" / "six.py").touch()
    with pytest.raises(AssertionError, match="installed and linked"):
        _link_first(tmp_path / "home", ("six.py",), tmp_path / "image")
