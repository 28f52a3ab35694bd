"""The command line of the cloud half.

On the way to a launched job only boto3 is imported, and torchvision where the sizes of photos are left to its recipes.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.cli import command_line, parse_overrides, refuse_foreign_fields, run_command, split_fields
from experiments.config import RunConfig, load_config, override, public_url, require, to_flat, with_recipe
from experiments.console import invocation, say
from experiments.errors import UserError
from experiments.fields import fields_of
from sagemaker_launch.debugger.report import add_debug_commands
from sagemaker_launch.endpoints.commands import add_endpoint_commands
from sagemaker_launch.endpoints.serve import add_serving_commands
from sagemaker_launch.jobs.parity import add_parity_command
from sagemaker_launch.rehearse import REHEARSED
from sagemaker_launch.settings.cloud import CloudSettings, load_cloud

if TYPE_CHECKING:
    from experiments.study.search_space import SearchSpace
    from sagemaker_launch.jobs.budget import WorstCase
    from sagemaker_launch.jobs.launch import Kind, Launched, Request
    from sagemaker_launch.shipping.storage import Inputs

PREFIX = "cloud."
KINDS = {PREFIX: CloudSettings, "": RunConfig}
"""What stands before a field's name on the command line, and the dataclass that has the field."""


def main(argv: Sequence[str]) -> int:
    """Run one command.

    Returns:
        0 done, 1 failed, 2 wrong use, 130 interrupted.
    """
    arguments, fields = parse(argv)

    def run() -> None:
        typed = parse_overrides(fields)
        # `rehearse` alone runs no other command.
        refuse_foreign_fields(typed, arguments.uses if getattr(arguments, "all", True) else arguments.uses[:1], KINDS)
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
        arguments.command(settings, config, arguments)

    return run_command(run, show_traceback=arguments.traceback)


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """A command with its own arguments, and the fields of config and settings."""
    own, fields = split_fields(argv)
    arguments, rest = command_parser().parse_known_args(own)
    if "more" in arguments and not any(word.startswith("-") for word in rest):
        # argparse takes a list of words only where no option stands between them.
        setattr(arguments, arguments.more, [*getattr(arguments, arguments.more), *rest])
        rest = []
    return arguments, [*fields, *rest]


@dataclass(frozen=True)
class Plan:
    """What is to be started, ready to be shown, reckoned and sent."""

    kind: Kind
    label: str
    build: Callable[[str], Request]
    worst: WorstCase
    upload: Callable[[Any], None]


def _tune(settings: CloudSettings, config: RunConfig, arguments: argparse.Namespace) -> None:
    from experiments.study.search_space import check_against, study_space

    space = study_space(config)
    check_against(space, config)
    if arguments.from_study:
        space = _narrowed(config, space, arguments.from_study)
    _start(settings, plan_tuning(settings, config, space), arguments)


def plan_tuning(settings: CloudSettings, config: RunConfig, space: SearchSpace) -> Plan:
    """A tuning job that searches a space."""
    from experiments.study.epochs import EPOCHS, with_max_epochs
    from sagemaker_launch.jobs.launch import TUNING
    from sagemaker_launch.jobs.requests import number_of_jobs, tuning_job

    config = with_max_epochs(with_recipe(config, drawn=space), space)
    if settings.strategy == "Hyperband" and EPOCHS in space:
        say(f"Hyperband decides how long each job trains: {EPOCHS} is {config.trainer.epochs} for all")

    def build(sent: RunConfig, inputs: Inputs, image_uri: str, *, name: str) -> Request:
        return tuning_job(settings, sent, space, inputs, image_uri, name=name)

    return _plan(settings, config, TUNING, number_of_jobs(settings, config, space), build)


