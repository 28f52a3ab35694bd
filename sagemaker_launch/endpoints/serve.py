"""The commands about our serving process: run it at home, and push its image to ECR."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from experiments.config import RunConfig, require
from experiments.console import say
from experiments.errors import UserError
from sagemaker_launch.settings.cloud import CloudSettings

if TYPE_CHECKING:
    from sagemaker_launch.jobs.commands import Add


def add_serving_commands(add: Add) -> None:
    """Add the commands and their options."""
    serve = add("serve", _serve, "Serve an export on 127.0.0.1 as an endpoint does (needs the extra `serving`).")
    serve.add_argument(
        "export", metavar="EXPORT", help="export folder, model.tar.gz, or registry URI such as models:/NAME@champion"
    )
    serve.add_argument("--port", type=int, default=0, help="by default a free one")
    image = add("image", _image, "Print the commands that build our serving image and push it to ECR.")
    image.add_argument("--device", choices=("cpu", "cuda"), help="by default what cloud.endpoint.instance_type has")
    image.add_argument("--push", action="store_true", help="run them (needs a Docker engine and the AWS CLI)")


def _serve(settings: CloudSettings, config: RunConfig, arguments: argparse.Namespace) -> None:
    import torch

    from experiments.tracking.exports import REGISTRY, locate_export
    from sagemaker_launch.shipping.archive import unpack_model

    try:
        from sagemaker_launch.serving.server import run
    except ModuleNotFoundError as error:
        raise UserError(f"`serve` needs the extra `serving` (pip install '.[serving]'): {error}") from None
    from sagemaker_launch.serving.settings import read_settings

    rule = "be left out of the environment: `serve` takes --cloud.endpoint.precision"
    require("SERVING_PRECISION" not in os.environ, "SERVING_PRECISION", rule, os.environ.get("SERVING_PRECISION"))
    environment = {"SERVING_HOST": "127.0.0.1", **os.environ, "SERVING_PRECISION": settings.endpoint.precision}
    environment["SAGEMAKER_BIND_TO_PORT"] = str(arguments.port)
    try:
        served = read_settings(environment, cuda=torch.cuda.is_available())
    except ValueError as error:
        raise UserError(str(error)) from None
    with TemporaryDirectory() as folder:
        if arguments.export.startswith(REGISTRY):
            export = locate_export(arguments.export, config)
        elif Path(arguments.export).is_dir():
            export = Path(arguments.export)
        else:
            export = unpack_model(Path(arguments.export), Path(folder) / "model")
        if served.precision == "int8":
            from experiments.int8 import quantize_export

            found = quantize_export(export, config)
            say(found.summary)
            served = replace(served, precision="int8" if found.is_accepted else "float32")
            export = found.export
        run(replace(served, model=export), _announce, log_file=sys.stderr)  # results go to standard output
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # a model that is loading must not delay the exit


def _announce(address: str) -> None:
    print(address, flush=True)
    say(
        f"try: curl --data-binary @PHOTO.jpg --header 'Content-Type: image/jpeg' "
        f"--header 'X-Amzn-SageMaker-Custom-Attributes: top_k=3' {address}/invocations\n(Ctrl-C ends it)"
    )


def _image(settings: CloudSettings, config: RunConfig, arguments: argparse.Namespace) -> None:
    del config
    from sagemaker_launch.aws.client import region
    from sagemaker_launch.aws.sessions import rehearsal_url
    from sagemaker_launch.shipping.images import push_commands
    from sagemaker_launch.shipping.shipment import own_serving_image, serving_device

    example = "be set (--cloud.role_arn arn:aws:iam::123456789012:role/training): it names the account"
    require(settings.role_arn is not None, "cloud.role_arn", example, None)
    region_name = region(settings)
    device = arguments.device or serving_device(settings)
    commands = push_commands(own_serving_image(settings, region_name, device), region_name, device, settings.project)
    if device == "cpu" and "TORCH_INDEX" not in os.environ:
        say("set TORCH_INDEX to the index of PyTorch's builds without CUDA (pytorch.org, Get started) before the build")
    print("\n".join(commands), flush=True)
    if arguments.push:
        if (url := rehearsal_url()) is not None:
            raise UserError(
                f"--push needs AWS's registry of images, got the rehearsal at {url}: AWS_ENDPOINT_URL must be unset"
            )
        for program in ("docker", "aws"):
            if shutil.which(program) is None:
                raise UserError(f"--push needs the program {program}, which is not here: run the commands elsewhere")
        if subprocess.run(["docker", "buildx", "version"], capture_output=True, check=False).returncode:
            raise UserError("--push needs docker with its plugin buildx, which is not here: install the plugin")
        for command in commands:
            # The very line that was printed.
            if subprocess.run(["bash", "-o", "pipefail", "-c", command], check=False).returncode:
                raise UserError(f"this command failed: {command}")
