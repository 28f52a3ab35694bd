"""The software of a container: a stand-in for an image of AWS, and an environment of its own for each container.

The image is a virtual environment built once. pip installs what is pinned. The other packages are links into the
environment of this process, so torch is not downloaded twice. Each container gets an environment that looks through to
the image, so that the toolkit's `pip install -r requirements.txt` changes that container alone.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lightning_modules.locks import KernelLock

PYTHON_START = re.compile(rb"#!(.*python[0-9.]*[ \t]*|/bin/sh\n'''exec' .*\n' ''')\n")
"""The first line of a script of Python, or the three lines that pip writes where the interpreter's path is long."""
VENV = Path("/opt/container-venv")
"""Where a container with its own /opt has its environment: AWS's toolkit splits the command of pip at spaces, so the
path of the interpreter must have none. Not AWS's /opt/venv, which may hold this process's own packages."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Interpreter:
    """A Python that can make virtual environments."""

    path: Path
    version: str
    """Such as 3.12.1."""

    @classmethod
    def ask(cls, path: Path) -> Interpreter:
        """Run it once.

        Raises:
            ValueError: if it does not run, or can't make environments; the message ends with what it said.
        """
        code = "import ensurepip, json, platform, venv; print(json.dumps(platform.python_version()))"
        try:
            done = subprocess.run([path, "-I", "-c", code], capture_output=True, text=True, check=False, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ValueError(f"must be a Python that runs, got {path}: {error}") from error
        if done.returncode:
            said = (done.stderr.strip() or "it said nothing").splitlines()[-1]
            raise ValueError(f"must be a Python with venv and pip (Debian: python3-venv), got {path}: {said}")
        return cls(path, json.loads(done.stdout))

    @property
    def minor(self) -> str:
        """Such as 3.12: what compiled packages are made for."""
        return ".".join(self.version.split(".")[:2])

    @property
    def fits_own_packages(self) -> bool:
        """Whether it can import the compiled packages of this process's environment."""
        return self.minor == f"{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True)
class Contents:
    """What an image has."""

    pinned: tuple[str, ...]
    """Requirements that pip installs, without what they require."""
    linked: tuple[str, ...]
    """Packages of this process's environment: links to them, and to all that they require and `pinned` lacks."""
    lacks: tuple[str, ...] = ()
    """Packages that it must not have."""


def read_pins(requirements: Path) -> tuple[str, ...]:
    """The requirements in a file, without its comments."""
    lines = requirements.read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if line and not line.startswith("#"))


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
        _run(self.root / "bin" / "python", "venv", "--symlinks", "--without-pip", str(root))
        # As Python reads it in a container, whose locale is C.UTF-8.
        (_site_packages(root) / "image.pth").write_text(f"{self.site_packages}\n", encoding="utf-8")
        # The kernel takes no interpreter whose path has a space or 128 characters (255 since Linux 5.1), so a shell
        # starts it. To Python, the shell's lines are a string.
        interpreter = f"#!/bin/sh\n'''exec' {shlex.quote(str(seen_at / 'bin' / 'python'))} \"$0\" \"$@\"\n' '''\n"
        for command in (self.root / "bin").iterdir():
            target = root / "bin" / command.name
            # The image's own scripts would run in the image and miss what was installed later.
            if command.is_file() and not target.exists() and (script := _python_script(command)) is not None:
                target.write_text(interpreter + script)
                target.chmod(0o755)


