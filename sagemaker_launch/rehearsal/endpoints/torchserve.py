"""AWS's PyTorch inference container: TorchServe, started by AWS's toolkit on an unpacked model archive.

The toolkit writes to /etc, takes /opt/ml/model for the model, and refuses to run beside another TorchServe that it can
see. So it runs in Linux namespaces, and only there, with the network of this machine: it answers on 127.0.0.1.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from sagemaker_launch.rehearsal.endpoints.aws_server import AwsServer
from sagemaker_launch.rehearsal.endpoints.ports import free_ports
from sagemaker_launch.rehearsal.machine.container import bind_environment, environment_folders
from sagemaker_launch.rehearsal.machine.image import VENV, Contents, Image, read_pins
from sagemaker_launch.rehearsal.machine.namespaces import SYSTEM_PATH, Namespaces, own_folder, own_tmp

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
PORTS = 4
"""For HTTP, gRPC, gRPC management and metrics."""


def contents() -> Contents:
    """What AWS's inference image has, made after that for PyTorch 2.6, with the Python of this process."""
    return Contents(read_pins(REQUIREMENTS), LINKED, ("mlflow", "moto"))


# What the entry of AWS's image does for `serve`; source: github.com/aws/deep-learning-containers,
# pytorch/inference/docker/build_artifacts/torchserve-entrypoint.py, and its Dockerfile for 2.6 (2025-11).
ENTRY = "from sagemaker_pytorch_serving_container import serving; serving.main()"


def start(
    tree: Path, model: Path, image: Image, namespaces: Namespaces, environment: Mapping[str, str] | None = None
) -> AwsServer:
    """Start a server.

    Args:
        tree: a folder for this server alone.
        model: the unpacked archive, which becomes /opt/ml/model.
        environment: of the request that makes the model, as SAGEMAKER_MODEL_SERVER_WORKERS.

    Raises:
        RuntimeError: if this machine lacks Java.
    """
    tree = tree.resolve()
    ports = free_ports(PORTS)
    variables = container_environment(tree, ports) | dict(environment or {})
    for folder in ("tmp", "home"):
        (tree / folder).mkdir(parents=True)
    return AwsServer(tree, init_script(tree, model, image, ()), variables, namespaces, ports[0])


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
