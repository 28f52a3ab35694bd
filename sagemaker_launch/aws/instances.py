"""Instance types: processor, GPU and local disk."""

from __future__ import annotations

import re
from collections.abc import Mapping

GPU_CAPABILITIES: Mapping[str, tuple[int, int]] = {
    "p2": (3, 7),
    "g3": (5, 2),
    "p3": (7, 0),
    "p3dn": (7, 0),
    "g4dn": (7, 5),
    "p4d": (8, 0),
    "p4de": (8, 0),
    "g5": (8, 6),
    "g6": (8, 9),
    "g6e": (8, 9),
    "p5": (9, 0),
    "p5e": (9, 0),
    "p5en": (9, 0),
    "p6-b200": (10, 0),
    "p6-b300": (10, 3),
    "p6e-gb200": (10, 0),
    "g7": (12, 0),
    "g7e": (12, 0),
}
"""CUDA compute capability of the GPUs of a family.

Source: EC2's instance types (K80, M60, V100, T4, A100, A10G, L4, L40S, H100, H200, B200, B300, GB200, RTX PRO) and
developer.nvidia.com/cuda-gpus, read 2026-11.
"""
_GRAVITON = {
    **{"medium": 59, "large": 118, "xlarge": 237, "2xlarge": 474, "4xlarge": 950, "8xlarge": 1900},
    **{"12xlarge": 2850, "16xlarge": 3800},
}
LOCAL_DISK_GB: Mapping[str, Mapping[str, int]] = {
    "c5d": {"large": 50, "xlarge": 100, "2xlarge": 200, "4xlarge": 400, "9xlarge": 900, "18xlarge": 1800},
    "m5d": {"large": 75, "xlarge": 150, "2xlarge": 300, "4xlarge": 600, "12xlarge": 1800, "24xlarge": 3600},
    "r5d": {
        **{"large": 75, "xlarge": 150, "2xlarge": 300, "4xlarge": 600, "8xlarge": 1200},
        **{"12xlarge": 1800, "16xlarge": 2400, "24xlarge": 3600},
    },
    "c6gd": _GRAVITON,
    "m6gd": _GRAVITON,
    "r6gd": _GRAVITON,
    "r7gd": _GRAVITON,
    "g4dn": {"xlarge": 125, "2xlarge": 225, "4xlarge": 225, "8xlarge": 900, "12xlarge": 900, "16xlarge": 900},
    "g5": {
        **{"xlarge": 250, "2xlarge": 450, "4xlarge": 600, "8xlarge": 900, "12xlarge": 3800, "16xlarge": 1900},
        **{"24xlarge": 3800, "48xlarge": 7600},
    },
    "g6": {
        **{"xlarge": 250, "2xlarge": 450, "4xlarge": 600, "8xlarge": 900, "12xlarge": 3760, "16xlarge": 1880},
        **{"24xlarge": 3760, "48xlarge": 7520},
    },
    "g6e": {
        **{"xlarge": 250, "2xlarge": 450, "4xlarge": 600, "8xlarge": 900, "12xlarge": 3800, "16xlarge": 1900},
        **{"24xlarge": 3800, "48xlarge": 7600},
    },
    "g7": {"2xlarge": 440, "4xlarge": 875, "8xlarge": 930, "12xlarge": 1900, "24xlarge": 3800, "48xlarge": 7600},
    "g7e": {"2xlarge": 1900, "4xlarge": 1900, "8xlarge": 1900, "12xlarge": 3800, "24xlarge": 7600, "48xlarge": 15_200},
    "p3dn": {"24xlarge": 1800},
    "p4d": {"24xlarge": 8000},
    "p4de": {"24xlarge": 8000},
    "p5": {"4xlarge": 3800, "48xlarge": 30_400},
    "p5e": {"48xlarge": 30_400},
    "p5en": {"48xlarge": 30_400},
    "p6-b200": {"48xlarge": 30_400},
    "p6-b300": {"48xlarge": 30_400},
    "p6e-gb200": {"36xlarge": 22_500},
    "trn1": {"2xlarge": 474, "32xlarge": 7600},
    "trn1n": {"32xlarge": 7600},
    "trn2": {"48xlarge": 7600},
    "dl1": {"24xlarge": 4000},
}
"""10^9 bytes of the NVMe disks of an instance, by family and size.

Source: EC2's DescribeInstanceTypes, InstanceStorageInfo (2026); a test compares it with moto's copy of that answer.
"""

INFERENCE_AMIS: Mapping[str, tuple[int, int]] = {
    "al2-ami-sagemaker-inference-gpu-2-1": (12, 2),
    "al2-ami-sagemaker-inference-gpu-3-1": (12, 4),
    "al2023-ami-sagemaker-inference-gpu-4-1": (13, 0),
}
"""InferenceAmiVersion of endpoints with GPUs, oldest first, and the CUDA version of the driver of each.

Source: API_ProductionVariant, read 2026-11; a test compares it with botocore's copy of that page.
"""


def family(instance_type: str) -> str:
    """The family of an instance type: `g4dn` of `ml.g4dn.xlarge`."""
    return instance_type.removeprefix("ml.").rpartition(".")[0]


def inference_ami(cuda: tuple[int, int]) -> str:
    """The AMI of an endpoint's instances whose NVIDIA driver fits an image's CUDA.

    A driver runs all older versions of CUDA, and newer ones with the same first number (CUDA's minor version
    compatibility, docs.nvidia.com/deploy/cuda-compatibility); for a CUDA that is newer than all, it is the newest.
    """
    return next((ami for ami, driver in INFERENCE_AMIS.items() if driver >= cuda), list(INFERENCE_AMIS)[-1])


def is_arm(instance_type: str) -> bool:
    """Whether its processors are Arm: Graviton, whose families have a `g` behind the generation, or NVIDIA's Grace."""
    return re.fullmatch(r"[a-z]+\d+g[a-z]*|\w+-gb\d+", family(instance_type)) is not None


def local_disk_gb(instance_type: str) -> int | None:
    """10^9 bytes of its own disks; None where it has none, and SageMaker attaches a volume."""
    size = instance_type.rpartition(".")[2]
    return LOCAL_DISK_GB.get(family(instance_type), {}).get(size)