def build_image(folder: Path, contents: Contents, interpreter: Interpreter) -> Image:
    """Build an image under `folder`, or find the one built before.

    Raises:
        RuntimeError: if pip can't install what is pinned; the message ends with what pip said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = _closure(contents)
    # Resolved last: the image itself may be a link, and a container sees where it leads.
    root = (folder / f"image-{_fingerprint(contents, found, interpreter)}").resolve()
    complete = root / "complete"
    with KernelLock(Path(f"{root}.lock")):
        if not complete.exists():
            _build(root, contents, found, interpreter)
            complete.touch()
    return Image(root)


def _build(
    root: Path, contents: Contents, linked: dict[str, importlib.metadata.Distribution], interpreter: Interpreter
) -> None:
    started = time.monotonic()
    log.info(
        "building %s (once): pip installs %d packages for Python %s, and %d are links",
        *(root, len(contents.pinned), interpreter.version, len(linked)),
    )
    shutil.rmtree(root, ignore_errors=True)
    _run(interpreter.path, "venv", "--symlinks", str(root))
    python = root / "bin" / "python"
    if "setuptools" in linked:  # Python 3.11 puts an old one beside pip
        _pip(python, "uninstall", "--yes", "setuptools")
    requirements = root / "requirements.txt"
    requirements.write_text("".join(f"{line}\n" for line in contents.pinned))
    _pip(python, "install", "--no-deps", "--requirement", str(requirements))
    # Linking comes last: pip must never write or remove anything through a link.
    for distribution in linked.values():
        _link(distribution, root)
    # What is missing here, pip would install into every single container.
    _pip(python, "check")
    log.info("built %s in %.0f s", root, time.monotonic() - started)


def _link(distribution: importlib.metadata.Distribution, root: Path) -> None:
    site_packages = _site_packages(root)
    for file in distribution.files or ():
        if file.parts[0] == "..":
            target = root / "bin" / file.name
            if file.parts[-2] == "bin" and not target.exists():
                target.symlink_to(Path(str(distribution.locate_file(file))).resolve())
        elif file.parts[0] != "__pycache__":
            _link_first(Path(str(distribution.locate_file(""))), file.parts, site_packages)


def _link_first(source: Path, parts: tuple[str, ...], target: Path) -> None:
    """Link the first part of a path that `target` lacks: a folder such as `google` may belong to several packages."""
    for part in parts:
        source, target = source / part, target / part
        if target.is_symlink():
            return
        if not target.exists():
            target.symlink_to(source.resolve())
            return
    # What pip installed under the same name would be hidden.
    raise AssertionError(f"{target} is installed and linked: it must be one of them")


def _closure(contents: Contents) -> dict[str, importlib.metadata.Distribution]:
    """Distributions to link by name: what is named, with all that it requires here, but for what is installed."""
    installed = {canonicalize_name(Requirement(line).name) for line in contents.pinned}
    found: dict[str, importlib.metadata.Distribution] = {}
    # torch asks for cuda-toolkit with extras; what they add has to be found by pip in a job, or it downloads it again.
    seen: set[tuple[str, str]] = set()
    waiting = [(name, "") for name in contents.linked]
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
    assert not found.keys() & set(contents.lacks), f"the image would have {found.keys() & set(contents.lacks)}"
    return dict(sorted(found.items()))


def is_installed(name: str) -> bool:
    """Whether this process's environment has a package."""
    return next(iter(importlib.metadata.distributions(name=name)), None) is not None


def fits_each_python(name: str) -> bool:
    """Whether an installed package has nothing that is compiled for one version of Python."""
    wheel = importlib.metadata.distribution(name).read_text("WHEEL") or ""
    return re.search(r"^Tag: py3-none-", wheel, re.MULTILINE) is not None


def _fingerprint(
    contents: Contents, linked: dict[str, importlib.metadata.Distribution], interpreter: Interpreter
) -> str:
    parts = [interpreter.version, str(interpreter.path.resolve()), *contents.pinned]
    parts += [f"{name} {found.version} {Path(str(found.locate_file(''))).resolve()}" for name, found in linked.items()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _pip(python: Path, *arguments: str) -> None:
    # sagemaker-training comes as source with a small C extension.
    _run(python, "pip", "--disable-pip-version-check", *arguments, hint=" (needs the package index, and a C compiler)")


def _run(python: Path, module: str, *arguments: str, hint: str = "") -> None:
    """Run a module of a Python, without its user's packages and variables.

    Raises:
        RuntimeError: if it fails, with the end of its output.
    """
    command = [str(python), "-I", "-m", module, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    log.debug("%s\n%s", " ".join(command), done.stdout)
    if done.returncode:
        said = done.stdout[-2000:]
        raise RuntimeError(f"a container's environment can't be made: {shlex.join(command)} failed{hint}: {said}")


def _site_packages(root: Path) -> Path:
    """Of a virtual environment, whose Python may be another than this one."""
    (found,) = root.glob("lib/python*/site-packages")
    return found


def _python_script(path: Path) -> str | None:
    """Text of a Python script after the lines that start Python, or None for any other file."""
    with path.open("rb") as file:
        start = PYTHON_START.match(file.read(8192))
        if start is None:
            return None
        file.seek(start.end())
        return file.read().decode()
