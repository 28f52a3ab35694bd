"""Our serving image, as far as it can be known without a Docker engine: its files, its pins, what it copies at work."""

from __future__ import annotations

import fnmatch
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sagemaker_launch.shipping.images import DOCKERFILE, push_commands
from tests.conftest import REPOSITORY
from tests.servers import serving
from tests.unit.lightning_modules.test_export import export, tiny_network

ROOM = REPOSITORY / "sagemaker_launch" / "serving"


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with what follows them."""
    text = (REPOSITORY / DOCKERFILE).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def final_stage() -> list[tuple[str, str]]:
    found = instructions()
    last = max(index for index, (word, _) in enumerate(found) if word == "FROM")
    return found[last:]


def copied(steps: list[tuple[str, str]]) -> Iterator[tuple[Path, Path]]:
    """Each file of the repository that is copied, and where to."""
    for word, rest in steps:
        if word == "COPY" and not rest.startswith("--from="):
            *sources, target = (one for one in rest.split() if not one.startswith("--"))
            for source in sources:
                files = sorted(REPOSITORY.glob(source))
                assert files, f"the Dockerfile copies {source}, which is not there"
                yield from ((file.relative_to(REPOSITORY), Path(target) / file.name) for file in files)


def build(folder: Path) -> None:
    """Make the server's folder as BuildKit does from a checkout of umask 077.

    A folder that COPY creates gets the mode of `--chmod` (Docker 28.1 and newer; fsutil's copy/copy.go).
    """
    folder.mkdir(mode=0o755)
    for word, rest in final_stage():
        if word == "COPY":
            chosen = re.search(r"--chmod=([0-7]+)", rest)
            for file, target in copied([(word, rest)]):
                for parent in reversed(target.parents):
                    if not (folder / parent).is_dir():
                        (folder / parent).mkdir()
                        (folder / parent).chmod(int(chosen[1], 8) if chosen else 0o755)
                shutil.copy(REPOSITORY / file, folder / target)
                (folder / target).chmod(int(chosen[1], 8) if chosen else 0o600)
        elif word == "RUN" and rest.startswith(("chmod ", "mkdir ")):
            subprocess.run(shlex.split(rest), cwd=folder, check=True)


def pins(path: Path) -> dict[str, str]:
    """The versions that a requirements file names, with those that it includes."""
    found: dict[str, str] = {}
    for line in path.read_text().splitlines():
        if line.startswith("-r "):
            found |= pins(path.parent / line.removeprefix("-r "))
        elif line and not line.startswith(("#", "--")):
            name, version = line.split("==")
            found[canonicalize_name(name)] = version
    return found


def wanted(*names: str) -> set[str]:
    """All that packages want, on the image's machine."""
    machine = {"platform_system": "Linux", "sys_platform": "linux", "platform_machine": "x86_64"}
    seen: set[tuple[str, frozenset[str]]] = set()
    left: list[tuple[str, frozenset[str]]] = [(name, frozenset()) for name in names]
    while left:
        one = left.pop()
        if one in seen:
            continue
        seen.add(one)
        for requirement in map(Requirement, requires(one[0]) or []):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({**machine, "extra": extra}) for extra in one[1] or {""}):
                left.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return {name for name, _ in seen}


def test_nothing_is_copied_but_the_server_and_the_code_that_scores() -> None:
    files = {str(file) for file, _ in copied(final_stage())}
    assert files == {
        "lightning_modules/__init__.py",
        "lightning_modules/cores.py",
        "lightning_modules/inference.py",
        "lightning_modules/openvino_cpu.py",
        "sagemaker_launch/__init__.py",
        *(str(path.relative_to(REPOSITORY)) for path in ROOM.glob("*.py")),
    }


def test_all_that_is_copied_gets_past_the_ignore_file() -> None:
    rules = (REPOSITORY / f"{DOCKERFILE}.dockerignore").read_text().splitlines()
    allowed = [rule[1:] for rule in rules if rule.startswith("!")]
    assert "*" in rules
    for file, _ in copied(instructions()):
        assert any(fnmatch.fnmatch(str(file), rule) for rule in allowed), file


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_image_has_the_versions_that_are_tested_and_all_that_its_packages_want(device: str) -> None:
    found = pins(ROOM / f"requirements-{device}.txt")
    constraints = pins(REPOSITORY / "constraints.txt")
    for name, version in found.items():
        if name in constraints:
            assert version.removesuffix("+cpu") == constraints[name], name
    needed = wanted("torch", "torchvision", "pillow", "fastapi", "uvicorn", "prometheus-client")
    if device == "cpu":
        needed |= wanted("openvino", "packaging")
        needed = {name for name in needed if not name.startswith(("nvidia-", "cuda-", "triton"))}
    assert set(found) == needed


def test_any_user_reads_what_is_copied_from_a_checkout_of_any_umask(tmp_path: Path) -> None:
    build(tmp_path / "server")
    found = {path: oct(path.stat().st_mode & 0o777) for path in (tmp_path / "server").rglob("*")}
    assert found == {path: "0o755" if path.is_dir() else "0o644" for path in found}
    assert {path.parent.name for path in found} == {"server", "lightning_modules", "sagemaker_launch", "serving"}


