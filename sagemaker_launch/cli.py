"""The command line of the cloud half.

On the way to a launched job only boto3 is imported, and torchvision where the sizes of photos are left to its recipes.
"""

from __future__ import annotations

import argparse
import functools
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.cli import command_line, parse_overrides, refuse_foreign_fields, run_command, split_fields
from experiments.config import RunConfig, load_config, require, secret_environment, secret_variables, to_flat
from experiments.console import say
from experiments.errors import UserError
from experiments.fields import fields_of
from lightning_modules.redaction import Revealed
from sagemaker_launch.debugger.commands import add_debug_command
from sagemaker_launch.endpoints.commands import add_endpoint_commands
from sagemaker_launch.endpoints.serve import add_serving_commands
from sagemaker_launch.jobs.commands import add_job_commands, add_parity_command
from sagemaker_launch.rehearse import CONFIG, SETTINGS, TOOLKITS
from sagemaker_launch.settings.cloud import CloudSettings, load_cloud
from sagemaker_launch.stages import COMMANDS

PREFIX = "cloud."
SETTINGS_TYPES = {PREFIX: CloudSettings, "": RunConfig}
"""Prefix of fields on the command line, and the dataclass that has them."""


def main(argv: Sequence[str]) -> int:
    """Run one command.

    Returns:
        0 done, 1 failed, 2 wrong use, 3 a job was stopped at its time limit, 130 interrupted.
    """
    arguments, fields = parse(argv)
    if getattr(arguments, "all", False) and arguments.config is None:
        arguments.config = CONFIG

    def run() -> None:
        typed = parse_overrides(fields)
        # `rehearse` alone runs no other command.
        refuse_foreign_fields(
            typed, arguments.uses if getattr(arguments, "all", True) else arguments.uses[:1], SETTINGS_TYPES
        )
        if getattr(arguments, "recorder", False):
            typed = {"trainer.record": "light"} | typed
        cloud = {name.removeprefix(PREFIX): value for name, value in typed.items() if name.startswith(PREFIX)}
        # Options such as --price-per-hour have the name of a field as their destination.
        cloud |= {
            name: value for name in fields_of(CloudSettings) if (value := getattr(arguments, name, None)) is not None
        }
        arguments.cloud_overrides = cloud
        arguments.overrides = {name: value for name, value in typed.items() if not name.startswith(PREFIX)}
        settings = load_cloud(arguments.cloud, arguments.cloud_overrides)
        config = load_config(arguments.config, arguments.overrides)
        arguments.passed_on = functools.partial(_passed_on, arguments)
        # A preset says where its runs belong, by a name of its own or by that of its photos.
        arguments.names_experiment = arguments.config is not None or "tracking.experiment" in arguments.overrides
        arguments.command(settings, config, arguments)

    return run_command(run, show_traceback=arguments.traceback)


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """A command with its own arguments, and the fields of config and settings."""
    command_arguments, fields = split_fields(argv)
    arguments, remaining = command_parser().parse_known_args(command_arguments)
    if "more" in arguments and not any(word.startswith("-") for word in remaining):
        # argparse takes a list of words only without options between them.
        setattr(arguments, arguments.more, [*getattr(arguments, arguments.more), *remaining])
        remaining = []
    return arguments, [*fields, *remaining]


def _status(settings: CloudSettings, config: RunConfig, arguments: argparse.Namespace) -> None:
    del config, arguments
    from sagemaker_launch.aws.running import Running, keeps_running
    from sagemaker_launch.endpoints.fleet import Services
    from sagemaker_launch.status import status_lines

    incomplete = "the list is not complete: what is missing may run, and cost money. The same command lists it again"
    services = Services.open(settings)
    with keeps_running(Running(missing=incomplete), ended_by=(UserError,)):
        for line in status_lines(services, settings):
            print(line)


def _cost(settings: CloudSettings, config: RunConfig, arguments: argparse.Namespace) -> None:
    del config, arguments
    from sagemaker_launch.aws.client import client
    from sagemaker_launch.aws.tag_index import TAGGING
    from sagemaker_launch.status import cost_lines

    for line in cost_lines(client("sagemaker", settings), client(TAGGING, settings), settings):
        print(line)


