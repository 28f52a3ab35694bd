"""One container of a job: a process started by AWS's toolkit on an /opt/ml of its own.

Where Linux namespaces are allowed, the process is PID 1 on a real /opt/ml with the hostname `algo-1`, its own
/tmp and, under network isolation, no network but loopback. Elsewhere it runs on a relocated base folder.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sagemaker_launch.container.machines import REHEARSED_WITHOUT_GPU
from sagemaker_launch.rehearsal.keys import KeyPair
from sagemaker_launch.rehearsal.machine.image import VENV, Image
from sagemaker_launch.rehearsal.machine.namespaces import SYSTEM_PATH, Namespaces, Process, own_folder, own_tmp

OPT_ML = Path("/opt/ml")
TENSORS = "/opt/ml/output/tensors"
"""Where smdebug writes, unless LocalPath says otherwise."""
HOOK_CONFIG = "debughookconfig.json"
"""What the service tells smdebug."""
OWN_SCRIPT_IMAGE = "rehearsal.local/script"
"""Stands for an image of one's own: `train.py` of channel `code` runs, or `code/serve.py` of a model archive."""
OWN_SCRIPT = f"{OPT_ML}/input/data/code/train.py"


@dataclass(frozen=True)
class ContainerSpec:
    """What the service tells a container."""

    job_name: str
    job_arn: str
    region: str
    command: tuple[str, ...]
    """What runs: see `command_of`."""
    hyperparameters: Mapping[str, str]
    environment: Mapping[str, str]
    """Of the request."""
    channels: Mapping[str, Mapping[str, str]]
    """inputdataconfig.json."""
    instance_type: str
    hosts: Mapping[str, str]
    """Address by name, of all containers of the job, in the order in which they are told of each other."""
    host: str
    network_isolation: bool
    checkpoints: Path | None
    """Local checkpoint folder as the container sees it, below /opt/ml."""
    debug_hook: Mapping[str, Any] | None
    """DebugHookConfig; None for a job that Debugger does not watch."""
    endpoint_url: str
    """Of this server."""
    keys: KeyPair
    """Of the job's role."""
    may_lack_gpu: bool = False
    """Whether a job of a GPU instance may train on the CPU."""


