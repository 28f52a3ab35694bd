"""One container of an endpoint: a serving process on the unpacked archive, asked over HTTP as the service asks it.

Where Linux namespaces are allowed the model is read-only at /opt/ml/model; elsewhere it is in a relocated folder.
"""

from __future__ import annotations

import http.client
import io
import logging
import shlex
import shutil
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sagemaker_launch
from sagemaker_launch.aws.image_uris import repository_of
from sagemaker_launch.rehearsal.endpoints import ray_serve, torchserve
from sagemaker_launch.rehearsal.endpoints.ports import connect, free_ports
from sagemaker_launch.rehearsal.jobs.log import LogStream, Metrics, OutputReader
from sagemaker_launch.rehearsal.machine.container import OPT_ML, OWN_SCRIPT_IMAGE, environment_folders
from sagemaker_launch.rehearsal.machine.image import Contents, Image, Interpreter, build_image
from sagemaker_launch.rehearsal.machine.image_root import ImageRoot
from sagemaker_launch.rehearsal.machine.namespaces import SYSTEM_PATH, Process, own_folder, own_tmp
from sagemaker_launch.rehearsal.machine.objects import DataError, Uri
from sagemaker_launch.rehearsal.machine.runner import Machine

LOG_GROUP = "/aws/sagemaker/Endpoints/"
PACKAGES = Path(sagemaker_launch.__file__).resolve().parent.parent
STOP_SECONDS = 30.0
"""Time between SIGTERM and SIGKILL (AWS documentation of custom inference code, 2025)."""
POLL_SECONDS = 0.1
READABLE_FOLDER = 0o755
"""A container's user reads the folders of its model, whatever the umask of the rehearsal is."""
GPU = Path("/dev/nvidiactl")
"""Device file of NVIDIA's driver."""
NEEDS_GPU = "SERVING_DEVICE"
"""Variable by which the launcher says that the instance of an endpoint has a GPU."""

log = logging.getLogger(__name__)


class UnhealthyError(Exception):
    """The container never answered /ping; the message is the failure reason."""


