"""A real PostgreSQL on a free port of 127.0.0.1, from Debian's package."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Server:
    """A PostgreSQL that a test can stop and start."""

    url: str
    control: Callable[[str], None]
    """Takes start or stop; a stop is like a crash."""


def find_binaries() -> Path | None:
    """Where PostgreSQL's programs are; None if it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


@contextmanager
def running_server(binaries: Path) -> Iterator[Server]:
    """A server with an empty database, as long as it is entered."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # PostgreSQL refuses to run as root, and others may not enter pytest's folders.
    as_postgres = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []

    def run(*command: str) -> None:
        subprocess.run([*as_postgres, *command], check=True, cwd="/", stdout=subprocess.DEVNULL)

    with tempfile.TemporaryDirectory() as folder:
        if as_postgres:
            shutil.chown(folder, "postgres")
        run(f"{binaries}/initdb", "--pgdata", f"{folder}/data", "--auth", "trust", "--username", "tester", "--no-sync")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"

        def control(*arguments: str) -> None:
            run(f"{binaries}/pg_ctl", "--pgdata", f"{folder}/data", "--log", f"{folder}/log", *arguments)

        start = ("--options", options, "--wait", "start")
        control(*start)
        try:
            yield Server(
                f"postgresql+psycopg://tester:secret@127.0.0.1:{port}/postgres",
                lambda word: control(*start) if word == "start" else control("--mode", "immediate", "stop"),
            )
        finally:
            control("--mode", "immediate", "stop")
