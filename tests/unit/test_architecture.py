"""The rooms of the design: who may import whom."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import tomllib
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
    "filelock",  # torch itself needs it; the caches lock with it
}
STANDALONE = {"torch", "torchvision", "PIL"}
ALONE = {
    "inference": STANDALONE | {"ray", "starlette"},
    "cores": set[str](),
    "openvino_cpu": {"torch", "openvino", "nncf", "lightning_modules.inference"},
}
"""The modules of that room that our serving image has, and what each may import."""
STANDALONE_MODULES = {f"lightning_modules.{name}" for name in ALONE}
SERVING = STANDALONE | {"fastapi", "starlette", "uvicorn", "h11", "prometheus_client", "openvino"}
ORDER = {
    "experiments": (
        "__main__",
        "cli",
        "int8 preflight predict single_run sweep",
        "report",
        "tracking",
        "study",
        "figures",
        "train",
        "task",
        "callbacks",
        "runs",
        "data",
        "config interrupts",
        "console errors fields loopback patience yaml_files",
    ),
    "sagemaker_launch": (
        "rehearsal",
        "__main__",
        "cli",
        "account debugger live_check rehearse status",
        "stages",
        "endpoints",
        "jobs",
        "shipping",
        "aws",
        "settings",
        "container",
        "serving",
    ),
}
"""Packages and modules of each room from the top down: an import points to the same line or further down."""
MAY_IMPORT = {
    "mlflow": ("tracking",),
    "optuna": ("cli", "sweep", "report", "study"),
}
"""The only packages and modules of experiments that import these."""


def imports(path: Path) -> set[str]:
    """Full names of all modules that a file imports, also inside functions."""
    return {name for node in ast.walk(ast.parse(path.read_text())) for name in imports_of(node)}


def imports_of(node: ast.AST) -> set[str]:
    """Full names of the modules that a statement imports."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if not isinstance(node, ast.ImportFrom):
        return set()
    assert node.level == 0, f"line {node.lineno}: relative imports hide the direction"
    module = node.module or ""
    # What comes out of our own packages may be a module as well: from sagemaker_launch import rehearsal.
    return {f"{module}.{alias.name}" for alias in node.names} if module in OURS else {module}


def violations(root: Path) -> list[str]:
    """Every import that the design forbids, as 'file imports module'."""
    found = []
    for path in sorted(path for room in OURS for path in (root / room).rglob("*.py")):
        module_path = path.relative_to(root)
        for module in imports(path):
            top = module.split(".")[0]
            foreign = top not in sys.stdlib_module_names
            folders = module_path.parts
            bad = False
            if folders[0] == "lightning_modules":
                allowed = ALONE.get(path.stem, TENSOR_STACK | {"lightning_modules"})
                bad = foreign and allowed.isdisjoint({top, module})
            elif folders[0] == "experiments":
                package = folders[1].removesuffix(".py")
                bad = top == "sagemaker_launch" or (top in MAY_IMPORT and package not in MAY_IMPORT[top])
            elif folders[1] == "container":
                other_half = top == "sagemaker_launch" and not module.startswith("sagemaker_launch.container")
                bad = top in {"boto3", "mlflow", "optuna", "moto"} or other_half
            elif folders[1] == "serving":
                own = module.startswith("sagemaker_launch.serving") or module in STANDALONE_MODULES
                bad = foreign and top not in SERVING and not own
            bad = bad or points_up(module_path, module)
            if bad:
                found.append(f"{module_path} imports {module}")
    return found


def points_up(module_path: Path, module: str) -> bool:
    """Whether a file imports what stands above it in its own room, or the rehearsal from outside."""
    room, below = module_path.parts[0], module.split(".")
    if below[0] != room:
        return module.startswith("sagemaker_launch.rehearsal")
    ranks = {name: rank for rank, line in enumerate(ORDER.get(room, ())) for name in line.split()}
    own, other = module_path.parts[1].removesuffix(".py"), (*below, "")[1]
    if own == "__init__":  # the package's public names, from all of its modules
        return False
    if is_public_name(room, other):  # a job gets the package without its public names
        return True
    return ranks.get(other, len(ranks)) < ranks.get(own, len(ranks))


