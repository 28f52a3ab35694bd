"""Memory that was freed is taken again, in a process of its own: nothing undoes it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PAGES = """
import resource, sys, torch
from lightning_modules.process import keep_memory

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "keep":
    keep_memory()
print(*[new_pages() for _ in range(20)])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
@pytest.mark.parametrize("kept", [True, False])
def test_a_tensor_takes_the_memory_of_those_before_it(kept: bool) -> None:
    command = [sys.executable, "-c", PAGES, "keep" if kept else "leave"]
    first, *_, last = map(int, subprocess.check_output(command, text=True).split())
    assert first > 100  # 64 MB, in pages of 4 kB or of 2 MB
    assert (last < 20) == kept
