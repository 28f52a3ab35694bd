"""Fails the test that leaves its process in another state than it found, so that no later test fails in its place."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

# SIGALRM is pytest-timeout's.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)
LIMITS = (resource.RLIMIT_NOFILE, resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC)


def signal_stack() -> bytes:
    """This thread's stack for signal handlers: `stack_t` of sigaltstack(2), whose padding holds nothing."""
    if sys.platform != "linux":
        return b""
    stack = (ctypes.c_size_t * 3)()
    ctypes.CDLL(None).sigaltstack(None, stack)
    place, flags, size = stack
    return b"%d %d %d" % (place, flags & 0xFFFFFFFF, size)


def umask() -> int:
    """It can be read only by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def settings_of_torch() -> tuple[object, ...]:
    """Those that it starts with, as long as no test has imported it."""
    if "torch" not in sys.modules:
        return ("torch.float32", True, False, False, "highest", int(os.environ["OMP_NUM_THREADS"]))
    import torch

    return (
        str(torch.get_default_dtype()),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        torch.get_num_threads(),
    )


def mlflow_addresses() -> tuple[object, ...]:
    """The tracking URI and the registry URI that its functions have set; None as long as no test has imported it."""
    packages = [sys.modules.get(f"mlflow.tracking.{name}.utils") for name in ("_tracking_service", "_model_registry")]
    return tuple(getattr(*pair, None) for pair in zip(packages, ("_tracking_uri", "_registry_uri"), strict=True))


STATE: dict[str, Callable[[], object]] = {
    "the working directory": os.getcwd,
    "the mask of new files' modes": umask,
    "the handlers of signals": lambda: [signal.getsignal(number) for number in SIGNALS],
    "the stack for handlers of signals": signal_stack,
    "the limits of this process": lambda: [resource.getrlimit(limit) for limit in LIMITS],
    "the level of the root logger": lambda: logging.getLogger().level,
    "the filters of the root logger": lambda: logging.getLogger().filters[:],
    "the handlers of the root logger": lambda: [(handler, handler.level) for handler in logging.getLogger().handlers],
    "the level below which nothing is logged": lambda: logging.root.manager.disable,
    "the class of new loggers": logging.getLoggerClass,
    "hooks for exceptions": lambda: (sys.excepthook, threading.excepthook, sys.unraisablehook),
    "the collection of garbage": lambda: (gc.isenabled(), gc.get_threshold()),
    "PyTorch's settings": settings_of_torch,
    "MLflow's addresses": mlflow_addresses,
}


@contextlib.contextmanager
def unchanged() -> Iterator[None]:
    """Compare what code can change of its process and no fixture restores.

    Raises:
        AssertionError: naming what is different at the end.
    """
    before = {name: read() for name, read in STATE.items()}
    yield
    after = {name: read() for name, read in STATE.items()}
    changed = [f"{name}: {before[name]} -> {after[name]}" for name in STATE if after[name] != before[name]]
    assert not changed, f"this leaves its process changed: {'; '.join(changed)}"


@pytest.fixture(autouse=True)
def process_state() -> Iterator[None]:
    """Fail a test that leaves its process changed."""
    with unchanged():
        yield
