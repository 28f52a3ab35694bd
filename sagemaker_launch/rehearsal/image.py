"""The software of a job: a stand-in for AWS's PyTorch training container image, and an environment of its own a job.

The image is a virtual environment built once. torch and the other large packages are links into the environment of this
process, so nothing is downloaded twice; AWS's toolkit is installed beside them. Each job gets an empty environment that
looks through to the image, so that the toolkit's `pip install -r requirements.txt` changes that job alone.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LINKED = (
    "boto3",
    "cryptography",
    "numpy",
    "packaging",
    "pillow",
    "psutil",
    "pyyaml",
    "requests",
    "scipy",
    "six",
    "torch",
    "torchvision",
    "werkzeug",
)
"""Packages of AWS's container that are linked from this environment, with all that they require."""
REQUIREMENTS = Path(__file__).with_name("image.txt")
FORBIDDEN = ("mlflow", "optuna", "pytorch-lightning", "moto")
"""What AWS's container lacks: a job that needs one of these has to bring it."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Image:
    """A built image."""

    root: Path

    @property
    def site_packages(self) -> Path:
        """Where its packages are."""
        return _site_packages(self.root)

    def make_environment(self, root: Path) -> None:
        """Make the environment of one job: the image's packages and commands, and room for the job's own."""
        venv.EnvBuilder(symlinks=True, with_pip=False).create(root)
        (_site_packages(root) / "image.pth").write_text(f"{self.site_packages}\n")
        interpreter = f"#!{root / 'bin' / 'python'}\n"
        for command in (self.root / "bin").iterdir():
            target = root / "bin" / command.name
            # The image's own scripts would run in the image and miss what the job installed.
            if not target.exists() and (script := _python_script(command)) is not None:
                target.write_text(interpreter + script)
                target.chmod(0o755)


def build_image(folder: Path) -> Image:
    """Build the image under `folder`, or find the one built before.

    Raises:
        RuntimeError: if pip can't install the toolkit; the message ends with what pip said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    linked = _closure(LINKED)
    root = folder.resolve() / f"image-{_fingerprint(linked)}"
    complete = root / "complete"
    with FileLock(f"{root}.lock"):
        if not complete.exists():
            _build(root, linked)
            complete.touch()
    return Image(root)


def _build(root: Path, linked: dict[str, importlib.metadata.Distribution]) -> None:
    started = time.monotonic()
    log.info("building the job image (once, about half a minute): the container toolkit and links to torch and others")
    shutil.rmtree(root, ignore_errors=True)
    venv.EnvBuilder(symlinks=True, with_pip=True).create(root)
    # Python 3.11 puts an old setuptools beside pip; torch's is linked in its place.
    _pip(root, "uninstall", "--yes", "setuptools")
    _pip(root, "install", "--no-deps", "--requirement", str(REQUIREMENTS))
    # Linking comes last: pip must never write or remove anything through a link.
    for distribution in linked.values():
        _link(distribution, root)
    # What is missing here, pip would install into every single job.
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
            assert not target.exists(), f"{target} is installed and linked: move it from image.txt to LINKED or back"
        target.symlink_to(source)


def _closure(names: tuple[str, ...]) -> dict[str, importlib.metadata.Distribution]:
    """Distributions by name, with all that they require here."""
    found: dict[str, importlib.metadata.Distribution] = {}
    # torch asks for cuda-toolkit with extras; what they add has to be found by pip in a job, or it downloads it again.
    seen: set[tuple[str, str]] = set()
    waiting = [(name, "") for name in names]
    while waiting:
        name, extra = waiting.pop()
        name = canonicalize_name(name)
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        found[name] = importlib.metadata.distribution(name)
        for text in found[name].requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                waiting += [(requirement.name, each) for each in ("", *requirement.extras)]
    assert not found.keys() & set(FORBIDDEN), f"the image would hold {found.keys() & set(FORBIDDEN)}"
    return dict(sorted(found.items()))


def _fingerprint(linked: dict[str, importlib.metadata.Distribution]) -> str:
    parts = [sys.version, sys.base_prefix, REQUIREMENTS.read_text()]
    parts += [f"{name} {found.version} {found.locate_file('')}" for name, found in linked.items()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _pip(root: Path, *arguments: str) -> None:
    command = [str(root / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    log.debug("%s\n%s", " ".join(command), done.stdout)
    if done.returncode:
        # sagemaker-training comes as source with a small C extension.
        raise RuntimeError(
            f"the job image can't be built: pip {arguments[0]} failed (installing needs the package index once, and a "
            f"C compiler): {done.stdout[-2000:]}"
        )


def _site_packages(root: Path) -> Path:
    places = {"base": str(root), "platbase": str(root)}
    return Path(sysconfig.get_path("purelib", scheme="venv", vars=places))


def _python_script(path: Path) -> str | None:
    """Text of a Python script after its first line, or None for any other file."""
    with path.open("rb") as file:
        first = file.readline(4096)
        if re.match(rb"#!.*python[0-9.]*\s*$", first) is None:
            return None
        return file.read().decode()
