"""Train what a job has trained: its settings, on its photos, from its weights.

On AWS the other job's channels are used. At home only this machine knows where the photos and the weights are: they
must have the same content, or the command is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.config import RunConfig, is_own_in_job, is_sent, noted_fields, override
from experiments.data.inputs import open_data_once
from experiments.errors import UserError
from experiments.runs.folder import FINGERPRINT
from lightning_modules.files import file_sha256
from sagemaker_launch.aws.tags import from_tag_value
from sagemaker_launch.container.hyperparameters import decode
from sagemaker_launch.settings.cloud import EXPERIMENT_TAG
from sagemaker_launch.shipping.shipment import find_photo_set, local_weights
from sagemaker_launch.shipping.storage import Inputs

WEIGHTS_PARAM = "cloud.weights"
"""Param of a job's run: where its checkpoint is in S3, by its content."""


def channel_uris(described: Mapping[str, Any]) -> dict[str, str]:
    """The channels of a training job, from name to address in S3, by AWS's description."""
    listed = described.get("InputDataConfig") or ()
    return {channel["ChannelName"]: channel["DataSource"]["S3DataSource"]["S3Uri"] for channel in listed}


def channels_of(described: Mapping[str, Any]) -> Inputs:
    """The channels of a training job of this program.

    Raises:
        UserError: if it has others.
    """
    uris = channel_uris(described)
    if not {"photos", "code"} <= uris.keys():
        name = described["TrainingJobName"]
        raise UserError(f"{name} must be a job of this program, with the channels photos and code, got {sorted(uris)}")
    return Inputs(uris["photos"], uris["code"], uris.get("weights"))


def experiment_of(tags: Mapping[str, str], config: RunConfig) -> str:
    """The MLflow experiment that a job was launched for; that of `config` for a job of an older version."""
    return from_tag_value(tags.get(EXPERIMENT_TAG, "")) or config.tracking.experiment


def config_fields(sent: Mapping[str, object]) -> dict[str, object]:
    """The fields of a job that are not its machine's own, as photos, weights and devices are.

    Args:
        sent: all its fields, as its hyperparameters or its run have them.

    Raises:
        UserError: for a field that this version does not know.
    """
    return {name: value for name, value in sent.items() if is_sent(name) and not is_own_in_job(name)}


def config_for_another_job(
    config: RunConfig, described: Mapping[str, Any], overrides: Mapping[str, object]
) -> RunConfig:
    """The config of a training job, for another one on the same channels.

    Photos or weights that `config` names must be the job's.

    Args:
        described: AWS's description of the job.

    Raises:
        UserError: if the config names other photos or weights.
    """
    name, channels = described["TrainingJobName"], channels_of(described)
    sent, default = decode(described["HyperParameters"]), RunConfig()
    if (config.data.name, config.data.root) != (default.data.name, default.data.root):
        photos = find_photo_set(config)
        uri = photos if isinstance(photos, str) else photos.manifest
        if not channels.photos.endswith(uri):
            raise UserError(
                f"data.root must hold the photos of {name}, got other photos in {config.data.root}: leave --config and "
                f"data.root out, and the job's photos are used ({channels.photos})"
            )
    if config.model.weights != default.model.weights:
        check_weights(config, name, sent["model.weights"], channels.weights)
    # Its photos and weights are in the channels.
    own = {"data.name": sent["data.name"], "data.root": channels.photos, "model.weights": sent["model.weights"]}
    return override(config, config_fields(sent) | own | dict(overrides))


def config_for_home(
    config: RunConfig, name: str, params: Mapping[str, str], overrides: Mapping[str, object]
) -> RunConfig:
    """The config of a training job, for a run on this machine.

    Args:
        name: of the job.
        params: of its run.

    Raises:
        UserError: if the photos or weights of `config` are not the job's.
    """
    weights = params["model.weights"]
    if weights in ("imagenet", "none") and config.model.weights == RunConfig().model.weights:
        config = override(config, {"model.weights": weights})
    config = override(config, config_fields(noted_fields(params)) | dict(overrides))
    check_weights(config, name, weights, params.get(WEIGHTS_PARAM))
    wanted, found = params.get(FINGERPRINT), open_data_once(config).fingerprint
    if wanted != found:
        raise UserError(
            f"data.root must hold the photos of {name} (fingerprint {wanted}), got {config.data.root} with {found}: "
            "name the folder with --data.name folder --data.root"
        )
    return config


def check_weights(config: RunConfig, name: str, weights: str, uri: str | None) -> None:
    """Compare the weights that a config begins with to those of a job.

    Args:
        name: of the job.
        weights: `model.weights` as the job was sent it.
        uri: the job's channel; None for weights that are no file.

    Raises:
        UserError: if they are others.
    """
    if uri is None:
        is_same = config.model.weights == weights
    else:
        is_file = config.model.weights not in ("imagenet", "none")
        is_same = is_file and file_sha256(local_weights(config))[:32] in uri
    if is_same:
        return
    where = f", which are in {uri}" if uri else ""
    raise UserError(
        f"model.weights must be those of {name} ({weights}{where}), got {config.model.weights}: name the "
        "same file with --model.weights"
    )
