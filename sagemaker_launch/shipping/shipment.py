"""The inputs of a job: photos, code, weights, image."""

from __future__ import annotations

import contextlib
import json
from importlib import metadata
from pathlib import Path
from typing import Literal

from experiments.config import RunConfig, override, require
from experiments.console import say
from experiments.errors import UserError
from lightning_modules.files import file_sha256, replaced_whole
from sagemaker_launch.aws.image_uris import (
    CONTAINER_ACCOUNTS,
    RAY_SERVE_CUDA,
    Version,
    read_image_uri,
    repository_of,
)
from sagemaker_launch.aws.instances import local_disk_gb
from sagemaker_launch.aws.partitions import dns_suffix
from sagemaker_launch.container.machines import has_gpu
from sagemaker_launch.settings.cloud import CloudSettings, require_bucket_name
from sagemaker_launch.shipping.bundle import fetch_debugger, fetch_wheels, make_bundle
from sagemaker_launch.shipping.storage import (
    Inputs,
    PhotoSet,
    Shipment,
    photo_bytes,
    read_photo_set,
    weights_name,
)

SERVING_CUDA: Version = (13, 0)
"""Version of CUDA of our serving image on GPUs; a test compares it with serving/requirements-cuda.txt."""


def make_shipment(
    settings: CloudSettings, config: RunConfig, *, debugger: bool = False, channels: Inputs | None = None
) -> tuple[Shipment, RunConfig]:
    """Collect the inputs of a job of this config.

    Args:
        debugger: whether smdebug ships with the code.
        channels: of another job, whose photos and weights this one uses; by default those of this machine.

    Returns:
        The shipment, and the config as it is sent, without paths of this machine.

    Raises:
        UserError: if photos or weights are missing, settings do not fit, or the code holds what looks like a secret.
    """
    weights: Path | str | None = None if channels is None else channels.weights
    sha256 = ""
    if channels is None and config.model.weights not in ("imagenet", "none"):
        weights = local_weights(config)
        sha256 = file_sha256(weights)
        config = override(config, {"model.weights": weights_name(weights)})
    elif weights is not None:  # of a job of an older version, which may have another name
        is_safe = config.model.weights.lower().endswith(".safetensors")
        config = override(config, {"model.weights": "weights.safetensors" if is_safe else "weights.pth"})
    require(
        not settings.network_isolation or config.model.weights != "imagenet",
        "model.weights",
        "be a file or none with cloud.network_isolation, because a job without network can't download them",
        config.model.weights,
    )
    if channels is None:
        _require_room(settings, config, weights)
    wheels = fetch_wheels(config.data.cache_dir) if settings.network_isolation else None
    wheel = fetch_debugger(config.data.cache_dir) if debugger else None
    photos = channels.photos if channels else find_photo_set(config)
    return Shipment(photos, make_bundle(wheels, wheel), weights, sha256), config


def local_weights(config: RunConfig) -> Path:
    """The checkpoint that a config names.

    Raises:
        UserError: if there is none.
    """
    weights = Path(config.model.weights)
    if not weights.is_file():
        raise UserError(f"model.weights must be imagenet, none or a file, got {str(weights)!r}")
    return weights


def find_photo_set(config: RunConfig) -> PhotoSet | str:
    """The photos of a config: those of this machine by their content, or the s3:// URI that `data.root` is."""
    return s3_root(config) or read_photo_set(_photo_root(config))


def s3_root(config: RunConfig) -> str | None:
    """The s3:// URI that `data.root` is; None for a folder of this machine.

    Raises:
        UserError: if it names no bucket of S3 with prefixes.
    """
    root = "" if config.data.root is None else str(config.data.root)
    # A Path has one slash where a URI has two.
    if not root.startswith("s3:/"):
        return None
    path = root[3:].strip("/")
    require_bucket_name("data.root", path.partition("/")[0])
    return f"s3://{path}/"


def _require_room(settings: CloudSettings, config: RunConfig, weights: Path | str | None) -> None:
    """Refuse photos and weights of this machine that do not fit on the disk to which a job copies them.

    Raises:
        UserError: naming their size and the disk.
    """
    size = weights.stat().st_size if isinstance(weights, Path) else 0
    if s3_root(config) is None and settings.input_mode == "File":
        size += photo_bytes(_photo_root(config))
    needed_gb = size / 1e9
    local = local_disk_gb(settings.instance_type)
    if needed_gb <= (settings.volume_size_gb if local is None else local):
        return
    copies = f"hold the {needed_gb:.1f} GB of photos and weights that a job copies to its disk"
    if local is None:
        raise UserError(f"cloud.volume_size_gb must {copies}, got {settings.volume_size_gb}: raise it")
    raise UserError(
        f"cloud.instance_type must {copies}, got {settings.instance_type} with {local} GB of its own: choose a larger "
        "one, or one without NVMe disks and raise cloud.volume_size_gb"
    )


