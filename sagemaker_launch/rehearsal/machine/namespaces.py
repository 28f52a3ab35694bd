"""A process with a machine of its own: PID 1 of Linux namespaces, with files where a container would have them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

CLONE_NEWNET = 0x40000000
"""linux/sched.h"""
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Namespaces:
    """How a process gets a machine of its own here."""

    command: tuple[str, ...]
    """The call of `unshare`."""
    root: bool
    """Whether they are made by root, who can let two containers share a network."""


def find_namespaces() -> Namespaces | None:
    """Find out how to make namespaces here: as root, else as an ordinary user, else not at all."""
    # The probe does what a container's start does. `mount -n` keeps no record in /run/mount/utab: where that file
    # exists, an ordinary user's mounts end with an error, although they are made.
    probe = "mount -n -t tmpfs tmpfs /opt && hostname algo-1 && ip link set lo up"
    base = ("unshare", "--mount", "--pid", "--fork", "--uts", "--mount-proc", "--kill-child=SIGKILL")
    for command in (base, (*base, "--map-root-user")):
        try:
            done = subprocess.run(
                [*command, "--net", "sh", "-c", probe], env={"PATH": SYSTEM_PATH}, capture_output=True, check=False
            )
        except OSError:
            return None
        if done.returncode == 0:
            return Namespaces(command, root=command == base)
    return None


def own_folder(folder: Path, tree: Path) -> list[str]:
    """Shell lines that let a process add files to a folder of the system, which keeps none of them.

    The folder's own files show through links. They stay in `.host` inside the folder: `tree` may be one of them.
    """
    new, place = shlex.quote(str(tree / f"own-{folder.name}")), shlex.quote(str(folder))
    return [
        f"mkdir -p {new}",
        f"mount -n -t tmpfs tmpfs {new}",
        f"mkdir {new}/.host",
        f"mount -n --rbind {place} {new}/.host",
        f"for entry in {place}/* {place}/.[!.]*; do",
        f'    [ ! -e "$entry" ] || ln -s {place}/.host/"${{entry##*/}}" {new}/',
        "done",
        f"mount -n --move {new} {place}",
    ]


def own_tmp(tree: Path, keep: Sequence[Path]) -> list[str]:
    """Shell lines that put `tree/tmp` in the place of /tmp.

    Args:
        keep: folders beside `tree` that stay visible should they lie under /tmp. A link keeps the folder to which it
            leads: the link itself is kept with the folder that contains it. There must be an /opt of its own.
    """
    kept = [shlex.quote(str(path)) for path in _below_tmp([tree, *keep])]
    lines = []
    for number, path in enumerate(kept):
        lines += [f"mkdir -p /opt/keep/{number}", f"mount -n --rbind {path} /opt/keep/{number}"]
    lines.append(f"mount -n --bind {shlex.quote(str(tree))}/tmp /tmp")
    for number, path in enumerate(kept):
        lines += [f"mkdir -p {path}", f"mount -n --move /opt/keep/{number} {path}"]
    return lines + (["rm -rf /opt/keep"] if kept else [])


def socket_in_network(process: int) -> socket.socket:
    """A TCP socket in the network of another process, for root.

    Raises:
        OSError: if the process is gone, or this one may not enter its network.
    """
    library = ctypes.CDLL(None, use_errno=True)
    # A socket stays in the network in which it was made; a thread can be in another one than its process.
    with Path("/proc/thread-self/ns/net").open() as own, Path(f"/proc/{process}/ns/net").open() as other:
        _enter(library, other.fileno())
        try:
            return socket.socket()
        finally:
            _enter(library, own.fileno())


def _enter(library: ctypes.CDLL, namespace: int) -> None:
    if library.setns(namespace, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"can't enter a network namespace: {os.strerror(number)}")


class Process:
    """A running process and all that it starts; in namespaces it is PID 1 there."""

    def __init__(
        self, command: Sequence[str], working_folder: Path, environment: Mapping[str, str], *, in_namespaces: bool
    ) -> None:
        """Start it.

        Args:
            command: in namespaces the call of `unshare` around what shall be PID 1.
            environment: all of it; nothing is inherited.
        """
        if shutil.which("setpriv") is not None:
            # Should this process be killed outright, that one goes with it.
            command = ["setpriv", "--pdeathsig", "KILL", *command]
        self._in_namespaces = in_namespaces
        self._process = subprocess.Popen(
            command,
            cwd=working_folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # A Ctrl-C in this process's terminal is this process's to handle.
            start_new_session=True,
        )

    @property
    def output(self) -> IO[bytes]:
        """What it prints."""
        assert self._process.stdout is not None
        return self._process.stdout

    def exit_code(self) -> int | None:
        """Exit code of PID 1, or None before the end."""
        code = self._process.poll()
        # As a shell and Docker report a death by signal.
        return code if code is None or code >= 0 else 128 - code

    def wait(self, timeout: float) -> int | None:
        """Wait for the end, and return the exit code if it came."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        return self.exit_code()

    def terminate(self) -> None:
        """Send SIGTERM to PID 1."""
        # A process that is gone needs no signal.
        with contextlib.suppress(ProcessLookupError, TimeoutError):
            if not self._in_namespaces:
                os.killpg(self._process.pid, signal.SIGTERM)
            else:
                os.kill(self.first_process(), signal.SIGTERM)

    def first_process(self) -> int:
        """Number, on this machine, of the namespaces' PID 1.

        Raises:
            TimeoutError: if it does not come up.
        """
        parent = self._process.pid
        for _ in range(100):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
                if children:
                    return int(children[0])
            if self._process.poll() is not None:
                break
            time.sleep(0.02)
        raise TimeoutError("the namespaces have no process")

    def kill(self) -> None:
        """End all processes at once."""
        if self._in_namespaces and self._process.poll() is None:
            # With its PID 1 a namespace ends, and its parent only after the last process in it.
            with contextlib.suppress(ProcessLookupError, TimeoutError):
                os.kill(self.first_process(), signal.SIGKILL)
                self._process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            until = time.monotonic() + 5
            while time.monotonic() < until:
                os.killpg(self._process.pid, 0)
                time.sleep(0.01)


def _below_tmp(paths: Sequence[Path]) -> list[Path]:
    """Where paths lead below /tmp, without folders inside another one of them."""
    below = sorted({path.resolve() for path in paths if path.resolve().is_relative_to("/tmp")})
    return [path for path in below if not any(path != other and path.is_relative_to(other) for other in below)]
