"""What `experiments` and `sagemaker_launch` export: lazily, with types, and for callers outside only."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from types import ModuleType

import pytest

import experiments
import sagemaker_launch
from tests.conftest import REPOSITORY

DOORS = (experiments, sagemaker_launch)


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_each_public_name_is_what_its_module_defines(door: ModuleType) -> None:
    for name, module in door._MODULES.items():
        assert getattr(door, name) is getattr(importlib.import_module(module), name), name
    assert door.__all__ == sorted(door._MODULES)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        getattr(door, "nonsense")  # noqa: B009 - a type checker knows that it is not there


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_type_checkers_read_the_same_names(door: ModuleType) -> None:
    tree = ast.parse((REPOSITORY / door.__name__ / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.asname: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert typed == door._MODULES


def test_importing_a_package_imports_none_of_its_modules() -> None:
    code = (
        "import sys, experiments, sagemaker_launch\n"
        "ours = ('experiments', 'lightning_modules', 'sagemaker_launch')\n"
        "print(sorted(name for name in sys.modules if name.startswith(ours)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['experiments', 'sagemaker_launch']"