@dataclass(frozen=True)
class Reply:
    """What a container answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class ServingSpec:
    """Settings of a container of an endpoint."""

    endpoint: str
    variant: str
    region: str
    container: Mapping[str, Any]
    """ContainerDefinition of the model."""
    isolated: bool
    """Whether it has only a loopback network, where that is possible."""
    role: str
    """ExecutionRoleArn of the model."""
    serverless: bool = False
    """Whether its machine is a serverless one, which lacks more than others do."""


class ServingProcess:
    """A container: unpack the archive, start, call, stop."""

    def __init__(self, tree: Path, spec: ServingSpec, machine: Machine) -> None:
        self._tree, self._spec, self._machine = tree, spec, machine
        self._process: Process | None = None
        self._reader: OutputReader | None = None
        self._port = 0

    @property
    def role(self) -> str:
        """The role as which it uses AWS."""
        return self._spec.role

    def prepare(self) -> None:
        """Download and unpack the model.

        Raises:
            DataError: with AWS's failure reason.
        """
        for folder in ("tmp", "home", "ml/model"):
            (self._tree / folder).mkdir(parents=True)
        (self._tree / "ml" / "model").chmod(READABLE_FOLDER)
        url = self._spec.container.get("ModelDataUrl")
        if url is not None:
            unpack(self._machine.objects.acting_as(self.role).get(Uri.parse(url)), self._tree / "ml" / "model", url)

    def start(self) -> None:
        """Start its process, or restart it."""
        namespaces = self._machine.namespaces
        lines, command, environment = self._what_runs()
        if namespaces is not None:
            script = self._tree / "init.sh"
            loopback = ["ip link set lo up"] if self._own_network else []
            script.write_text("\n".join(["set -e", *loopback, *lines, ""]))
            command = [*namespaces.command, "sh", str(script)]
            command[1:1] = ["--net"] if self._own_network else []
        spec, settings = self._spec, self._machine.settings
        stream = LogStream(
            settings.account,
            spec.region,
            LOG_GROUP + spec.endpoint,
            f"{spec.variant}/i-{time.time_ns():017x}",
        )
        self._process = Process(command, self._tree / "home", environment, in_namespaces=namespaces is not None)
        self._reader = OutputReader(self._process.output, Metrics(()), stream, settings.log_seconds)

    @property
    def running(self) -> bool:
        """Whether its process is alive."""
        return self._process is not None and self._process.exit_code() is None

    def wait_until_healthy(self, timeout_seconds: float, give_up: Callable[[], bool]) -> None:
        """Call /ping until it answers 200.

        Args:
            timeout_seconds: of the endpoint config; the rehearsal's own limit may be shorter.

        Raises:
            UnhealthyError: with AWS's message, if the process ends, at the time limit, or if `give_up` returns true.
        """
        until = time.monotonic() + min(timeout_seconds, self._start_seconds())
        while self.running and time.monotonic() < until and not give_up():
            if self._ping():
                return
            time.sleep(POLL_SECONDS)
        raise UnhealthyError(
            f"The primary container for production variant {self._spec.variant} did not pass the ping health check. "
            "Please check CloudWatch logs for this endpoint."
        )

    def ask(self, body: bytes, headers: Mapping[str, str], timeout_seconds: float) -> Reply:
        """Send a request to /invocations.

        Raises:
            OSError: if there is no answer, as TimeoutError if it took too long.
            http.client.HTTPException: if the process ends in the middle of it.
        """
        with self._connection(timeout_seconds) as connection:
            connection.request("POST", "/invocations", body, dict(headers))
            answer = connection.getresponse()
            return Reply(answer.status, dict(answer.headers.items()), answer.read())

    def stop(self, grace_seconds: float) -> None:
        """SIGTERM, after the grace period SIGKILL; delete the tree."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(grace_seconds)
        self.end()
        if not self._machine.settings.keep_trees:
            shutil.rmtree(self._tree.resolve(), ignore_errors=True)

    def end(self) -> None:
        """Kill the process, if there is one, and read its output to the end."""
        if self._process is not None:
            self._process.kill()
        if self._reader is not None:
            self._reader.join()
        self._process = self._reader = None

    def _start_seconds(self) -> float:
        """The rehearsal's limit for the first answer to /ping."""
        seconds = self._machine.settings.health_check_seconds
        return max(seconds, ray_serve.START_SECONDS) if self._repository == "ray" else seconds

    def _ping(self) -> bool:
        try:
            # AWS gives /ping two seconds.
            with self._connection(2) as connection:
                connection.request("GET", "/ping")
                return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False

    @contextmanager
    def _connection(self, timeout_seconds: float) -> Iterator[http.client.HTTPConnection]:
        process = self._process
        if process is None:
            raise ConnectionRefusedError("no process")
        connection = connect(process, self._port, timeout_seconds, own_network=self._own_network)
        try:
            yield connection
        finally:
            connection.close()

    @property
    def _own_network(self) -> bool:
        namespaces = self._machine.namespaces
        return (self._spec.isolated or self._repository == "ray") and namespaces is not None and namespaces.root

    @property
    def _repository(self) -> str:
        return repository_of(self._spec.container["Image"])

    def _what_runs(self) -> tuple[list[str], list[str], dict[str, str]]:
        """Mounts, command and environment of the model's image."""
        image, unpacked = self._spec.container["Image"], self._machine.settings.serving_root
        if image.startswith(OWN_SCRIPT_IMAGE):
            ml = OPT_ML if self._machine.namespaces is not None else self._tree / "ml"
            return self._of_this_environment(str(ml / "model" / "code" / "serve.py"))
        if self._repository == "pytorch-inference":
            return self._torchserve()
        if self._repository == "ray":
            return self._ray_serve()
        if unpacked is not None:
            return self._of_image(unpacked)
        return self._of_this_environment("-m", "sagemaker_launch.serving")

    def _of_image(self, image: ImageRoot) -> tuple[list[str], list[str], dict[str, str]]:
        """This project's server, as its image has it."""
        self._port = free_ports()[0]
        environment = {
            **image.machine_environment(serverless=self._spec.serverless),
            "SERVING_HOST": "127.0.0.1",
            **self._service_environment(),
        }
        # The script gets the system's PATH, and gives the image's to the command.
        environment["PATH"] = SYSTEM_PATH
        command = [*image.entrypoint, "serve"]
        lines = image.init_script(self._tree, self._tree / "ml" / "model", command, serverless=self._spec.serverless)
        return lines, command, environment

    def _of_this_environment(self, *arguments: str) -> tuple[list[str], list[str], dict[str, str]]:
        """This project's server, or a script in the archive, in the rehearsal's own environment."""
        self._port = free_ports()[0]
        # Only its folder is resolved: by the link itself, the interpreter of a virtual environment finds its packages.
        python = Path(sys.executable).parent.resolve() / Path(sys.executable).name
        command = [str(python), *arguments]
        environment = {
            "PATH": f"{python.parent}:{SYSTEM_PATH}",
            "PYTHONPATH": str(PACKAGES),
            "HOME": str(self._tree / "home"),
            "LANG": "C.UTF-8",
            "LC_ALL": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "SERVING_HOST": "127.0.0.1",
            **self._service_environment(),
        }
        if self._machine.namespaces is None:
            environment |= {"SAGEMAKER_BASE_DIR": str(self._tree / "ml"), "TMPDIR": str(self._tree / "tmp")}
        model = shlex.quote(str(self._tree / "ml" / "model"))
        keep = [self._machine.settings.root, PACKAGES, *environment_folders(self._machine.image)]
        lines = [
            *own_folder(Path("/opt"), self._tree),
            "rm -f /opt/ml && mkdir -p /opt/ml/model",
            f"mount -n --bind {model} /opt/ml/model",
            "mount -n -o remount,bind,ro /opt/ml/model",
            *own_tmp(self._tree, keep),
            "cd /",
            f"exec {shlex.join(command)}",
        ]
        return lines, command, environment

    def _torchserve(self) -> tuple[list[str], list[str], dict[str, str]]:
        """The same of AWS's image with TorchServe; raises DataError if it is not available."""
        with self._refusing_image():
            ports = free_ports(torchserve.PORTS)
            self._port = ports[0]
            environment = torchserve.container_environment(self._tree, ports) | self._service_environment()
            image = self._inference_image(torchserve.contents())
        model = self._tree / "ml" / "model"
        return torchserve.init_script(self._tree, model, image, [self._machine.settings.root]), [], environment

    def _ray_serve(self) -> tuple[list[str], list[str], dict[str, str]]:
        """The same of AWS's image with Ray Serve."""
        with self._refusing_image():
            assert self._machine.namespaces is not None
            ray_serve.require_machine(self._machine.namespaces)
            self._port = ray_serve.PORT
            environment = ray_serve.container_environment(self._tree) | self._service_environment()
            image = self._inference_image(ray_serve.contents())
        model = self._tree / "ml" / "model"
        return ray_serve.init_script(self._tree, model, image, [self._machine.settings.root]), [], environment

    def _inference_image(self, contents: Contents) -> Image:
        folder = self._machine.settings.inference_images
        assert folder is not None
        return build_image(folder, contents, Interpreter.ask(Path(sys.executable)))

    @contextmanager
    def _refusing_image(self) -> Iterator[None]:
        """While one of AWS's inference images is made ready.

        Raises:
            DataError: if it is not available here.
        """
        image, settings = self._spec.container["Image"], self._machine.settings
        if settings.inference_images is None or self._machine.namespaces is None:
            raise DataError(
                f"image {image} of AWS is rehearsed with --inference-images DIR and Linux namespaces only: start the "
                "rehearsal with it, or take rehearsal.local/serving"
            )
        try:
            yield
        except RuntimeError as error:
            raise DataError(f"image {image} can't be rehearsed: {error}") from error

    def _service_environment(self) -> dict[str, str]:
        """The variables of the service, and those of the model."""
        environment = {
            "AWS_REGION": self._spec.region,
            "AWS_DEFAULT_REGION": self._spec.region,
            **self._machine.keys.of(self.role).environment(),
            **self._given_environment(),
            # Containers share the loopback interface here, so none may use AWS's port 8080.
            "SAGEMAKER_BIND_TO_PORT": str(self._port),
        }
        return environment if self._spec.isolated else {**environment, "AWS_ENDPOINT_URL": self._machine.url}

    def _given_environment(self) -> dict[str, str]:
        """The variables of the model; without the need of a GPU, if that is rehearsed on a machine that has none."""
        given = dict(self._spec.container.get("Environment", {}))
        if self._machine.settings.without_gpu and given.get(NEEDS_GPU) == "cuda" and not GPU.exists():
            log.warning("endpoint %s is rehearsed without a GPU: it serves from the CPU", self._spec.endpoint)
            del given[NEEDS_GPU]
        return given