def _policy(settings: CloudSettings, config: RunConfig, arguments: argparse.Namespace) -> None:
    from sagemaker_launch.account.policy import characters_beyond, policies
    from sagemaker_launch.aws.client import region

    found = policies(settings, region(settings), config)
    print(json.dumps(found[arguments.of] if arguments.of else found, indent=2))
    for name in [arguments.of] if arguments.of else found:
        if (beyond := characters_beyond(found[name])) > 0:
            say(
                f"policy {name} has {beyond} characters more than a managed policy of IAM may have: put it into a "
                "permission set of Identity Center, or choose a shorter cloud.project or cloud.prefix"
            )


def _rehearse(settings: CloudSettings, config: RunConfig, arguments: argparse.Namespace) -> None:
    from sagemaker_launch.rehearse import RehearsalError, misleading_variables, rehearse_all, run_rehearsal

    root = config.output_dir / "rehearsal"
    named = ("port", "faults", "quotas", "toolkit", "python", "inference_images", "serving_root")
    options = [
        f"--{name.replace('_', '-')}={value}" for name in named if (value := getattr(arguments, name)) is not None
    ]
    options += [f"--without-{name}" for name in ("debugger", "gpu") if getattr(arguments, f"without_{name}")]
    if arguments.all:
        passed_on = functools.partial(arguments.passed_on, with_secrets=False)
        if not rehearse_all(settings, root, passed_on, options, secret_environment(config), config):
            raise RehearsalError(f"the rehearsal failed: see above, and {root / 'server.log'}")
        return
    with run_rehearsal(settings, root, options, config) as running:
        if misleading := misleading_variables(running.environment):
            sys.stdout.write(f"unset {' '.join(misleading)}\n")
        variables = running.administrator if arguments.principal == "administrator" else running.environment
        for name, value in variables.items():
            sys.stdout.write(Revealed(f"export {name}={shlex.quote(value)}\n"))
        sys.stdout.flush()
        say("every other command works against it in a shell with these variables (Ctrl-C ends it)")
        if running.process.wait():
            raise RehearsalError(f"the rehearsal's service ended by itself: see {root / 'server.log'}")


def _live_check(settings: CloudSettings, config: RunConfig, arguments: argparse.Namespace) -> None:
    from sagemaker_launch.live_check import SHORT, live_check, small

    settings.require_for_jobs()
    require(arguments.budget_usd > 0, "--budget-usd", "be > 0", arguments.budget_usd)
    shared = {"budget_usd", "endpoint.budget_usd_per_hour"}  # each stage gets its part
    typed = {name: value for name, value in arguments.cloud_overrides.items() if name not in shared}
    arguments.cloud_overrides = small(settings) | typed
    arguments.overrides = SHORT | arguments.overrides
    passed_on = functools.partial(arguments.passed_on, with_secrets=False)
    live_check(config.output_dir / "live-check", passed_on, arguments.budget_usd, secret_environment(config))


def _passed_on(
    arguments: argparse.Namespace, command: str, experiment: str | None = None, *, with_secrets: bool = True
) -> list[str]:
    """The presets and fields of this command line that another command takes.

    Args:
        experiment: the MLflow experiment of the other command.
        with_secrets: false leaves out the fields that may hold a password: `secret_environment` has them.
    """
    presets = {"--config": arguments.config, "--cloud": arguments.cloud}
    of_config = _used_fields(RunConfig, command, arguments.overrides)
    try:
        other_config = load_config(arguments.config, of_config)
    except UserError:  # the preset needs a field that the other command does not take
        del presets["--config"]
        values, defaults = to_flat(load_config(arguments.config, arguments.overrides)), to_flat(RunConfig())
        differing = {name: str(value) for name, value in values.items() if value not in (None, defaults[name])}
        of_config = _used_fields(RunConfig, command, differing)
        other_config = load_config(None, of_config)
    if experiment not in (None, other_config.tracking.experiment):
        of_config["tracking.experiment"] = experiment
    if not with_secrets:
        of_config = {name: value for name, value in of_config.items() if name not in secret_variables()}
    of_cloud = _used_fields(CloudSettings, command, arguments.cloud_overrides)
    given = {option: str(path) for option, path in presets.items() if path}
    given |= {f"--{name}": value for name, value in of_config.items()}
    given |= {f"--{PREFIX}{name}": value for name, value in of_cloud.items()}
    return [word for option, value in given.items() for word in (option, value)]


