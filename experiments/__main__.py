"""`python -m experiments`."""

import sys

from experiments.cli import main
from experiments.console import outlive_output

if __name__ == "__main__":
    outlive_output()
    sys.exit(main(sys.argv[1:]))
