"""A network that OpenVINO has compiled for this CPU: the endpoint's engine, and that of features in lower precision."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import io
import logging
import math
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_modules.inference import BadExportError, read_json

Precision = Literal["float32", "bf16", "int8"]
INT8_FOLDER = "int8"
"""Folder of an export with its network in int8, in OpenVINO's own format (IR)."""
INT8_GOLDEN = "golden/int8.json"
"""What is known about that network: its files, the bound of its golden scores, and its accuracy."""
FILES = ("model.xml", "model.bin")
"""A converted model: its layers, and their numbers."""
RANKING_PHOTOS = 100
"""Photos by which the layers of a network are ranked: NNCF scores all of them once per layer, of which ResNet50 has 72.
"""
FLOAT32_LAYERS = 10
"""Most layers that get back to float32: each takes time while it is found, and in each request."""
STACK_BYTES = 64
"""More than the 24 of sigaltstack's `stack_t`, which is only passed back."""
NO_STACK = struct.pack("@PiN", 0, 2, 0)
"""A `stack_t` with SS_DISABLE: signals are handled on the thread's own stack."""

# OpenVINO and NNCF send telemetry if they find this package.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]


class OpenVino(nn.Module):
    """A compiled network.

    Args:
        converted: of `convert`, `quantize` or `read_converted`.
        threads: threads of a call.
        precision: of the products: `bf16` needs AVX-512 or AMX to be faster, `int8` needs VNNI.

    Raises:
        RuntimeError: and other errors of OpenVINO, for a network that it cannot compile.
    """

    def __init__(self, converted: Any, threads: int, precision: Precision = "float32") -> None:
        super().__init__()
        import openvino

        # Without a hint it would compute in bfloat16 on some CPUs, with other scores.
        hint = "bf16" if precision == "bf16" else "f32"
        options = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        with _same_signal_stack():
            self._request: Any = openvino.compile_model(converted, "CPU", options).create_infer_request()

    def forward(self, images: Tensor) -> Tensor:
        """Map a batch: (B, 3, S, S) float32, or uint8 after `take_bytes`, to (B, …) float32."""
        outputs = self._request.infer([images.contiguous().numpy()], share_inputs=True)[0]
        return torch.from_numpy(outputs.copy())


def convert(network: nn.Module, side: int) -> Any:
    """A network as OpenVINO's model.

    Args:
        network: on the CPU, from (B, 3, S, S) float32 to one tensor.
        side: S.

    Raises:
        RuntimeError, ValueError, TypeError: and other errors of OpenVINO, for a network that it cannot convert.
    """
    import openvino

    # Of two images, as torch takes a batch of one for a constant.
    example = torch.zeros(2, 3, side, side)
    exported = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    with _same_root_logger():
        converted = openvino.convert_model(exported)
    converted.reshape([-1, 3, side, side])
    return converted


def quantize(converted: Any, calibration: Sequence[Tensor]) -> Any:
    """NNCF's post-training quantisation to 8 bits: the same result each time for the same images.

    Args:
        converted: of `convert`; it keeps its precision.
        calibration: batches of (B, 3, S, S) float32, from which NNCF measures the range of each layer.
    """
    nncf = _nncf()
    with _quiet():
        return nncf.quantize(converted, _arrays(calibration), subset_size=len(calibration))


def quantize_classifier(
    converted: Any, calibration: Sequence[Tensor], judged: Sequence[Tensor], labels: Sequence[int], max_drop: float
) -> Any:
    """`quantize` with each layer corrected by what the layers before it do in int8, and by its accuracy.

    As long as the accuracy is more than `max_drop` lower, the layer that costs most of it gets back to float32. There
    are at most FLOAT32_LAYERS, so the accuracy may stay lower.

    Args:
        judged: batches of (B, 3, S, S) float32, by which the accuracy is judged.
        labels: of all their images.
    """
    nncf = _nncf()
    from nncf.quantization.advanced_parameters import AdvancedAccuracyRestorerParameters

    images = [image for batch in judged for image in batch[:, None].contiguous().numpy()]
    pairs = list(zip(images, labels, strict=True))

    def accuracy(network: Any, pairs: Iterable[tuple[Any, int]]) -> tuple[float, list[float]]:
        right = [float(network([image])[0].argmax() == label) for image, label in pairs]
        return sum(right) / len(right), right

    with _quiet():
        return nncf.quantize_with_accuracy_control(
            converted,
            _arrays(calibration),
            nncf.Dataset(pairs, lambda pair: pair[0]),
            accuracy,
            max_drop=max_drop,
            subset_size=len(calibration),
            fast_bias_correction=False,
            advanced_accuracy_restorer_parameters=AdvancedAccuracyRestorerParameters(
                max_num_iterations=FLOAT32_LAYERS, ranking_subset_size=RANKING_PHOTOS, num_ranking_workers=1
            ),
        )


