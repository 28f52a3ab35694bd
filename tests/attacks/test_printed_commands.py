"""Commands that the project prints are pasted into a shell, with names from presets and other people in them.

Each printed line runs in bash. Programs that are not ours are replaced by one that writes down its arguments.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.config import RunConfig, override
from experiments.console import invocation
from experiments.errors import EXIT_USAGE
from experiments.report.compared_runs import options_to_repeat
from experiments.tracking import check, store
from sagemaker_launch.cli import main
from sagemaker_launch.shipping.images import push_commands

pytestmark = pytest.mark.slow

CANARY = "canary"
HOSTILE = (
    f"eu-west-1; touch {CANARY}",
    f"eu-west-1$(touch {CANARY})",
    f"eu-west-1`touch {CANARY}`",
    f"eu-west-1' || touch {CANARY} #",
    f'eu-west-1" && touch {CANARY} "',
    f"eu-west-1\ntouch {CANARY}\n",
    f"eu-west-1 | touch {CANARY}",
    f"eu-west-1 > {CANARY}",
)
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=30)
NOTES = """#!{folder}/python
import json, os, sys
with open(os.environ["NOTES"], "a") as notes:
    notes.write(json.dumps(sys.argv) + "\\n")
"""


def in_bash(folder: Path, text: str, *programs: str) -> list[list[str]]:
    """Run a text in bash in a folder, and return the arguments that the named programs got."""
    (folder / "bin").mkdir(exist_ok=True)
    if not (folder / "python").exists():
        (folder / "python").symlink_to(sys.executable)  # the kernel splits the path of an interpreter at spaces
    for program in programs:
        path = folder / "bin" / program
        path.write_text(NOTES.format(folder=folder))
        path.chmod(0o755)
    environment = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "NOTES": str(folder / "notes")}
    (folder / "notes").write_text("")
    subprocess.run(["bash", "-o", "pipefail", "-c", text], cwd=folder, env=environment, check=False, timeout=60)
    assert not (folder / CANARY).exists(), text
    return [json.loads(line)[1:] for line in (folder / "notes").read_text().splitlines()]


@pytest.mark.parametrize("region", HOSTILE)
def test_no_command_is_printed_for_a_region_that_is_none(region: str, capsys: pytest.CaptureFixture[str]) -> None:
    role = "arn:aws:iam::123456789012:role/serving"
    assert main(["image", "--cloud.region", region, "--cloud.role_arn", role]) == EXIT_USAGE
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "cloud.region must " in printed.err


@settings(max_examples=200, deadline=None)
@given(NAMES, NAMES)
def test_every_word_of_the_commands_of_image_is_one_argument(region: str, registry: str) -> None:
    registry = registry.replace("/", "")
    uri = f"{registry}/dogs-serving:0.1.0-cpu"
    login, create, build, check = push_commands(uri, region, "cpu", "dogs")
    assert uri in shlex.split(build) and region in shlex.split(check)
    assert shlex.split(login)[:4] == ["aws", "--region", region, "ecr"] and shlex.split(login)[-1] == registry
    assert shlex.split(create).count(region) >= 2


@pytest.mark.parametrize("name", HOSTILE)
def test_hints_to_repeat_and_to_restore_run_nothing_of_a_name(name: str, tmp_path: Path) -> None:
    config = override(RunConfig(), {"model.weights": name, "data.root": f"/{name}", "data.name": "folder"})
    assert in_bash(tmp_path, f"tool {options_to_repeat(config, 'train')}", "tool")[0].count(name) == 1
    assert in_bash(tmp_path, f"tool {invocation('experiments', 'ui', name)}", "tool")[0][-1] == name
    restore = check.restore_command(f"sqlite:///{name}", "1")
    in_bash(tmp_path, restore, "mlflow")
    upgrade = store.reason(ValueError("Detected out-of-date database schema"), f"sqlite:///{name}")
    assert in_bash(tmp_path, upgrade.split("`", 1)[1][:-1], "mlflow") == [["db", "upgrade", f"sqlite:///{name}"]]


@settings(max_examples=200, deadline=None)
@given(NAMES)
def test_an_option_is_two_words_whatever_its_value(value: str) -> None:
    assert shlex.split(invocation("experiments", "train", "--from-best", value))[-2:] == ["--from-best", value]
