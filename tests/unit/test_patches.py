"""A test that patches a name of a module reaches code: the module reads that name when it runs.

After a function has moved, a patch of its old module can still succeed without any effect: the module imports the name
for another reason, or others have imported the function before. Then the test no longer tests what it says.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import REPOSITORY

PACKAGES = ("experiments", "lightning_modules", "sagemaker_launch")


def imported_modules(tree: ast.Module) -> dict[str, str]:
    """The modules of the project that a test imports, by the names that it gives them."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return {name: module for name, module in found.items() if is_module(module)}


@functools.cache
def is_module(dotted: str) -> bool:
    if dotted.split(".")[0] not in PACKAGES:
        return False
    try:
        return importlib.util.find_spec(dotted) is not None
    except ModuleNotFoundError:  # of a class or function, whose module is no package
        return False


def patches(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line, module and name of each `monkeypatch.setattr` or `mock.patch` of a module of the project."""
    source = path.read_text()
    if "setattr" not in source and "mock" not in source:
        return
    tree = ast.parse(source)
    modules = imported_modules(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or ast.unparse(node.func) not in ("monkeypatch.setattr", "mock.patch"):
            continue
        match node.args:
            case [ast.Constant(value=str() as target), *_]:
                module, _, name = target.rpartition(".")
            case [ast.Name(id=alias), ast.Constant(value=str() as name), *_] if alias in modules:
                module = modules[alias]
            case _:
                continue
        if is_module(module):
            yield node.lineno, module, name


def functions(module: str) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    nodes = ast.walk(ast.parse(Path(spec.origin).read_text()))
    return [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


@functools.cache
def names_read(module: str) -> frozenset[str]:
    """The names of a module that its own functions read."""
    inside = [node for function in functions(module) for node in ast.walk(function)]
    return frozenset(node.id for node in inside if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))


@functools.cache
def sources() -> tuple[str, ...]:
    return tuple(path.read_text() for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))


def read_elsewhere(module: str, name: str) -> bool:
    """Whether a function of the project imports the name while it runs, or reads it as `module.name`."""
    for source in sources():
        if name not in source or module.rpartition(".")[2] not in source:
            continue
        tree = ast.parse(source)
        modules = imported_modules(tree)
        for node in ast.walk(tree):
            match node:
                case ast.ImportFrom(module=origin, names=aliases, col_offset=column) if column and origin == module:
                    is_read = name in [alias.name for alias in aliases]
                case ast.Attribute(value=ast.Name(id=alias), attr=attribute):
                    is_read = attribute == name and modules.get(alias) == module
                case _:
                    is_read = False
            if is_read:
                return True
    return False


def is_reached(module: str, name: str) -> bool:
    return name in names_read(module) or read_elsewhere(module, name)


def test_a_patched_name_is_one_that_the_code_reads() -> None:
    paths = sorted((REPOSITORY / "tests").rglob("*.py"))
    found = [(path, *patch) for path in paths for patch in patches(path)]
    assert len(found) > 40
    assert {"experiments.predict", "experiments.sweep"} <= {module for _, _, module, _ in found}  # of both forms
    missed = [f"{path}:{line}: {module}.{name}" for path, line, module, name in found if not is_reached(module, name)]
    assert missed == [], "patched, but no function reads the name there: patch the module that does"


def test_a_name_that_a_module_only_defines_is_not_reached() -> None:
    assert is_reached("experiments.sweep", "Publisher")
    assert not is_reached("experiments.sweep", "POLL_SECONDS")
    assert not is_reached("experiments.study.study", "copy_in_time")  # its callers have imported it
