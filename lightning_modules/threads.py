"""Threads that read, decode and put batches together while others train."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import torch


def open_threads(count: int | None = None) -> ThreadPoolExecutor:
    """So many threads, or one a core, in which each torch operation stays on its thread.

    Sixteen threads whose operations start sixteen more each get in each other's way: decoding is then slower than on
    two cores.
    """
    torch.get_num_threads()  # settles it for the thread that asks: what the others set does not reach it
    return ThreadPoolExecutor(count or os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,))
