"""The code of a job."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import warnings
import zipfile
from importlib.metadata import version as metadata_version
from io import BytesIO
from modulefinder import ModuleFinder
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from experiments.errors import UserError
from experiments.runs.folder import PACKAGES
from sagemaker_launch.rehearsal.machine.training_image import listed
from sagemaker_launch.shipping import bundle, import_graph
from sagemaker_launch.shipping.bundle import make_bundle, pack, requirements, shipped_files, wheel_pins
from tests.conftest import REPOSITORY

# Put together here, so that no scanner takes this file for a leak.
LETTERS = "a1B2" * 9
PLANTED = {
    "AWS Access Key": "key = '" + "AKIA" + "Q3EXAMPLE7WXYZ12'",
    "AWS Access Key, secret": "environ['AWS_SECRET_" + "ACCESS_KEY'] = 'wJalrXUtnFEMI/K7MDENG/bPxRfiCYzzEXAMPLEK'",
    "private key": "-----BEGIN ENCRYPTED " + "PRIVATE KEY-----",
    "Private Key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "GitHub Token": "token('ghp_" + LETTERS + "')",
    "token": "token('github_pat_" + LETTERS + "')",
    "token, OpenAI": "token('sk-proj-" + LETTERS + "')",
    "token, npm": "token('npm_" + LETTERS + "')",
    "token, Hugging Face": "token('hf_" + LETTERS + "')",
    "token, Databricks": "token('dapi" + "0123456789abcdef" * 2 + "')",
    "Slack Token": "token('xoxb-" + "123456789012-1234567890123-" + LETTERS[:24] + "')",
    "JSON web token": "token('eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N')",
    "Basic Auth Credentials": "url = 'postgresql://me:" + "hunter22@db/x'",
    "Secret Keyword": "pass" + "word = 'hunter2hunter'",
    "Base64 High Entropy String": "x = 'AIzaSyA1234567890" + "abcdefghijklmnopqrstuv'",
}


OURS = ("experiments", "lightning_modules", "sagemaker_launch")


NAMES_A_JOB = """
from experiments.config import RunConfig
from sagemaker_launch.jobs.launch import job_name
from sagemaker_launch.jobs.requests import training_job
from sagemaker_launch.settings.cloud import load_cloud
from sagemaker_launch.shipping.bundle import make_bundle
from sagemaker_launch.shipping.storage import Shipment

