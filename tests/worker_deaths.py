"""How a process of the tests ended that can't say so itself."""

from __future__ import annotations

import signal
from typing import Any

import psutil
import pytest


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object | None) -> None:
    """Print what xdist leaves out: a kernel without memory sends SIGKILL, and a second Ctrl-C is exit code 130."""
    if error is None:
        return
    code = node.gateway._io.popen.wait(10)
    end = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
    available = psutil.virtual_memory().available / 2**30
    reporter = node.config.pluginmanager.getplugin("terminalreporter")
    reporter.write_line(f"[{node.gateway.id}] ended by {end}; {available:.1f} GiB of memory available")
