"""The network as it is served: the scores of the trainer, computed faster if this machine can."""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_modules.cores import has_int8, usable_cores
from lightning_modules.inference import GOLDEN_TOLERANCE, Model, check_golden, model_fn
from lightning_modules.openvino_cpu import (
    INT8_FOLDER,
    OpenVino,
    Precision,
    convert,
    read_converted,
    read_int8,
    take_bytes,
)

BF16_TOLERANCE = 0.5
"""Largest difference of a logit in bfloat16, which has 8 bits; the best class of the golden photo must be equal."""

log = logging.getLogger("serving")


def load_engine(folder: Path, precision: Precision = "float32") -> Model:
    """Load an export folder for serving, and check the scores of its golden photo.

    Args:
        precision: bf16 is for a GPU, int8 for a CPU and an export that has its network in int8.

    Raises:
        BadExportError: if the folder is incomplete, or the scores differ.
    """
    # PyTorch does not look at a container's quota.
    torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
    model = model_fn(str(folder))
    if torch.cuda.is_available():
        if precision == "bf16":
            model = replace(model, network=Bfloat16(model.network))
        difference = check_golden(folder, model, golden_tolerance(folder, precision))
        log.info(f"engine PyTorch on a GPU in {precision}, golden photo off by {difference:.1g}")
        return model
    return _on_cpu(folder, model, precision)


def golden_tolerance(folder: Path, precision: Precision) -> float:
    """How far the logits of an export's golden photo may be from the trainer's in a precision.

    Raises:
        BadExportError: as `read_int8`.
    """
    if precision == "int8":
        return float(read_int8(folder)["tolerance"])
    return BF16_TOLERANCE if precision == "bf16" else GOLDEN_TOLERANCE


def _on_cpu(folder: Path, model: Model, precision: Precision) -> Model:
    threads, has_openvino = torch.get_num_threads(), importlib.util.find_spec("openvino") is not None
    if precision == "int8":
        tolerance = golden_tolerance(folder, precision)  # an export without int8 is refused on each machine
        if not (has_openvino and has_int8()):
            why = (
                "this processor has no VNNI, without which it is not faster" if has_openvino else "openvino is missing"
            )
            log.warning(f"int8 is not used: {why}")
            precision = "float32"
    if not has_openvino:
        log.info(f"engine PyTorch on {threads} threads; install openvino, which takes two thirds of the time")
        return model
    started = time.perf_counter()
    try:
        if precision == "int8":
            converted = read_converted(folder / INT8_FOLDER)
        else:
            converted, tolerance = convert(model.network, model.preprocessing.image_size), GOLDEN_TOLERANCE
        preprocessing = model.preprocessing
        network = OpenVino(take_bytes(converted, preprocessing.mean, preprocessing.std), threads, precision)
        faster = _OfBytes(network, preprocessing, model.class_names, model.version)
        difference = check_golden(folder, faster, tolerance)
    # A compiler may fail on any layer with any error; PyTorch runs all of them.
    except Exception as error:
        reason = " ".join(str(error).split())[:500]
        if precision == "int8":
            log.warning(f"int8 is not used: OpenVINO can't run it here: {reason}")
            return _on_cpu(folder, model, "float32")
        log.warning(f"engine PyTorch on {threads} threads: OpenVINO can't run this network: {reason}")
        return model
    # PyTorch has little work left, and its threads would compete with those of OpenVINO.
    torch.set_num_threads(1)
    seconds = time.perf_counter() - started
    log.info(
        f"engine OpenVINO in {precision} on {threads} threads, compiled in {seconds:.1f} s, golden photo off by "
        f"{difference:.1g}"
    )
    return faster


def why_no_gpu() -> str:
    """Why PyTorch sees no GPU, in its own words."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return str(error)
    return "it finds a driver and no device"


class _OfBytes(Model):
    """A model whose network normalises crops itself."""

    def score_crops(self, crops: Sequence[Tensor]) -> Tensor:
        """Score what `Preprocessing.crop` made of images."""
        scores: Tensor = self.network(torch.stack(list(crops)))
        return scores


class Bfloat16(nn.Module):
    """A network that computes in bfloat16 where that is safe."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Score a batch."""
        with torch.autocast(images.device.type, torch.bfloat16):
            scores: Tensor = self.network(images)
        return scores