role = "arn:aws:iam::123456789012:role/jobs"
settings = load_cloud(None, {"role_arn": role, "bucket": "my-bucket", "region": "us-east-1"})
bundle = make_bundle()
inputs = Shipment("s3://my-bucket/photos/", bundle, None).inputs(settings)
name = job_name("dogs", lambda name: training_job(settings, RunConfig(), inputs, "image", name=name), 1)
print(name, bundle.sha256)
"""


def job_and_bundle(checkout: Path) -> list[str]:
    """The name of a job of a checkout, and the hash of its bundle."""
    code = f"import sys; sys.path.insert(0, {str(checkout)!r})\n{NAMES_A_JOB}"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_the_same_files_give_the_same_bytes() -> None:
    assert make_bundle().sha256 == make_bundle().sha256 == job_and_bundle(REPOSITORY)[1]


def test_only_an_edit_of_what_a_job_imports_changes_its_bundle_and_name(tmp_path: Path) -> None:
    for name in OURS:
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))

    def edit(*files: str) -> None:
        for file in files:
            with (tmp_path / file).open("a") as source:
                source.write("# a comment\n")

    before = job_and_bundle(tmp_path)
    edit("experiments/report/report.py", "experiments/cli.py", "experiments/__init__.py", "sagemaker_launch/cli.py")
    edit("sagemaker_launch/jobs/requests.py", "sagemaker_launch/__init__.py", "sagemaker_launch/container/__init__.py")
    assert job_and_bundle(tmp_path) == before
    edit("lightning_modules/classifier.py")
    assert all(new != old for new, old in zip(job_and_bundle(tmp_path), before, strict=True))


def test_the_bundle_has_exactly_what_its_entry_imports(tmp_path: Path) -> None:
    files = shipped_files()
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.replace(b"if TYPE_CHECKING:", b"if 0:"))  # which Python does not compile
    finder = ModuleFinder([str(tmp_path)])  # another way to the same graph: from byte code
    finder.run_script(str(tmp_path / "entry.py"))
    # Names that a module defines are the second list, of what may be missing.
    missing, _ = finder.any_missing_maybe()
    assert [name for name in missing if name.startswith(OURS)] == []
    found = [Path(module.__file__) for module in finder.modules.values() if module.__file__]  # built-in ones have none
    imported = {path.relative_to(tmp_path).as_posix() for path in found}
    # Every shipped module outside that graph would be listed here with a reason.
    assert set(files) - imported == {"requirements.txt"}
    assert all(content == b"" for name, content in files.items() if name.endswith("__init__.py"))


def test_another_content_gives_another_name() -> None:
    assert pack({"a.py": b"1"}).sha256 != pack({"a.py": b"2"}).sha256 != pack({"b.py": b"2"}).sha256


def test_only_what_ships_is_packed() -> None:
    with tarfile.open(fileobj=BytesIO(make_bundle().archive)) as archive:
        names = archive.getnames()
    assert {"entry.py", "requirements.txt", "experiments/train.py", "sagemaker_launch/container/entry.py"} <= set(names)
    assert "sagemaker_launch/cli.py" not in names
    for name in names:
        assert name.endswith((".py", "requirements.txt")), name
        assert not name.startswith(("tests", "runs", ".")), name


def test_a_job_that_is_debugged_gets_smdebug_with_its_licence_and_nothing_else(tmp_path: Path) -> None:
    wheel = tmp_path / "smdebug-1.0.34-py2.py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.writestr("smdebug/__init__.py", "")
        packed.writestr("smdebug-1.0.34.dist-info/LICENSE", "Apache")
    with tarfile.open(fileobj=BytesIO(make_bundle().archive)) as archive:
        without = set(archive.getnames())
    with tarfile.open(fileobj=BytesIO(make_bundle(debugger=wheel).archive)) as archive:
        added = set(archive.getnames()) - without
    assert added == {"smdebug/__init__.py", "smdebug-1.0.34.dist-info/LICENSE"}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_secret_is_refused_without_being_shown(kind: str) -> None:
    with pytest.raises(UserError, match=r"^settings\.py, line 3, holds what looks like a secret \([\w ]+\)") as caught:
        pack({"settings.py": f"import os\n\n{PLANTED[kind]}\n".encode()})
    message = str(caught.value)
    assert f"({kind.partition(',')[0]})".casefold() in message.casefold()
    assert not any(word in message for word in re.split(r"[ '\"=\[\]()]", PLANTED[kind]) if len(word) > 12)


@pytest.mark.parametrize(
    "line",
    [
        "password = os.environ['PASSWORD']",
        "url = f'postgresql://{user}:{password}@db/x'",
        "sha256 = '2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae'",
        "address = '198.51.100.7'",
        "pass" + "word = 'hunter2hunter'  # pragma: allowlist secret",
        "token = 'npm_" + LETTERS + "'  # pragma: allowlist secret",
    ],
)
def test_what_is_no_secret_stops_nobody(line: str) -> None:
    pack({"settings.py": f"{line}\n".encode()})


def test_a_secret_in_a_file_of_another_encoding_is_refused() -> None:
    line = "# -*- coding: latin-1 -*- Köter\npass" + "word = 'hunter2hunter'\n"
    with pytest.raises(UserError, match=r"line 2, holds what looks like a secret \(Secret Keyword\)"):
        pack({"settings.py": line.encode("latin-1")})


def test_what_we_ship_holds_no_secret() -> None:
    pack(shipped_files())


def test_warnings_of_this_process_are_shown_as_before_after_packing() -> None:
    before = warnings.showwarning
    pack({"a.py": b"1"})
    assert warnings.showwarning is before


def test_what_is_in_the_folders_beside_the_modules_is_not_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in OURS:
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for place in ("experiments/.ipynb_checkpoints", "experiments/.venv/lib", "lightning_modules/venv/experiments"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "config.py").write_text("pass" + "word = 'hunter2hunter'\n")
        (tmp_path / place / "train-checkpoint.py").write_text("import experiments.config")
    before = shipped_files()
    monkeypatch.setattr(import_graph, "_PACKAGES", {name: tmp_path / name / "__init__.py" for name in OURS})
    assert shipped_files() == before
    (tmp_path / "experiments" / "train.py").write_text("# the copy is read")
    assert shipped_files() != before


def test_a_module_that_is_a_link_out_of_its_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "experiments" / "data").mkdir(parents=True)
    (tmp_path / "elsewhere.py").write_text("x = 1")
    link = tmp_path / "experiments" / "data" / "inputs.py"
    link.symlink_to(tmp_path / "elsewhere.py")
    monkeypatch.setattr(bundle, "import_graph", lambda _: {"experiments.data.inputs": link})
    with pytest.raises(UserError, match=r"inputs\.py must be a file in .*experiments, not a link to one elsewhere"):
        shipped_files()
    link.unlink()
    (tmp_path / "experiments" / "own.py").write_text("x = 2")
    link.symlink_to("../own.py")
    assert shipped_files()["experiments/data/inputs.py"] == b"x = 2"


def test_only_wheels_of_the_folder_of_wheels_are_shipped(tmp_path: Path) -> None:
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "a-1-py3-none-any.whl").write_bytes(b"wheel")
    (tmp_path / "b-1-py3-none-any.whl").symlink_to(tmp_path / "notes.txt")
    with tarfile.open(fileobj=BytesIO(make_bundle(wheels=tmp_path).archive)) as archive:
        assert [name for name in archive.getnames() if name.startswith("wheels")] == ["wheels/a-1-py3-none-any.whl"]


def test_a_job_accepts_the_versions_that_are_pinned_here() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pinned = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    for needed in requirements():
        assert needed.specifier.contains(pinned[canonicalize_name(needed.name)]), needed


def test_a_job_keeps_what_aws_image_has_and_installs_what_it_lacks() -> None:
    image = listed()
    has = {**image["toolkit"], **image["jobs"], **image["packages"], **image["unread"], **image["gpu"]}
    missing = {needed.name for needed in requirements() if needed.name not in has}
    assert missing == set(image["lacks"]) - {"moto", "optuna"}
    for needed in requirements():
        if needed.name in has:
            assert needed.specifier.contains(has[needed.name]), needed
            assert all(each.operator != "==" for each in needed.specifier), needed
        else:
            assert [each.operator for each in needed.specifier] == ["=="], needed


def test_a_run_notes_the_version_of_each_package_that_a_job_may_keep() -> None:
    assert {needed.name for needed in requirements()} <= set(PACKAGES)


def test_wheels_for_another_python_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a job without network would lack them, and fail when it is billed."""
    downloads: list[str] = []

    def download(folder: Path, what: list[str], _: str) -> None:
        folder.mkdir(exist_ok=True)
        downloads.append(what[0])

    monkeypatch.setattr(bundle, "_download", download)
    first = bundle.fetch_wheels(tmp_path)
    assert bundle.fetch_wheels(tmp_path) == first and len(downloads) == len(bundle.PYTHONS)
    monkeypatch.setattr(bundle, "PYTHONS", (*bundle.PYTHONS, "3.14"))
    assert bundle.fetch_wheels(tmp_path) != first and downloads[-1] == "--python-version=3.14"


def test_wheels_are_of_this_machine_and_in_range(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"idna": "3.15"}

    def version(name: str) -> str:
        return versions.get(name) or metadata_version(name)

    monkeypatch.setattr(bundle.importlib.metadata, "version", version)
    pins = wheel_pins()
    assert "idna==3.15" in pins and "pytorch-lightning==2.6.6" in pins
    assert len(pins) == len(requirements())
    versions["filelock"] = "3.29.0"
    with pytest.raises(
        UserError, match=r"filelock must be <5,>=3\.30, got 3\.29\.0.* pip install 'filelock<5,>=3\.30'"
    ):
        wheel_pins()