def _nncf() -> Any:
    """NNCF, whose import would make each later logger of this process one of its own class."""
    logger_class = logging.getLoggerClass()
    try:
        import nncf
    finally:
        logging.setLoggerClass(logger_class)
    return nncf


def _arrays(batches: Sequence[Tensor]) -> Any:
    return _nncf().Dataset([batch.contiguous().numpy() for batch in batches])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without NNCF's log and progress bars."""
    log = logging.getLogger("nncf")
    level = log.level
    # Not nncf.set_log_level, which also sets the level of each handler that others have added, such as pytest's.
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), _same_signal_stack():
            yield
    finally:
        log.setLevel(level)


@contextlib.contextmanager
def _same_root_logger() -> Iterator[None]:
    """Restore the root logger at the end.

    While OpenVINO converts a network, the root logger passes on errors only. Where it fails, nothing restores that: all
    warnings of this process would be lost.

    Source: convert_model of OpenVINO 2026.4, openvino/tools/ovc/convert.py and logger.py.
    """
    root = logging.getLogger()
    level, filters, handlers = root.level, root.filters[:], root.handlers[:]
    try:
        yield
    finally:
        root.setLevel(level)
        root.filters[:], root.handlers[:] = filters, handlers


@contextlib.contextmanager
def _same_signal_stack() -> Iterator[None]:
    """Restore this thread's stack for signal handlers at the end.

    Each network that OpenVINO compiles gives its thread such a stack, and frees it with the network. Where networks are
    freed in the order in which they were made, or in another thread, this thread keeps a stack that is freed. Python
    handles signals on it, so that the next Ctrl-C ends the process with a segmentation fault.

    Source: SigAltStackSetup of OpenVINO 2026.4, src/plugins/intel_cpu/src/plugin.cpp; sigaltstack(2).
    """
    if sys.platform != "linux":  # OpenVINO does this on Linux only
        yield
        return
    system, before = ctypes.CDLL(None), ctypes.create_string_buffer(STACK_BYTES)
    system.sigaltstack(None, before)
    try:
        yield
    finally:
        if system.sigaltstack(before, None):  # the kernel may refuse one that is too small for instructions such as AMX
            system.sigaltstack(NO_STACK, None)


def take_bytes(converted: Any, mean: Sequence[float], std: Sequence[float]) -> Any:
    """Let a model normalise its input itself: it takes uint8 in place of float32.

    Normalising within the first layer spares a pass over the batch and two copies, a seventh of an int8 request.

    Args:
        converted: it is changed.
        mean: of each channel, of values from 0 to 1.
        std: the same.
    """
    import openvino
    from openvino.preprocess import PrePostProcessor

    wrapped = PrePostProcessor(converted)
    wrapped.input().tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NCHW"))
    wrapped.input().model().set_layout(openvino.Layout("NCHW"))
    steps = wrapped.input().preprocess().convert_element_type(openvino.Type.f32)
    steps.mean([255 * value for value in mean]).scale([255 * value for value in std])
    return wrapped.build()


def write_converted(converted: Any, folder: Path) -> None:
    """Write a model as FILES."""
    import openvino

    openvino.save_model(converted, folder / FILES[0], compress_to_fp16=False)


def read_converted(folder: Path) -> Any:
    """What `write_converted` wrote.

    Raises:
        RuntimeError: if a file is missing or damaged, or of a newer format than this OpenVINO reads.
    """
    import openvino

    return openvino.Core().read_model(*(folder / name for name in FILES))


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each of FILES.

    Raises:
        OSError: if one is missing.
    """
    hashes = {}
    for name in FILES:
        with (folder / name).open("rb") as file:
            hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def read_int8(export: Path) -> dict[str, Any]:
    """What an export states about its network in int8, after a look at the files of that network.

    Raises:
        BadExportError: if it has none, states no bound for its scores, or has other files than it states.
    """
    stated = export / INT8_GOLDEN
    facts = read_json(stated)
    tolerance = facts.get("tolerance")
    if not (isinstance(tolerance, int | float) and 0 < tolerance < math.inf):
        raise BadExportError(f"{stated} must state a tolerance above 0, got {str(tolerance)[:50]}")
    try:
        is_whole = file_hashes(export / INT8_FOLDER) == facts.get("sha256")
    except OSError as error:
        raise BadExportError(f"{export} is not an export folder: {error}") from error
    if not is_whole:
        raise BadExportError(f"{export / INT8_FOLDER} has other files than {INT8_GOLDEN} says, by their SHA-256")
    return facts
