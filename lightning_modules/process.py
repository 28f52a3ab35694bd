"""Settings of a whole process, for its memory and its threads, and the threads that load data."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from lightning_modules.cores import usable_cores
from lightning_modules.startup import collect_as_usual

MOST_THREADS = 4
"""More threads wait for the GIL: on 16 cores four threads decode and scale 1,618 photos per second, sixteen 1,236."""


# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def prepare_process() -> None:
    """Prepare this process, and the thread that calls, for training or scoring.

    Entry points call it once, after they have imported Lightning: commands, workers and the container.
    """
    keep_memory()
    limit_threads()
    collect_as_usual()
    if not torch.cuda.is_available():
        # Lightning's import has torch look for a driver each time it is asked for GPUs. Each step of an optimiser asks:
        # 0.16 ms.
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"


def keep_memory() -> None:
    """Keep freed memory for later allocations until the process ends, instead of returning it to the system.

    glibc returns large blocks at once, and the system clears new ones page by page. The activations of a network are
    such blocks: on a CPU they cost a third of a ResNet50's forward pass. The process keeps its largest size. With
    another C library, nothing happens.

    Source: mallopt(3).
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_MAX, 0)  # all of it from the heap,
        library.mallopt(M_TRIM_THRESHOLD, -1)  # which never shrinks


def default_threads() -> int:
    """The threads that torch may use, but no more than are useful."""
    return min(MOST_THREADS, torch.get_num_threads(), usable_cores())


def limit_threads() -> None:
    """Limit torch's threads to the cores that this process may use: torch ignores a CPU quota.

    With more, all of them wait until the quota's next period.
    """
    torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))


@contextlib.contextmanager
def at_most_threads(count: int) -> Iterator[None]:
    """Let torch's operations of this thread use no more threads than this."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, count))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def open_threads(count: int = 0) -> ThreadPoolExecutor:
    """A pool of `count` threads, or `default_threads`, each of which computes torch operations on itself only.

    Otherwise sixteen threads would start sixteen more per operation.
    """
    torch.get_num_threads()  # fixes the number for this thread, so that the pool's threads do not change it
    return ThreadPoolExecutor(count or default_threads(), initializer=torch.set_num_threads, initargs=(1,))
