"""The shell commands that build our serving image and push it to ECR."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from experiments.errors import UserError
from sagemaker_launch.settings.cloud import PROJECT_TAG

ROOT = Path(__file__).resolve().parents[2]
"""The files that the image is built from."""
DOCKERFILE = "sagemaker_launch/serving/Dockerfile"
REPOSITORY_NAME = r"[a-z0-9]+([._-][a-z0-9]+)*(/[a-z0-9]+([._-][a-z0-9]+)*)*"
"""ECR's own pattern (CreateRepository, read 2026-11)."""
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
"""The only type of manifest that SageMaker takes. It answers CreateModel with "Unsupported manifest media type" to
OCI's manifests and indexes (github.com/aws/amazon-sagemaker-feedback/issues/180, read 2026-11)."""


def push_commands(image_uri: str, region: str, device: str, project: str) -> list[str]:
    """Commands that create the repository if it is missing, build the image, push it, and check what ECR has.

    Args:
        image_uri: REGISTRY/REPOSITORY:TAG.
        device: cpu or cuda.

    Raises:
        UserError: if ECR takes no such name.
    """
    registry, _, rest = image_uri.partition("/")
    repository, _, tag = rest.rpartition(":")
    if re.fullmatch(REPOSITORY_NAME, repository) is None:
        raise UserError(f"cloud.project must be lower case as part of an ECR repository, got {project!r}")
    aws = ["aws", "--region", region, "ecr"]
    login = ["docker", "login", "--username", "AWS", "--password-stdin", registry]
    create = ["create-repository", "--repository-name", repository, "--tags", f"Key={PROJECT_TAG},Value={project}"]
    # SageMaker's machines are x86-64. It takes one manifest in Docker's format: no index of several, which BuildKit
    # makes of attestations, and nothing in OCI's format, which is the default since BuildKit 0.31.
    build = ["docker", "buildx", "build", "--platform", "linux/amd64", "--provenance=false", "--sbom=false"]
    build += ["--output", "type=image,push=true,oci-mediatypes=false", "--build-arg", f"DEVICE={device}"]
    if device == "cpu":
        build += ["--build-arg", "TORCH_INDEX"]  # taken from the environment
    pushed = ["batch-get-image", "--repository-name", repository, "--image-ids", f"imageTag={tag}"]
    pushed += ["--query", "images[0].imageManifestMediaType", "--output", "text"]
    return [
        f"{shlex.join([*aws, 'get-login-password'])} | {shlex.join(login)}",
        f"{shlex.join([*aws, 'describe-repositories', '--repository-names', repository])} > /dev/null || "
        f"{shlex.join([*aws, *create])}",
        shlex.join([*build, "--tag", image_uri, "--file", str(ROOT / DOCKERFILE), str(ROOT)]),
        f"{shlex.join([*aws, *pushed])} | grep --fixed-strings --line-regexp {MANIFEST}",
    ]
