"""`python -m sagemaker_launch`."""

import sys

from sagemaker_launch.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
