"""How this project starts processes of its own."""

from __future__ import annotations

import multiprocessing
import os
import threading

from experiments.errors import EXIT_INTERRUPTED

CONTEXT = multiprocessing.get_context("spawn")
"""CUDA and threads do not survive a fork, and a fork server keeps the environment that it started with."""


def die_with_parent() -> None:
    """Leave when the process that started this one is gone, however it went: nobody else could stop us any more."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(EXIT_INTERRUPTED)

    threading.Thread(target=wait, name="parent", daemon=True).start()
