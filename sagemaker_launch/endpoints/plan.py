"""An endpoint before it is deployed: image, lease and cost; then the deployment as a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.config import RunConfig, require
from experiments.console import say
from experiments.errors import UserError
from experiments.runs.folder import Outcome, RunFolder, now_ms
from lightning_modules.files import file_sha256
from sagemaker_launch.aws import client as aws
from sagemaker_launch.aws.api_model import require_limits
from sagemaker_launch.aws.logs import endpoint_log
from sagemaker_launch.aws.resources import Request, validate
from sagemaker_launch.aws.retries import WHILE_RUNNING_SECONDS
from sagemaker_launch.aws.running import Running
from sagemaker_launch.endpoints.budget import HourlyWorst, hourly_worst
from sagemaker_launch.endpoints.fleet import Services, find_endpoint
from sagemaker_launch.endpoints.lease import DEFAULT_TTL, ENDPOINT_TAG, EXPIRES_TAG, Lease, new_lease
from sagemaker_launch.endpoints.query import open_target
from sagemaker_launch.endpoints.requests import (
    Deployment,
    create_endpoint,
    deployment,
    planned_requests,
    update_endpoint,
)
from sagemaker_launch.settings.cloud import CloudSettings
from sagemaker_launch.shipping.archive import pack_model
from sagemaker_launch.shipping.image_fit import check_serving_image
from sagemaker_launch.shipping.shipment import find_serving_image, serving_cuda, serving_device
from sagemaker_launch.shipping.storage import Storage

if TYPE_CHECKING:
    from sagemaker_launch.endpoints.deploy import Deployed
    from sagemaker_launch.endpoints.models import LocatedModel


@dataclass(frozen=True)
class EndpointPlan:
    """An endpoint without its model."""

    name: str
    image: str
    lease: Lease
    worst: HourlyWorst


def plan_endpoint(settings: CloudSettings, config: RunConfig, name: str, *, ttl: str = DEFAULT_TTL) -> EndpointPlan:
    """Plan an endpoint: its image, its lease and its cost per hour. Nothing is created.

    Args:
        ttl: time until it expires: a whole number and m, h or d, or `none`.

    Raises:
        UserError: for a name, a time or settings that an endpoint can't have, or if no price is known.
    """
    settings.require_for_jobs()
    require_limits(settings, "cloud deploy")
    lease, region, endpoint = new_lease(settings, ttl), aws.region(settings), settings.endpoint
    for tag, option in ((EXPIRES_TAG, "--ttl"), (ENDPOINT_TAG, "NAME")):
        require(tag not in settings.tags, "cloud.tags", f"leave {tag!r} to {option}", settings.tags)
    require(
        endpoint.inference_ami is None or serving_device(settings) == "cuda",
        "cloud.endpoint.inference_ami",
        "be left out without an instance type that has GPUs",
        endpoint.inference_ami,
    )
    machine = endpoint.instance_type if endpoint.has_instances else "a serverless endpoint"
    served = (endpoint.precision, serving_device(settings))
    with_gpus = f"be float32 or bf16 on {machine}, which has GPUs"
    without = f"be float32 or int8 on {machine}, which has no GPU"
    require(served != ("int8", "cuda"), "cloud.endpoint.precision", with_gpus, endpoint.precision)
    require(served != ("bf16", "cpu"), "cloud.endpoint.precision", without, endpoint.precision)
    if endpoint.precision == "int8":
        from experiments.int8 import require_quantizer  # imports torch

        require_quantizer()
    image = find_serving_image(settings, region, config.data.cache_dir)
    instance_type = endpoint.instance_type if endpoint.has_instances else None
    check_serving_image(image, serving_cuda(settings, image), instance_type)
    # What AWS would refuse is refused before a model is fetched.
    version = deployment(settings, name, image, f"{settings.uri}/models/model.tar.gz")
    for service, operation, request in planned_requests(settings, name, version, lease):
        validate(operation, request, region=region, service=service)
    return EndpointPlan(name, image, lease, hourly_worst(settings, region))


def deployment_requests(
    settings: CloudSettings, config: RunConfig, plan: EndpointPlan, model: LocatedModel
) -> dict[str, Request]:
    """The requests that `deploy_model` would send to create or update the endpoint, by operation."""
    archive, _, version = _packed(settings, config, plan, model)
    archive.unlink()
    return {
        "CreateModel": version.model,
        "CreateEndpointConfig": version.config,
        "CreateEndpoint": create_endpoint(settings, plan.name, version.config_name, plan.lease),
        "UpdateEndpoint": update_endpoint(settings, plan.name, version.config_name),
    }


def deploy_model(
    settings: CloudSettings,
    config: RunConfig,
    plan: EndpointPlan,
    model: LocatedModel,
    *,
    running: Running | None = None,
) -> Deployed:
    """Deploy a model as a new endpoint or as an update, and record it as a run in MLflow.

    Args:
        running: is told what is made, for the last lines of a command that fails.

    Raises:
        OverBudgetError: if an update would exceed the budget, as the old and the new instances run at the same time.
        DeployError: if it does not start, or its scores differ from the trainer's; the previous version is kept.
    """
    running = Running() if running is None else running
    services, storage = Services.open(settings), Storage(aws.client("s3", settings), settings)
    storage.require_region()
    existing = find_endpoint(services, settings, plan.name)
    archive, key, version = _packed(settings, config, plan, model)
    # A serverless endpoint is billed per request, so an update costs no more.
    if existing is not None and existing.config_name != version.config_name and settings.endpoint.kind != "serverless":
        updating = replace(plan.worst, fleets=2)
        say(updating.table())
        updating.check_budget(settings)
        running.usd_per_hour = updating.usd
    storage.upload_file(key, archive)
    archive.unlink()
    patient = Services.open(settings, patience_seconds=WHILE_RUNNING_SECONDS)
    return _deploy_as_run(patient, settings, config, plan, model, version, running)


def _packed(
    settings: CloudSettings, config: RunConfig, plan: EndpointPlan, model: LocatedModel
) -> tuple[Path, str, Deployment]:
    """A model's archive on this machine, its key in the bucket, and the deployment."""
    say(f"model: {model.source}, {_check(model)}")
    target = config.output_dir / "models" / f"{plan.name}.tar.gz"
    archive = pack_model(model.export, target, for_ray_serve=settings.endpoint.image == "aws")
    key = f"models/{file_sha256(archive)[:32]}/model.tar.gz"
    return archive, key, deployment(settings, plan.name, plan.image, f"{settings.uri}/{key}")


