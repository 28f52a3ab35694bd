"""Which modules of this project a module imports, read from their source: nothing is run."""

from __future__ import annotations

import ast
from pathlib import Path

import experiments
import lightning_modules
import sagemaker_launch

_PACKAGES = {
    package.__name__: Path(str(package.__file__)) for package in (experiments, lightning_modules, sagemaker_launch)
}


def import_graph(entry: str) -> dict[str, Path]:
    """A module and all modules of this project that it imports, also inside functions.

    Packages themselves and imports for type checkers only are left out.

    Args:
        entry: full name, such as `sagemaker_launch.container.entry`.

    Returns:
        Full name of each module to its file.
    """
    found: dict[str, Path] = {}
    waiting = [entry]
    while waiting:
        name = waiting.pop()
        if name not in found and (path := _source(name)) is not None:
            found[name] = path
            waiting += _imported_names(ast.parse(path.read_bytes()))
    return found


def _source(name: str) -> Path | None:
    """The file of a module; None for a package, a function or class of a module, or a foreign module."""
    package, *inner = name.split(".")
    if package not in _PACKAGES:
        return None
    path = _PACKAGES[package].parent.joinpath(*inner).with_suffix(".py")
    return path if inner and path.is_file() else None


def _imported_names(tree: ast.AST) -> list[str]:
    names: list[str] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # What is imported from a package may be a module: from sagemaker_launch import container.
            names += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        names += _imported_names(node)
    return names
