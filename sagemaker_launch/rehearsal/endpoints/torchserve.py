"""AWS's PyTorch inference container: TorchServe, started by AWS's toolkit on an unpacked model archive.

The toolkit writes to /etc, takes /opt/ml/model for the model, and refuses to run beside another TorchServe that it can
see. So it runs in Linux namespaces, and only there, with the network of this machine: it answers on 127.0.0.1.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import requests

from sagemaker_launch.rehearsal.machine.container import bind_environment, environment_folders
from sagemaker_launch.rehearsal.machine.image import VENV, Contents, Image
from sagemaker_launch.rehearsal.machine.namespaces import SYSTEM_PATH, Namespaces, Process, own_folder, own_tmp

LINKED = (
    "boto3",
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
)
"""Packages of AWS's inference container that are linked from this environment, with their requirements."""
REQUIREMENTS = Path(__file__).with_name("torchserve.txt")
"""Further packages, installed by pip."""


def contents() -> Contents:
    """What AWS's inference image has, made after that for PyTorch 2.6, with the Python of this process."""
    lines = REQUIREMENTS.read_text().splitlines()
    return Contents(tuple(line for line in lines if line and not line.startswith("#")), LINKED, ("mlflow", "moto"))


# What the entry of AWS's image does for `serve`; source: github.com/aws/deep-learning-containers,
# pytorch/inference/docker/build_artifacts/torchserve-entrypoint.py, and its Dockerfile for 2.6 (2025-11).
ENTRY = "from sagemaker_pytorch_serving_container import serving; serving.main()"


class TorchServe:
    """A running server; used as a context manager."""

    def __init__(
        self,
        tree: Path,
        model: Path,
        image: Image,
        namespaces: Namespaces,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start it; `wait_until_ready` waits for it.

        Args:
            tree: a folder for this server alone.
            model: the unpacked archive, which becomes /opt/ml/model.
            environment: of the request that makes the model, as SAGEMAKER_MODEL_SERVER_WORKERS.

        Raises:
            RuntimeError: if this machine lacks Java.
        """
        self.tree = tree = tree.resolve()
        for folder in ("tmp", "home"):
            (tree / folder).mkdir(parents=True)
        ports = free_ports()
        self.url = f"http://127.0.0.1:{ports[0]}"
        script = init_script(tree, model, image, ())
        (tree / "init.sh").write_text("\n".join(script) + "\n")
        self._process = Process(
            [*namespaces.command, "sh", str(tree / "init.sh")],
            tree / "home",
            container_environment(tree, ports) | dict(environment or {}),
            in_namespaces=True,
        )
        self._lines: deque[str] = deque(maxlen=5_000)  # a dozen per request
        self._reader = threading.Thread(target=self._read, name="torchserve log")
        self._reader.start()

    def __enter__(self) -> TorchServe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def log(self) -> str:
        """Its last lines of output."""
        return "".join(self._lines)

    @property
    def pid(self) -> int:
        """Number of its first process on this machine."""
        return self._process.first_process()

    def wait_until_ready(self, timeout_seconds: float = 120) -> None:
        """Wait until it answers a photo: `/ping` says 200 before the model is loaded.

        Raises:
            RuntimeError: if it ended, or at the time limit; the message ends with its last lines.
        """
        until = time.monotonic() + timeout_seconds
        while time.monotonic() < until and self._process.exit_code() is None:
            try:
                # Only the model's own code says so to a request without a content type.
                answer = requests.post(f"{self.url}/invocations", data=b"", timeout=timeout_seconds)
                if answer.status_code == 415:
                    return
            except requests.ConnectionError:
                pass
            time.sleep(0.2)
        raise RuntimeError(f"TorchServe did not start:\n{self.log[-4000:]}")

    def stop(self, grace_seconds: float = 20) -> None:
        """Send SIGTERM, as AWS does, and SIGKILL after the grace period."""
        self._process.terminate()
        self._process.wait(grace_seconds)
        self._process.kill()
        self._reader.join()

    def _read(self) -> None:
        with self._process.output as output:
            for line in output:
                self._lines.append(line.decode(errors="replace"))


def init_script(tree: Path, model: Path, image: Image, keep: Sequence[Path]) -> list[str]:
    """Make the environment in `tree/venv`, and the shell lines that turn fresh namespaces into the container.

    Args:
        keep: more folders that stay visible if they are below /tmp.
    """
    if not (tree / "venv").exists():
        image.make_environment(tree / "venv", VENV)
    place = shlex.quote(str(model.resolve()))
    return [
        "set -e",
        *own_folder(Path("/opt"), tree),
        "rm -f /opt/ml && mkdir -p /opt/ml/model",
        f"mount -n --bind {place} /opt/ml/model",
        *bind_environment(tree),
        *own_folder(Path("/etc"), tree),
        *own_tmp(tree, (*environment_folders(image), model.resolve(), *keep)),
        f"cd {shlex.quote(str(tree / 'home'))}",
        f"exec python -c {shlex.quote(ENTRY)}",
    ]


def container_environment(tree: Path, ports: Sequence[int]) -> dict[str, str]:
    """The variables of AWS's image and of the service; nothing of this process but where Java is.

    Raises:
        RuntimeError: if this machine lacks Java.
    """
    port, grpc_port, grpc_management_port, metrics_port = ports
    url = f"http://127.0.0.1:{port}"
    java = shutil.which("java")
    if java is None:
        raise RuntimeError("TorchServe needs Java 11 or newer: install it (Debian: default-jre-headless)")
    return {
        "PATH": f"{VENV / 'bin'}:{Path(java).parent}:{SYSTEM_PATH}",
        "HOME": str(tree / "home"),
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONIOENCODING": "UTF-8",
        "PYTHONUNBUFFERED": "1",
        "DLC_CONTAINER_TYPE": "inference",
        "TEMP": "/tmp",
        "MKL_THREADING_LAYER": "GNU",
        "SAGEMAKER_MODEL_SERVER_WORKERS": str(os.cpu_count()),
        "SAGEMAKER_BIND_TO_PORT": str(port),
        # AWS's image listens on all interfaces, and for gRPC and metrics on ports that two servers can't share.
        "TS_INFERENCE_ADDRESS": url,
        "TS_MANAGEMENT_ADDRESS": url,
        "TS_METRICS_ADDRESS": f"http://127.0.0.1:{metrics_port}",
        "TS_GRPC_INFERENCE_PORT": str(grpc_port),
        "TS_GRPC_MANAGEMENT_PORT": str(grpc_management_port),
        # AWS's toolkit lets everybody who reaches the port load a model from any URL, which is code. A container of
        # AWS is alone in its network, but these addresses are open to each web page and user of this machine.
        "TS_ENABLE_MODEL_API": "false",
    }


def free_ports() -> list[int]:
    """Ports for HTTP, gRPC, gRPC management and metrics."""
    with ExitStack() as held:
        return [held.enter_context(_free_port()).getsockname()[1] for _ in range(4)]


def _free_port() -> socket.socket:
    """A socket bound to a free port, which is reserved until the socket is closed."""
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    return held
