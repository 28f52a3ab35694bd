"""AWS's PyTorch training image, as `training_image.toml` lists it, and what a rehearsed one has of it.

It is built with the Python of AWS's image if this machine has one. Packages that do not depend on a Python, and all but
a few if it is the Python of this process, are links to those of this process.
"""

from __future__ import annotations

import logging
import os
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from sagemaker_launch.rehearsal.machine.image import (
    Contents,
    Image,
    Interpreter,
    build_image,
    fits_each_python,
    is_installed,
)
from sagemaker_launch.shipping.bundle import PYTHONS

TOOLKIT = "sagemaker-training"
LINUX = sys.platform == "linux"

log = logging.getLogger(__name__)


@cache
def listed() -> Mapping[str, Any]:
    """The list of what AWS's image has and lacks."""
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def build_training_image(folder: Path, toolkit: str, python: Path | None) -> Image:
    """Build the image of jobs under `folder`, or find the one built before.

    Args:
        toolkit: version of AWS's toolkit.
        python: interpreter of jobs; None looks for one of the version that AWS's image has.

    Raises:
        ValueError: if `python` is none that jobs can have.
        RuntimeError: if the image can't be built.
    """
    interpreter = training_python() if python is None else _checked(python)
    return build_image(folder, contents_of(toolkit, interpreter), interpreter)


def contents_of(toolkit: str, interpreter: Interpreter) -> Contents:
    """What a rehearsed image has: everything that is listed, but for what is left out."""
    image = listed()
    pinned = {**image["toolkit"], TOOLKIT: toolkit, **image["jobs"]}
    others, gpu = image["packages"] | image["unread"], image["gpu"]
    if interpreter.fits_own_packages:  # our PyTorch may be one for CPUs
        linked = [name for name in (*others, *gpu) if is_installed(name)]
        pinned |= {name: version for name, version in others.items() if name not in linked}
    else:
        linked = [name for name in gpu if is_installed(name) and fits_each_python(name)]
        pinned |= others | {name: version for name, version in gpu.items() if name not in linked and LINUX}
    lines = tuple(f"{name}=={version}" for name, version in sorted(pinned.items()))
    return Contents(lines, tuple(sorted(linked)), tuple(image["lacks"]))


def training_python() -> Interpreter:
    """A Python of the version that AWS's image has, if this machine has one; else that of this process."""
    version = listed()["python"]
    own = Interpreter.ask(Path(sys.executable))
    if own.minor == version:
        return own
    for path in _candidates(version):
        try:
            found = Interpreter.ask(path)
        except ValueError as error:
            log.debug("passed over: %s", error)  # such as pyenv's command for a version that is not selected
            continue
        if found.minor == version:
            return found
    log.warning(
        "AWS's image has Python %s, which is neither in PATH nor in pyenv: jobs run with Python %s (--python PATH "
        "names another one)",
        *(version, own.version),
    )
    return own


def _candidates(version: str) -> Iterator[Path]:
    folders = [Path(folder) for folder in os.get_exec_path()]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    folders += sorted(pyenv.glob(f"versions/{version}.*/bin"), reverse=True)
    return (path for folder in folders if os.access(path := folder / f"python{version}", os.X_OK))


def _checked(python: Path) -> Interpreter:
    try:
        found = Interpreter.ask(python)
    except ValueError as error:
        raise ValueError(f"--python {error}") from error
    if found.minor not in PYTHONS:
        raise ValueError(f"--python must be Python {', '.join(PYTHONS)}, got {python}: Python {found.version}")
    return found