def _train(settings: CloudSettings, config: RunConfig, arguments: argparse.Namespace) -> None:
    if arguments.from_study:
        from experiments.study.study import best_config, load_study  # imports Optuna

        best, trial = best_config(load_study(config, arguments.from_study), config)
        say(f"trial {trial.number} of study {arguments.from_study}: {config.sweep.metric} {trial.value:.4f}")
        config = override(best, arguments.overrides)
    elif arguments.best_of:
        from sagemaker_launch.aws.client import client
        from sagemaker_launch.container.hyperparameters import decode
        from sagemaker_launch.jobs.found import best_training_job, config_at_home

        described = best_training_job(client("sagemaker", settings), arguments.best_of)
        say(f"settings of {described['TrainingJobName']}, the best of {arguments.best_of}")
        config = config_at_home(config, decode(described["HyperParameters"]), arguments.overrides)
    _start(settings, plan_training(settings, config), arguments)


def plan_training(settings: CloudSettings, config: RunConfig) -> Plan:
    """A single training job."""
    from experiments.study.epochs import with_max_epochs
    from sagemaker_launch.aws.client import region
    from sagemaker_launch.jobs.launch import TRAINING
    from sagemaker_launch.jobs.requests import training_job

    config = with_max_epochs(with_recipe(config))
    # The image of Debugger's rules is another one in each region.
    settings = replace(settings, region=region(settings))

    def build(sent: RunConfig, inputs: Inputs, image_uri: str, *, name: str) -> Request:
        return training_job(settings, sent, inputs, image_uri, name=name)

    return _plan(settings, config, TRAINING, 1, build)


def _plan(settings: CloudSettings, config: RunConfig, kind: Kind, jobs: int, build: Callable[..., Request]) -> Plan:
    from sagemaker_launch.aws.client import region
    from sagemaker_launch.jobs.budget import find_price, rule_processing, worst_case
    from sagemaker_launch.jobs.fidelity import check_sent
    from sagemaker_launch.shipping.shipment import find_image, make_shipment

    settings.require_for_jobs()
    require(
        settings.checkpoints or (config.trainer.record == "none" and not config.trainer.profile),
        "cloud.checkpoints",
        "be true with trainer.record or trainer.profile: what they leave comes home with the checkpoints",
        settings.checkpoints,
    )
    where = region(settings)
    worst = worst_case(settings, find_price(settings, where), jobs=jobs, rules=rule_processing(settings, where))
    shipment, sent = make_shipment(settings, config, debugger=settings.debugger.enabled)
    image = find_image(settings, where, config.data.cache_dir)
    inputs = shipment.inputs(settings)

    def request(name: str) -> Request:
        return build(sent, inputs, image, name=name)

    check_sent(settings, sent, request("name"))
    return Plan(kind, config.tracking.experiment, request, worst, lambda s3: shipment.upload(s3, settings))


def _start(settings: CloudSettings, plan: Plan, arguments: argparse.Namespace) -> None:
    """Show what it costs, start it, and watch it."""
    from sagemaker_launch.jobs.budget import check_budget
    from sagemaker_launch.jobs.fidelity import validate
    from sagemaker_launch.jobs.follow import watch
    from sagemaker_launch.jobs.launch import job_name

    say(plan.worst.table())
    if arguments.dry_run:
        request = plan.build(job_name(plan.label, plan.build, 1))
        validate(plan.kind.create_operation, request)
        print(json.dumps(request, indent=2))
        return
    check_budget(settings, plan.worst)
    job = start(settings, plan, again=arguments.again)
    say(f"{job.kind.word} {job.name} {'was there before' if job.found else 'is started'}")
    print(job.arn)
    come_back, stop = (
        public_url(invocation("sagemaker_launch", command, job.name, *arguments.passed_on(command, plan.label)))
        for command in ("sync", "stop")
    )
    if arguments.no_wait:
        say(f"its results: {come_back}")
        return
    try:
        watch(settings, job, plan.worst.usd_per_hour)
    except KeyboardInterrupt:
        say(f"\n{job.name} goes on without you; its results: {come_back}")
        say(f"to end it: {stop}")
        raise
    say(f"bring it into MLflow: {come_back}")


def start(settings: CloudSettings, plan: Plan, *, again: bool = False) -> Launched:
    """Upload what is missing and start the job, or find it."""
    from sagemaker_launch.aws.client import client
    from sagemaker_launch.jobs.launch import launch

    plan.upload(client("s3", settings))
    return launch(client("sagemaker", settings), plan.kind, plan.label, plan.build, again=again)


