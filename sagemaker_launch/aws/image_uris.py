"""What the URI of an image in ECR says: its registry, and by its tag the device and the versions of Python and PyTorch.

The tags are those of AWS's Deep Learning Containers, such as `2.6.0-gpu-py312-cu124-ubuntu22.04-sagemaker` and
`2.14-cu133-amzn2023-sagemaker`, and of our own serving image, such as `0.1.0-cuda`.
Source: github.com/aws/deep-learning-containers, available_images.md, read 2026-11.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Version = tuple[int, int]
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
