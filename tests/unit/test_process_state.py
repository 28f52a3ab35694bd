"""Each entry of `tests.process_state` sees a change."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import torch

from tests.process_state import STATE, unchanged

Change = Callable[[], Callable[[], object]]
"""Changes the process, and returns what undoes it."""
STACK = ctypes.create_string_buffer(1 << 16)


def directory() -> Callable[[], object]:
    before = Path.cwd()
    os.chdir("/")
    return lambda: os.chdir(before)


def mask() -> Callable[[], object]:
    before = os.umask(0o027)
    return lambda: os.umask(before)


def handler_of_a_signal() -> Callable[[], object]:
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    return lambda: signal.signal(signal.SIGUSR2, before)


def stack() -> Callable[[], object]:
    """Another one, as OpenVINO sets it."""
    system, before = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    system.sigaltstack((ctypes.c_size_t * 3)(ctypes.addressof(STACK), 0, len(STACK)), before)
    return lambda: system.sigaltstack(before, None)


def limit() -> Callable[[], object]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[0] - 1, before[1]))
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, before)


def level() -> Callable[[], object]:
    before = logging.getLogger().level
    logging.getLogger().setLevel(logging.CRITICAL)
    return lambda: logging.getLogger().setLevel(before)


def filters() -> Callable[[], object]:
    logging.getLogger().addFilter(errors := lambda record: record.levelno >= logging.ERROR)
    return lambda: logging.getLogger().removeFilter(errors)


def level_of_a_handler() -> Callable[[], object]:
    handler = logging.getLogger().handlers[0]
    before = handler.level
    handler.setLevel(logging.CRITICAL)
    return lambda: handler.setLevel(before)


def nothing_logged() -> Callable[[], object]:
    logging.disable(logging.WARNING)
    return lambda: logging.disable(logging.NOTSET)


def class_of_loggers() -> Callable[[], object]:
    before = logging.getLoggerClass()
    logging.setLoggerClass(type("Other", (logging.Logger,), {}))
    return lambda: logging.setLoggerClass(before)


def hook_for_exceptions() -> Callable[[], object]:
    before = sys.excepthook
    sys.excepthook = lambda *_: None
    return lambda: setattr(sys, "excepthook", before)


def garbage() -> Callable[[], object]:
    gc.disable()
    return gc.enable


def no_gradients() -> Callable[[], object]:
    torch.set_grad_enabled(False)
    return lambda: torch.set_grad_enabled(True)


def address_of_mlflow() -> Callable[[], object]:
    mlflow.set_registry_uri("http://127.0.0.1:1")
    return lambda: mlflow.set_registry_uri(None)


CHANGES: dict[str, Change] = {
    "the working directory": directory,
    "the mask of new files' modes": mask,
    "the handlers of signals": handler_of_a_signal,
    "the stack for handlers of signals": stack,
    "the limits of this process": limit,
    "the level of the root logger": level,
    "the filters of the root logger": filters,
    "the handlers of the root logger": level_of_a_handler,
    "the level below which nothing is logged": nothing_logged,
    "the class of new loggers": class_of_loggers,
    "hooks for exceptions": hook_for_exceptions,
    "the collection of garbage": garbage,
    "PyTorch's settings": no_gradients,
    "MLflow's addresses": address_of_mlflow,
}


@pytest.fixture(params=STATE)
def name(request: pytest.FixtureRequest) -> str:
    if request.param == "the stack for handlers of signals" and sys.platform != "linux":
        pytest.skip("it is looked at on Linux only")
    return request.param


def test_a_change_is_named(name: str) -> None:
    undo: list[Callable[[], object]] = []
    try:
        with pytest.raises(AssertionError, match=f"leaves its process changed: {name}: "), unchanged():
            undo.append(CHANGES[name]())
    finally:
        for step in undo:
            step()
