"""What a real Docker engine pushes for the commands of `image`: to a registry on loopback, a small image."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import requests

from sagemaker_launch.rehearsal.endpoints.ports import free_ports
from sagemaker_launch.shipping.images import MANIFEST, ROOT, push_commands

pytestmark = pytest.mark.slow
PROGRAMS = ("dockerd", "docker", "docker-registry")
INDEX = "application/vnd.oci.image.index.v1+json"
TYPES = (
    MANIFEST,
    INDEX,
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)


@contextlib.contextmanager
def running(command: list[str], environment: Mapping[str, str], ready: Callable[[], bool]) -> Iterator[None]:
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while not ready():
            assert process.poll() is None and time.monotonic() < until, f"{command[0]} did not start"
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(params=["engine's own store", "containerd's store"])
def engine(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Mapping[str, str]]:
    """The variables of a client of an engine, which keeps images in one of its two stores."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing or os.geteuid() != 0:
        pytest.skip("needs root, and of Debian 13 docker.io, docker-buildx and docker-registry")
    environment = {**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/docker.sock"}
    if subprocess.run(["docker", "buildx", "version"], env=environment, capture_output=True, check=False).returncode:
        pytest.skip("needs docker with its plugin buildx")
    in_containerd = request.param == "containerd's store"
    settings = {
        "features": {"containerd-snapshotter": in_containerd},
        "storage-driver": "native" if in_containerd else "vfs",
        "bridge": "none",
        "iptables": False,
        "ip6tables": False,
        "hosts": [environment["DOCKER_HOST"]],
        **{name: str(tmp_path / name) for name in ("data-root", "exec-root", "pidfile")},
    }
    (tmp_path / "daemon.json").write_text(json.dumps(settings))
    version = ["docker", "version"]
    with running(
        ["dockerd", "--config-file", str(tmp_path / "daemon.json")],
        environment,
        lambda: subprocess.run(version, env=environment, capture_output=True, check=False).returncode == 0,
    ):
        yield environment


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """The address of an empty registry."""
    address = f"127.0.0.1:{free_ports()[0]}"
    storage = {"filesystem": {"rootdirectory": str(tmp_path / "registry")}}
    file = tmp_path / "registry.yml"
    file.write_text(json.dumps({"version": "0.1", "storage": storage, "http": {"addr": address}}))

    def ready() -> bool:
        try:
            return requests.get(f"http://{address}/v2/", timeout=5).ok
        except requests.ConnectionError:
            return False

    with running(["docker-registry", "serve", str(file)], os.environ, ready):
        yield address


def test_docker_pushes_the_one_manifest_that_sagemaker_takes(
    engine: Mapping[str, str], registry: str, tmp_path: Path
) -> None:
    context = tmp_path / "context"
    context.mkdir()
    (context / "file").write_text("content")
    (context / "Dockerfile").write_text("FROM scratch\nARG DEVICE\nCOPY file /\n")
    build = shlex.split(push_commands(f"{registry}/dogs-serving:1-cuda", "eu-west-1", "cuda", "dogs")[2])
    assert build[-1] == str(ROOT)
    build[build.index("--file") + 1], build[-1] = str(context / "Dockerfile"), str(context)
    subprocess.run(build, env=engine, check=True)
    assert media_type(registry, "1-cuda") == MANIFEST
    # Without its options an engine with containerd's store pushes an index.
    careless = [word for word in build if word not in ("--provenance=false", "--sbom=false")]
    careless[careless.index("--tag") + 1] = f"{registry}/dogs-serving:careless"
    subprocess.run(careless, env=engine, check=True)
    in_containerd = json.loads((tmp_path / "daemon.json").read_text())["features"]["containerd-snapshotter"]
    assert media_type(registry, "careless") == (INDEX if in_containerd else MANIFEST)


def media_type(registry: str, tag: str) -> str:
    """What ECR would answer as imageManifestMediaType."""
    url = f"http://{registry}/v2/dogs-serving/manifests/{tag}"
    return requests.get(url, headers={"Accept": ",".join(TYPES)}, timeout=10).headers["Content-Type"]
