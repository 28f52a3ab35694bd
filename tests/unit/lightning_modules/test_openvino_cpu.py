"""What OpenVINO and NNCF leave behind in the process that calls them."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_modules.openvino_cpu import OpenVino, convert, quantize, read_converted, write_converted

pytest.importorskip("openvino", reason="needs openvino, of the extra 'quantized'")


@pytest.fixture(scope="module")
def converted() -> object:
    layers = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    return convert(nn.Sequential(*layers).eval(), 32)


def end_in_the_order_of_their_start(converted: object) -> None:
    first, second = OpenVino(converted, 1), OpenVino(converted, 1)
    del first, second


def end_in_another_thread(converted: object) -> None:
    networks = [OpenVino(converted, 1)]
    thread = threading.Thread(target=networks.clear)
    thread.start()
    thread.join()


def quantise(converted: object) -> None:
    pytest.importorskip("nncf", reason="needs nncf, of the extra 'quantized'")
    OpenVino(quantize(converted, [torch.rand(2, 3, 32, 32) for _ in range(4)]), 1, "int8")


def fail(converted: object) -> None:
    kept = OpenVino(converted, 1)
    with pytest.raises(RuntimeError):
        OpenVino("no-model.xml", 1)
    del kept


def signal_stack() -> bytes:
    """This thread's stack for signal handlers: `stack_t` of sigaltstack(2), whose padding holds nothing."""
    stack = (ctypes.c_size_t * 3)()
    ctypes.CDLL(None).sigaltstack(None, stack)
    place, flags, size = stack
    return b"%d %d %d" % (place, flags & 0xFFFFFFFF, size)


@pytest.mark.skipif(sys.platform != "linux", reason="OpenVINO changes it on Linux only")
@pytest.mark.parametrize("use", [end_in_the_order_of_their_start, end_in_another_thread, quantise, fail])
def test_signals_are_handled_where_they_were_before(converted: object, use: Callable[[object], None]) -> None:
    """On a stack that OpenVINO has freed, Ctrl-C and SIGTERM end the process with a segmentation fault."""
    before = signal_stack()
    use(converted)
    assert signal_stack() == before
    seen: list[int] = []
    handler = signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
    signal.raise_signal(signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, handler)
    assert seen == [signal.SIGUSR1]


@pytest.mark.skipif(sys.platform != "linux", reason="OpenVINO changes it on Linux only")
def test_a_model_that_is_read_changes_no_stack(converted: object, tmp_path: Path) -> None:
    before = signal_stack()
    tmp_path.joinpath("model").mkdir()
    write_converted(converted, tmp_path / "model")
    read_converted(tmp_path / "model")
    assert signal_stack() == before
