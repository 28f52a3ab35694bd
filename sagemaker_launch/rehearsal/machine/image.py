"""The software of a container: a stand-in for an image of AWS, and an environment of its own for each container.

The image is a virtual environment built once. torch and the other large packages are links into the environment of this
process, so nothing is downloaded twice; AWS's toolkit is installed beside them. Each container gets an environment that
looks through to the image, so that the toolkit's `pip install -r requirements.txt` changes that container alone.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lightning_modules.locks import KernelLock

LINKED = (
    "boto3",
    "cryptography",
    "numpy",
    "packaging",
    "pandas",
    "pillow",
    "psutil",
    "pyyaml",
    "requests",
    "scikit-learn",
    "scipy",
    "six",
    "torch",
    "torchvision",
    "tqdm",
    "werkzeug",
)
"""Packages of AWS's training container that are linked from this environment, with all that they require."""
REQUIREMENTS = Path(__file__).with_name("image.txt")
"""What it has beside them."""
PYTHON_START = re.compile(rb"#!(.*python[0-9.]*[ \t]*|/bin/sh\n'''exec' .*\n' ''')\n")
"""The first line of a script of Python, or the three lines that pip writes where the interpreter's path is long."""
VENV = Path("/opt/container-venv")
"""Where a container with its own /opt has its environment: AWS's toolkit splits the command of pip at spaces, so the
path of the interpreter must have none. Not AWS's /opt/venv, which may hold this process's own packages."""
FORBIDDEN = ("mlflow", "optuna", "pytorch-lightning", "moto")
"""What AWS's containers lack: a job that needs one of these has to bring it."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Image:
    """A built image."""

    root: Path

    @property
    def site_packages(self) -> Path:
        """Where its packages are."""
        return _site_packages(self.root)

    def make_environment(self, root: Path, seen_at: Path) -> None:
        """Make the environment of one container: the image's packages and commands, and room for its own.

        Args:
            seen_at: where the container has it.
        """
        venv.EnvBuilder(symlinks=True, with_pip=False).create(root)
        # As Python reads it in a container, whose locale is C.UTF-8.
        (_site_packages(root) / "image.pth").write_text(f"{self.site_packages}\n", encoding="utf-8")
        # The kernel takes no interpreter whose path has a space or 128 characters (255 since Linux 5.1), so a shell
        # starts it. To Python, the shell's lines are a string.
        interpreter = f"#!/bin/sh\n'''exec' {shlex.quote(str(seen_at / 'bin' / 'python'))} \"$0\" \"$@\"\n' '''\n"
        for command in (self.root / "bin").iterdir():
            target = root / "bin" / command.name
            # The image's own scripts would run in the image and miss what was installed later.
            if not target.exists() and (script := _python_script(command)) is not None:
                target.write_text(interpreter + script)
                target.chmod(0o755)


def build_image(folder: Path, requirements: Path, linked: tuple[str, ...]) -> Image:
    """Build an image under `folder`, or find the one built before.

    Args:
        requirements: pip's file of what is installed, without what that requires.
        linked: packages of this environment, which are there with all that they require and `requirements` has not.

    Raises:
        RuntimeError: if pip can't install the toolkit; the message ends with what pip said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = [line for line in requirements.read_text().splitlines() if line and not line.startswith("#")]
    found = _closure(linked, {canonicalize_name(Requirement(line).name) for line in lines})
    # Resolved last: the image itself may be a link, and a container sees where it leads.
    root = (folder / f"image-{_fingerprint(requirements, found)}").resolve()
    complete = root / "complete"
    with KernelLock(Path(f"{root}.lock")):
        if not complete.exists():
            _build(root, requirements, found)
            complete.touch()
    return Image(root)


def _build(root: Path, requirements: Path, linked: dict[str, importlib.metadata.Distribution]) -> None:
    started = time.monotonic()
    log.info("building %s (once, about half a minute): a container toolkit and links to torch and others", root)
    shutil.rmtree(root, ignore_errors=True)
    venv.EnvBuilder(symlinks=True, with_pip=True).create(root)
    # Python 3.11 puts an old setuptools beside pip; torch's is linked in its place.
    _pip(root, "uninstall", "--yes", "setuptools")
    _pip(root, "install", "--no-deps", "--requirement", str(requirements))
    # Linking comes last: pip must never write or remove anything through a link.
    for distribution in linked.values():
        _link(distribution, root)
    # What is missing here, pip would install into every single container.
    _pip(root, "check")
    log.info("built %s in %.0f s", root, time.monotonic() - started)


def _link(distribution: importlib.metadata.Distribution, root: Path) -> None:
    site_packages = _site_packages(root)
    for file in distribution.files or ():
        source = Path(str(distribution.locate_file(file)))
        if file.parts[0] == "..":
            target = root / "bin" / file.name
            if file.parts[-2] != "bin" or target.exists():
                continue
        elif file.parts[0] == "__pycache__":
            continue
        else:
            target = site_packages / file.parts[0]
            source = Path(str(distribution.locate_file(file.parts[0])))
            if target.is_symlink():
                continue
            # What pip installed under the same name would be hidden in part.
            assert not target.exists(), f"{target} is installed and linked: it must be one of them"
        target.symlink_to(source.resolve())


def _closure(names: tuple[str, ...], installed: Set[str]) -> dict[str, importlib.metadata.Distribution]:
    """Distributions by name, with all that they require here, but for what is installed."""
    found: dict[str, importlib.metadata.Distribution] = {}
    # torch asks for cuda-toolkit with extras; what they add has to be found by pip in a job, or it downloads it again.
    seen: set[tuple[str, str]] = set()
    waiting = [(name, "") for name in names]
    while waiting:
        name, extra = waiting.pop()
        name = canonicalize_name(name)
        if name in installed or (name, extra) in seen:
            continue
        seen.add((name, extra))
        found[name] = importlib.metadata.distribution(name)
        for text in found[name].requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                waiting += [(requirement.name, each) for each in ("", *requirement.extras)]
    assert not found.keys() & set(FORBIDDEN), f"the image would hold {found.keys() & set(FORBIDDEN)}"
    return dict(sorted(found.items()))


def _fingerprint(requirements: Path, linked: dict[str, importlib.metadata.Distribution]) -> str:
    parts = [sys.version, sys.base_prefix, requirements.read_text()]
    parts += [f"{name} {found.version} {Path(str(found.locate_file(''))).resolve()}" for name, found in linked.items()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _pip(root: Path, *arguments: str) -> None:
    command = [str(root / "bin" / "python"), "-I", "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    log.debug("%s\n%s", " ".join(command), done.stdout)
    if done.returncode:
        # sagemaker-training comes as source with a small C extension.
        raise RuntimeError(
            f"{root} can't be built: pip {arguments[0]} failed (installing needs the package index once, and a "
            f"C compiler): {done.stdout[-2000:]}"
        )


def _site_packages(root: Path) -> Path:
    places = {"base": str(root), "platbase": str(root)}
    return Path(sysconfig.get_path("purelib", scheme="venv", vars=places))


def _python_script(path: Path) -> str | None:
    """Text of a Python script after the lines that start Python, or None for any other file."""
    with path.open("rb") as file:
        start = PYTHON_START.match(file.read(8192))
        if start is None:
            return None
        file.seek(start.end())
        return file.read().decode()