def _sync(settings: CloudSettings, config: RunConfig, arguments: argparse.Namespace) -> None:
    from sagemaker_launch.aws.client import client
    from sagemaker_launch.jobs.found import find_job, project_jobs
    from sagemaker_launch.jobs.sync import Synchroniser

    sagemaker = client("sagemaker", settings)
    found = [find_job(sagemaker, name) for name in arguments.jobs] or list(project_jobs(sagemaker, settings))
    synchroniser = Synchroniser.open(settings, config)
    for job in found:
        folders = synchroniser.sync(job, models=arguments.models)
        print(f"{job.name}: {job.status}, {len(folders)} runs in MLflow experiment '{config.tracking.experiment}'")


def _status(settings: CloudSettings, config: RunConfig, arguments: argparse.Namespace) -> None:
    del config, arguments
    from sagemaker_launch.endpoints.fleet import Services
    from sagemaker_launch.status import status_table

    print(status_table(Services.open(settings), settings))


def _cost(settings: CloudSettings, config: RunConfig, arguments: argparse.Namespace) -> None:
    del config, arguments
    from sagemaker_launch.aws.client import client
    from sagemaker_launch.status import cost_table

    print(cost_table(client("sagemaker", settings), settings))


def _stop(settings: CloudSettings, config: RunConfig, arguments: argparse.Namespace) -> None:
    del config
    from sagemaker_launch.aws.client import client
    from sagemaker_launch.jobs.found import ENDED, find_job

    sagemaker = client("sagemaker", settings)
    for name in arguments.jobs:
        job = find_job(sagemaker, name)
        if job.status not in ENDED:
            job.kind.stop(sagemaker, name)
        print(f"{name}: {job.status if job.status in ENDED else 'Stopping'}")


def _policy(settings: CloudSettings, config: RunConfig, arguments: argparse.Namespace) -> None:
    del config
    from sagemaker_launch.account.policy import policies
    from sagemaker_launch.aws.client import region

    found = policies(settings, region(settings))
    print(json.dumps(found[arguments.of] if arguments.of else found, indent=2))


def _rehearse(settings: CloudSettings, config: RunConfig, arguments: argparse.Namespace) -> None:
    from sagemaker_launch.rehearse import RehearsalError, rehearse_all, service

    settings.require_for_jobs()
    root = config.output_dir / "rehearsal"
    options = [f"--{name}={value}" for name in ("port", "faults") if (value := getattr(arguments, name)) is not None]
    options += ["--without-debugger"] if arguments.without_debugger else []
    if arguments.all:
        if not rehearse_all(settings, root, arguments.passed_on, options):
            raise RehearsalError(f"the rehearsal failed: see above, and {root / 'server.log'}")
        return
    with service(settings, root, options) as running:
        for name, value in running.environment.items():
            print(f"export {name}={value}", flush=True)
        say("every other command works against it in a shell with these variables (Ctrl-C ends it)")
        if running.process.wait():
            raise RehearsalError(f"the rehearsal's service ended by itself: see {root / 'server.log'}")


def _narrowed(config: RunConfig, space: SearchSpace, name: str) -> SearchSpace:
    from experiments.study.narrowing import describe, narrow_by_study
    from experiments.study.study import load_study

    smaller = narrow_by_study(space, load_study(config, name))
    say(f"where the best quarter of the complete trials of study {name} lies:\n{describe(space, smaller)}")
    return smaller


def _passed_on(arguments: argparse.Namespace, command: str, experiment: str | None = None) -> list[str]:
    """The presets and fields of this command line, for another command, which takes its own fields only.

    Args:
        experiment: in which the other command must find the runs, or put them.
    """
    presets = {"--config": arguments.config, "--cloud": arguments.cloud}
    of_config = _own(RunConfig, command, arguments.overrides)
    try:
        there = load_config(arguments.config, of_config)
    except UserError:  # the preset is whole only with a field that the other command does not take
        del presets["--config"]
        values, defaults = to_flat(load_config(arguments.config, arguments.overrides)), to_flat(RunConfig())
        differing = {name: str(value) for name, value in values.items() if value not in (None, defaults[name])}
        of_config = _own(RunConfig, command, differing)
        there = load_config(None, of_config)
    if experiment not in (None, there.tracking.experiment):
        of_config["tracking.experiment"] = experiment
    of_cloud = _own(CloudSettings, command, arguments.cloud_overrides)
    given = {option: str(path) for option, path in presets.items() if path}
    given |= {f"--{name}": value for name, value in of_config.items()}
    given |= {f"--{PREFIX}{name}": value for name, value in of_cloud.items()}
    return [word for option, value in given.items() for word in (option, value)]


