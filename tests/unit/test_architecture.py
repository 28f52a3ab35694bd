"""The rooms of the design: who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

OURS = {"lightning_modules", "experiments", "sagemaker_launch"}
TENSOR_STACK = {
    "torch",
    "torchvision",
    "pytorch_lightning",
    "lightning_fabric",
    "torchmetrics",
    "safetensors",
    "numpy",
    "PIL",
}
STANDALONE = {"torch", "torchvision", "PIL"}
ABOUT_MLFLOW = {"tracking.py", "registry.py", "pyfunc_model.py"}
ABOUT_OPTUNA = {"study.py", "sweep.py", "pruning.py", "figures.py", "report.py", "cli.py"}


def imports(path: Path) -> set[str]:
    """Full names of all modules that a file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            names.add(node.module or "")
    return names


def violations(root: Path) -> list[str]:
    """Every import that the design forbids, as 'file imports module'."""
    found = []
    for path in sorted(path for room in OURS for path in (root / room).rglob("*.py")):
        place = path.relative_to(root)
        for module in imports(path):
            top = module.split(".")[0]
            foreign = top not in sys.stdlib_module_names
            parts = place.parts
            bad = False
            if parts[0] == "lightning_modules":
                allowed = STANDALONE if path.name == "inference.py" else TENSOR_STACK | {"lightning_modules"}
                bad = foreign and top not in allowed
            elif parts[0] == "experiments":
                bad = (
                    top == "sagemaker_launch"
                    or (top == "mlflow" and path.name not in ABOUT_MLFLOW)
                    or (top == "optuna" and path.name not in ABOUT_OPTUNA)
                )
            elif parts[1] == "container":
                other_half = top == "sagemaker_launch" and not module.startswith("sagemaker_launch.container")
                bad = top in {"boto3", "mlflow", "optuna", "moto"} or other_half
            elif parts[1] == "serving":
                bad = foreign and top not in STANDALONE and not module.startswith("sagemaker_launch.serving")
            if module.startswith("sagemaker_launch.rehearsal") and "rehearsal" not in parts:
                bad = True
            if bad:
                found.append(f"{place} imports {module}")
    return found


def test_no_room_imports_upward() -> None:
    assert violations(REPOSITORY) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("lightning_modules/x.py", "from experiments.config import RunConfig"),
        ("lightning_modules/x.py", "def f():\n    import mlflow"),
        ("lightning_modules/inference.py", "import numpy"),
        ("experiments/x.py", "import sagemaker_launch"),
        ("experiments/train.py", "import mlflow"),
        ("experiments/train.py", "from optuna import Trial"),
        ("sagemaker_launch/container/x.py", "import boto3"),
        ("sagemaker_launch/container/x.py", "from sagemaker_launch.requests import y"),
        ("sagemaker_launch/serving/x.py", "import experiments"),
        ("sagemaker_launch/x.py", "import sagemaker_launch.rehearsal.service"),
    ],
)
def test_the_check_sees_a_forbidden_import(tmp_path: Path, file: str, line: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert len(violations(tmp_path)) == 1


def test_the_training_path_works_where_boto3_mlflow_and_optuna_are_missing() -> None:
    code = (
        "import sys\n"
        "for name in ('boto3', 'mlflow', 'optuna', 'moto', 'sklearn'):\n"
        "    sys.modules[name] = None\n"
        "import experiments.train\n"
        "print('imported')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "imported", done.stderr
