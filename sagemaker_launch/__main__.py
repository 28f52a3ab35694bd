"""`python -m sagemaker_launch`, and the command `sagemaker-launch` of an installation."""

import sys

from experiments.console import guard_output
from lightning_modules.startup import start_fast
from sagemaker_launch.cli import main


def run() -> int:
    """Run the command that this process was started with, and return its exit code."""
    guard_output()
    start_fast()
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(run())
