"""Scores of a whole split, and the numbers that follow from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lightning_modules.files import replaced_whole

if TYPE_CHECKING:  # torch and Lightning take seconds to import, and reading scores does not need them
    from torch import Tensor, nn

    from lightning_modules.data import ClassFolderData
    from lightning_modules.folders import ClassFolders, Split


@dataclass(frozen=True)
class Scores:
    """A split and its scores."""

    root: Path
    """The folder with the splits, on the machine that scored."""
    paths: tuple[Path, ...]
    """Photos, relative to the root: the same wherever the data set is."""
    labels: NDArray[np.int64]
    """(N,) true classes."""
    log_probabilities: NDArray[np.floating]
    """(N, C), finite: the log-softmax of the network's scores, as in the loss that it was trained with."""
    class_names: tuple[str, ...]

    @classmethod
    def of_split(cls, folders: ClassFolders, split: Split, log_probabilities: NDArray[np.floating]) -> Scores:
        """The scores of a network on a split of a data set.

        Args:
            log_probabilities: (N, C), in the order of the split's photos.
        """
        paths = tuple(path.relative_to(folders.root) for path in split.paths)
        return cls(folders.root, paths, np.asarray(split.labels), log_probabilities, folders.class_names)

    @property
    def probabilities(self) -> NDArray[np.floating]:
        """(N, C), rows sum to 1."""
        return np.asarray(np.exp(self.log_probabilities))

    @property
    def predictions(self) -> NDArray[np.int64]:
        """(N,) most probable classes."""
        return np.asarray(self.log_probabilities.argmax(axis=1))

    def metrics(self, prefix: str) -> dict[str, float]:
        """Average loss, top-1 and top-5 accuracy as `{prefix}_loss` and so on."""
        right = self.log_probabilities[np.arange(len(self.labels)), self.labels]
        better = (self.log_probabilities > right[:, None]).sum(axis=1)
        return {
            f"{prefix}_loss": float(-right.mean()),
            f"{prefix}_accuracy": float((self.predictions == self.labels).mean()),
            f"{prefix}_top5_accuracy": float((better < 5).mean()),
        }

    def save(self, path: Path) -> None:
        """Write an .npz under a temporary name and rename it."""
        with replaced_whole(path) as part, part.open("wb") as file:
            np.savez(
                file,
                root=np.array(str(self.root)),
                paths=np.array([str(photo) for photo in self.paths]),
                labels=self.labels,
                log_probabilities=self.log_probabilities.astype("float32"),
                class_names=np.array(self.class_names),
            )

    @classmethod
    def load(cls, path: Path | BinaryIO) -> Scores:
        """Read what `save` wrote.

        Raises:
            ValueError, OSError: if the file has no scores.
        """
        with np.load(path, allow_pickle=False) as loaded:
            if "root" not in loaded:
                raise ValueError("scores must say which folder their photos are in; these are of an older version")
            paths = tuple(Path(photo) for photo in loaded["paths"].tolist())
            names = tuple(loaded["class_names"].tolist())
            if "log_probabilities" in loaded:
                log_probabilities = loaded["log_probabilities"]
            else:  # of an older version, or of a job with an older one
                log_probabilities = np.log(np.maximum(loaded["probabilities"], np.finfo("float32").tiny))
            return cls(Path(loaded["root"].item()), paths, loaded["labels"], log_probabilities, names)


def score_split(network: nn.Module, data: ClassFolderData, split: Split) -> Scores:
    """Score every photo of a split in float32, as an endpoint does."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = network.eval().to(device)
    log_probabilities = predict_log_probabilities(network, data.split_inputs(split, device))
    network.cpu()
    return Scores.of_split(data.folders, split, log_probabilities)


def predict_log_probabilities(network: nn.Module, batches: Iterable[Tensor]) -> NDArray[np.floating]:
    """Log-probabilities, (N, C) float64, of some batches of inputs; the network computes in float32.

    Raises:
        InterruptedRunError: if a stop was requested.
    """
    import torch

    from experiments.interrupts import raise_if_interrupted
    from lightning_modules.precision import exact_float32

    rows = []
    with torch.inference_mode(), exact_float32():
        for batch in batches:
            rows.append(network(batch).cpu().double().log_softmax(dim=1))  # MPS has no float64
            raise_if_interrupted()
    log_probabilities: NDArray[np.floating] = torch.cat(rows).numpy()
    return log_probabilities
