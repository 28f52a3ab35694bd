"""The commands about endpoints: deploy, query, delete."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.config import RunConfig, public_url, require_output_file
from experiments.console import invocation, say
from experiments.errors import UserError
from sagemaker_launch.endpoints.lease import DEFAULT_TTL, Lease
from sagemaker_launch.settings.cloud import CloudSettings

if TYPE_CHECKING:
    from sagemaker_launch.endpoints.deploy import Deployed
    from sagemaker_launch.endpoints.fleet import Services
    from sagemaker_launch.endpoints.models import LocatedModel
    from sagemaker_launch.endpoints.query import Target
    from sagemaker_launch.endpoints.requests import Deployment
    from sagemaker_launch.jobs.budget import HourlyWorst

Add = Callable[[str, object, str], argparse.ArgumentParser]


def add_endpoint_commands(add: Add) -> None:
    """The commands and their own options."""
    deploy = add("deploy", _deploy, "Serve a model as an endpoint, or bring the endpoint to another model.")
    deploy.add_argument("name", metavar="NAME", help="of the endpoint")
    source = deploy.add_mutually_exclusive_group(required=True)
    source.add_argument("--best-of", metavar="TUNING_JOB", help="the model of its best training job")
    source.add_argument("--run", metavar="RUN_ID", help="the model of a run in MLflow")
    source.add_argument("--model", help="export folder, or registry URI such as models:/NAME@champion")
    deploy.add_argument("--ttl", default=DEFAULT_TTL, help="how long it may live: 30m, 4h, 2d, none (default 4h)")
    deploy.add_argument(
        "--image", dest="endpoint.image", choices=("own", "aws"), help="ours, or AWS's last one with TorchServe"
    )
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
    delete.add_argument("--expired", action="store_true", help="all of this project whose time is over, and leftovers")


def _deploy(settings: CloudSettings, config: RunConfig, arguments: argparse.Namespace) -> None:
    from sagemaker_launch.endpoints import models
    from sagemaker_launch.endpoints.fleet import Services, find_endpoint
    from sagemaker_launch.endpoints.requests import create_endpoint, update_endpoint
    from sagemaker_launch.jobs.budget import check_hourly_budget

    plan = plan_endpoint(settings, config, arguments.name, ttl=arguments.ttl)
    if not arguments.dry_run:
        find_endpoint(Services.open(settings), settings, plan.name)  # another project's is refused at once
    say(plan.worst.table())
    if not arguments.dry_run:
        check_hourly_budget(settings, plan.worst)
    if arguments.best_of:
        model = models.of_tuning_job(settings, config, arguments.best_of)
    elif arguments.run:
        model = models.of_run(settings, config, arguments.run)
    else:
        model = models.registered(config, arguments.model)
    if not arguments.dry_run:
        print(deploy_model(settings, config, plan, model).arn)
        for does, words in (("ask it:   ", ("query", plan.name, "PHOTO...")), ("delete it:", ("delete", plan.name))):
            say(f"{does} {public_url(invocation('sagemaker_launch', *words, *arguments.passed_on(words[0])))}")
        return
    archive, _, version = _packed(settings, config, plan, model)
    archive.unlink()
    created = create_endpoint(settings, plan.name, version.config_name, plan.lease)
    updated = update_endpoint(settings, plan.name, version.config_name)
    requests = {"CreateModel": version.model, "CreateEndpointConfig": version.config}
    print(json.dumps({**requests, "CreateEndpoint": created, "UpdateEndpoint": updated}, indent=2))


@dataclass(frozen=True)
class EndpointPlan:
    """An endpoint that is to be, whichever model it gets."""

    name: str
    image: str
    lease: Lease
    worst: HourlyWorst


def plan_endpoint(settings: CloudSettings, config: RunConfig, name: str, *, ttl: str = DEFAULT_TTL) -> EndpointPlan:
    """What serves a model, until when, and what that costs an hour.

    Args:
        ttl: how long it may live: a whole number and m, h or d, or `none`.

    Raises:
        UserError: for a name, a time or settings that can't be, or if nobody knows a price.
    """
    from sagemaker_launch.aws import client as aws
    from sagemaker_launch.endpoints.lease import new_lease
    from sagemaker_launch.endpoints.requests import deployment
    from sagemaker_launch.jobs.budget import hourly_worst
    from sagemaker_launch.shipping.shipment import find_serving_image

    settings.require_for_jobs()
    lease, region = new_lease(settings, ttl), aws.region(settings)
    image = find_serving_image(settings, region, config.data.cache_dir)
    # A name that AWS would refuse is refused before a model is fetched.
    deployment(settings, name, image, "")
    return EndpointPlan(name, image, lease, hourly_worst(settings, region))


def deploy_model(settings: CloudSettings, config: RunConfig, plan: EndpointPlan, model: LocatedModel) -> Deployed:
    """Serve a model as an endpoint, or bring the endpoint to it, and note it as a run in MLflow.

    Raises:
        OverBudgetError: if an endpoint that is there would be updated, and both fleets together are too dear.
        DeployError: if it does not come up, or answers otherwise than the trainer did; what was there before is left.
    """
    from sagemaker_launch.aws import client as aws
    from sagemaker_launch.endpoints.fleet import Services, find_endpoint
    from sagemaker_launch.jobs.budget import check_hourly_budget
    from sagemaker_launch.shipping.storage import Storage

    services = Services.open(settings)
    there = find_endpoint(services, settings, plan.name)
    archive, key, version = _packed(settings, config, plan, model)
    # A serverless endpoint is billed by the request, and one request goes to one fleet.
    if there is not None and there.config_name != version.config_name and settings.endpoint.kind != "serverless":
        updating = replace(plan.worst, fleets=2)
        say(updating.table())
        check_hourly_budget(settings, updating)
    Storage(aws.client("s3", settings), settings).upload_file(key, archive)
    archive.unlink()
    return _deploy_as_run(services, settings, config, plan, model, version)


def _packed(
    settings: CloudSettings, config: RunConfig, plan: EndpointPlan, model: LocatedModel
) -> tuple[Path, str, Deployment]:
    """A model's archive on this machine, its key in the bucket, and what is made of it."""
    from sagemaker_launch.endpoints.requests import deployment
    from sagemaker_launch.shipping.archive import pack_model
    from sagemaker_launch.shipping.storage import file_sha256

    say(f"model: {model.source}, {_check(model)}")
    archive = pack_model(model.export, config.output_dir / "models" / f"{plan.name}.tar.gz")
    key = f"models/{file_sha256(archive)[:32]}/model.tar.gz"
    return archive, key, deployment(settings, plan.name, plan.image, f"{settings.uri}/{key}")


