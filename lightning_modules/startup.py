"""How processes of our own start fast. A notebook's process is somebody else's, and is left as it is."""

from __future__ import annotations

import atexit
import gc
import importlib
import sys
from types import ModuleType
from typing import Any

RARELY = (50_000, 20, 100)
"""Thresholds of `gc` while a command starts: some megabytes may wait to be collected."""
SOUND = "scipy.signal"
"""What torchmetrics imports, if it is there, for metrics of sound: a quarter of Lightning's imports."""
_usual: list[tuple[int, int, int]] = []


def start_fast() -> None:
    """Collect garbage rarely, and import what only sound needs once it is used. Call this before the large imports.

    PyTorch, Lightning and MLflow leave half a million objects that stay. Python looks through them again and again
    while it imports, which takes a quarter of the time, and several times when it ends, which takes more than a second.
    """
    _usual.append(gc.get_threshold())
    gc.set_threshold(*RARELY)
    atexit.register(gc.freeze)  # what is registered first runs last, before Python looks for garbage
    sys.modules.setdefault(SOUND, ImportedLater(SOUND))


def collect_as_usual() -> None:
    """Collect garbage as before `start_fast`, if it was called.

    What was imported is never looked through again.
    """
    if _usual:
        gc.freeze()
        gc.set_threshold(*_usual.pop())


class ImportedLater(ModuleType):
    """In the place of `scipy.signal` until something in it is used.

    `importlib.util.LazyLoader` would not help: torchmetrics 1.9 asks at once whether there is a `hamming`, which scipy
    has moved. Here there is one.
    """

    @staticmethod
    def hamming(*args: Any, **options: Any) -> Any:
        """The window of this name."""
        return importlib.import_module(f"{SOUND}.windows").hamming(*args, **options)

    def __getattr__(self, name: str) -> Any:
        # `inspect` looks for the file of every module that is there.
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        if sys.modules.get(SOUND) is self:
            del sys.modules[SOUND]
        return getattr(importlib.import_module(SOUND), name)