def _check(model: LocatedModel) -> str:
    """Score the golden photo on this machine before anything is sent.

    Raises:
        UserError: if the export is damaged, or its scores differ from the trainer's.
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
    running: Running,
) -> Deployed:
    """Deploy, and record model, endpoint, scores and latency in MLflow."""
    from experiments.tracking.store import RunStore
    from lightning_modules.inference import GOLDEN_TOLERANCE
    from sagemaker_launch.endpoints.deploy import Golden, deploy

    name, lease, store = plan.name, plan.lease, RunStore.open_or_wait(config)
    folder = RunFolder(config.output_dir / "endpoints" / f"{version.config_name}-{now_ms()}")
    container = version.model["PrimaryContainer"]
    params = {f"cloud.endpoint.{field}": value for field, value in asdict(settings.endpoint).items()}
    params |= {"model.source": model.source, "model.archive": container["ModelDataUrl"], "image": container["Image"]}
    tags = {"origin": aws.origin(services.sagemaker), "endpoint": name, "config": version.config_name, **lease.tags}
    tags |= {"int8": model.int8.summary} if model.int8 is not None else {}
    folder.start(f"deploy {name}", params, tags)
    log = endpoint_log(aws.client("logs", settings, patience_seconds=WHILE_RUNNING_SECONDS), name, now_ms())
    try:
        target = open_target(settings, name, settings.endpoint.kind, patience_seconds=WHILE_RUNNING_SECONDS)
        golden = Golden.read(model.export, settings.endpoint.precision)
        done = deploy(services, settings, name, version, lease, golden, target, log, running=running)
    except KeyboardInterrupt:
        folder.finish(Outcome("STOPPED"))
        store.push_or_wait(folder)
        raise
    except Exception as error:
        folder.finish(Outcome("FAIL", reason=str(error)))
        store.push_or_wait(folder)
        raise
    measured = {"golden_difference": done.golden_difference, "first_latency_ms": done.first_latency_ms}
    if model.int8 is not None:
        measured |= model.int8.accuracies
    # No other precision comes that close.
    served = settings.endpoint.precision if done.golden_difference > GOLDEN_TOLERANCE else "float32"
    folder.add_tags({"served_precision": served})
    folder.finish(Outcome("COMPLETE", None, {"usd_per_hour": plan.worst.steady_usd, **measured}))
    store.push_or_wait(folder)
    if model.registered is not None:
        from experiments.tracking.registry import tag_version

        tag_version(model.registered, store, {"endpoint": name})
    say(f"the golden photo's logits are off by {done.golden_difference:.1g}; {done.first_latency_ms:.0f} ms")
    if served != settings.endpoint.precision:
        say(
            f"the endpoint serves {served} in place of {settings.endpoint.precision}: its instance can't, and its log "
            "says why"
        )
    say(done.guards)
    return done