def _check(model: LocatedModel) -> str:
    """Score the golden photo on this machine before anything is sent.

    Raises:
        UserError: if the export is not whole, or scores the photo otherwise than its trainer.
    """
    from lightning_modules.export import check_golden  # imports torch
    from lightning_modules.inference import BadExportError

    try:
        check_golden(model.export)
    except BadExportError as error:
        raise UserError(f"--model must be a whole and unchanged export, got {model.source}: {error}") from error
    return "which scores its golden photo as the trainer did"


def _deploy_as_run(
    services: Services,
    settings: CloudSettings,
    config: RunConfig,
    plan: EndpointPlan,
    model: LocatedModel,
    version: Deployment,
) -> Deployed:
    """Deploy, and note in MLflow what was deployed, where and how it answered."""
    from experiments.runs.folder import Outcome, RunFolder, now_ms
    from experiments.tracking.store import RunStore
    from sagemaker_launch.aws import client as aws
    from sagemaker_launch.aws.logs import endpoint_log
    from sagemaker_launch.endpoints.deploy import Golden, deploy

    name, lease, store = plan.name, plan.lease, RunStore.open_or_wait(config)
    folder = RunFolder(config.output_dir / "endpoints" / f"{version.config_name}-{now_ms()}")
    container = version.model["PrimaryContainer"]
    params = {f"cloud.endpoint.{field}": value for field, value in asdict(settings.endpoint).items()}
    params |= {"model.source": model.source, "model.archive": container["ModelDataUrl"], "image": container["Image"]}
    tags = {"origin": aws.origin(services.sagemaker), "endpoint": name, "config": version.config_name, **lease.tags}
    folder.start(f"deploy {name}", params, tags)
    log = endpoint_log(aws.client("logs", settings), name)
    try:
        target = open_target(settings, name, settings.endpoint.kind)
        done = deploy(services, settings, name, version, lease, Golden.read(model.export), target, log)
    except KeyboardInterrupt:
        folder.finish(Outcome("STOPPED"))
        store.push_or_wait(folder)
        say(f"\n{name} goes on without you: the same command watches it again, `delete {name}` ends it")
        raise
    except Exception as error:
        folder.finish(Outcome("FAIL", reason=str(error)))
        store.push_or_wait(folder)
        raise
    measured = {"golden_difference": done.golden_difference, "first_latency_ms": done.first_latency_ms}
    folder.finish(Outcome("COMPLETE", None, {"usd_per_hour": plan.worst.steady_usd, **measured}))
    store.push_or_wait(folder)
    if model.registered is not None:
        from experiments.tracking.registry import tag_version

        tag_version(model.registered, store, {"endpoint": name})
    say(f"the golden photo's logits are off by {done.golden_difference:.1g}; {done.first_latency_ms:.0f} ms")
    say(done.guards)
    return done


