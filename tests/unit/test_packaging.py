"""What an installation brings: the packages that the code imports, and the commands."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from pkgutil import resolve_name

import pytest

from tests.conftest import REPOSITORY
from tests.unit.test_architecture import OURS, imports

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
EXTRAS = {
    "experiments": (),
    "lightning_modules": ("quantized",),
    "sagemaker_launch": ("cloud", "serving"),
    "sagemaker_launch/rehearsal": ("cloud", "serving", "rehearsal"),
    "benchmarks": tuple(PROJECT["optional-dependencies"]),
    "tests": tuple(PROJECT["optional-dependencies"]),
}
"""The extras that a folder may import from. The most specific folder counts."""
BROUGHT_BY = {
    "alembic": "mlflow",
    "botocore": "boto3",
    "google": "mlflow",
    "h11": "uvicorn",
    "markupsafe": "jinja2",
    "nbformat": "nbclient",
    "scipy": "scikit-learn",
    "starlette": "fastapi",
    "urllib3": "requests",
    "werkzeug": "moto",
}
"""Imports of a package that another declared package is built on and returns objects of."""
NOT_ON_PYPI = {"smdebug"}
"""AWS's images have it."""
WHERE_RAY_RUNS = {"lightning_modules/inference.py": {"ray", "starlette"}}
"""Imports of a copy of that file in AWS's Ray Serve image."""
NOT_INSTALLED = {"sagemaker": "sagemaker-core"}
"""Imports of an extra that the tests run without, and their distribution."""


def declared(*extras: str) -> set[str]:
    """Names of the distributions that the project and these extras install, as PyPI normalises them."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return {normalised(re.split(r"[\[<>=!]", line)[0]) for line in lines}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def undeclared(path: Path, installed: dict[str, list[str]]) -> list[str]:
    """The packages that a file imports and that pyproject.toml does not declare for its folder."""
    relative_path = path.relative_to(REPOSITORY).as_posix()
    folder = max((name for name in EXTRAS if relative_path.startswith(f"{name}/")), key=len)
    allowed = declared(*EXTRAS[folder])
    ours = OURS | {"benchmarks", "tests"} | NOT_ON_PYPI
    ours |= WHERE_RAY_RUNS.get(relative_path, set())
    packages = {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names - ours - {"__future__"}
    missing = []
    for package in sorted(packages):
        distributions = [BROUGHT_BY[package]] if package in BROUGHT_BY else installed.get(package, [])
        distributions = distributions or [NOT_INSTALLED[package]]
        if not any(normalised(name) in allowed for name in distributions):
            missing.append(f"{relative_path} imports {package}")
    return missing


def test_every_import_is_declared() -> None:
    installed = dict(packages_distributions())
    files = [path for folder in EXTRAS for path in (REPOSITORY / folder).rglob("*.py")]
    assert [line for path in dict.fromkeys(files) for line in undeclared(path, installed)] == []


def test_an_undeclared_import_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "REPOSITORY", tmp_path)
    path = tmp_path / "experiments" / "x.py"
    path.parent.mkdir()
    path.write_text("import numpy\nimport moto.server\n")
    assert undeclared(path, {"numpy": ["numpy"], "moto": ["moto"]}) == ["experiments/x.py imports moto"]


@pytest.mark.parametrize("command", PROJECT["scripts"])
def test_an_installed_command_is_the_module_s(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = resolve_name(PROJECT["scripts"][command])
    monkeypatch.setattr(sys, "argv", [command, "--help"])
    for changes_the_process in ("guard_output", "start_fast"):
        monkeypatch.setattr(sys.modules[run.__module__], changes_the_process, lambda: None)
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 0
    assert f"usage: python -m {command.replace('-', '_')}" in capsys.readouterr().out
