"""The shell commands that push our serving image to ECR."""

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


def push_commands(image_uri: str, region: str, device: str, project: str) -> list[str]:
    """Commands that build the image and push it, and create the repository if it is missing.

    Args:
        image_uri: REGISTRY/REPOSITORY:TAG.
        device: cpu or cuda.

    Raises:
        UserError: if ECR takes no such name.
    """
    registry, _, rest = image_uri.partition("/")
    repository = rest.rpartition(":")[0]
    if re.fullmatch(REPOSITORY_NAME, repository) is None:
        raise UserError(f"cloud.project must be lower case as part of an ECR repository, got {project!r}")
    aws = ["aws", "--region", region, "ecr"]
    # SageMaker's machines are x86-64, and it takes no index of several manifests, which BuildKit makes of provenance.
    build = ["docker", "buildx", "build", "--load", "--platform", "linux/amd64", "--provenance=false"]
    build += ["--build-arg", f"DEVICE={device}"]
    if device == "cpu":
        build += ["--build-arg", "TORCH_INDEX"]  # taken from the environment
    login = ["docker", "login", "--username", "AWS", "--password-stdin", registry]
    create = ["create-repository", "--repository-name", repository, "--tags", f"Key={PROJECT_TAG},Value={project}"]
    return [
        shlex.join([*build, "--tag", image_uri, "--file", str(ROOT / DOCKERFILE), str(ROOT)]),
        f"{shlex.join([*aws, 'get-login-password'])} | {shlex.join(login)}",
        f"{shlex.join([*aws, 'describe-repositories', '--repository-names', repository])} > /dev/null || "
        f"{shlex.join([*aws, *create])}",
        shlex.join(["docker", "push", image_uri]),
    ]
