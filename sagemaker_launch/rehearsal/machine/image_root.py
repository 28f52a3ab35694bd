"""A container image as a folder, and shell lines that run it: its files below a layer that keeps changes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

DEVICES = ("null", "zero", "full", "random", "urandom")
"""Devices that every container has (OCI runtime specification, 'Default Devices')."""
SHARED_MEMORY = "64m"
"""Size of /dev/shm in a container that asks for none (Docker's default)."""
UNKNOWN_USER = 20_000
"""User and group of a serverless machine. No image has an account with this number."""


@dataclass(frozen=True)
class ImageRoot:
    """The files of an image, and how it starts."""

    files: Path
    """Root of its file system on this machine, which is not changed."""
    entrypoint: Sequence[str]
    environment: Mapping[str, str]
    working_folder: str
    user: int
    group: int
    home: str

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read an image that `docs/endpoints.md` tells how to unpack.

        Args:
            folder: has the files in `rootfs`, and in `inspect.json` what `docker inspect IMAGE` prints, or
                `buildah inspect --type image IMAGE`.

        Raises:
            ValueError: if a part is missing or is something else.
        """
        files, description = folder / "rootfs", folder / "inspect.json"
        next_step = "docs/endpoints.md has the commands that make the folder"
        if not files.is_dir():
            raise ValueError(f"--serving-root must have the image's files in rootfs, got {folder}: {next_step}")
        try:
            found = json.loads(description.read_text())
            config = found[0]["Config"] if isinstance(found, list) else found["Docker"]["config"]
            entrypoint = [str(word) for word in config["Entrypoint"]]
            environment = dict(line.split("=", 1) for line in config.get("Env") or ())
            working_folder, name = config.get("WorkingDir") or "/", str(config.get("User") or "0")
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"--serving-root must have the image's Config with an Entrypoint in inspect.json, got {description}: "
                f"{error!r}: {next_step}"
            ) from error
        user, group, home = _account(files, name)
        return cls(files.resolve(), entrypoint, environment, working_folder, user, group, home)

    def machine_environment(self, *, serverless: bool) -> dict[str, str]:
        """The image's variables, and HOME where its machine has one."""
        return {**self.environment} if serverless else {**self.environment, "HOME": self.home}

    def init_script(self, tree: Path, model: Path, command: Sequence[str], *, serverless: bool) -> list[str]:
        """Shell lines that turn fresh namespaces of root into the container, and then become the command.

        A serverless machine runs the image as a user that it does not know, without a home, on a read-only root and
        without /dev/shm.

        Args:
            tree: the container's own folder.
            model: becomes /opt/ml/model, which is read-only.
        """
        number, group = (UNKNOWN_USER, UNKNOWN_USER) if serverless else (self.user, self.group)
        path = self.environment.get("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        # Options of overlay can't have every path, so they are relative to the tree.
        lines = [
            "umask 022",
            f"cd {shlex.quote(str(tree))}",
            "mkdir -p files layer root && chmod 1777 tmp",
            f"mount -n --bind {shlex.quote(str(self.files))} files",
            "mount -n -t tmpfs tmpfs layer && mkdir layer/upper layer/work",
            "mount -n -t overlay overlay -o lowerdir=files,upperdir=layer/upper,workdir=layer/work root",
            "mkdir -p root/proc root/sys root/dev root/tmp root/opt/ml/model",
            "mount -n --rbind /proc root/proc && mount -n --rbind /sys root/sys",
            "mount -n -t tmpfs -o mode=755 tmpfs root/dev",
            *(f"touch root/dev/{name} && mount -n --bind /dev/{name} root/dev/{name}" for name in DEVICES),
            "ln -s /proc/self/fd root/dev/fd",
            *(f"ln -s /proc/self/fd/{number} root/dev/std{name}" for number, name in enumerate(("in", "out", "err"))),
            "mount -n --bind tmp root/tmp",
            f"mount -n --bind {shlex.quote(str(model))} root/opt/ml/model",
            "mount -n -o remount,bind,ro root/opt/ml/model",
        ]
        if serverless:
            lines += ["mount -n -o remount,ro root/dev && mount -n -o remount,ro root"]
        else:
            lines += [f"mkdir root/dev/shm && mount -n -t tmpfs -o mode=1777,size={SHARED_MEMORY} shm root/dev/shm"]
        # A change of the user clears the signal that ends a process with its parent, so `setpriv` sets it once more.
        user = ["setpriv", f"--reuid={number}", f"--regid={group}", "--clear-groups", "--pdeathsig=KILL", "--"]
        run = shlex.join(["--root=root", f"--wd={self.working_folder}", "--", *user, *command])
        return [*lines, f'exec env PATH={shlex.quote(path)} "$(command -v unshare)" {run}']


def _account(files: Path, name: str) -> tuple[int, int, str]:
    """Numbers of user and group, and home, of what an image names as its user.

    Raises:
        ValueError: if it has no such user.
    """
    user, _, group = name.partition(":")
    accounts = [line.split(":") for line in _lines(files / "etc" / "passwd")]
    found = next((account for account in accounts if user in (account[0], account[2])), ["", "", user, "0", "", "/"])
    groups = dict(line.split(":")[0:3:2] for line in _lines(files / "etc" / "group"))
    try:
        return int(found[2]), int(groups.get(group, group or found[3])), found[5]
    except ValueError:
        raise ValueError(
            f"--serving-root must have the image's user {name} in etc/passwd and etc/group of {files}"
        ) from None


def _lines(file: Path) -> list[str]:
    return [line for line in file.read_text().splitlines() if line.strip()] if file.is_file() else []
