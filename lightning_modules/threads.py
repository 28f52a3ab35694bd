"""Threads that read, decode and put batches together while others train."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from lightning_modules.cores import usable_cores

MOST_THREADS = 4
"""More wait for the interpreter longer than they work: on 16 cores four decode and scale 1,618 photos a second, and
sixteen 1,236."""


def default_threads() -> int:
    """As many as torch may compute with, but no more than are of use."""
    return min(MOST_THREADS, torch.get_num_threads(), usable_cores())


def limit_threads() -> None:
    """Let torch compute on no more threads than this process may use cores: torch does not look at a CPU quota.

    With more, all of them wait until the quota's next period.
    """
    torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))


def open_threads(count: int = 0) -> ThreadPoolExecutor:
    """So many threads, or `default_threads`, in which each torch operation stays on its thread.

    Sixteen threads whose operations start sixteen more each get in each other's way.
    """
    torch.get_num_threads()  # settles it for the thread that asks: what the others set does not reach it
    return ThreadPoolExecutor(count or default_threads(), initializer=torch.set_num_threads, initargs=(1,))
