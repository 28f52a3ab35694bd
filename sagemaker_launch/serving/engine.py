"""The network as it is served: the scores of the trainer, computed faster if this machine can."""

from __future__ import annotations

import importlib.util
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_modules.cores import usable_cores
from lightning_modules.inference import GOLDEN_TOLERANCE, Model, check_golden, model_fn
from lightning_modules.openvino_cpu import OpenVino

Precision = Literal["float32", "bf16"]
BF16_TOLERANCE = 0.5
"""Largest difference of a logit in bfloat16, which has 8 bits; the best class of the golden photo must be equal."""

log = logging.getLogger("serving")


def load_engine(folder: Path, precision: Precision = "float32") -> Model:
    """Load an export folder for serving, and check the scores of its golden photo.

    Args:
        precision: data type on a GPU.

    Raises:
        BadExportError: if the folder is incomplete, or the scores differ.
    """
    # PyTorch does not look at a container's quota.
    torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
    threads = torch.get_num_threads()
    model = model_fn(str(folder))
    if torch.cuda.is_available():
        if precision == "bf16":
            model = replace(model, network=Bfloat16(model.network))
        difference = check_golden(folder, model, BF16_TOLERANCE if precision == "bf16" else GOLDEN_TOLERANCE)
        log.info(f"engine PyTorch on a GPU in {precision}, golden photo off by {difference:.1g}")
        return model
    if importlib.util.find_spec("openvino") is None:
        log.info(f"engine PyTorch on {threads} threads; install openvino, which takes two thirds of the time")
        return model
    started = time.perf_counter()
    try:
        faster = replace(model, network=OpenVino(model.network, model.preprocessing.image_size, threads))
        difference = check_golden(folder, faster)
    # A compiler may fail on any layer with any error; PyTorch runs all of them.
    except Exception as error:
        reason = " ".join(str(error).split())[:500]
        log.warning(f"engine PyTorch on {threads} threads: OpenVINO can't run this network: {reason}")
        return model
    # PyTorch has little work left, and its threads would compete with those of OpenVINO.
    torch.set_num_threads(1)
    seconds = time.perf_counter() - started
    log.info(f"engine OpenVINO on {threads} threads, compiled in {seconds:.1f} s, golden photo off by {difference:.1g}")
    return faster


def why_no_gpu() -> str:
    """Why PyTorch sees no GPU, in its own words."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return str(error)
    return "it finds a driver and no device"


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
