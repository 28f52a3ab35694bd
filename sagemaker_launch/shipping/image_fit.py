"""Whether an image can run our code on an instance. AWS starts a job or an endpoint whose image can't, and bills it."""

from __future__ import annotations

from experiments.errors import UserError
from sagemaker_launch.aws.image_uris import ImageUri, Version, read_image_uri
from sagemaker_launch.aws.instances import GPU_CAPABILITIES, family, is_arm
from sagemaker_launch.container.machines import has_gpu

MIN_PYTHON: Version = (3, 11)
MIN_TORCH: Version = (2, 6)
"""Oldest versions that our code works with; a test compares them with pyproject.toml."""
OTHER_ACCELERATORS = ("trn", "inf", "dl1")
"""Families whose accelerators PyTorch uses through packages that our code and images do not have."""
OLDEST_CAPABILITIES: tuple[tuple[Version, Version], ...] = (
    ((13, 0), (7, 5)),
    ((12, 8), (7, 0)),
    ((12, 0), (5, 0)),
    ((0, 0), (3, 7)),
)
"""CUDA versions, each with the oldest compute capability for which PyTorch's builds since that version have kernels.

Source: PyTorch's RELEASE.md (CUDA architectures) and github.com/pytorch/test-infra/pull/7046, read 2026-11. A test
compares the first row with the PyTorch that is installed.
"""


def check_training_image(uri: str, instance_type: str) -> None:
    """Refuse a training image that can't run our code on an instance.

    Raises:
        UserError: naming the setting, the rule, the image or the instance type, and the next step.
    """
    image = read_image_uri(uri)
    _check(uri, image, image.cuda if image else None, instance_type, ("cloud.image_uri", "cloud.instance_type"))
    if image is None:
        return
    for what, found, oldest in (("Python", image.python, MIN_PYTHON), ("PyTorch", image.torch, MIN_TORCH)):
        if found is not None and found < oldest:
            raise UserError(
                f"cloud.image_uri must have {what} {_text(oldest)} or newer, which our code needs, got {uri}: leave it "
                "out (AWS's newest image is looked up), or name a newer image"
            )


def check_serving_image(uri: str, cuda: Version | None, instance_type: str | None) -> None:
    """Refuse a serving image that can't run on an instance.

    Args:
        cuda: version of its CUDA, where it has one and it is known.
        instance_type: None for a serverless endpoint, which has an x86-64 processor and no GPU.

    Raises:
        UserError: naming the setting, the rule, the image or the instance type, and the next step.
    """
    settings = ("cloud.endpoint.image_uri", "cloud.endpoint.instance_type")
    _check(uri, read_image_uri(uri), cuda, instance_type, settings)


def _check(
    uri: str, image: ImageUri | None, cuda: Version | None, instance_type: str | None, settings: tuple[str, str]
) -> None:
    image_setting, instance_setting = settings
    instance = instance_type or "a serverless endpoint"
    on_gpu = instance_type is not None and has_gpu(instance_type)
    if instance_type is not None and family(instance_type).startswith(OTHER_ACCELERATORS):
        raise UserError(
            f"{instance_setting} must have NVIDIA GPUs or only processors, as our code uses no other accelerator, got "
            f"{instance_type}: choose ml.g or ml.p, ml.c or ml.m"
        )
    if image is not None and image.is_arm != (instance_type is not None and is_arm(instance_type)):
        needed, has = ("x86-64", "Arm") if image.is_arm else ("Arm", "x86-64")
        raise UserError(
            f"{image_setting} must be built for {needed} processors, which {instance} has, got {uri}: choose an "
            f"instance with {has} processors, or name an image for {needed} (arm64 in its tag means Arm)"
        )
    if image is not None and image.device is not None and (image.device == "cuda") != on_gpu:
        needed = "CUDA" if on_gpu else "the CPU"
        raise UserError(
            f"{image_setting} must have PyTorch for {needed}, which {instance} needs, got {uri}: name the image for "
            f"{needed}, or another {instance_setting}"
        )
    if on_gpu and cuda is not None:
        assert instance_type is not None
        capability = GPU_CAPABILITIES.get(family(instance_type))
        oldest = next(kernels for version, kernels in OLDEST_CAPABILITIES if cuda >= version)
        if capability is not None and capability < oldest:
            raise UserError(
                f"{instance_setting} must have GPUs of compute capability {_text(oldest)} or newer, for which PyTorch "
                f"with CUDA {_text(cuda)} has kernels, got {instance_type} with {_text(capability)} and {uri}: choose "
                "a newer instance type such as ml.g4dn or ml.g5"
            )


def _text(version: Version) -> str:
    return ".".join(map(str, version))
