"""AWS's inference container with Ray Serve: AWS's own start script and adapter on an unpacked model archive.

`sagemaker_entrypoint.sh.txt` and `sagemaker_serve.py.txt` are AWS's files as they are: github.com/aws/deep-learning-
containers, scripts/docker/ray, commit e0ecede (2026-08-21), Apache-2.0, "Copyright 2020 Amazon.com, Inc. or its
affiliates. All Rights Reserved." They listen on fixed ports of all interfaces, and Ray runs the code of everybody who
reaches its ports. So the container has a network of its own, which needs root.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from sagemaker_launch.rehearsal.endpoints.aws_server import AwsServer
from sagemaker_launch.rehearsal.machine.container import bind_environment, environment_folders
from sagemaker_launch.rehearsal.machine.image import VENV, Contents, Image, read_pins
from sagemaker_launch.rehearsal.machine.namespaces import SYSTEM_PATH, Namespaces, own_folder, own_tmp

PORT = 8080
"""Of AWS's adapter."""
START_SECONDS = 180.0
"""It may take this long to answer /ping: AWS's script pauses for 15 s, and a busy machine of two cores took 45 s."""
LINKED = ("boto3", "numpy", "pillow", "torch", "torchvision")
"""Packages of AWS's image that are linked from this environment, with their requirements that it does not pin."""
REQUIREMENTS = Path(__file__).with_name("ray_serve.txt")
"""Further packages, installed by pip."""
FILES = ("sagemaker_entrypoint.sh", "sagemaker_serve.py")
"""Of AWS; the folder /app of its image has the second one."""


def contents() -> Contents:
    """What AWS's Ray Serve image has for our model, with the Python and the PyTorch of this process."""
    return Contents(read_pins(REQUIREMENTS), LINKED, ("mlflow", "moto"))


def start(
    tree: Path, model: Path, image: Image, namespaces: Namespaces, environment: Mapping[str, str] | None = None
) -> AwsServer:
    """Start a server.

    Args:
        tree: a folder for this server alone.
        model: the unpacked archive, which becomes /opt/ml/model.
        environment: of the request that makes the model.

    Raises:
        RuntimeError: if this user may not give it a network, or the machine lacks curl.
    """
    tree = tree.resolve()
    require_machine(namespaces)
    for folder in ("tmp", "home"):
        (tree / folder).mkdir(parents=True)
    variables = container_environment(tree) | dict(environment or {})
    lines = ["ip link set lo up", *init_script(tree, model, image, ())]
    # AWS's script is a shell as PID 1, which ignores SIGTERM.
    return AwsServer(tree, lines, variables, namespaces, PORT, own_network=True, grace_seconds=0)


def require_machine(namespaces: Namespaces) -> None:
    """Check what the container needs of this machine.

    Raises:
        RuntimeError: naming what is missing.
    """
    if not namespaces.root:
        raise RuntimeError("AWS's Ray Serve needs a network of its own: start it as root")
    if shutil.which("curl", path=SYSTEM_PATH) is None:
        raise RuntimeError("AWS's script for Ray Serve needs the program curl: install it")


def init_script(tree: Path, model: Path, image: Image, keep: Sequence[Path]) -> list[str]:
    """Make the environment in `tree/venv`, and the shell lines that turn fresh namespaces into the container.

    Args:
        keep: more folders that stay visible if they are below /tmp.
    """
    if not (tree / "venv").exists():
        image.make_environment(tree / "venv", VENV)
    app = tree / "app"
    app.mkdir(exist_ok=True)
    for name in FILES:
        text = Path(__file__).with_name(f"{name}.txt").read_text(encoding="utf-8")
        # The one change: the image's folder /app is one of this machine's.
        (app / name).write_text(text.replace(f"/app/{FILES[1]}", shlex.quote(str(app / FILES[1]))), encoding="utf-8")
    place = shlex.quote(str(model.resolve()))
    return [
        "set -e",
        # Ray looks its own address up by the host's name, which may lead out of this network.
        "hostname localhost",
        *own_folder(Path("/opt"), tree),
        "rm -f /opt/ml && mkdir -p /opt/ml/model",
        f"mount -n --bind {place} /opt/ml/model",
        "mount -n -o remount,bind,ro /opt/ml/model",
        *bind_environment(tree),
        *own_tmp(tree, (*environment_folders(image), model.resolve(), *keep)),
        f"cd {shlex.quote(str(app))}",
        f"exec bash {FILES[0]} serve",
    ]


def container_environment(tree: Path) -> dict[str, str]:
    """The variables of AWS's image, and a limit for Ray's shared memory."""
    return {
        "PATH": f"{VENV / 'bin'}:{SYSTEM_PATH}",
        "HOME": str(tree / "home"),
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "DLC_CONTAINER_TYPE": "inference",
        "SM_MODEL_DIR": "/opt/ml/model",
        # Otherwise a third of this machine's memory. Requests and answers do not pass through it.
        "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(100 * 1024**2),
    }
