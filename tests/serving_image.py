"""Builds our serving image without a Docker engine, as a folder for `rehearse --serving-root`.

    python -m tests.serving_image FOLDER --device cuda

needs root, some 30 GB of disk, and Debian's buildah and debootstrap. debootstrap makes the base that stands for
`python:3.11-slim-bookworm`, as no registry of images is asked. For cpu the variable TORCH_INDEX names the index of
PyTorch's builds without CUDA, as in the Dockerfile. Without it the image has PyTorch with CUDA and OpenVINO: it
serves as the real one does, but is five times larger.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Literal

from sagemaker_launch.shipping.images import DOCKERFILE
from tests.conftest import REPOSITORY

Device = Literal["cpu", "cuda"]
DISK_BYTES = 30_000_000_000
"""The image has 6 GB, and is copied for each step that buildah's driver vfs keeps."""
BASE = "standin/python:3.11-slim-bookworm"
BASE_DOCKERFILE = """FROM scratch
ADD base.tar /
ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin
"""
PIP_FILES = ("/etc/ssl/certs", "/etc/pip.conf")
"""How pip reaches its index on this machine; mounted for the build, not kept in the image."""


def why_not(folder: Path) -> str | None:
    """Why the image can't be built here, or None."""
    for program in ("buildah", "debootstrap"):
        if shutil.which(program) is None:
            return f"needs {program} (Debian: apt-get install buildah debootstrap)"
    if os.geteuid() != 0:
        return "needs root, as debootstrap does"
    if (free := shutil.disk_usage(folder).free) < DISK_BYTES:
        return f"needs {DISK_BYTES / 1e9:.0f} GB of disk, there are {free / 1e9:.0f}"
    return None


class Builder:
    """buildah with a storage of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        for name in ("storage", "run", "tmp"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def buildah(self, *arguments: str) -> str:
        """Run a command, and return its standard output."""
        storage = ["--root", str(self.folder / "storage"), "--runroot", str(self.folder / "run")]
        command = ["buildah", "--storage-driver", "vfs", *storage, *arguments]
        environment = {**os.environ, "TMPDIR": str(self.folder / "tmp")}
        return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()

    def build(self, device: Device) -> Path:
        """Build the image, from a checkout as umask 077 leaves it.

        Returns:
            A folder for `--serving-root`.
        """
        self._build_base()
        checkout, image = self._checkout(device), self.folder / device
        mounts = [word for path in PIP_FILES if Path(path).exists() for word in ("--volume", f"{path}:{path}:ro")]
        values = {"BASE": BASE, "DEVICE": device}
        if device == "cpu":
            values["TORCH_INDEX"] = os.environ.get("TORCH_INDEX", (self.folder / "no-packages").as_uri())
        given = [word for name, value in values.items() for word in ("--build-arg", f"{name}={value}")]
        docker = ["--isolation", "chroot", "--format", "docker"]
        file = ["--file", str(checkout / DOCKERFILE), str(checkout)]
        self.buildah("bud", *docker, *mounts, *given, "--tag", f"serving:{device}", *file)
        image.mkdir()
        (image / "inspect.json").write_text(self.buildah("inspect", "--type", "image", f"serving:{device}"))
        container = self.buildah("from", f"serving:{device}")
        (image / "rootfs").symlink_to(self.buildah("mount", container))
        return image

    def remove(self) -> None:
        """Delete all that was built."""
        self.buildah("rm", "--all")
        self.buildah("rmi", "--all", "--force")
        shutil.rmtree(self.folder)

    def _build_base(self) -> None:
        context = self.folder / "base"
        context.mkdir()
        packages = "python3,python3-venv,python3-pip,python-is-python3,ca-certificates"
        files = self.folder / "base-files"
        subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(files)],
            stdout=subprocess.DEVNULL,
            check=True,
        )
        left_out = ["--exclude=./var/cache/apt/archives/*", "--exclude=./var/lib/apt/lists/*"]
        subprocess.run(
            ["tar", "--numeric-owner", *left_out, "-C", str(files), "-cf", str(context / "base.tar"), "."], check=True
        )
        shutil.rmtree(files)
        (context / "Dockerfile").write_text(BASE_DOCKERFILE)
        self.buildah("bud", "--isolation", "chroot", "--format", "docker", "--tag", BASE, str(context))
        shutil.rmtree(context)

    def _checkout(self, device: Device) -> Path:
        checkout = self.folder / "checkout"
        for package in ("lightning_modules", "sagemaker_launch"):
            shutil.copytree(REPOSITORY / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__"))
        if device == "cpu" and "TORCH_INDEX" not in os.environ:
            serving = checkout / "sagemaker_launch" / "serving"
            others = [
                line for line in _lines(serving / "requirements-cpu.txt") if "+cpu" not in line and "-r" not in line
            ]
            both = [*_lines(serving / "requirements-cuda.txt"), *others]
            (serving / "requirements-cpu.txt").write_text("\n".join(both) + "\n")
        for path in checkout.rglob("*"):
            path.chmod(0o700 if path.is_dir() else 0o600)
        return checkout


def unpacked_bytes(folder: Path) -> int:
    """Bytes of the files of an image."""
    [size, _] = subprocess.run(
        ["du", "--summarize", "--block-size=1", f"{folder / 'rootfs'}/"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.split(maxsplit=1)
    return int(size)


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines()


def main() -> None:
    """Build one image and print what it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True)
    if (reason := why_not(arguments.folder)) is not None:
        parser.error(reason)
    started = time.monotonic()
    image = Builder(arguments.folder).build(arguments.device)
    config = json.loads((image / "inspect.json").read_text())["Docker"]["config"]
    print(
        f"{image}: {unpacked_bytes(image) / 1e9:.2f} GB in {time.monotonic() - started:.0f} s, {config['Entrypoint']}"
    )


if __name__ == "__main__":
    main()
