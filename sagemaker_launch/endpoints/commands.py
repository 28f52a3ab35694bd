"""The commands about endpoints: deploy, query, delete."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.config import RunConfig, require_output_file
from experiments.console import invocation, say
from experiments.errors import UserError
from sagemaker_launch.endpoints.lease import DEFAULT_TTL
from sagemaker_launch.settings.cloud import CloudSettings

if TYPE_CHECKING:
    from sagemaker_launch.endpoints.query import Target
    from sagemaker_launch.jobs.commands import Add


def add_endpoint_commands(add: Add) -> None:
    """Add the commands and their options."""
    deploy = add("deploy", _deploy, "Serve a model as an endpoint, or bring the endpoint to another model.")
    deploy.add_argument("name", metavar="NAME", help="of the endpoint")
    source = deploy.add_mutually_exclusive_group(required=True)
    source.add_argument("--best-of", metavar="TUNING_JOB", help="the model of its best training job")
    source.add_argument("--run", metavar="RUN_ID", help="the model of a run in MLflow")
    source.add_argument("--model", help="export folder, or registry URI such as models:/NAME@champion")
    deploy.add_argument("--ttl", default=DEFAULT_TTL, help="how long it may live: 30m, 4h, 2d, none (default 4h)")
    text = "ours, AWS's maintained one with Ray Serve, or AWS's last one with TorchServe"
    deploy.add_argument("--image", dest="endpoint.image", choices=("own", "aws", "torchserve"), help=text)
    deploy.add_argument("--dry-run", action="store_true", help="print the requests as JSON and deploy nothing")
    query = add("query", _query, "Name what is on photos, by an endpoint or a server at home.")
    query.add_argument("targets", nargs="+", metavar="NAME PHOTO", help="the endpoint, then photos and folders of them")
    query.set_defaults(more="targets")
    query.add_argument("--url", help="of a server, such as `serve` prints; then no NAME is given")
    query.add_argument("--top-k", type=int, default=5, metavar="K", help="classes to show (default 5)")
    query.add_argument("--parallel", type=int, default=8, metavar="N", help="photos asked for at once (default 8)")
    query.add_argument("--json", action="store_true", help="print JSON")
    query.add_argument("--show", type=Path, metavar="PNG", help="write a picture of the photos with their names")
    delete = add("delete", _delete, "Delete endpoints with all that belongs to them.")
    delete.add_argument("names", nargs="*", metavar="NAME")
    delete.set_defaults(more="names")
    delete.add_argument("--expired", action="store_true", help="all expired endpoints of this project, and leftovers")


def _deploy(settings: CloudSettings, config: RunConfig, arguments: argparse.Namespace) -> None:
    from sagemaker_launch.aws.running import Running, keeps_running
    from sagemaker_launch.endpoints import models
    from sagemaker_launch.endpoints.fleet import Services, find_endpoint
    from sagemaker_launch.endpoints.plan import deploy_model, deployment_requests, plan_endpoint

    plan = plan_endpoint(settings, config, arguments.name, ttl=arguments.ttl)
    if not arguments.dry_run:
        find_endpoint(
            Services.open(settings), settings, plan.name
        )  # refuse an endpoint of another project before any work
    say(plan.worst.table())
    if not arguments.dry_run:
        plan.worst.check_budget(settings)
    if arguments.best_of:
        model = models.model_of_tuning_job(settings, config, arguments.best_of)
    elif arguments.run:
        model = models.model_of_run(settings, config, arguments.run)
    else:
        model = models.registered_model(config, arguments.model)
    if settings.endpoint.precision == "int8":
        settings, model = models.in_int8(settings, config, model)
    if arguments.dry_run:
        print(json.dumps(deployment_requests(settings, config, plan, model), indent=2))
        return
    ask, delete = (
        invocation("sagemaker_launch", *words, *arguments.passed_on(words[0]))
        for words in (("query", plan.name, "PHOTO..."), ("delete", plan.name))
    )
    commands = {"the same command continues; to delete it": delete}
    running = Running(plan.worst.steady_usd, lambda _name: commands)
    with keeps_running(running):
        print(deploy_model(settings, config, plan, model, running=running).arn)
    say(f"ask it:    {ask}")
    say(f"delete it: {delete}")


def _query(settings: CloudSettings, config: RunConfig, arguments: argparse.Namespace) -> None:
    del config
    from lightning_modules.listing import find_photos
    from sagemaker_launch.endpoints.query import (
        SUFFIXES,
        QueryError,
        UrlTarget,
        answer_table,
        endpoint_target,
        query_photos,
    )

    if arguments.url:
        target: Target = UrlTarget(arguments.url)
        paths = arguments.targets
    else:
        name, *paths = arguments.targets
        if not paths:
            raise UserError(f"PHOTO must be given after the endpoint's name {name}, or --url URL instead of a name")
        target = endpoint_target(settings, name)
    photos = find_photos([Path(path) for path in paths], SUFFIXES)
    if arguments.show is not None:
        require_output_file("--show", arguments.show)
    answers = query_photos(target, photos, top_k=arguments.top_k, parallel=arguments.parallel)
    print(json.dumps([answer.to_dict() for answer in answers], indent=2) if arguments.json else answer_table(answers))
    if arguments.show:
        from experiments.figures.style import save_figure  # imports matplotlib
        from sagemaker_launch.endpoints.photo_grid import photo_grid

        save_figure(photo_grid(answers), arguments.show)
        say(f"picture: {arguments.show}")
    failed = [answer for answer in answers if answer.error]
    if failed:
        raise QueryError(f"{len(failed)} of {len(answers)} photos have no answer: {failed[0].image}: {failed[0].error}")


def _delete(settings: CloudSettings, config: RunConfig, arguments: argparse.Namespace) -> None:
    del config
    from sagemaker_launch.aws.retries import WHILE_RUNNING_SECONDS
    from sagemaker_launch.aws.running import Running, end_each, keeps_running
    from sagemaker_launch.endpoints.fleet import Services, delete_endpoint, delete_expired, expired_endpoints

    if bool(arguments.names) == arguments.expired:
        raise UserError("NAME must be given, or --expired instead")
    services = Services.open(settings, patience_seconds=WHILE_RUNNING_SECONDS)
    names = list(arguments.names)
    if arguments.expired:
        unknown = (
            "endpoints whose lease has expired may still run, and cost money. The same command finds and deletes them"
        )
        with keeps_running(Running(missing=unknown)):
            names = expired_endpoints(services, settings)
        if not names:
            print("no endpoint has expired")

    def delete(name: str) -> str:
        deleted = (delete_expired if arguments.expired else delete_endpoint)(services, settings, name)
        nothing = "nothing of it has expired" if arguments.expired else "there is nothing of that name"
        return f"{name}: " + (f"deleted {', '.join(deleted)}" if deleted else nothing)

    end_each(names, delete)
