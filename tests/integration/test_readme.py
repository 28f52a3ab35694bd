"""What README.md and docs/ tell a person to type does what it says.

Each command is one of three: it is understood by the project's own command line, which knows every field; it runs in a
test; or its block begins with `# needs AWS`, and what AWS's CLI is told is held against botocore's model of the API.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import botocore.session
import pytest
from botocore import xform_name
from botocore.model import Shape
from botocore.validate import ParamValidator

from experiments import cli
from experiments.cli import command_parser, parse_overrides, refuse_foreign_fields, split_fields
from experiments.config import load_config
from sagemaker_launch import cli as cloud_cli
from sagemaker_launch.cli import parse
from sagemaker_launch.settings.cloud import load_cloud
from tests.conftest import REPOSITORY
from tests.docs import Command, blocks, commands, pages
from tests.warm import run_warm

README = (REPOSITORY / "README.md").read_text()
DOCS = REPOSITORY / "docs"
ALL = commands(*pages())
INLINE = [
    Command(path.name, line, needs_more=True)
    for path in pages()
    for line in re.findall(r"`(?:\.venv/bin/)?(python -m (?:experiments|sagemaker_launch) [^`\n]+)`", path.read_text())
    if not re.search(r"--help|\||\.\.\.", line)
]
"""Those within sentences, that say all that is to be typed."""
WITHOUT_AWS = ("policy", "rehearse", "serve", "debug-report")
"""Commands of the launcher that ask nobody but this machine; others do so with --dry-run or --url."""
OF_THE_CLI = {"aws configure", "aws s3 rm"}
"""What AWS's CLI has beside the API."""
GLOBAL_OPTIONS = {"region", "output", "query", "profile"}


def of(program: str, listed: list[Command] = ALL) -> list[Command]:
    return [command for command in listed if command.words.startswith(program)]


def named(command: Command) -> str:
    return f"{command.location} {command.words[:60]}"


def test_the_first_commands_are_make_demo_and_make_test() -> None:
    assert blocks(REPOSITORY / "README.md")[0].lines == ["make demo", "make test"]


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) < 150


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for link in re.findall(r"\]\((?!http)([^)]+)\)", page.read_text()):
        target, _, heading = link.partition("#")
        path = (page.parent / target) if target else page
        assert path.exists(), link
        headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE) if heading else []
        assert not heading or heading in [re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings], (
            link
        )


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_a_code_block_says_whether_it_holds_commands(page: Path) -> None:
    assert [block.location for block in blocks(page) if block.info not in ("sh", "text", "yaml", "json")] == []


@pytest.mark.parametrize("command", [*of("python -m experiments"), *of("python -m experiments", INLINE)], ids=named)
def test_commands_are_understood(command: Command) -> None:
    """Parsed and checked as the command line does, without running it."""
    own, fields = split_fields(shlex.split(command.words)[3:])
    arguments, rest = command_parser().parse_known_args(own)
    typed = parse_overrides([*fields, *rest])
    refuse_foreign_fields(typed, arguments.uses, cli.SETTINGS_TYPES)
    load_config(arguments.config, typed)


@pytest.mark.parametrize(
    "command", [*of("python -m sagemaker_launch"), *of("python -m sagemaker_launch", INLINE)], ids=named
)
def test_cloud_commands_are_understood(command: Command) -> None:
    arguments, fields = parse(shlex.split(command.words)[3:])
    overrides = parse_overrides(fields)
    refuse_foreign_fields(overrides, arguments.uses, cloud_cli.SETTINGS_TYPES)
    cloud = {name.removeprefix("cloud."): overrides.pop(name) for name in list(overrides) if name.startswith("cloud.")}
    load_config(arguments.config, overrides)
    # The reader's own mine.yaml begins as a copy of the example.
    load_cloud(REPOSITORY / "conf" / "cloud" / "example.yaml", cloud)
    for option in (arguments.config, arguments.cloud):
        assert option is None or option.name == "mine.yaml" or (REPOSITORY / option).is_file()


@pytest.mark.parametrize(
    "command", [one for one in of("python -m sagemaker_launch") if "README" not in one.location], ids=named
)
def test_what_asks_aws_is_marked(command: Command) -> None:
    local = shlex.split(command.words)[3] in WITHOUT_AWS or re.search(r"--dry-run|--url", command.words)
    assert local or command.needs_more, "its block must begin with # needs AWS"


def test_every_other_command_runs_in_a_test_or_is_marked() -> None:
    """make's targets and pip's extras exist; the commands of RUN run below, in full."""
    targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    known = [f"make {target}" for target in targets]
    known += NOT_RUN
    known += [
        f"{pip} install -e '.[{extra}]' -c constraints.txt" for extra in extras for pip in ("pip", "python -m pip")
    ]
    ran = {command.line for page in RUN for command in commands(DOCS / page)}
    for command in ALL:
        ours = command.words.startswith(("python -m experiments ", "python -m sagemaker_launch "))
        assert ours or command.needs_more or command.words in known or command.line in ran, (
            f"{command.location}: {command.line!r} runs in no test; if it can't, its block must begin with # needs AWS"
        )


