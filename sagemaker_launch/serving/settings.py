"""Settings of the server, from environment variables: SageMaker passes nothing else to a container."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from lightning_modules.cores import usable_cores
from lightning_modules.openvino_cpu import Precision

STOP_SECONDS = 8.0
"""A server has ended 10 s after SIGTERM. SageMaker kills after 30 s, Docker after 10."""
IDLE_SECONDS = 30.0
"""Clients that are alive ask again within seconds. A silent one costs a file and 50 KB."""


@dataclass(frozen=True)
class Settings:
    """Settings of the server."""

    model: Path
    """The export folder."""
    host: str
    """Address to listen on."""
    port: int
    """Port to listen on; 0 takes a free one."""
    max_batch: int
    """Largest batch of the network."""
    max_wait_seconds: float
    """Longest wait of an image for others to share its batch. It waits only while another image is being decoded."""
    max_queue: int
    """Most accepted requests at once, from first byte to answer; further requests get 503."""
    timeout_seconds: float
    """Time limit of a request, which then gets 503. SageMaker gives up after 60 s."""
    body_timeout_seconds: float
    """Time limit for a body to arrive; then the answer is 408."""
    decode_threads: int
    """Number of processes that decode, with a thread each. Each needs up to 1 GB."""
    stop_seconds: float
    """Time limit of accepted requests after SIGTERM."""
    idle_seconds: float
    """Time limit of a connection to send the head of its next request, and to read an answer."""
    precision: Precision
    """float32; bf16 on a GPU, or int8 on a CPU, both of which are faster and change the first decimal of a logit."""
    lacks_gpu: bool = False
    """Whether the instance has a GPU that PyTorch does not see. Then the server answers nothing."""


def read_settings(environment: Mapping[str, str], *, cuda: bool) -> Settings:
    """Read the settings.

    Args:
        cuda: whether the network runs on a GPU, where larger batches pay.

    Raises:
        ValueError: naming the variable, its rule and its value.
    """
    known = {"SERVING_HOST", "SERVING_PRECISION", "SERVING_DEVICE"}

    def number(name: str, default: float, low: float, high: float) -> float:
        known.add(name)
        text = environment.get(name, "")
        try:
            value = float(text or default)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise ValueError(f"{name} must be a number {low:g}..{high:g}, got {text!r}")
        return value

    def whole(name: str, default: int, low: int, high: int) -> int:
        value = number(name, default, low, high)
        if value != int(value):
            raise ValueError(f"{name} must be a whole number, got {environment[name]!r}")
        return int(value)

    max_batch = whole("SERVING_MAX_BATCH", 32 if cuda else 8, 1, 1024)
    timeout_seconds = number("SERVING_TIMEOUT_SECONDS", 50, 0.1, 3600)
    precision = environment.get("SERVING_PRECISION") or "float32"
    if precision not in get_args(Precision):
        raise ValueError(f"SERVING_PRECISION must be {', '.join(get_args(Precision))}, got {precision!r}")
    # `deploy` sets it to cuda for instances with GPUs.
    device = environment.get("SERVING_DEVICE", "")
    if device not in ("", "cuda"):
        raise ValueError(f"SERVING_DEVICE must be cuda, which needs a GPU, or left out, got {device!r}")
    lacks_gpu = device == "cuda" and not cuda
    if precision == "bf16" and not cuda and not lacks_gpu:
        raise ValueError("SERVING_PRECISION may be bf16 on a GPU only, and there is none: leave it out")
    if precision == "int8" and (cuda or device == "cuda"):
        raise ValueError("SERVING_PRECISION may be int8 on a CPU only, and this is a GPU: set bf16, or leave it out")
    settings = Settings(
        model=Path(environment.get("SAGEMAKER_BASE_DIR") or "/opt/ml") / "model",
        host=environment.get("SERVING_HOST") or "0.0.0.0",
        port=whole("SAGEMAKER_BIND_TO_PORT", 8080, 0, 65_535),
        max_batch=max_batch,
        max_wait_seconds=number("SERVING_MAX_WAIT_MS", 5, 0, 10_000) / 1000,
        max_queue=whole("SERVING_MAX_QUEUE", 8 * max_batch, 1, 100_000),
        timeout_seconds=timeout_seconds,
        body_timeout_seconds=number("SERVING_BODY_TIMEOUT_SECONDS", min(20, timeout_seconds), 0.1, timeout_seconds),
        decode_threads=whole("SERVING_DECODE_THREADS", min(usable_cores(), 16), 1, 256),
        stop_seconds=number("SERVING_STOP_SECONDS", STOP_SECONDS, 0, 3600),
        idle_seconds=number("SERVING_IDLE_SECONDS", IDLE_SECONDS, 0.1, 3600),
        precision=cast(Precision, precision),
        lacks_gpu=lacks_gpu,
    )
    unknown = sorted(name for name in environment if name.startswith("SERVING_") and name not in known)
    if unknown:
        raise ValueError(f"{unknown[0]} is no setting of the server; there are {', '.join(sorted(known))}")
    return settings
