"""The serving process as an endpoint runs it, on a free port of this machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

from tests.conftest import REPOSITORY
from tests.mutations import Attack
from tests.warm import WarmProcess

PROGRAM = "sagemaker_launch.serving"
SERVER = (sys.executable, "-m", PROGRAM)


@dataclass(frozen=True)
class Server:
    """A running server."""

    process: subprocess.Popen[bytes] | WarmProcess
    url: str
    log: Path

    def post(self, body: object, content_type: str = "image/jpeg", **headers: str) -> requests.Response:
        """POST /invocations; a generator as body is sent in chunks."""
        return requests.post(
            f"{self.url}/invocations", data=body, headers={"Content-Type": content_type, **headers}, timeout=60
        )

    def ping(self) -> requests.Response:
        return requests.get(f"{self.url}/ping", timeout=10)

    def metric(self, name: str) -> float:
        """A figure of /metrics; 0 if it does not stand there yet."""
        text = requests.get(f"{self.url}/metrics", timeout=10).text
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def wait_for(self, text: str, seconds: float = 60) -> str:
        """Wait until the log has a line with `text`, and return it."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for line in self.log.read_text().splitlines(keepends=True):
                if text in line and line.endswith("\n"):
                    return line.rstrip("\n")
            assert self.process.poll() is None, f"it has ended: {self.log.read_text()}"
            time.sleep(0.02)
        raise AssertionError(f"no {text!r} in {self.log.read_text()}")

    def processes(self) -> list[psutil.Process]:
        """The server and its children, which decode."""
        first = psutil.Process(self.process.pid)
        return [first, *first.children(recursive=True)]

    def memory(self) -> int:
        """Bytes that the processes hold now; pages that they share count for each."""
        return sum(int(one.memory_info().rss) for one in self.processes())

    def peak_memory(self) -> int:
        """Most bytes that each of the processes ever held, together."""
        return sum(_peak(one.pid) for one in self.processes())


def _peak(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


@contextmanager
def serving(
    base: Path,
    log: Path,
    *,
    command: tuple[str, ...] | None = None,
    folder: Path = REPOSITORY,
    ready: bool = True,
    **variables: str,
) -> Iterator[Server]:
    """Run the server on the export `base/model`.

    Args:
        log: file that gets all that it says.
        command: how it is started; by default from a process that has imported PyTorch.
        ready: whether to wait until it answers.
        variables: further settings.
    """
    environment = environ(SAGEMAKER_BASE_DIR=str(base), **variables)
    process: subprocess.Popen[bytes] | WarmProcess
    if command is None:
        process = WarmProcess(PROGRAM, (), folder=folder, environment=environment, out=log, err=log)
    else:
        with log.open("wb") as file:
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        server = Server(process, "", log)
        url = server.wait_for("listening at ").rpartition(" ")[2]
        server = Server(process, url, log)
        if ready:
            server.wait_for("ready at ")
        yield server
    finally:
        process.kill()
        process.wait()


def environ(**variables: str) -> Mapping[str, str]:
    """What a server's environment is: this one's, loopback, a free port."""
    return os.environ | {"SERVING_HOST": "127.0.0.1", "SAGEMAKER_BIND_TO_PORT": "0", **variables}


def attack(session: requests.Session, url: str, one: Attack) -> requests.Response:
    """Send a request that nobody means well."""
    headers = {
        "Content-Type": one.content_type.encode(),
        "Accept": one.accept.encode(),
        "X-Amzn-SageMaker-Custom-Attributes": one.attributes.encode(),
    }
    return session.post(f"{url}/invocations", data=one.body, headers=headers, timeout=60)