def _used_fields(settings_type: type, command: str, values: Mapping[str, str]) -> dict[str, str]:
    """The values of the fields that a command uses."""
    fields = fields_of(settings_type)
    return {name: value for name, value in values.items() if fields[name].is_used_by([f"cloud {command}"])}


def command_parser() -> argparse.ArgumentParser:
    """The parser of the commands and their options; the remaining arguments are fields of config and settings."""
    return command_line(
        "python -m sagemaker_launch",
        "Send the same module, config and search space to SageMaker, and bring the results home.",
        _add_commands,
        SETTINGS_TYPES,
    )


def _add_commands(commands: Any) -> None:
    def add(name: str, run: object, text: str) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument("--config", type=Path, metavar="PRESET", help="YAML preset, such as conf/dogs6.yaml")
        command.add_argument("--cloud", type=Path, metavar="PRESET", help="cloud settings, as conf/cloud/example.yaml")
        command.set_defaults(command=run, uses=(f"cloud {name}",))
        if fields_of(CloudSettings)["price_per_hour"].is_used_by([f"cloud {name}"]):
            command.add_argument("--price-per-hour", metavar="USD", help="of one machine, where no list knows it")
        return command

    add_job_commands(add)
    add("status", _status, "List jobs and endpoints that run, whose they are and what they cost an hour.")
    add("cost", _cost, "List what each job has cost.")
    add_debug_command(add)
    add_parity_command(add)
    add_endpoint_commands(add)
    add_serving_commands(add)
    text = "Print least-privilege IAM policies for the launcher, for the roles, and for the push of an image."
    policy = add("policy", _policy, text)
    policies = ("launcher", "role", "role_trust", "schedule_role", "schedule_role_trust", "image")
    policy.add_argument("of", nargs="?", choices=policies, help="one of them alone")
    check = add("live-check", _live_check, "Run everything once on the real account, with small machines, and report.")
    check.add_argument("--budget-usd", type=float, required=True, metavar="USD", help="limit of all stages together")
    check.set_defaults(uses=("cloud live-check", *(f"cloud {command}" for command in COMMANDS)))
    rehearse = add("rehearse", _rehearse, "Run a stand-in for the service on 127.0.0.1 (needs the extra `rehearsal`).")
    text = f"tune, train, sync, deploy, query, delete; a verdict for each (by default of {CONFIG})"
    rehearse.add_argument("--all", action="store_true", help=text)
    rehearse.add_argument("--port", type=int, help="by default a free one")
    rehearse.add_argument("--faults", metavar="rate=R,seed=N", help="let calls fail, as AWS's do on a bad day")
    text = "instances of a type that the account may use, as ml.p3.2xlarge=0,ml.g5.xlarge=1"
    rehearse.add_argument("--quotas", metavar="TYPE=N,...", help=text)
    text = f"version of AWS's toolkit in jobs (by default {TOOLKITS[0]}, as in AWS's PyTorch 2.14 image)"
    rehearse.add_argument("--toolkit", choices=TOOLKITS, help=text)
    text = "interpreter of jobs (by default a Python of the version in AWS's image, if there is one)"
    rehearse.add_argument("--python", type=Path, metavar="PATH", help=text)
    text = "folder of AWS's images Ray Serve (needs root) and TorchServe (needs Java), each built there once"
    rehearse.add_argument("--inference-images", type=Path, metavar="DIR", help=text)
    text = "folder of our serving image, unpacked (docs/endpoints.md): endpoints run from it (needs root)"
    rehearse.add_argument("--serving-root", type=Path, metavar="DIR", help=text)
    text = "whose key is printed: of the launcher, under its printed policy, or one for other clients, without limits"
    rehearse.add_argument(
        "--as", dest="principal", choices=("launcher", "administrator"), default="launcher", help=text
    )
    text = "refuse jobs with --debug, as AWS does in accounts that have no Debugger"
    rehearse.add_argument("--without-debugger", action="store_true", help=text)
    text = "let jobs and endpoints of GPU instances use the CPU of this machine; without it they fail, as on AWS"
    rehearse.add_argument("--without-gpu", action="store_true", help=text)
    rehearse.set_defaults(uses=("cloud rehearse", *(f"cloud {command}" for command in COMMANDS)), cloud=SETTINGS)