def _photo_root(config: RunConfig) -> Path:
    if config.data.name == "folder":
        return config.data.own_root
    from experiments.data.datasets import locate_photos  # imports torch

    return locate_photos(config.data)


def find_image(settings: CloudSettings, region: str, cache_dir: Path) -> str:
    """The training image: the one that is set, or AWS's newest for PyTorch, which is looked up once.

    Raises:
        UserError: if it is not set and AWS's SDK, which knows it, is not installed.
    """
    if settings.image_uri is not None:
        return settings.image_uri
    query = {"framework": "pytorch-amzn2023", "version": "2.14", "image_scope": "training"}
    return _image_uri("cloud.image_uri", query, region, settings.instance_type, cache_dir)


def find_serving_image(settings: CloudSettings, region: str, cache_dir: Path) -> str:
    """The serving image: the one that is set, our own in this account's ECR, or one of AWS's.

    Raises:
        UserError: if one of AWS's is selected and another one is set, or its URI is not known.
    """
    endpoint = settings.endpoint
    if endpoint.image == "torchserve":
        say("AWS's TorchServe image is the last one: PyTorch 2.6.0, without patches since 2026-06-30")
    if endpoint.image_uri is not None:
        _check_repository(endpoint.image, endpoint.image_uri)
        return endpoint.image_uri
    if endpoint.image == "own":
        return own_serving_image(settings, region, serving_device(settings))
    if endpoint.image == "aws":
        return ray_serve_image(region, serving_device(settings))
    query = {"framework": "pytorch", "version": "2.6.0", "py_version": "py312", "image_scope": "inference"}
    return _image_uri("cloud.endpoint.image_uri", query, region, endpoint.instance_type, cache_dir)


def _check_repository(image: str, uri: str) -> None:
    """Refuse an image of ours, or AWS's other one, as the one of AWS that is selected."""
    repository = {"aws": "ray", "torchserve": "pytorch-inference"}.get(image)
    if repository is not None and repository_of(uri) != repository:
        raise UserError(
            f"cloud.endpoint.image_uri must name AWS's repository {repository}, or a copy of that name, for "
            f"cloud.endpoint.image {image}, got {uri}: leave it out (--cloud.endpoint.image_uri null), or choose "
            "another cloud.endpoint.image"
        )


def serving_device(settings: CloudSettings) -> Literal["cpu", "cuda"]:
    """Device of an endpoint's instances: cpu or cuda."""
    return "cuda" if settings.endpoint.has_instances and has_gpu(settings.endpoint.instance_type) else "cpu"


def serving_cuda(settings: CloudSettings, image: str) -> Version | None:
    """Version of CUDA of a serving image, by its tag, or of our own image; None if it is not known."""
    found = read_image_uri(image)
    tagged = found.cuda if found else None
    return tagged or {"own": SERVING_CUDA, "aws": RAY_SERVE_CUDA}.get(settings.endpoint.image)


def own_serving_image(settings: CloudSettings, region: str, device: str) -> str:
    """The URI to which `python -m sagemaker_launch image --push` pushes our serving image."""
    version = metadata.version("local-first-experiments")
    return f"{settings.account}.dkr.ecr.{region}.{dns_suffix(region)}/{settings.project}-serving:{version}-{device}"


def ray_serve_image(region: str, device: Literal["cpu", "cuda"]) -> str:
    """The URI of AWS's Ray Serve image for SageMaker.

    The tag `-v1` moves with AWS's patches and with new versions of Ray, up to a change that is not compatible.

    Raises:
        UserError: if AWS does not say where the region has it.

    Source: github.com/aws/deep-learning-containers, docs/src/data/ray/2.57-cpu-sagemaker.yml (2026-08).
    """
    account = CONTAINER_ACCOUNTS.get(region)
    if account is None:
        raise UserError(
            f"cloud.endpoint.image_uri must be set in {region}, for which AWS lists no registry with its Ray Serve "
            "image: name the image there, or choose cloud.endpoint.image own"
        )
    return f"{account}.dkr.ecr.{region}.{dns_suffix(region)}/ray:serve-ml-sagemaker-{device}-v1"


def _image_uri(field: str, query: dict[str, str], region: str, instance_type: str, cache_dir: Path) -> str:
    """The URI of AWS's image, looked up once."""
    known = cache_dir / f"image-{'-'.join([*query.values(), region, instance_type])}.json"
    # A file that can't be read, as an older version left it after a kill or on a full disk, is written again.
    with contextlib.suppress(FileNotFoundError, ValueError):
        return str(json.loads(known.read_text()))
    try:
        from sagemaker.core import image_uris  # seconds
    except ImportError:
        raise UserError(
            f"{field} must be set, or the extra `cloud` installed (pip install '.[cloud]'), which looks it up"
        ) from None
    found = str(image_uris.retrieve(region=region, instance_type=instance_type, **query))
    say(f"image: {found} (set {field} to keep to it)")
    cache_dir.mkdir(parents=True, exist_ok=True)
    with replaced_whole(known, shared=True) as part:
        part.write_text(json.dumps(found))
    return found
