"""One file for each library whose private parts we use, and a version in pyproject.toml above which it is not tried."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import optuna
import pytest
import pytorch_lightning as pl
from torch import nn

from experiments.study import optuna_private
from lightning_modules import lightning_private, torch_private
from tests.conftest import REPOSITORY

ROOMS = ("benchmarks", "experiments", "lightning_modules", "sagemaker_launch")
FILES = {
    "experiments/study/optuna_private.py": "optuna",
    "experiments/tracking/server.py": "mlflow",
    "experiments/tracking/system_metrics.py": "mlflow",
    "experiments/tracking/views.py": "mlflow",
    "lightning_modules/lightning_private.py": "pytorch-lightning",
    "lightning_modules/torch_private.py": "torch",
    "sagemaker_launch/rehearsal/moto_urls.py": "moto",
}
"""Files of private or undocumented parts, and the library."""
ELSEWHERE = {
    "sagemaker_launch/container/smdebug": "AWS's smdebug, in the version that AWS's images have: behind that package",
    "lightning_modules/inference.py": "shipped alone in each export, beside PyTorch",
}
PUBLIC = {"_exit", "_replace"}
"""Of Python: os._exit, and of named tuples."""
UNDOCUMENTED = (
    "mlflow.server",
    "mlflow.system_metrics",
    "moto.sagemaker.urls",
    "moto.scheduler.urls",
    "moto.applicationautoscaling.urls",
)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def is_own(node: ast.expr) -> bool:
    """Whether an object is of the class that the code belongs to."""
    is_super = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"
    return is_super or (isinstance(node, ast.Name) and node.id in ("self", "cls"))


def private_attributes(tree: ast.AST) -> set[str]:
    """Private attributes of other objects, and private modules and names that are imported from other packages."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and not is_own(node.value):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] not in ROOMS:
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            found |= set(filter(is_private, names))
        elif isinstance(node, ast.Import):
            found |= {part for alias in node.names for part in alias.name.split(".") if is_private(part)}
    return found


def defined(tree: ast.AST) -> set[str]:
    """Private names that a file gives to its own functions, classes and attributes."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node.value):
            found.add(node.attr)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found


def uses(root: Path) -> dict[str, set[str]]:
    """Private parts that each file uses of libraries."""
    trees = {path: ast.parse(path.read_text()) for room in ROOMS for path in (root / room).rglob("*.py")}
    names = {path: path.relative_to(root).as_posix() for path in trees}
    functions = {node.name for tree in trees.values() for node in tree.body if isinstance(node, ast.FunctionDef)}
    gathered = {name for path, tree in trees.items() if names[path] in FILES for name in private_attributes(tree)}
    found = {}
    for path, tree in trees.items():
        private = private_attributes(tree) - PUBLIC - functions
        if foreign := private - (defined(tree) - gathered):
            found[names[path]] = foreign
        modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        if undocumented := {module for module in modules if module.startswith(UNDOCUMENTED)}:
            found[names[path]] = found.get(names[path], set()) | undocumented
    return found


def test_only_one_file_of_each_library_uses_its_private_parts() -> None:
    others = {name: found for name, found in uses(REPOSITORY).items() if not name.startswith(tuple(ELSEWHERE))}
    assert {name: found for name, found in others.items() if name not in FILES} == {}
    assert set(FILES) - set(others) == {"experiments/tracking/views.py"}, "views are what MLflow's page reads of a tag"


@pytest.mark.parametrize(
    "line", ["trial._trial_id", "study._storage.get_all_trials(0)", "from torch._functorch import x"]
)
def test_the_check_sees_private_parts(tmp_path: Path, line: str) -> None:
    for name, text in (
        ("experiments/study/optuna_private.py", "study._storage"),
        ("experiments/x.py", f"class A:\n    def __init__(self):\n        self._storage = 1\n{line}\n"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert "experiments/x.py" in uses(tmp_path)


@pytest.mark.parametrize("library", sorted(set(FILES.values())))
def test_each_of_these_libraries_has_an_upper_bound(library: str) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    required = [*project["dependencies"], *project["optional-dependencies"]["rehearsal"]]
    [line] = [requirement for requirement in required if requirement.partition(">=")[0].partition("[")[0] == library]
    assert ",<" in line


def test_a_trial_forgets_its_parameters_and_keeps_those_of_its_storage() -> None:
    study = optuna.create_study()
    trial = study.ask()
    value = trial.suggest_float("x", 0, 1)
    optuna_private.forget_params(trial)
    assert trial.params == {}
    assert optuna_private.storage_of(study).get_trial(optuna_private.id_of(trial)).params == {"x": value}


def test_a_network_can_be_called_otherwise_and_again_as_written() -> None:
    network = nn.Identity()
    torch_private.set_compiled_call(network, lambda value: value + 1)
    assert (network(1), torch_private.compiled_call(network) is None) == (2, False)
    torch_private.set_compiled_call(network, None)
    assert network(1) == 1


def test_a_lightning_without_the_private_part_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    lightning_private.restore_data_position(trainer)
    monkeypatch.delattr(type(trainer.fit_loop), "_load_combined_loader_states")
    with pytest.raises(AssertionError, match="restore the loaders' states"):
        lightning_private.restore_data_position(trainer)
