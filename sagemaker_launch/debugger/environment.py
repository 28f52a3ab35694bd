"""smdebug's own virtual environment for reading tensors, created once on demand and separate from this one.

smdebug needs packages that are years old, so `container/smdebug/reader.py` runs as a process in that environment.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sagemaker_launch
from experiments.console import say
from experiments.errors import UserError
from lightning_modules.locks import KernelLock

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
PROJECT = Path(sagemaker_launch.__file__).parent.parent
_MAIN = (
    "import sys; sys.path.append({!r}); from sagemaker_launch.container.smdebug.reader import main; "
    "sys.exit(main(sys.argv[1:]))"
)
"""Our code is last on its path: an installation of it has newer packages beside it."""


def debugger_python(cache_dir: Path) -> Path:
    """The interpreter of the environment, which is built if it is missing.

    Raises:
        UserError: with pip's own message, if the packages are not available.
    """
    versions = [sys.version, sys.base_prefix, REQUIREMENTS.read_text()]
    root = (cache_dir / f"debugger-{hashlib.sha256('|'.join(versions).encode()).hexdigest()[:12]}").resolve()
    root.parent.mkdir(parents=True, exist_ok=True)
    with KernelLock(Path(f"{root}.lock")):
        if not (root / "complete").exists():
            _build(root)
    return root / "bin" / "python"


def read_tensors(cache_dir: Path, folder: Path) -> dict[str, Any]:
    """The tensors in a folder; see `container.smdebug.reader.read`.

    Raises:
        UserError: if there is nothing to read, or no environment to read it in.
    """
    tensors: dict[str, Any] = _run_reader(cache_dir, "read", str(folder.resolve()))
    return tensors


def run_rules(cache_dir: Path, folder: Path, configurations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Evaluate rules on the tensors in a folder; see `container.smdebug.reader.evaluate`.

    Args:
        configurations: DebugRuleConfigurations of a request.

    Raises:
        UserError: if there is no environment to run them in.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(list(configurations), file)
        file.flush()
        statuses: list[dict[str, Any]] = _run_reader(cache_dir, "rules", str(folder.resolve()), file.name)
    return statuses


def _run_reader(cache_dir: Path, *arguments: str) -> Any:
    command = [str(debugger_python(cache_dir)), "-P", "-c", _MAIN.format(str(PROJECT)), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        message = (
            done.stderr.strip().removeprefix("error: ")[-2000:] or f"it ended with {done.returncode} and said nothing"
        )
        raise UserError(f"smdebug can't read {arguments[1]}: {message}")
    return json.loads(done.stdout)


def _build(root: Path) -> None:
    say("installing smdebug into an environment of its own (once, a quarter of a minute)")
    shutil.rmtree(root, ignore_errors=True)
    venv.EnvBuilder(symlinks=True, with_pip=False).create(root)
    pip = [sys.executable, "-m", "pip", "--python", str(root / "bin" / "python"), "--disable-pip-version-check"]
    command = [*pip, "install", "--quiet", "--no-deps", "--only-binary=:all:", f"--requirement={REQUIREMENTS}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        message = done.stderr.strip() or f"pip ended with {done.returncode} and said nothing"
        raise UserError(f"smdebug's environment needs the packages of {REQUIREMENTS.name}: {message}")
    (root / "complete").touch()
