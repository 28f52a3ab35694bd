"""A network that OpenVINO has compiled for this CPU: the endpoint's engine, and that of features in lower precision."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

Precision = Literal["float32", "bf16", "int8"]

# OpenVINO and NNCF send telemetry if they find this package.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]


class OpenVino(nn.Module):
    """A compiled network.

    Args:
        network: on the CPU, from (B, 3, S, S) float32 to one tensor.
        side: S.
        threads: threads of a call.
        precision: of the products: `bf16` needs AVX-512 or AMX to be faster, `int8` needs VNNI.
        calibration: for int8, float32 images of (B, 3, S, S), from which NNCF measures the range of each layer.

    Raises:
        RuntimeError, ValueError, TypeError: and other errors of OpenVINO, for a network that it cannot convert.
    """

    def __init__(
        self,
        network: nn.Module,
        side: int,
        threads: int,
        precision: Precision = "float32",
        calibration: Sequence[Tensor] = (),
    ) -> None:
        super().__init__()
        import openvino

        # Of two images, as torch takes a batch of one for a constant.
        example = torch.zeros(2, 3, side, side)
        exported = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
        converted = openvino.convert_model(exported)
        converted.reshape([-1, 3, side, side])
        if precision == "int8":
            converted = _quantized(converted, calibration)
        # Without a hint it would compute in bfloat16 on some CPUs, with other scores.
        hint = "bf16" if precision == "bf16" else "f32"
        options = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        self._request: Any = openvino.compile_model(converted, "CPU", options).create_infer_request()

    def forward(self, images: Tensor) -> Tensor:
        """Map a batch: (B, 3, S, S) float32 to (B, …) float32."""
        outputs = self._request.infer([images.contiguous().numpy()], share_inputs=True)[0]
        return torch.from_numpy(outputs.copy())


def _quantized(converted: Any, calibration: Sequence[Tensor]) -> Any:
    """NNCF's post-training quantisation to 8 bits: the same result each time for the same images."""
    import nncf

    nncf.set_log_level(logging.ERROR)
    images = [batch.contiguous().numpy() for batch in calibration]
    with contextlib.redirect_stdout(io.StringIO()):  # its progress bars
        return nncf.quantize(converted, nncf.Dataset(images), subset_size=len(images))
