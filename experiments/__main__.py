"""`python -m experiments`, and the command `experiments` of an installation."""

import sys

from experiments.cli import main
from experiments.console import guard_output
from lightning_modules.startup import start_fast


def run() -> int:
    """Run the command that this process was started with, and return its exit code."""
    guard_output()
    start_fast()
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(run())
