"""The recording of a training: losses by step, and statistics of the layers at some steps.

One safetensors file, and the findings of the rules beside it. Reading them needs no torch.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lightning_modules.errors import UserError
from lightning_modules.files import replaced_whole

FILE, FINDINGS = "recording.safetensors", "findings.json"
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Finding:
    """The finding of a rule, and its step."""

    rule: str
    step: int
    """Counted from 0."""
    message: str
    """The finding in words, and what to try."""
    layer: str = ""


@dataclass(frozen=True)
class Sample:
    """Statistics of the layers at one step."""

    step: int
    learning_rate: float
    """Share of the peak learning rate."""
    loss: float
    """Loss of the batch."""
    spread: float
    """Standard deviation of the scores from image to image, mean over the classes; NaN for a batch of one."""
    gradient_norm: FloatArray
    """(P,) L2 norm of each parameter's gradient."""
    gradient_mean: FloatArray
    """(P,) mean of its absolute values."""
    weight_norm: FloatArray
    """(P,) L2 norm of each parameter before the step."""
    update_ratio: FloatArray
    """(P,) L2 norm of the update, as a share of the weight norm."""
    activation_mean: FloatArray
    """(A,) over images, channels and pixels."""
    activation_std: FloatArray
    """(A,) standard deviation over the same."""
    dead_share: FloatArray
    """(A,) share of a ReLU's units that are 0 for every image of the batch; NaN for other layers."""

    @functools.cached_property
    def whole_gradient_norm(self) -> float:
        """L2 norm of the gradient of all parameters together."""
        return float(np.linalg.norm(self.gradient_norm))


_COLUMNS = [name for name in Sample.__dataclass_fields__ if name != "step"]


@dataclass
class Recording:
    """The recording of one run; steps count from 0."""

    parameters: Sequence[str] = ()
    """Names of the P parameters that are trained, in the order of the network."""
    dimensions: Sequence[int] = ()
    """Number of dimensions of each parameter: biases and norms have 1."""
    activations: Sequence[str] = ()
    """Names of the A recorded layers, in the order of their execution."""
    train_steps: list[int] = field(default_factory=list)
    train_losses: list[float] = field(default_factory=list)
    validation_steps: list[int] = field(default_factory=list)
    """The step after which a validation batch was scored; each validation has as many as it has batches."""
    validation_losses: list[float] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    not_finite_in: str = ""
    """Where values stop being finite, as `find_not_finite` returns it; empty if all values are finite."""

    @property
    def weights(self) -> list[int]:
        """Indices of the parameters that are weights: biases and norms have statistics of their own kind."""
        return [index for index, dimensions in enumerate(self.dimensions) if dimensions > 1]

    def validations(self) -> dict[int, float]:
        """The mean loss of each validation by its step."""
        by_step: dict[int, list[float]] = {}
        for step, loss in zip(self.validation_steps, self.validation_losses, strict=True):
            by_step.setdefault(step, []).append(loss)
        return {step: fmean(losses) for step, losses in by_step.items()}

    def until(self, step: int) -> Recording:
        """The part of the recording before a step."""
        train = sum(recorded < step for recorded in self.train_steps)
        validation = sum(recorded < step for recorded in self.validation_steps)
        return Recording(
            self.parameters,
            self.dimensions,
            self.activations,
            self.train_steps[:train],
            self.train_losses[:train],
            self.validation_steps[:validation],
            self.validation_losses[:validation],
            [sample for sample in self.samples if sample.step < step],
        )

    def save(self, folder: Path) -> None:
        """Write the recording atomically."""
        arrays: dict[str, npt.NDArray[np.generic]] = {
            "train/step": np.asarray(self.train_steps, np.int64),
            "train/loss": np.asarray(self.train_losses, np.float32),
            "validation/step": np.asarray(self.validation_steps, np.int64),
            "validation/loss": np.asarray(self.validation_losses, np.float32),
            "sample/step": np.asarray([sample.step for sample in self.samples], np.int64),
        }
        for name in _COLUMNS:
            arrays[f"sample/{name}"] = np.asarray([getattr(sample, name) for sample in self.samples], np.float32)
        names = {"parameters": self.parameters, "dimensions": self.dimensions, "activations": self.activations}
        metadata = {name: json.dumps(list(value)) for name, value in names.items()}
        _write(folder / FILE, save(arrays, {**metadata, "not_finite_in": self.not_finite_in}))

    @classmethod
    def load(cls, folder: Path) -> Recording:
        """Read a recording that `save` has written.

        Raises:
            FileNotFoundError: if there is none.
            UserError: if the file is damaged.
        """
        path = folder / FILE
        try:
            with safe_open(path, framework="numpy") as file:
                arrays: dict[str, npt.NDArray[np.generic]] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                metadata = file.metadata()
        except SafetensorError as error:
            raise UserError(f"{path} is damaged, remove it: {error}") from error
        columns = [arrays[f"sample/{name}"] for name in _COLUMNS]
        return cls(
            parameters=json.loads(metadata["parameters"]),
            dimensions=json.loads(metadata["dimensions"]),
            activations=json.loads(metadata["activations"]),
            train_steps=arrays["train/step"].tolist(),
            train_losses=arrays["train/loss"].tolist(),
            validation_steps=arrays["validation/step"].tolist(),
            validation_losses=arrays["validation/loss"].tolist(),
            samples=[Sample(step, *_row(columns, row)) for row, step in enumerate(arrays["sample/step"].tolist())],
            not_finite_in=metadata["not_finite_in"],
        )


def _row(columns: Sequence[npt.NDArray[Any]], row: int) -> list[Any]:
    return [column[row] if column.ndim > 1 else float(column[row]) for column in columns]


def save_findings(folder: Path, findings: Sequence[Finding]) -> None:
    """Write the findings of the rules so far."""
    _write(folder / FINDINGS, json.dumps([asdict(finding) for finding in findings], indent=1).encode())


def load_findings(folder: Path) -> list[Finding]:
    """Read the findings of the rules; none if there is no file."""
    path = folder / FINDINGS
    return [Finding(**record) for record in json.loads(path.read_bytes())] if path.is_file() else []


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_whole(path, shared=True) as part:
        part.write_bytes(content)
