"""Where the export folder of a model is: a folder on this machine, or a model or run in MLflow."""

from __future__ import annotations

from pathlib import Path

from experiments.config import RunConfig
from experiments.errors import UserError
from lightning_modules.inference import MANIFEST_FILE

REGISTRY = ("models:/", "runs:/")
"""Prefixes of MLflow's URIs of models."""


def locate_export(model: str, config: RunConfig) -> Path:
    """The export folder that `--model` names: a folder, or a registry URI.

    Raises:
        UserError: if there is none.
    """
    if not model.startswith(REGISTRY):
        if not (Path(model) / MANIFEST_FILE).is_file():
            raise UserError(f"--model must be an export folder, which holds {MANIFEST_FILE}, got {model!r}")
        return Path(model)
    from experiments.tracking.check import check_tracking
    from experiments.tracking.registry import download_export  # MLflow takes seconds to import
    from experiments.tracking.store import RunStore

    check_tracking(config)
    return download_export(model, RunStore.open_or_wait(config))