def _own(kind: type, command: str, values: Mapping[str, str]) -> dict[str, str]:
    """The values of the fields that a command uses."""
    fields = fields_of(kind)
    return {name: value for name, value in values.items() if fields[name].is_used_by([f"cloud {command}"])}


def command_parser() -> argparse.ArgumentParser:
    """The commands and their own options; the fields of config and settings are what they leave over."""
    return command_line(
        "python -m sagemaker_launch",
        "Send the same module, config and search space to SageMaker, and bring the results home.",
        _add_commands,
        KINDS,
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

    tune = add("tune", _tune, "Search as a tuning job; the same command finds the job that it started before.")
    tune.add_argument(
        "--from-study", metavar="STUDY", help="only where the best quarter of a local study's trials lies"
    )
    train = add("train", _train, "Train one model as a training job.")
    source = train.add_mutually_exclusive_group()
    source.add_argument("--best-of", metavar="TUNING_JOB", help="with the settings of its best training job")
    source.add_argument("--from-study", metavar="STUDY", help="with the settings of a local study's best trial")
    for command in (tune, train):
        command.add_argument("--dry-run", action="store_true", help="print the request as JSON and start nothing")
        command.add_argument("--no-wait", action="store_true", help="do not watch the job")
        command.add_argument("--again", action="store_true", help="start another job although one is complete")
        text = "let SageMaker Debugger watch the job (accounts that had it before 2026-07-30; not in tuning jobs)"
        command.add_argument("--debug", dest="debugger.enabled", action="store_const", const="true", help=text)
        text = "keep losses, weights and gradients by the project's own recorder (--trainer.record light)"
        command.add_argument("--recorder", action="store_true", help=text)
    sync = add("sync", _sync, "Bring jobs and their metrics into MLflow; again and again, nothing is doubled.")
    sync.add_argument("jobs", nargs="*", metavar="JOB", help="by default all that this project has made")
    sync.set_defaults(more="jobs")
    sync.add_argument("--models", action="store_true", help="fetch the best model of each")
    add("status", _status, "List jobs and endpoints that run, whose they are and what they cost an hour.")
    stop = add("stop", _stop, "Stop jobs.")
    stop.add_argument("jobs", nargs="+", metavar="JOB")
    stop.set_defaults(more="jobs")
    add("cost", _cost, "List what each job has cost.")
    add_debug_commands(add)
    add_parity_command(add)
    add_endpoint_commands(add)
    add_serving_commands(add)
    policy = add("policy", _policy, "Print least-privilege IAM policies for the launcher and for the roles.")
    kinds = ("launcher", "role", "role_trust", "schedule_role", "schedule_role_trust")
    policy.add_argument("of", nargs="?", choices=kinds, help="one of them alone")
    rehearse = add("rehearse", _rehearse, "Run a stand-in for the service on 127.0.0.1 (needs the extra `rehearsal`).")
    rehearse.add_argument(
        "--all", action="store_true", help="tune, train, sync, deploy, query, delete; a verdict for each"
    )
    rehearse.add_argument("--port", type=int, help="by default a free one")
    rehearse.add_argument("--faults", metavar="rate=R,seed=N", help="let calls fail, as AWS's do on a bad day")
    text = "refuse jobs with --debug, as AWS does in accounts that have no Debugger"
    rehearse.add_argument("--without-debugger", action="store_true", help=text)
    rehearse.set_defaults(uses=("cloud rehearse", *(f"cloud {command}" for command in REHEARSED)))
