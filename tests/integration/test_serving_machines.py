"""Our server on the machines of SageMaker: from this environment where a machine lacks most, and from its image.

The image takes minutes and 30 GB of disk. `SERVING_IMAGE=FOLDER` names one that `python -m tests.serving_image` built.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import stat
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from sagemaker_launch.rehearsal.endpoints.ports import free_ports
from sagemaker_launch.rehearsal.machine.image_root import UNKNOWN_USER, ImageRoot
from sagemaker_launch.rehearsal.machine.namespaces import SYSTEM_PATH, Process, find_namespaces
from sagemaker_launch.serving.settings import STOP_SECONDS
from sagemaker_launch.shipping.archive import pack_model
from sagemaker_launch.shipping.images import MANIFEST
from tests.conftest import REPOSITORY
from tests.integration.test_rehearsal import Rehearsal, rehearsal
from tests.integration.test_rehearsal_endpoints import INSTANCES, config, delete, invoke, lines, model, wait
from tests.serving_image import Builder, unpacked_bytes, why_not
from tests.unit.lightning_modules.test_export import export, tiny_network

pytestmark = pytest.mark.slow
SERVERLESS = {"ServerlessConfig": {"MemorySizeInMB": 4096, "MaxConcurrency": 2}}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A container's folder with a model."""
    (tmp_path / "tree" / "tmp").mkdir(parents=True)
    export(tiny_network(), tmp_path / "tree" / "model")
    return tmp_path / "tree"


def golden(folder: Path) -> tuple[bytes, list[float]]:
    """The photo of an export, and its scores."""
    logits = json.loads((folder / "golden" / "scores.json").read_text())["logits"]
    return (folder / "golden" / "image.jpg").read_bytes(), logits


def readable(init_script: list[str]) -> list[str]:
    """The same script, in which any user may enter the folders that contain this environment."""
    homes = {Path(name).resolve() for name in (sys.prefix, sys.base_prefix, REPOSITORY)}
    entered = sorted({str(folder) for home in homes for folder in (home, *home.parents)})
    if any(Path(folder).stat().st_dev != Path("/").stat().st_dev for folder in entered):
        pytest.skip("needs its environment on the same file system as /")
    if not (Path(sys.prefix) / "pyvenv.cfg").stat().st_mode & stat.S_IROTH:
        pytest.skip("needs an environment that other users can read")
    mounted = next(number for number, line in enumerate(init_script) if " -t overlay " in line) + 1
    modes = [f"chmod a+rx root{shlex.quote(folder)}" for folder in entered]
    return [*init_script[:mounted], *modes, *init_script[mounted:]]


@pytest.mark.parametrize("writable", [True, False], ids=["tmp", "nothing_writable"])
def test_our_server_answers_where_a_serverless_machine_lacks_most(tree: Path, writable: bool) -> None:
    namespaces = find_namespaces()
    if namespaces is None or not namespaces.root:
        pytest.skip("needs Linux namespaces of root, who can become another user")
    python = Path(sys.executable).parent.resolve() / Path(sys.executable).name
    command = [str(python), "-m", "sagemaker_launch.serving", "serve"]
    image = ImageRoot(Path("/"), command[:-1], {"PATH": SYSTEM_PATH}, str(REPOSITORY), 0, 0, "/")
    script = readable(image.init_script(tree, tree / "model", command, serverless=True))
    if not writable:
        script = [line for line in script if "bind tmp" not in line]
    [port] = free_ports()
    environment = {
        "PATH": SYSTEM_PATH,
        "SAGEMAKER_BIND_TO_PORT": str(port),
        "SERVING_HOST": "127.0.0.1",
        "PYTHONDONTWRITEBYTECODE": "1",
        **dict(variable.split("=") for variable in docker_variables()),
    }
    shell = [*namespaces.command, "sh", "-c", "\n".join(["set -e", *script])]
    process = Process(shell, tree, environment, in_namespaces=True)
    try:
        url, until = f"http://127.0.0.1:{port}", time.monotonic() + 120
        while not answers(url):
            assert process.exit_code() is None, process.output.read().decode()
            assert time.monotonic() < until
            time.sleep(0.1)
        server = process.first_process()
        assert psutil.Process(server).uids().real == UNKNOWN_USER
        photo, logits = golden(tree / "model")
        reply = requests.post(f"{url}/invocations", data=photo, headers={"Content-Type": "image/jpeg"}, timeout=60)
        assert (reply.status_code, reply.json()) == (200, [pytest.approx(logits, abs=1e-4)])
        process.terminate()
        assert process.wait(STOP_SECONDS + 2) == 0
    finally:
        process.kill()
        process.output.close()


def docker_variables() -> list[str]:
    """What the Dockerfile sets for PyTorch."""
    text = (REPOSITORY / "sagemaker_launch" / "serving" / "Dockerfile").read_text()
    found = [word for word in text.split() if word.startswith("TORCHINDUCTOR_")]
    assert len(found) == 1
    return found


def answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/ping", timeout=2).status_code == 200
    except (requests.ConnectionError, requests.Timeout):  # it may have no core while it compiles the network
        return False