def test_it_runs_as_nobody_in_particular_and_gets_signals_itself() -> None:
    steps = final_stage()
    assert [rest for word, rest in steps if word == "USER"] == ["serving"]
    words = [word for word, _ in steps]
    # Exec form: a shell would keep SIGTERM to itself.
    assert json.loads(dict(steps)["ENTRYPOINT"]) == ["python", "-m", "sagemaker_launch.serving"]
    assert json.loads(dict(steps)["CMD"]) == ["serve"]
    assert words.index("USER") < words.index("ENTRYPOINT")
    check = dict(steps)["HEALTHCHECK"].partition(" CMD ")[2]
    compile(json.loads(check)[2], "healthcheck", "exec")
    assert all(re.search(r":\d+\.\d+\.\d+", rest) for word, rest in instructions() if word == "ARG" and "BASE" in rest)


def test_what_is_copied_serves_alone(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    build(folder)
    (tmp_path / "ml").mkdir()
    export(tiny_network(), tmp_path / "ml" / "model")
    for path in (tmp_path / "ml").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    # Of both variants: this machine's PyTorch may be the one with CUDA.
    pinned = {*pins(ROOM / "requirements-cpu.txt"), *pins(ROOM / "requirements-cuda.txt")}
    entry = json.loads(dict(final_stage())["ENTRYPOINT"])
    assert entry[:2] == ["python", "-m"]
    code = (
        "import importlib.metadata, runpy, sys\n"
        f"sys.path.insert(0, {str(folder)!r})\n"
        # A package may import what its metadata does not name.
        "for name, owners in importlib.metadata.packages_distributions().items():\n"
        "    owned = {owner.lower().replace('_', '-') for owner in owners}\n"
        f"    if not owned & {pinned!r} and name not in ('lightning_modules', 'sagemaker_launch'):\n"
        "        sys.modules[name] = None\n"
        "import lightning_modules, sagemaker_launch\n"
        f"assert all(one.__file__.startswith({str(folder)!r}) for one in (lightning_modules, sagemaker_launch))\n"
        "sys.argv = ['server', 'serve']\n"
        f"runpy.run_module({entry[2]!r}, run_name='__main__', alter_sys=True)\n"
    )
    photo = (tmp_path / "ml" / "model" / "golden" / "image.jpg").read_bytes()
    scores = json.loads((tmp_path / "ml" / "model" / "golden" / "scores.json").read_text())
    command = (sys.executable, "-I", "-c", code)
    with serving(tmp_path / "ml", tmp_path / "log", command=command, folder=tmp_path) as server:
        assert server.ping().status_code == 200
        assert torch.cuda.is_available() or server.wait_for("engine OpenVINO")
        assert server.post(photo).json() == [pytest.approx(scores["logits"], abs=1e-4)]
        server.process.terminate()
        assert server.process.wait(timeout=10) == 0


def test_the_commands_build_and_push_one_image() -> None:
    uri = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/dogs-serving:0.1.0-cuda"
    login, create, build, check = push_commands(uri, "eu-west-1", "cuda", "dogs")
    assert f"--tag {uri}" in build
    assert "--build-arg DEVICE=cuda" in build
    assert "TORCH_INDEX" not in build
    assert "--build-arg TORCH_INDEX" in push_commands(uri, "eu-west-1", "cpu", "dogs")[2]
    assert shlex.quote(str(REPOSITORY / DOCKERFILE)) in build
    assert login.endswith("--password-stdin 123456789012.dkr.ecr.eu-west-1.amazonaws.com")
    assert "--repository-names dogs-serving" in create
    assert "--repository-name dogs-serving --image-ids imageTag=0.1.0-cuda" in check


def test_what_is_pushed_is_one_manifest_in_docker_s_format() -> None:
    build = shlex.split(push_commands("registry/dogs-serving:1-cpu", "eu-west-1", "cpu", "dogs")[2])
    assert build[:3] == ["docker", "buildx", "build"]
    options = dict(itertools.pairwise(build))
    assert options["--platform"] == "linux/amd64"  # one platform
    # BuildKit makes an index of several manifests of each kind of attestation, and OCI's media types by default.
    assert {"--provenance=false", "--sbom=false"} <= set(build)
    output = dict(one.split("=") for one in options["--output"].split(","))
    assert output == {"type": "image", "push": "true", "oci-mediatypes": "false"}
    assert not {"--load", "--push", "--annotation", "--attest"} & set(build)


@pytest.mark.parametrize(
    ("media_type", "code"),
    [
        ("application/vnd.docker.distribution.manifest.v2+json", 0),
        ("application/vnd.docker.distribution.manifest.list.v2+json", 1),
        ("application/vnd.oci.image.manifest.v1+json", 1),
        ("application/vnd.oci.image.index.v1+json", 1),
        ("None", 1),
    ],
)
def test_the_last_command_fails_if_sagemaker_would_refuse_what_was_pushed(
    tmp_path: Path, media_type: str, code: int
) -> None:
    aws = tmp_path / "aws"
    aws.write_text(f"#!/bin/sh\necho {media_type}\n")
    aws.chmod(0o755)
    check = push_commands("registry/dogs-serving:1-cpu", "eu-west-1", "cpu", "dogs")[3]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert subprocess.run(["bash", "-o", "pipefail", "-c", check], env=environment, check=False).returncode == code


def test_a_project_that_ecr_takes_no_name_from_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cloud\.project must be lower case"):
        push_commands("1.dkr.ecr.eu-west-1.amazonaws.com/My Dogs-serving:0.1.0-cpu", "eu-west-1", "cpu", "My Dogs")
