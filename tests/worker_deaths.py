"""Says how a worker of pytest-xdist died."""

from __future__ import annotations

import signal
import subprocess
from typing import Any

import psutil
import pytest


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object | None) -> None:
    """Print what xdist leaves out: a kernel without memory sends SIGKILL, and a second Ctrl-C is exit code 130."""
    if error is None:
        return
    try:
        code = node.gateway._io.popen.wait(10)
        end = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
    except (subprocess.TimeoutExpired, ValueError) as error_of_wait:  # not to lose xdist's name of the test
        end = str(error_of_wait)
    available = psutil.virtual_memory().available / 2**30
    reporter = node.config.pluginmanager.getplugin("terminalreporter")
    reporter.write_line(f"[{node.gateway.id}] ended by {end}; {available:.1f} GiB of memory available")
