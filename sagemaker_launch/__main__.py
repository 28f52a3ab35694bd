"""`python -m sagemaker_launch`."""

import sys

from experiments.console import outlive_output
from sagemaker_launch.cli import main

if __name__ == "__main__":
    outlive_output()
    sys.exit(main(sys.argv[1:]))