class Container:
    """One container: build its tree, fill its channels, start it, stop it, collect what it left."""

    def __init__(
        self, tree: Path, spec: ContainerSpec, image: Image, namespaces: Namespaces | None, keep: Sequence[Path]
    ) -> None:
        """Lay out the tree of a container that has not started.

        Args:
            keep: folders outside the tree that stay visible should they lie under /tmp.
        """
        self.tree, self.spec = tree, spec
        self._image, self._namespaces, self._keep = image, namespaces, keep
        self._process: Process | None = None
        self.ml = tree / "ml"
        for folder in ("input/config", "input/data", "model", "output/data"):
            (self.ml / folder).mkdir(parents=True)
        for folder in ("tmp", "home"):
            (tree / folder).mkdir()
        if spec.checkpoints is not None:
            self.checkpoints.mkdir(parents=True)

    def is_writable(self, channel: str) -> bool:
        """Whether the job may change the files of a channel: those of mode File are its own, as on AWS."""
        return self._namespaces is None or self.spec.channels[channel]["TrainingInputMode"] == "File"

    @property
    def checkpoints(self) -> Path:
        """Where the job's checkpoint folder is on this machine."""
        assert self.spec.checkpoints is not None
        return self.ml / self.spec.checkpoints.relative_to(OPT_ML)

    @property
    def tensors(self) -> Path:
        """Where Debugger's tensors are on this machine; the job makes the folder."""
        assert self.spec.debug_hook is not None
        return self.ml / Path(self.spec.debug_hook.get("LocalPath", TENSORS)).relative_to(OPT_ML)

    def channel(self, name: str) -> Path:
        """Where a channel is on this machine."""
        return self.ml / "input" / "data" / name

    @property
    def started(self) -> bool:
        """Whether there has been a process."""
        return self._process is not None

    def start(self, first: Container | None = None) -> IO[bytes]:
        """Start the job's command and return its output.

        Args:
            first: the container whose network this one shares under isolation; None for the first one itself.
        """
        self._image.make_environment(self.tree / "venv", self._venv)
        self._write_config()
        if self._namespaces is not None:
            (self.tree / "init.sh").write_text(self._init_script())
            command = [*self._namespaces.command, "sh", str(self.tree / "init.sh")]
            if self.spec.network_isolation and first is None:
                command.insert(1, "--net")
            elif self.spec.network_isolation:
                assert first is not None
                command = ["nsenter", f"--net=/proc/{first.first_process()}/ns/net", *command]
        else:
            found = shutil.which(self.spec.command[0], path=self._environment()["PATH"])
            command = [found or self.spec.command[0], *map(self._relocated, self.spec.command[1:])]
        in_namespaces = self._namespaces is not None
        self._process = Process(command, self.tree / "home", self._environment(), in_namespaces=in_namespaces)
        return self._process.output

    def exit_code(self) -> int | None:
        """Exit code of PID 1, or None before the end."""
        return None if self._process is None else self._process.exit_code()

    def wait(self, timeout: float) -> int | None:
        """Wait for the end, and return the exit code if it came."""
        assert self._process is not None
        return self._process.wait(timeout)

    def terminate(self) -> None:
        """Send SIGTERM to PID 1, as AWS does before it takes a container away."""
        assert self._process is not None
        self._process.terminate()

    def first_process(self) -> int:
        """Number, on this machine, of the container's PID 1.

        Raises:
            TimeoutError: if it does not come up.
        """
        assert self._process is not None
        return self._process.first_process()

    def kill(self) -> None:
        """End all processes of the container at once, if there are any."""
        if self._process is not None:
            self._process.kill()

    def remove(self) -> None:
        """Delete the tree."""
        shutil.rmtree(self.tree)

    def failure(self) -> str:
        """What the job wrote to /opt/ml/output/failure: its first 1,024 characters."""
        path = self.ml / "output" / "failure"
        return path.read_text(errors="replace")[:1024] if path.is_file() else ""

    @property
    def _venv(self) -> Path:
        """Where its processes see the environment."""
        return self.tree / "venv" if self._namespaces is None else VENV

    def _write_config(self) -> None:
        spec = self.spec
        hyperparameters = dict(spec.hyperparameters)
        if self._namespaces is None:
            # The toolkit can't know that /opt/ml is elsewhere.
            hyperparameters = {name: self._relocated(value) for name, value in hyperparameters.items()}
        # algo-1 resolves only where this container has its own /etc/hosts.
        hosts = list(spec.hosts) if self._namespaces is not None else ["localhost"]
        group = {"instance_group_name": "homogeneousCluster", "instance_type": spec.instance_type, "hosts": hosts}
        resources: dict[str, Any] = {
            "current_host": spec.host if self._namespaces is not None else "localhost",
            "current_instance_type": spec.instance_type,
            "current_group_name": "homogeneousCluster",
            "hosts": hosts,
            "instance_groups": [group],
            # eth0 on AWS; here all containers share the loopback interface.
            "network_interface_name": "lo",
        }
        if spec.may_lack_gpu:
            resources[REHEARSED_WITHOUT_GPU] = True
        config = self.ml / "input" / "config"
        (config / "hyperparameters.json").write_text(json.dumps(hyperparameters))
        (config / "inputdataconfig.json").write_text(json.dumps(spec.channels))
        (config / "resourceconfig.json").write_text(json.dumps(resources))
        if spec.debug_hook is not None:
            path = self.tensors if self._namespaces is None else OPT_ML / self.tensors.relative_to(self.ml)
            (config / HOOK_CONFIG).write_text(json.dumps({**spec.debug_hook, "LocalPath": str(path)}))
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in spec.hosts.items())]
        (self.tree / "hosts").write_text("\n".join(lines) + "\n")

    def _relocated(self, text: str) -> str:
        """A path below /opt/ml as it is on this machine; any other text as it is."""
        return str(self.ml / Path(text).relative_to(OPT_ML)) if text.startswith(f"{OPT_ML}/") else text

    def _environment(self) -> dict[str, str]:
        """The variables of AWS's PyTorch container, the service's, and the request's; nothing of this process."""
        spec = self.spec
        environment = {
            "PATH": f"{self._venv / 'bin'}:{SYSTEM_PATH}",
            "HOME": str(self.tree / "home"),
            "LANG": "C.UTF-8",
            "LC_ALL": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONIOENCODING": "UTF-8",
            "PYTHONUNBUFFERED": "1",
            "DLC_CONTAINER_TYPE": "training",
            "SAGEMAKER_TRAINING_MODULE": "sagemaker_pytorch_container.training:main",
            "AWS_REGION": spec.region,
            "AWS_DEFAULT_REGION": spec.region,
            "TRAINING_JOB_NAME": spec.job_name,
            "TRAINING_JOB_ARN": spec.job_arn,
            "CURRENT_HOST": spec.host,
            **spec.keys.environment(),
            **spec.environment,
        }
        if not spec.network_isolation:
            # The toolkit reads the first, boto3 the second. They hold what the address "s3.amazonaws.com" is to AWS.
            environment |= {"S3_ENDPOINT_URL": spec.endpoint_url, "AWS_ENDPOINT_URL": spec.endpoint_url}
        if self._namespaces is None:
            environment |= {"SAGEMAKER_BASE_DIR": str(self.ml), "TMPDIR": str(self.tree / "tmp")}
            # smdebug looks below /opt/ml unless it is told otherwise.
            environment["SMDEBUG_CONFIG_FILE_PATH"] = str(self.ml / "input" / "config" / HOOK_CONFIG)
        return environment

    def _init_script(self) -> str:
        """The shell script that turns fresh namespaces into the container, and then becomes the job."""
        tree = shlex.quote(str(self.tree))
        lines = [
            "set -e",
            f"hostname {shlex.quote(self.spec.host)}",
            f"mount -n --bind {tree}/hosts /etc/hosts",
            *own_folder(Path("/opt"), self.tree),
            "rm -f /opt/ml && mkdir /opt/ml",
            f"mount -n --bind {tree}/ml /opt/ml",
            *bind_environment(self.tree),
        ]
        for name in self.spec.channels:
            if not self.is_writable(name):
                folder = shlex.quote(f"{OPT_ML}/input/data/{name}")
                lines += [f"mount -n --bind {folder} {folder}", f"mount -n -o remount,bind,ro {folder}"]
        lines += own_tmp(self.tree, self._keep)
        if self.spec.network_isolation:
            lines.append("ip link set lo up")
        return "\n".join([*lines, "cd /", f"exec {shlex.join(self.spec.command)}", ""])


def bind_environment(tree: Path) -> list[str]:
    """Shell lines that put `tree/venv` at `VENV`, in a container with an /opt of its own."""
    return [f"rm -f {VENV} && mkdir {VENV}", f"mount -n --bind {shlex.quote(str(tree / 'venv'))} {VENV}"]


def command_of(algorithm: Mapping[str, Any]) -> tuple[str, ...]:
    """What runs for an AlgorithmSpecification: its own entry point, a script alone, or the toolkit's `train`."""
    own_script = algorithm["TrainingImage"].startswith(OWN_SCRIPT_IMAGE)
    entry = algorithm.get("ContainerEntrypoint", ("python", OWN_SCRIPT) if own_script else ("train",))
    return (*entry, *algorithm.get("ContainerArguments", ()))


def environment_folders(image: Image) -> tuple[Path, ...]:
    """Folders that a job's environment reaches into, wherever the links of its image lead."""
    linked = {path.resolve().parent for path in image.site_packages.iterdir() if path.is_symlink()}
    base = (image.root / "bin" / "python").resolve().parents[1]
    return image.root, base, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve(), *sorted(linked)