def extract_all(archive: tarfile.TarFile, folder: Path) -> None:
    """Extract an untrusted archive: nothing is written outside of a folder.

    Raises:
        tarfile.TarError: if a member is outside of it.
    """
    if hasattr(tarfile, "data_filter"):
        archive.extractall(folder, filter="data")
        return
    # Python before 3.11.4, as Debian 12 has it. Without links, a path says where a file is written.
    for member in archive.getmembers():
        target = (folder / member.name).resolve()
        if not (member.isreg() or member.isdir()) or not target.is_relative_to(folder.resolve()):
            raise tarfile.ExtractError(f"{member.name!r} is no file or folder below the archive's own")
    archive.extractall(folder)


def unpack(content: bytes, folder: Path, url: str) -> None:
    """Unpack an archive as the service does, with any content.

    Raises:
        DataError: with AWS's message, if it is not an archive.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            extract_all(archive, folder)
            named = {folder / entry.name for entry in archive.getmembers() if entry.isdir()}
        for path in folder.rglob("*"):
            if path.is_dir() and path not in named:
                path.chmod(READABLE_FOLDER)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(
            f'Failed to extract model data archive for container "container_1" from URL "{url}". Please ensure that '
            f"the object located at the URL is a valid tar.gz archive. ({error})"
        ) from error
