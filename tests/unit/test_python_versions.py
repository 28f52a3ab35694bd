"""The versions of Python that the project names are the same everywhere."""

from __future__ import annotations

import re
import tomllib

from tests.conftest import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def oldest() -> str:
    """What the package declares: this version or a newer one."""
    found = re.fullmatch(r">=(3\.\d+)", PROJECT["project"]["requires-python"])
    assert found is not None, "no upper bound: a version that comes out later is tried, not refused"
    return found[1]


def test_readme_makefile_and_ci_name_the_oldest_version() -> None:
    sentence = f"Python {oldest()} or newer"
    for name in ("README.md", "Makefile", ".ci/run"):
        named = set(re.findall(r"Python 3\.\d+ or newer", (REPOSITORY / name).read_text()))
        assert named == {sentence}, name


def test_makefile_and_ci_refuse_older_versions() -> None:
    bound = f"sys.version_info < ({oldest().replace('.', ', ')})"
    for name in ("Makefile", ".ci/run"):
        assert bound in (REPOSITORY / name).read_text(), name


def test_the_checkers_read_the_code_as_the_oldest_version_does() -> None:
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py{oldest().replace('.', '')}"
    assert PROJECT["tool"]["mypy"]["python_version"] == oldest()
