"""`python -m sagemaker_launch.serving`: serve the model of $SAGEMAKER_BASE_DIR until SIGTERM."""

import os
import sys

import torch

from sagemaker_launch.serving.server import ServingError, run
from sagemaker_launch.serving.settings import read_settings


def main() -> int:
    """Serve.

    Returns:
        0 stopped, 1 no model or no port, 2 wrong settings.
    """
    # SageMaker starts a container with the word 'serve'.
    if sys.argv[1:] not in ([], ["serve"]):
        print(f"error: the server takes its settings from the environment, got {sys.argv[1:]}", file=sys.stderr)
        return 2
    try:
        settings = read_settings(os.environ, cuda=torch.cuda.is_available())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        run(settings)
    except ServingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # A model that is loading or an image that is decoding must not delay the exit.
    os._exit(code)
