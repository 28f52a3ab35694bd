"""How often Python looks for garbage in cycles of objects, in processes of our own."""

from __future__ import annotations

import atexit
import gc

RARELY = (50_000, 20, 100)
"""Thresholds of `gc` while a command starts: some megabytes may wait to be collected."""
_usual: list[tuple[int, int, int]] = []


def collect_rarely() -> None:
    """Look for garbage rarely from now on, and not at the end of the process. Call this before the large imports.

    PyTorch, Lightning and MLflow leave half a million objects that stay. Python looks through them again and again
    while it imports, which takes a quarter of the time, and several times when it ends, which takes more than a second.
    """
    _usual.append(gc.get_threshold())
    gc.set_threshold(*RARELY)
    atexit.register(gc.freeze)  # what is registered first runs last, before Python looks for garbage


def collect_as_usual() -> None:
    """End what `collect_rarely` began, if it did: a notebook's process is its own.

    What was imported is never looked through again.
    """
    if _usual:
        gc.freeze()
        gc.set_threshold(*_usual.pop())