def test_a_server_from_an_image_ends_with_the_rehearsal_that_is_killed(tree: Path) -> None:
    namespaces = find_namespaces()
    if namespaces is None or not namespaces.root:
        pytest.skip("needs Linux namespaces of root, who can become another user")
    image = ImageRoot(Path("/"), ["sleep"], {"PATH": SYSTEM_PATH}, "/", 1000, 1000, "/")
    script = image.init_script(tree, tree / "model", ["sleep", "1000"], serverless=False)
    shell = [*namespaces.command, "sh", "-c", "\n".join(["set -e", *script])]
    process = Process(shell, tree, {"PATH": SYSTEM_PATH}, in_namespaces=True)
    sleeping = psutil.Process(process.first_process())
    until = time.monotonic() + 20
    while sleeping.name() != "sleep":
        assert time.monotonic() < until
        time.sleep(0.02)
    psutil.Process(sleeping.ppid()).kill()  # `unshare`, which a killed rehearsal takes along
    sleeping.wait(10)
    process.kill()
    process.output.close()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of our image with PyTorch's CUDA libraries, which come from the package index."""
    if built := os.environ.get("SERVING_IMAGE"):
        yield Path(built)
        return
    folder = tmp_path_factory.mktemp("image")
    if (reason := why_not(folder)) is not None:
        pytest.skip(reason)
    builder = Builder(folder)
    try:
        yield builder.build("cuda")
    finally:
        builder.remove()


@pytest.mark.timeout(3600)
def test_the_image_is_one_of_docker_s_that_any_user_can_read(image: Path) -> None:
    described = json.loads((image / "inspect.json").read_text())
    assert json.loads(described["Manifest"])["mediaType"] == MANIFEST
    container = described["Docker"]["config"]
    assert container["Entrypoint"] == ["python", "-m", "sagemaker_launch.serving"]
    assert (container["User"], container["Cmd"]) == ("serving", ["serve"])
    assert container["Healthcheck"]["Test"][0] == "CMD"
    assert container["Labels"]["com.amazonaws.sagemaker.capabilities.accept-bind-to-port"] == "true"
    hidden = [
        path
        for folder, _, names in os.walk(image / "rootfs" / "opt")
        for path in (Path(folder), *(Path(folder) / name for name in names))
        if not path.is_symlink() and not path.stat().st_mode & stat.S_IROTH
    ]
    assert hidden == []
    print(f"{unpacked_bytes(image) / 1e9:.2f} GB unpacked")


@pytest.fixture(scope="module")
def server(image: Path, job_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    """A rehearsal whose endpoints run from the image, and the archive of an export."""
    options = ("--serving-root", str(image), "--health-check-timeout", "300", "--grace", "15")
    folder = tmp_path_factory.mktemp("export")
    archive = pack_model(export(tiny_network(), folder / "model"), folder / "model.tar.gz")
    with rehearsal(tmp_path_factory.mktemp("rehearsal"), *options) as running:
        running.client("s3").put_object(Bucket="bucket", Key="export.tar.gz", Body=archive.read_bytes())
        yield running


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("variant", "user"), [(INSTANCES, 1000), (SERVERLESS, UNKNOWN_USER)])
def test_an_endpoint_serves_from_the_image(
    image: Path, server: Rehearsal, variant: Mapping[str, Any], user: int
) -> None:
    content = server.client("s3").get_object(Bucket="bucket", Key="export.tar.gz")["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(content)) as packed:
        photo, scores = (packed.extractfile(f"golden/{name}") for name in ("image.jpg", "scores.json"))
        assert photo is not None and scores is not None
        body, logits = photo.read(), json.loads(scores.read())["logits"]
    started = time.monotonic()
    model(server, "ours", "rehearsal.local/serving:1", "export.tar.gz")
    config(server, "ours", "ours", dict(variant))
    server.client("sagemaker").create_endpoint(EndpointName="ours", EndpointConfigName="ours")
    told = wait(server, "ours", seconds=300)
    assert told["EndpointStatus"] == "InService", (told.get("FailureReason"), lines(server, "ours"))
    cold = time.monotonic() - started
    for _ in range(3):
        assert json.loads(invoke(server, "ours", body)["Body"].read()) == [pytest.approx(logits, abs=1e-4)]
    running = [one for one in psutil.process_iter(["cmdline", "uids"]) if serves(one) and one.uids().real == user]
    memory = sum(one.memory_full_info().pss for one in running)
    assert running
    engine = "OpenVINO" if any(image.glob("rootfs/opt/packages/lib/python3*/site-packages/openvino")) else "PyTorch"
    until = time.monotonic() + 10
    while not any(line.startswith(f"engine {engine}") for line in lines(server, "ours")):  # the log follows
        assert time.monotonic() < until, lines(server, "ours")
        time.sleep(0.1)
    delete(server, "ours")
    print(f"{cold:.1f} s to InService, {memory / 1e6:.0f} MB, user {user}")


def serves(process: psutil.Process) -> bool:
    """Whether a process is a server that SageMaker would have started in an image."""
    return process.info["cmdline"] == ["python", "-m", "sagemaker_launch.serving", "serve"]
