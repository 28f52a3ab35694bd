"""What OpenVINO and NNCF leave behind in the process that calls them."""

from __future__ import annotations

import ctypes
import logging
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_modules import openvino_cpu
from lightning_modules.openvino_cpu import OpenVino, convert, quantize, read_converted, write_converted
from tests.process_state import signal_stack

openvino = pytest.importorskip("openvino", reason="needs openvino, of the extra 'quantized'")
nncf = pytest.importorskip("nncf", reason="needs nncf, of the extra 'quantized'")


@pytest.fixture(scope="module")
def converted() -> object:
    layers = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    return convert(nn.Sequential(*layers).eval(), 32)


def end_in_the_order_of_their_start(converted: object, _: pytest.MonkeyPatch) -> None:
    first, second = OpenVino(converted, 1), OpenVino(converted, 1)
    del first, second


def end_in_another_thread(converted: object, _: pytest.MonkeyPatch) -> None:
    networks = [OpenVino(converted, 1)]
    thread = threading.Thread(target=networks.clear)
    thread.start()
    thread.join()


def quantise(converted: object, patch: pytest.MonkeyPatch) -> object:
    """NNCF compiles networks; of one that it still has, the stack would be in use."""
    patch.setattr(nncf, "quantize", lambda *_, **__: openvino.compile_model(converted, "CPU"))
    return quantize(converted, [torch.rand(2, 3, 32, 32)])


def fail(converted: object, patch: pytest.MonkeyPatch) -> object:
    kept = []

    def compile_and_fail(*_: object, **__: object) -> None:
        kept.append(openvino.compile_model(converted, "CPU"))
        raise RuntimeError("no such layer")

    patch.setattr(nncf, "quantize", compile_and_fail)
    with pytest.raises(RuntimeError, match="no such layer"):
        quantize(converted, [torch.rand(2, 3, 32, 32)])
    return kept


@pytest.mark.skipif(sys.platform != "linux", reason="OpenVINO changes it on Linux only")
@pytest.mark.parametrize("use", [end_in_the_order_of_their_start, end_in_another_thread, quantise, fail])
def test_signals_are_handled_where_they_were_before(
    converted: object, use: Callable[[object, pytest.MonkeyPatch], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a stack that OpenVINO has freed, Ctrl-C and SIGTERM end the process with a segmentation fault."""
    before = signal_stack()
    kept = use(converted, monkeypatch)
    assert signal_stack() == before
    del kept
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


@pytest.mark.skipif(sys.platform != "linux", reason="OpenVINO changes it on Linux only")
def test_a_stack_that_the_kernel_refuses_is_left_out(converted: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that is too small for a processor's instructions, such as AMX."""
    system, before = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    system.sigaltstack(None, before)

    class Refusing:
        def sigaltstack(self, new: object, old: object) -> int:
            return -1 if new not in (None, openvino_cpu.NO_STACK) else int(system.sigaltstack(new, old))

    with monkeypatch.context() as patched:
        patched.setattr(ctypes, "CDLL", lambda _: Refusing())
        network = OpenVino(converted, 1)
    try:
        assert b" 2 " in signal_stack(), "SS_DISABLE"
    finally:
        assert system.sigaltstack(before, None) == 0
    del network


class Unconvertible(nn.Module):
    """OpenVINO has no singular value decomposition."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svdvals(images)


def test_warnings_are_still_said_after_a_network_that_openvino_cannot_convert(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is served by PyTorch then, in the same process."""
    filters, handlers = logging.getLogger().filters[:], logging.getLogger().handlers[:]
    with pytest.raises(openvino.frontend.OpConversionFailure, match="svd"):
        convert(Unconvertible(), 8)
    logging.getLogger("lightning_modules.folders").warning("a class has no photo")
    assert caplog.messages[-1] == "a class has no photo"
    assert logging.getLogger().filters == filters
    assert logging.getLogger().handlers == handlers


def test_a_handler_of_the_application_keeps_its_level(converted: object, capsys: pytest.CaptureFixture[str]) -> None:
    """Its log may take NNCF's lines too: an error's, and no others while NNCF works."""
    seen: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())

    handler, log, level = Handler(), logging.getLogger("nncf"), logging.getLogger("nncf").level
    log.addHandler(handler)
    try:
        quantize(converted, [torch.rand(2, 3, 32, 32)])
        log.info("after it")
    finally:
        log.removeHandler(handler)
    assert seen == ["after it"]
    assert (handler.level, log.level) == (logging.NOTSET, level)
