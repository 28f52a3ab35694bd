"""A job before it is started: its request, its worst-case cost, and its uploads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from experiments.config import RunConfig, override, require
from experiments.console import say
from experiments.errors import UserError
from experiments.study.epochs import EPOCHS, resolve_config
from experiments.study.search_space import SearchSpace
from sagemaker_launch.aws import client as aws
from sagemaker_launch.aws.api_model import require_limits
from sagemaker_launch.aws.prices import own_price
from sagemaker_launch.aws.resources import TRAINING, TUNING, Request, ResourceType, validate
from sagemaker_launch.aws.retries import WHILE_RUNNING_SECONDS
from sagemaker_launch.aws.tags import MAX_VALUE, to_tag_value
from sagemaker_launch.container.machines import has_gpu
from sagemaker_launch.jobs.budget import WorstCase, rule_processing, worst_case
from sagemaker_launch.jobs.launch import Build, Launched, launch
from sagemaker_launch.jobs.requests import number_of_jobs, training_job, tuning_job
from sagemaker_launch.settings.cloud import CloudSettings
from sagemaker_launch.shipping.image_fit import check_training_image
from sagemaker_launch.shipping.shipment import find_image, make_shipment, s3_root
from sagemaker_launch.shipping.storage import Inputs


@dataclass(frozen=True)
class JobPlan:
    """A job that can be shown, priced and started."""

    job_type: ResourceType
    label: str
    """Readable prefix of the job's name."""
    build: Build
    worst: WorstCase
    upload: Callable[[Any], None]
    """Takes an S3 client and uploads the files that the bucket lacks."""


def plan_tuning(settings: CloudSettings, config: RunConfig, space: SearchSpace) -> JobPlan:
    """Plan a tuning job that searches a space. Nothing is created or uploaded.

    Raises:
        UserError: for settings that a job can't have, photos or weights that are missing, or if no price is known.
    """
    config = resolve_config(config, space)
    if settings.strategy == "Hyperband" and EPOCHS in space:
        say(f"Hyperband decides how long each job trains: {EPOCHS} is {config.trainer.epochs} for all")

    def build(sent: RunConfig, inputs: Inputs, image_uri: str, name: str, checkpoints: str) -> Request:
        del checkpoints  # its training jobs have folders of their own below its name
        return tuning_job(settings, sent, space, inputs, image_uri, name=name)

    return _plan(settings, config, TUNING, number_of_jobs(settings, config, space), build)


def plan_training(settings: CloudSettings, config: RunConfig, *, channels: Inputs | None = None) -> JobPlan:
    """Plan a single training job. Nothing is created or uploaded.

    Args:
        channels: of another job, whose photos and weights this one uses; by default those of this machine.

    Raises:
        UserError: for settings that a job can't have, photos or weights that are missing, or if no price is known.
    """
    # The image of Debugger's rules depends on the region.
    settings = replace(settings, region=aws.region(settings))

    def build(sent: RunConfig, inputs: Inputs, image_uri: str, name: str, checkpoints: str) -> Request:
        return training_job(settings, sent, inputs, image_uri, name=name, checkpoints=checkpoints)

    return _plan(settings, resolve_config(config), TRAINING, 1, build, channels)


def _plan(
    settings: CloudSettings,
    config: RunConfig,
    job_type: ResourceType,
    jobs: int,
    build: Callable[[RunConfig, Inputs, str, str, str], Request],
    channels: Inputs | None = None,
) -> JobPlan:
    settings.require_for_jobs()
    require_limits(settings, "cloud tune" if job_type is TUNING else "cloud train")
    require(
        settings.checkpoints or (config.trainer.record == "none" and not config.trainer.profile),
        "cloud.checkpoints",
        "be true with trainer.record or trainer.profile: what they leave comes home with the checkpoints",
        settings.checkpoints,
    )
    experiment = config.tracking.experiment
    rule = f"have at most {MAX_VALUE} characters as a tag of the job"
    require(len(to_tag_value(experiment)) <= MAX_VALUE, "tracking.experiment", rule, experiment)
    region = aws.region(settings)
    _check_device(settings, config)
    image = find_image(settings, region, config.data.cache_dir)
    check_training_image(image, settings.instance_type)
    # Most of what AWS would refuse is refused before photos are hashed, which may take minutes.
    photos = s3_root(config) or f"{settings.uri}/data/sets/HASH/manifest.json"
    planned = channels or Inputs(photos, f"{settings.uri}/code/HASH/")
    without_path = override(config, {"model.weights": "none"})  # the shipment names the file
    validate(job_type.create_operation, build(without_path, planned, image, "name", ""), region=region)
    worst = worst_case(settings, own_price(settings, region), jobs=jobs, rules=rule_processing(settings, region))
    shipment, sent = make_shipment(settings, config, debugger=settings.debugger.enabled, channels=channels)
    inputs = shipment.inputs(settings)

    def request(name: str, checkpoints: str = "") -> Request:
        return build(sent, inputs, image, name, checkpoints)

    validate(job_type.create_operation, request("name"), region=region)
    return JobPlan(job_type, experiment, request, worst, lambda s3: shipment.upload(s3, settings))


def _check_device(settings: CloudSettings, config: RunConfig) -> None:
    """Say what stays at home of the settings of a device, and refuse a precision that the instance lacks."""
    trainer, on_gpu = config.trainer, has_gpu(settings.instance_type)
    rule = "be auto, float32 or, on a GPU, bf16 in a job, which has no OpenVINO"
    known = ("auto", "float32", *(("bf16",) if on_gpu else ()))
    require(config.data.feature_precision in known, "data.feature_precision", rule, config.data.feature_precision)
    if trainer.accelerator != "auto":
        say(f"trainer.accelerator {trainer.accelerator} is for this machine: the job uses what its instance has")
    # Lightning would train in bf16-mixed instead, with a warning.
    if trainer.precision == "16-mixed" and not on_gpu:
        raise UserError(
            "trainer.precision must be auto, 32-true or bf16-mixed on an instance without a GPU, got '16-mixed' and "
            f"cloud.instance_type {settings.instance_type}"
        )


def start_job(
    settings: CloudSettings,
    plan: JobPlan,
    *,
    again: bool = False,
    starts: Callable[[str], None] = lambda _name: None,
    exists: Callable[[Launched], None] = lambda _job: None,
) -> Launched:
    """Upload missing files, and start the job or find it.

    Args:
        again: start another job although one is complete.
        starts: called with the job's name before it is created.
        exists: called as soon as AWS has the job, before anything else can fail.

    Raises:
        LaunchError: if AWS does not take the request.
        UnansweredError: if AWS gives no answer, so that the job may run.
        ProtectionError: if the job lacks a protection that was asked for; it was stopped.
    """
    plan.upload(aws.client("s3", settings))
    sagemaker = aws.client("sagemaker", settings, patience_seconds=WHILE_RUNNING_SECONDS)
    return launch(sagemaker, plan.job_type, plan.label, plan.build, again=again, starts=starts, exists=exists)