@pytest.mark.parametrize("command", of("aws "), ids=named)
def test_aws_has_the_operation_with_these_parameters(command: Command) -> None:
    _, service, *words = shlex.split(command.words)
    if service == "configure" or f"aws {service} {words[0]}" in OF_THE_CLI:
        return
    operation, options = words[0], dict(_options(words[1:]))
    model = botocore.session.get_session().get_service_model({"s3api": "s3"}.get(service, service))
    (found,) = [name for name in model.operation_names if xform_name(name, "-") == operation]
    shape = model.operation_model(found).input_shape
    members = {xform_name(name, "-"): name for name in shape.members} if shape else {}
    assert options.keys() - GLOBAL_OPTIONS <= members.keys()
    assert {xform_name(name, "-") for name in (shape.required_members if shape else ())} <= options.keys()
    for option in options.keys() & members.keys():
        _check_value(options[option], shape.members[members[option]])


def _options(words: list[str]) -> Iterator[tuple[str, str]]:
    names = [index for index, word in enumerate(words) if word.startswith("--")]
    for index, following in pairwise([*names, len(words)]):
        yield words[index][2:], " ".join(words[index + 1 : following])


def _check_value(value: str, shape: Shape) -> None:
    """What stands there as JSON is whole; of the CLI's short form the names are known."""
    if value.startswith(("{", "[")):
        report = ParamValidator().validate(json.loads(value), shape)
        assert not report.has_errors(), report.generate_report()
    elif shape.type_name in ("structure", "list") and "=" in value:
        assert set(re.findall(r"(\w+)=", value)) <= set(_member_names(shape))


def _member_names(shape: Shape) -> Iterator[str]:
    if shape.type_name == "list":
        yield from _member_names(shape.member)
    for name, member in getattr(shape, "members", {}).items():
        yield name
        yield from _member_names(member)


# What runs in full

SMALL = "--trainer.max_epochs 1 --sweep.n_trials 1"
ON_DIGITS = f"{SMALL} --data.fraction 0.1"
ON_PHOTOS = f"{SMALL} --data.image_size 32 --model.backbone shufflenet_v2_x0_5 --model.weights none"
RUN = {
    "first-sweep.md": {"conf/quick.yaml": ON_DIGITS, "conf/dogs6.yaml": ON_PHOTOS},
    "your-own-data.md": {"--data.root photos": ON_PHOTOS},
    "first-time-on-aws.md": {},
    "costs.md": {},
}
"""Pages whose commands run one after the other, and what makes a sweep short that names this file."""
HERE = {"PATH/dogs6": "photos", "PATH/resnet50.safetensors": "none"}
INTERRUPT = (
    'curl --aws-sigv4 aws:amz:us-east-1:rehearsal --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" '
    '-X POST "$AWS_ENDPOINT_URL/rehearsal/interrupt/JOB"'
)
"""Runs in test_rehearsal."""
NOT_RUN = (". .venv/bin/activate", "python -m experiments ui", INTERRUPT)
"""The environment is that of the tests; the UI goes on until somebody ends it."""


def _step(command: Command, short: dict[str, str]) -> tuple[str, str, list[str], str]:
    """The line, whose command line it is for, its words, and where its output goes."""
    line, _, output = command.line.partition(" > ")
    if line == "make demo":
        (line,) = re.findall(r"^demo:.*\n\t\$\(BIN\)/(.*)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    for there, here in HERE.items():
        line = line.replace(there, here)
    added = [fields for file, fields in short.items() if " sweep " in line and file in line]
    words = shlex.split(" ".join([line, *added]))
    program = words[2] if words[:2] == ["python", "-m"] else ""
    return line, program, words[3:] if program else words, output


def test_a_newcomer_gets_from_page_to_page(photos: Path, mlflow_database: Path, tmp_path: Path) -> None:
    """All commands of the pages of RUN that need no account, one after the other, as somebody without one."""
    (tmp_path / "conf").symlink_to(REPOSITORY / "conf")
    (tmp_path / "photos").symlink_to(photos)
    (tmp_path / "runs").mkdir()
    shutil.copy(mlflow_database, tmp_path / "runs" / "mlflow.db")
    steps = [
        _step(command, short)
        for page, short in RUN.items()
        for command in commands(DOCS / page)
        if not command.needs_more and command.line not in NOT_RUN
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    (tmp_path / "steps.json").write_text(json.dumps(steps))
    environment |= {"AWS_EC2_METADATA_DISABLED": "true", "PYTHONPATH": str(REPOSITORY)}
    done = run_warm("tests.typed", ["steps.json"], folder=tmp_path, environment=environment)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    outputs = {part.partition("\n")[0]: part for part in done.stdout.split("$ ")[1:]}
    for line, of_command in outputs.items():
        if " predict " in line:
            assert len(re.findall(r"^\S+\.(png|jpg)\n +\d+\.\d+%  \w", of_command, re.MULTILINE)) > 1, line
        if " sweep " in line:
            assert "best trial" in of_command, line
            # Quoted where the path of the environment has a space.
            assert re.search(r"python'? -m experiments ui", of_command), line
    assert re.findall(r"study quick: (\d+) trials", done.stdout) == ["1", "3"], "what make demo began goes on"
    assert done.stdout.count("(champion)") >= 2, "of each page that trains"
    assert not (tmp_path / "runs" / "cache" / "arrays").exists()
    assert any((tmp_path / "runs" / "cache").glob("files-*.json"))
    worst = [
        line for page in RUN for block in blocks(DOCS / page) for line in block.lines if line.startswith("at worst")
    ]
    assert len(worst) == 2
    for line in worst:
        assert line in done.stderr
    for name in ("trust", "role", "launcher"):
        # IAM's limit for a policy of its own, which launcher.json becomes (IAM user guide, read 2026-11).
        assert len("".join((tmp_path / f"{name}.json").read_text().split())) <= 6144
