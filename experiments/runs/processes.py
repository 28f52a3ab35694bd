"""Child processes of a command: the publisher, its drawers, the workers of a sweep."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import MappingProxyType, ModuleType
from typing import Any

from experiments.errors import EXIT_INTERRUPTED
from experiments.runs.environment import own_environment, set_variables
from lightning_modules.redaction import remember, remembered
from lightning_modules.startup import start_fast

CONTEXT = multiprocessing.get_context("spawn")
"""CUDA and threads do not survive a fork, and a fork server keeps the environment that it started with."""
_start_lock = threading.Lock()


def pipe() -> tuple[Connection, Connection]:
    """Both ends of a connection, one of which is for another process."""
    return CONTEXT.Pipe()


def start_process(
    target: Callable[..., None],
    arguments: tuple[Any, ...],
    *,
    name: str,
    environment: Mapping[str, str] = MappingProxyType({}),
    daemon: bool = False,
) -> BaseProcess:
    """Run a function of ours in a new process.

    The caller's main module is not imported there: it may be a script that would train once more.

    Args:
        target: a function of a module that can be imported.
        environment: variables that it has in addition to those of this process.
        daemon: whether it is killed when this process ends.
    """
    with _start_lock:
        main, variables = sys.modules["__main__"], {**own_environment(), **environment}
        before = {variable: os.environ.get(variable) for variable in variables}
        sys.modules["__main__"] = ModuleType("__main__")  # multiprocessing would have the process import its file
        set_variables(variables)
        try:
            given = (remembered(), target, arguments)
            process: BaseProcess = CONTEXT.Process(target=_run, args=given, name=name, daemon=daemon)
            process.start()
        finally:
            sys.modules["__main__"] = main
            set_variables(before)
    return process


def _run(secrets: frozenset[str], target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Run a function in a new process that redacts what its parent redacts."""
    remember(secrets)
    start_fast()
    target(*arguments)


def die_with_parent() -> None:
    """End this process when its parent has ended for any reason: nothing else would stop it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(EXIT_INTERRUPTED)

    threading.Thread(target=wait, name="parent", daemon=True).start()
