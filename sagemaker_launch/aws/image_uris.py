"""What the URI of an image in ECR says: its registry, and by its tag the device and the versions of Python and PyTorch.

The tags are those of AWS's Deep Learning Containers, such as `2.6.0-gpu-py312-cu124-ubuntu22.04-sagemaker` and
`2.14-cu133-amzn2023-sagemaker`, and of our own serving image, such as `0.1.0-cuda`.
Source: github.com/aws/deep-learning-containers, available_images.md, read 2026-11.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Version = tuple[int, int]
RAY_SERVE_CUDA: Version = (12, 9)
"""CUDA of AWS's Ray Serve image for GPUs, which its tag does not name (docker/ray/Dockerfile.cuda, 2026-08)."""
CONTAINER_ACCOUNTS: Mapping[str, str] = {
    **dict.fromkeys(
        (
            *("us-east-1", "us-east-2", "us-west-1", "us-west-2", "ca-central-1", "sa-east-1"),
            *("ap-south-1", "ap-northeast-1", "ap-northeast-2", "ap-southeast-1", "ap-southeast-2"),
            *("eu-central-1", "eu-north-1", "eu-west-1", "eu-west-2", "eu-west-3"),
        ),
        "763104351884",
    ),
    "af-south-1": "626614931356",
    "ap-east-1": "871362719292",
    "ap-east-2": "975050140332",
    "ap-northeast-3": "364406365360",
    "ap-south-2": "772153158452",
    "ap-southeast-3": "907027046896",
    "ap-southeast-4": "457447274322",
    "ap-southeast-5": "550225433462",
    "ap-southeast-6": "633930458069",
    "ap-southeast-7": "590183813437",
    "ca-west-1": "204538143572",
    "eu-central-2": "380420809688",
    "eu-south-1": "692866216735",
    "eu-south-2": "503227376785",
    "il-central-1": "780543022126",
    "me-central-1": "914824155844",
    "me-south-1": "217643126080",
    "mx-central-1": "637423239942",
    "cn-north-1": "727897471807",
    "cn-northwest-1": "727897471807",
}
"""Account of AWS with its Deep Learning Containers, by region.

Source: github.com/aws/deep-learning-containers, docs/reference/region_availability.md (2026-08).
"""
_ECR = re.compile(
    r"\d{12}\.dkr[.-]ecr(?:-fips)?\.(?P<region>[a-z0-9-]+)\.(?P<suffix>[a-z0-9.-]+)/"
    r"(?P<repository>[^:@]+)(?::(?P<tag>[^@]+))?(?:@.+)?"
)


@dataclass(frozen=True)
class ImageUri:
    """An image in ECR."""

    region: str
    suffix: str
    """The end of its registry's host name, behind the region."""
    repository: str
    tag: str

    @property
    def device(self) -> Literal["cpu", "cuda"] | None:
        """The device that its PyTorch computes on; None if the tag does not name it."""
        words = set(re.split(r"[-_]", self.tag))
        if "cpu" in words:
            return "cpu"
        return "cuda" if words & {"gpu", "cuda"} or self.cuda else None

    @property
    def cuda(self) -> Version | None:
        """Version of CUDA; None if the tag does not name it."""
        found = re.search(r"(?:^|[-_])cu(\d\d)(\d)(?:$|[-_])", self.tag)
        return (int(found[1]), int(found[2])) if found else None

    @property
    def python(self) -> Version | None:
        """Version of Python; None if the tag does not name it."""
        found = re.search(r"(?:^|[-_])py(\d)(\d+)(?:$|[-_])", self.tag)
        return (int(found[1]), int(found[2])) if found else None

    @property
    def torch(self) -> Version | None:
        """Version of PyTorch of AWS's PyTorch images; None for others."""
        found = re.match(r"(\d+)\.(\d+)(?:$|[.-])", self.tag)
        is_pytorch = self.repository.rpartition("/")[2].startswith("pytorch")
        return (int(found[1]), int(found[2])) if found and is_pytorch else None

    @property
    def is_arm(self) -> bool:
        """Whether its name says that it is built for Arm processors."""
        return re.search(r"arm64|aarch64|graviton", f"{self.repository}:{self.tag}") is not None


def read_image_uri(uri: str) -> ImageUri | None:
    """What an image's URI says; None for an image that is not in ECR."""
    found = _ECR.fullmatch(uri)
    if found is None:
        return None
    return ImageUri(found["region"], found["suffix"], found["repository"], found["tag"] or "")


def repository_of(uri: str) -> str:
    """The last part of an image's repository: `pytorch-inference` of `HOST/pytorch-inference:2.6.0-cpu`."""
    return re.split("[:@]", uri.rpartition("/")[2])[0]