def open_target(settings: CloudSettings, name: str, kind: str) -> Target:
    """An endpoint to ask."""
    from sagemaker_launch.aws import client as aws
    from sagemaker_launch.endpoints.query import AsyncTarget, EndpointTarget
    from sagemaker_launch.endpoints.requests import async_uri

    # AWS cuts a request after 60 seconds; the first one of a serverless endpoint starts a machine.
    runtime = aws.client("sagemaker-runtime", settings, read_timeout=70)
    if kind != "async":
        return EndpointTarget(runtime, name)
    return AsyncTarget(runtime, aws.client("s3", settings), name, async_uri(settings, name, "in"))


def _query(settings: CloudSettings, config: RunConfig, arguments: argparse.Namespace) -> None:
    del config
    from sagemaker_launch.endpoints.query import QueryError, UrlTarget, answer_table, find_photos, query_photos

    if arguments.url:
        target: Target = UrlTarget(arguments.url)
        paths = arguments.targets
    else:
        name, *paths = arguments.targets
        if not paths:
            raise UserError(f"PHOTO must be given after the endpoint's name {name}, or --url URL instead of a name")
        target = target_of(settings, name)
    photos = list(find_photos([Path(path) for path in paths]))
    if not photos:
        raise UserError(f"PHOTO must be photos or folders that hold some, got {' '.join(paths)}")
    if arguments.show is not None:
        require_output_file("--show", arguments.show)
    answers = query_photos(target, photos, top_k=arguments.top_k, parallel=arguments.parallel)
    print(json.dumps([one.to_dict() for one in answers], indent=2) if arguments.json else answer_table(answers))
    if arguments.show:
        from experiments.figures.figures import save_figure  # imports matplotlib
        from sagemaker_launch.endpoints.photo_grid import photo_grid

        save_figure(photo_grid(answers), arguments.show)
        say(f"picture: {arguments.show}")
    failed = [one for one in answers if one.error]
    if failed:
        raise QueryError(f"{len(failed)} of {len(answers)} photos have no answer: {failed[0].image}: {failed[0].error}")


def target_of(settings: CloudSettings, name: str) -> Target:
    """The endpoint of a name, to be asked.

    Raises:
        UserError: if there is none.
    """
    from sagemaker_launch.aws import client as aws
    from sagemaker_launch.endpoints.fleet import kind_of
    from sagemaker_launch.jobs.launch import CONFIG, ENDPOINT

    sagemaker = aws.client("sagemaker", settings)
    described = ENDPOINT.find(sagemaker, name)
    if described is None:
        raise UserError(f"NAME must be an endpoint of this account and region, found none called {name}")
    config = CONFIG.describe(sagemaker, described[CONFIG.name])
    return open_target(settings, name, kind_of(config))


def _delete(settings: CloudSettings, config: RunConfig, arguments: argparse.Namespace) -> None:
    del config
    from sagemaker_launch.endpoints.fleet import Services, delete_endpoint, orphans, project_endpoints

    if bool(arguments.names) == arguments.expired:
        raise UserError("NAME must be given, or --expired instead")
    services = Services.open(settings)
    names = list(arguments.names)
    if arguments.expired:
        names = [one.name for one in project_endpoints(services, settings) if one.lease.is_over()]
        names += sorted(orphans(services, settings))
        if not names:
            print("nothing is over")
    for name in names:
        gone = delete_endpoint(services, settings, name)
        print(f"{name}: " + (f"deleted {', '.join(gone)}" if gone else "there is nothing of that name"))
