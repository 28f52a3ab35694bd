"""The scan for secrets leaves its process as it was."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

SCANS = """
import logging, warnings
from sagemaker_launch.shipping.secret_scan import refuse_secrets
logging.captureWarnings({captures})
for _ in range(2):
    before = warnings.showwarning
    refuse_secrets({{"train.py": b"print()"}})
    assert warnings.showwarning is before
"""


@pytest.mark.parametrize("captures", [False, True])
def test_warnings_go_where_they_went_before(captures: bool) -> None:
    subprocess.run([sys.executable, "-c", SCANS.format(captures=captures)], check=True, cwd=REPOSITORY)
