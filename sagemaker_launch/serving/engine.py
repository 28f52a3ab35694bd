"""The network as it is served."""

from __future__ import annotations

from pathlib import Path

from lightning_modules.inference import Model, model_fn


def load_engine(folder: Path) -> Model:
    """Load an export folder for serving; it scores the golden photo as the trainer did.

    Raises:
        BadExportError: if the folder is not whole or the scores are others.
    """
    return model_fn(str(folder))
