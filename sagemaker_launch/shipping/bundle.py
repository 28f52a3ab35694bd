"""The code of a job: a `sourcedir.tar.gz` that is the same, byte for byte, whenever it is made of the same files."""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import io
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

import sagemaker_launch
from experiments.console import say
from experiments.errors import UserError
from lightning_modules.files import replaced_whole
from lightning_modules.locks import KernelLock
from sagemaker_launch.shipping.import_graph import import_graph
from sagemaker_launch.shipping.secret_scan import refuse_secrets

ENTRY = "entry.py"
REQUIREMENTS = "requirements.txt"
ENTRY_MODULE = "sagemaker_launch.container.entry"
ENTRY_SCRIPT = f"""from lightning_modules.startup import start_fast

start_fast()

from {ENTRY_MODULE} import main

main()
"""
SMDEBUG = "smdebug==1.0.34"
PYTHONS = ("3.11", "3.12", "3.13")
"""Interpreters for which packages travel with a job that has no network: the image decides which one it is."""


@dataclass(frozen=True)
class Bundle:
    """The archive and its name's hash."""

    archive: bytes
    sha256: str


def make_bundle(wheels: Path | None = None, debugger: Path | None = None) -> Bundle:
    """Pack what ships.

    Args:
        wheels: a folder of packages to install without a network.
        debugger: the wheel of smdebug, for a job that is debugged.

    Raises:
        UserError: if a file holds what looks like a secret.
    """
    files = shipped_files() | (_with_wheels(wheels) if wheels else {})
    return pack(files | (_unpacked(debugger) if debugger else {}))


def shipped_files() -> dict[str, bytes]:
    """What a job gets: path in the archive to content.

    These are the modules that the entry imports, and an empty `__init__.py` for each package: an edit of any other
    file changes no job's name, so it starts no new job. What else is in the folders (checkpoints of notebooks, nested
    environments) is not shipped.

    Raises:
        UserError: if a module is a link to a file outside its package.
    """
    files = {f"{name.replace('.', '/')}.py": _source(name, path) for name, path in import_graph(ENTRY_MODULE).items()}
    packages = {folder.as_posix() for name in files for folder in Path(name).parents[:-1]}
    files |= {f"{package}/__init__.py": b"" for package in packages}
    files[ENTRY] = ENTRY_SCRIPT.encode()
    files[REQUIREMENTS] = requirements_file().read_bytes()
    return files


def _source(name: str, path: Path) -> bytes:
    """The source of a module.

    Raises:
        UserError: if it is a link out of its package.
    """
    package = path.parents[name.count(".") - 1]
    if not path.resolve().is_relative_to(package.resolve()):
        raise UserError(f"{path} must be a file in {package}, not a link to one elsewhere: copy the file there")
    return path.read_bytes()


def requirements_file() -> Path:
    """The packages of a job, each with the range of versions that it accepts in its image."""
    return Path(sagemaker_launch.__file__).parent / "container" / REQUIREMENTS


def pack(files: Mapping[str, bytes]) -> Bundle:
    """Put files into a .tar.gz that depends on their names and contents only.

    Raises:
        UserError: if a file holds what looks like a secret.
    """
    refuse_secrets({name: content for name, content in files.items() if not name.endswith(".whl")})
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", filename="", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return Bundle(packed.getvalue(), hashlib.sha256(packed.getvalue()).hexdigest())


def requirements() -> list[Requirement]:
    """The packages of a job."""
    lines = requirements_file().read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def wheel_pins() -> list[str]:
    """The versions that travel with a job without network: of what has a range, those of this machine.

    So the bundle does not depend on what was published last.

    Raises:
        UserError: if the version of this machine is out of the range.
    """
    pins = []
    for needed in requirements():
        pin = next((each.version for each in needed.specifier if each.operator == "=="), None)
        version = pin or importlib.metadata.version(needed.name)
        if not needed.specifier.contains(version, prereleases=True):
            raise UserError(
                f"cloud.network_isolation sends this machine's packages: {needed.name} must be {needed.specifier}, got "
                f"{version}. Install one in this range: pip install '{needed}'"
            )
        pins.append(f"{needed.name}=={version}")
    return pins


def fetch_wheels(cache_dir: Path) -> Path:
    """Download the job's packages for every interpreter that the image may have, once.

    Raises:
        UserError: if a package of this machine is out of its range, or with pip's own message, if they are not
            available.
    """
    pins = wheel_pins()
    platforms = [f"--platform=manylinux{tag}_x86_64" for tag in ("2014", "_2_17", "_2_28")]
    content = " ".join([*PYTHONS, *platforms, *pins])
    folder = cache_dir / f"wheels-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
    cache_dir.mkdir(parents=True, exist_ok=True)
    with KernelLock(Path(f"{folder}.lock")):
        if folder.is_dir():
            return folder
        with replaced_whole(folder) as part:
            for python in PYTHONS:
                say(f"downloading the packages of a job without network, for Python {python}")
                what = [f"--python-version={python}", *platforms, *pins]
                _download(part, what, f"cloud.network_isolation needs the packages of {REQUIREMENTS}")
    return folder


def fetch_debugger(cache_dir: Path) -> Path:
    """Download the wheel of smdebug, once.

    Raises:
        UserError: with pip's own message, if it is not available.
    """
    folder = cache_dir / SMDEBUG.replace("==", "-")
    cache_dir.mkdir(parents=True, exist_ok=True)
    with KernelLock(Path(f"{folder}.lock")):
        if not folder.is_dir():
            with replaced_whole(folder) as part:
                _download(part, [SMDEBUG], f"a job that is debugged needs {SMDEBUG}")
    (wheel,) = folder.glob("*.whl")
    return wheel


def _download(folder: Path, what: Sequence[str], needed: str) -> None:
    """Have pip download wheels without what they require.

    Raises:
        UserError: with what was needed, and pip's own message.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", f"--dest={folder}", *what]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{needed}: {done.stderr.strip() or f'pip ended with {done.returncode} and said nothing'}")


def _unpacked(wheel: Path) -> dict[str, bytes]:
    """The files of an installed pure Python package, with its licence.

    Installing it would not do: it wants a protobuf that the toolkit in AWS's images can't work with.
    """
    with zipfile.ZipFile(wheel) as opened:
        return {name: opened.read(name) for name in opened.namelist() if not name.endswith("/")}


def _with_wheels(folder: Path) -> dict[str, bytes]:
    files = {f"wheels/{path.name}": path.read_bytes() for path in folder.glob("*.whl") if not path.is_symlink()}
    files[REQUIREMENTS] = b"--no-index\n--find-links wheels\n" + requirements_file().read_bytes()
    return files
