"""An unpacked image: what it says about itself, as Docker and buildah print it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sagemaker_launch.rehearsal import server
from sagemaker_launch.rehearsal.faults import FaultSettings
from sagemaker_launch.rehearsal.machine.image_root import ImageRoot
from sagemaker_launch.rehearsal.machine.namespaces import Namespaces
from sagemaker_launch.rehearsal.machine.runner import Settings

CONFIG = {
    "User": "serving",
    "Env": ["PATH=/opt/packages/bin:/bin", "EQUATION=a=b"],
    "Entrypoint": ["python", "-m", "server"],
    "WorkingDir": "/opt/server",
}
PASSWD = "root:x:0:0:root:/root:/bin/sh\nserving:x:1000:1001:,,,:/home/serving:/bin/sh\n"
GROUP = "root:x:0:\nserving:x:1001:\nvideo:x:44:serving\n"


def unpacked(folder: Path, described: Any) -> Path:
    (folder / "rootfs" / "etc").mkdir(parents=True)
    (folder / "rootfs" / "etc" / "passwd").write_text(PASSWD)
    (folder / "rootfs" / "etc" / "group").write_text(GROUP)
    (folder / "inspect.json").write_text(described if isinstance(described, str) else json.dumps(described))
    return folder


@pytest.mark.parametrize(
    "described", [[{"Id": "1", "Config": CONFIG}], {"Type": "image", "Docker": {"config": CONFIG}}]
)
def test_what_docker_and_buildah_print_is_read(tmp_path: Path, described: Any) -> None:
    image = ImageRoot.read(unpacked(tmp_path, described))
    assert image.files == tmp_path / "rootfs"
    assert image.entrypoint == ["python", "-m", "server"]
    assert image.environment == {"PATH": "/opt/packages/bin:/bin", "EQUATION": "a=b"}
    assert (image.working_folder, image.user, image.group, image.home) == ("/opt/server", 1000, 1001, "/home/serving")
    assert image.machine_environment(serverless=False)["HOME"] == "/home/serving"
    assert "HOME" not in image.machine_environment(serverless=True)


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        (None, (0, 0, "/root")),
        ("", (0, 0, "/root")),
        ("serving:video", (1000, 44, "/home/serving")),
        ("1000", (1000, 1001, "/home/serving")),
        ("1000:7", (1000, 7, "/home/serving")),
        ("4711", (4711, 0, "/")),
    ],
)
def test_the_user_of_an_image_is_a_name_or_a_number_with_or_without_a_group(
    tmp_path: Path, user: str | None, expected: tuple[int, int, str]
) -> None:
    image = ImageRoot.read(unpacked(tmp_path, [{"Config": {**CONFIG, "User": user}}]))
    assert (image.user, image.group, image.home) == expected


@pytest.mark.parametrize(
    ("described", "rule"),
    [
        ("no JSON", "Config with an Entrypoint in inspect.json"),
        ([], "Config with an Entrypoint"),
        ({"Config": CONFIG}, "Config with an Entrypoint"),
        ([{"Config": {**CONFIG, "Entrypoint": None}}], "Config with an Entrypoint"),
        ([{"Config": {**CONFIG, "Env": ["PATH"]}}], "Config with an Entrypoint"),
        ([{"Config": {**CONFIG, "User": "nobody-here"}}], "user nobody-here in etc/passwd"),
        ([{"Config": {**CONFIG, "User": "serving:nobody-here"}}], "user serving:nobody-here in etc/passwd"),
    ],
)
def test_what_is_no_image_is_refused_with_its_option_and_rule(tmp_path: Path, described: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=f"--serving-root must have the image's {rule}"):
        ImageRoot.read(unpacked(tmp_path, described))


def test_a_folder_without_the_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--serving-root must have the image's files in rootfs, got .*docs/endpoints"):
        ImageRoot.read(tmp_path)


@pytest.mark.parametrize("namespaces", [None, Namespaces(("unshare", "--map-root-user"), root=False)])
def test_an_image_without_root_is_refused_before_anything_is_built(
    tmp_path: Path, namespaces: Namespaces | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = ImageRoot.read(unpacked(tmp_path / "image", [{"Config": CONFIG}]))
    monkeypatch.setattr(server, "find_namespaces", lambda: namespaces)
    monkeypatch.setattr(server, "Objects", None)
    settings = Settings(root=tmp_path, serving_root=image)
    with pytest.raises(RuntimeError, match="--serving-root needs Linux namespaces made by root"):
        server.Server(settings, 0, tmp_path, use_namespaces=True, fault_settings=FaultSettings())
