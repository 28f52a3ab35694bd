"""The clients, and a virtual environment for each, which is made once per list of requirements."""

from __future__ import annotations

import ast
import hashlib
import re
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import pytest

from lightning_modules.locks import KernelLock
from tests.clients.recording import NOT_REHEARSED, WORKS, not_rehearsed, works
from tests.conftest import REPOSITORY

FOLDER = Path(__file__).parent
LAUNCHED = "launched"
"""Name of the scripts that need what our launcher has made."""
CACHE = REPOSITORY / ".venv" / "clients"
"""`make clean` deletes it with the rest of .venv."""
UNREACHABLE = re.compile(r"Failed to establish a new connection|connection broken|Could not connect|ProxyError", re.I)
"""What pip says when there is no package index, which is no fault of the requirements."""
OUTCOMES = {works.__name__: WORKS, not_rehearsed.__name__: NOT_REHEARSED}

Name = Literal["sdk_v2", "sdk_v3", "aws_cli", "smdebug"]
NAMES: tuple[Name, ...] = get_args(Name)


@dataclass(frozen=True)
class Client:
    """A client of AWS that we did not write."""

    name: Name
    title: str
    """As in the table, without the version."""
    package: str
    """The package that has its version."""

    @property
    def requirements(self) -> Path:
        """What `pip freeze` prints in its environment: each package, with its version."""
        return FOLDER / f"{self.name}.txt"

    @property
    def label(self) -> str:
        """As in the table."""
        found = re.search(rf"^{re.escape(self.package)}==(\S+)$", self.requirements.read_text(), re.MULTILINE)
        assert found is not None, f"{self.requirements.name} must pin {self.package}"
        return f"{self.title} {found[1]}"

    @property
    def scripts(self) -> list[Path]:
        """What a user of it types, in the order of the table."""
        return sorted(
            (FOLDER / "scripts" / self.name).glob("*.py"), key=lambda script: (script.stem == LAUNCHED, script)
        )

    @property
    def own_scripts(self) -> list[Path]:
        """The scripts that need nothing but their client."""
        return [script for script in self.scripts if script.stem != LAUNCHED]

    @property
    def launched_script(self) -> Path:
        """What a user of it does with jobs and endpoints of our launcher."""
        return self.scripts[-1]


CLIENTS: dict[Name, Client] = {
    client.name: client
    for client in (
        Client("sdk_v2", "SageMaker SDK", "sagemaker"),
        Client("sdk_v3", "SageMaker SDK", "sagemaker"),
        Client("aws_cli", "AWS CLI", "awscli"),
        Client("smdebug", "smdebug", "smdebug"),  # no scripts: those of sdk_v2 start it
    )
}


def declared(script: Path) -> list[tuple[str, str]]:
    """The operations of a script with their outcomes, in order, read from its source."""
    calls = [
        node
        for node in ast.walk(ast.parse(script.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in OUTCOMES
    ]
    found = []
    for call in sorted(calls, key=lambda call: call.lineno):
        assert isinstance(call.func, ast.Name)
        assert len(call.args) == 1 and isinstance(call.args[0], ast.Constant), (
            f"{script.name}, line {call.lineno}: the operation must be a plain string"
        )
        found.append((str(call.args[0].value), OUTCOMES[call.func.id]))
    return found


def environment(client: Client) -> Path:
    """The folder with `bin/` of the client's environment, or a skip where the package index can't be reached."""
    text = client.requirements.read_text()
    identity = hashlib.sha256("\n".join((sys.version, sys.base_prefix, text)).encode()).hexdigest()[:12]
    CACHE.mkdir(parents=True, exist_ok=True)
    root = (CACHE / f"{client.name}-{identity}").resolve()
    with KernelLock(Path(f"{root}.lock")):
        if not (root / "complete").exists():
            _build(client, root)
    return root / "bin"


def _build(client: Client, root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    venv.EnvBuilder(symlinks=True, with_pip=False).create(root)
    pip = [sys.executable, "-m", "pip", "--python", str(root / "bin" / "python"), "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "install", "--no-deps", "--retries=1", f"--requirement={client.requirements}"],
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    if done.returncode and UNREACHABLE.search(said):
        pytest.skip(f"{client.label} needs the packages of {client.requirements.name}, and no package index answers")
    assert done.returncode == 0, said
    checked = subprocess.run([*pip, "check"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    (root / "complete").touch()
