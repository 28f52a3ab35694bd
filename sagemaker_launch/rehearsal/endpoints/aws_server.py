"""A container of one of AWS's inference images on a model's folder: what an endpoint runs, without the endpoint."""

from __future__ import annotations

import http.client
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from sagemaker_launch.rehearsal.endpoints.ports import connect
from sagemaker_launch.rehearsal.machine.namespaces import Namespaces, Process

REFUSALS = (400, 415)
"""What the model's own code answers to an empty body without a content type; AWS's adapter to Ray adds one."""


class AwsServer:
    """A running server; used as a context manager."""

    def __init__(
        self,
        tree: Path,
        script: Sequence[str],
        environment: Mapping[str, str],
        namespaces: Namespaces,
        port: int,
        *,
        own_network: bool = False,
        grace_seconds: float = 20,
    ) -> None:
        """Start it; `wait_until_ready` waits for it.

        Args:
            tree: its folder, with `home`.
            script: shell lines that turn fresh namespaces into the container and start the server.
            own_network: whether it has a network of its own (needs root) instead of this machine's.
            grace_seconds: between SIGTERM and SIGKILL.
        """
        self.tree, self.port, self._own_network, self._grace_seconds = tree, port, own_network, grace_seconds
        (tree / "init.sh").write_text("\n".join(script) + "\n")
        command = [*namespaces.command, "sh", str(tree / "init.sh")]
        command[1:1] = ["--net"] if own_network else []
        self._process = Process(command, tree / "home", environment, in_namespaces=True)
        self._lines: deque[str] = deque(maxlen=5_000)  # a dozen per request
        self._reader = threading.Thread(target=self._read, name="server log")
        self._reader.start()

    def __enter__(self) -> AwsServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Its address, in its network."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """Its last lines of output."""
        return "".join(self._lines)

    @property
    def pid(self) -> int:
        """Number of its first process on this machine."""
        return self._process.first_process()

    def connection(self, timeout_seconds: float = 120) -> http.client.HTTPConnection:
        """A connection to it, which opens with the first request."""
        return connect(self._process, self.port, timeout_seconds, own_network=self._own_network)

    def wait_until_ready(self, timeout_seconds: float = 120) -> None:
        """Wait until it answers a photo: `/ping` may say 200 before the model is loaded.

        Raises:
            RuntimeError: if it ended, or at the time limit; the message ends with its last lines.
        """
        until = time.monotonic() + timeout_seconds
        while time.monotonic() < until and self._process.exit_code() is None:
            if self._status() in REFUSALS:
                return
            time.sleep(0.2)
        raise RuntimeError(f"the server did not start:\n{self.log[-4000:]}")

    def stop(self) -> None:
        """Send SIGTERM, as AWS does, and SIGKILL after the grace period."""
        self._process.terminate()
        self._process.wait(self._grace_seconds)
        self._process.kill()
        self._reader.join()

    def _status(self) -> int:
        """Of the answer to an empty request; 0 while there is none."""
        connection = self.connection()
        try:
            connection.request("POST", "/invocations", b"")
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()

    def _read(self) -> None:
        with self._process.output as output:
            for line in output:
                self._lines.append(line.decode(errors="replace"))