def is_public_name(room: str, name: str) -> bool:
    """Whether a package exports a name, which is then none of its modules."""
    return name in getattr(importlib.import_module(room), "__all__", ())


def names_of(path: Path) -> set[str]:
    """What a module defines or imports at its top, and in the branches there."""
    found: set[str] = set()
    waiting: list[ast.stmt] = list(ast.parse(path.read_text()).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
            continue
        waiting += [child for child in ast.walk(node) if isinstance(child, ast.stmt) and child is not node]
        found |= {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return found


def test_benchmarks_import_what_there_is() -> None:
    """Types are not checked here: benchmarks replace names of modules, and no test runs them."""
    missing = []
    for path in (REPOSITORY / "benchmarks").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] not in OURS:
                continue
            module = REPOSITORY / (node.module or "").replace(".", "/")
            source = module.with_suffix(".py") if module.with_suffix(".py").is_file() else module / "__init__.py"
            inside = names_of(source) | {one.stem for one in module.glob("*") if source.parent == module}
            missing += [f"{path.name}: {node.module}.{one.name}" for one in node.names if one.name not in inside]
    assert missing == []


def test_every_module_has_a_place_in_the_order() -> None:
    for room, lines in ORDER.items():
        inside = {path.stem for path in (REPOSITORY / room).iterdir() if path.suffix == ".py"}
        inside |= {path.parent.name for path in (REPOSITORY / room).glob("*/__init__.py")}
        assert inside - {"__init__"} == set(" ".join(lines).split())


def test_no_room_imports_upward() -> None:
    assert violations(REPOSITORY) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("lightning_modules/x.py", "from experiments.config import RunConfig"),
        ("lightning_modules/x.py", "def f():\n    import mlflow"),
        ("lightning_modules/x.py", "import sagemaker_launch.container"),
        ("lightning_modules/x.py", "if True:\n    try:\n        import pandas\n    except ImportError:\n        pass"),
        ("lightning_modules/inference.py", "import numpy"),
        ("lightning_modules/inference.py", "from lightning_modules import metrics"),
        ("experiments/x.py", "import sagemaker_launch"),
        ("experiments/train.py", "import mlflow"),
        ("experiments/train.py", "from optuna import Trial"),
        ("experiments/study/study.py", "import mlflow.entities as entities"),
        ("experiments/tracking/store.py", "import optuna.trial"),
        ("experiments/figures/x.py", "import optuna"),
        ("experiments/study/x.py", "from experiments.tracking.publisher import Publisher"),
        ("experiments/runs/x.py", "from experiments import train"),
        ("experiments/runs/x.py", "from experiments import RunConfig"),
        ("sagemaker_launch/jobs/x.py", "from sagemaker_launch import plan_training"),
        ("sagemaker_launch/shipping/x.py", "from sagemaker_launch.jobs.requests import y"),
        ("sagemaker_launch/container/x.py", "import boto3"),
        ("sagemaker_launch/container/x.py", "from sagemaker_launch.jobs.requests import y"),
        ("sagemaker_launch/container/x.py", "from sagemaker_launch import requests"),
        ("sagemaker_launch/container/x.py", "class A:\n    async def f(self):\n        import moto.server"),
        ("sagemaker_launch/serving/x.py", "import experiments"),
        ("sagemaker_launch/serving/x.py", "import numpy"),
        ("sagemaker_launch/serving/x.py", "from lightning_modules.export import write_export"),
        ("sagemaker_launch/serving/x.py", "from sagemaker_launch import archive"),
        ("sagemaker_launch/x.py", "import sagemaker_launch.rehearsal.service"),
        ("sagemaker_launch/x.py", "from sagemaker_launch import rehearsal"),
        ("experiments/x.py", "from sagemaker_launch import rehearsal"),
    ],
)
def test_the_check_sees_a_forbidden_import(tmp_path: Path, file: str, line: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert len(violations(tmp_path)) == 1


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("lightning_modules/x.py", "import json\nfrom torch import nn\nfrom lightning_modules import metrics"),
        ("experiments/study/study.py", "import optuna\nfrom lightning_modules.data import Batch"),
        (
            "sagemaker_launch/container/x.py",
            "from sagemaker_launch import container\nfrom experiments.train import train",
        ),
        ("sagemaker_launch/serving/x.py", "from PIL import Image\nfrom sagemaker_launch.serving import y"),
        ("sagemaker_launch/serving/x.py", "import uvicorn\nfrom lightning_modules.inference import Model"),
        ("sagemaker_launch/rehearsal/x.py", "import sagemaker_launch.rehearsal.service"),
        ("sagemaker_launch/x.py", "import boto3\nfrom experiments.config import RunConfig"),
    ],
)
def test_the_check_lets_an_allowed_import_pass(tmp_path: Path, file: str, line: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert violations(tmp_path) == []


def test_smdebug_is_behind_one_package() -> None:
    package = REPOSITORY / "sagemaker_launch" / "container" / "smdebug"

    def names(path: Path) -> set[str]:
        return {name.split(".")[0] for name in imports(path)}

    users = {path for room in OURS for path in (REPOSITORY / room).rglob("*.py") if "smdebug" in names(path)}
    assert users == {package / "recorder.py", package / "reader.py"}
    # The environment of the reader has no torch, and a job without Debugger has no smdebug.
    for path in package.glob("*.py"):
        at_once = {name.split(".")[0] for node in ast.parse(path.read_text()).body for name in imports_of(node)}
        lightning = {"pytorch_lightning", "experiments", "lightning_modules"} if path.name == "callback.py" else set()
        experiments = {"experiments"} if path.name == "rules.py" else set()
        assert at_once - sys.stdlib_module_names <= {"numpy", "sagemaker_launch"} | lightning | experiments, path.name


def test_the_check_sees_every_room() -> None:
    # A room that was renamed would be checked no more.
    for room in OURS:
        assert list((REPOSITORY / room).rglob("*.py")), room


def test_the_command_line_imports_nothing_heavy_until_a_command_needs_it() -> None:
    tree = ast.parse((REPOSITORY / "experiments" / "cli.py").read_text())
    first = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {name for node in first for name in imports_of(node)}
    assert {name for name in names if name.split(".")[0] not in sys.stdlib_module_names} == {
        "experiments.config",
        "experiments.console",
        "experiments.runs.environment",
        "experiments.errors",
        "experiments.fields",
        "lightning_modules.redaction",
    }


def test_the_training_path_works_where_boto3_mlflow_and_optuna_are_missing() -> None:
    code = (
        "import sys\n"
        "for name in ('boto3', 'mlflow', 'optuna', 'moto', 'sklearn'):\n"
        "    sys.modules[name] = None\n"
        "import experiments.train\n"
        # What a job may need beside it: scores and pictures, progress, clean stops, photos.
        "import experiments.runs.scoring, experiments.interrupts, experiments.predict, experiments.callbacks.progress\n"
        "import experiments.runs.folder, experiments.study.search_space, experiments.tracking.publisher\n"
        "print('imported')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "imported", done.stderr


def test_the_extra_for_rehearsals_brings_what_rehearsed_endpoints_serve_with() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert "local-first-experiments[serving]" in extras["rehearsal"]
    # `ui` brings uvicorn everywhere.
    declared = {line.split(">")[0].replace("-", "_") for line in (*extras["serving"], *project["dependencies"])}
    assert SERVING - STANDALONE - declared == {"starlette", "h11"}, "which fastapi and uvicorn bring"


def test_a_wheel_has_every_file_that_the_packages_read() -> None:
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packed = {
        path
        for package, patterns in declared.items()
        for pattern in patterns
        for path in (REPOSITORY / Path(*package.split("."))).glob(pattern)
    }
    files = {path for room in OURS for path in (REPOSITORY / room).rglob("*") if path.is_file()}
    beside_code = {path for path in files if "__pycache__" not in path.parts and path.suffix not in (".py", ".ipynb")}
    assert beside_code == packed
