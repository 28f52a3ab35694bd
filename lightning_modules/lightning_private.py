"""All private parts of Lightning that we use. `pyproject.toml` has the versions; written against Lightning 2.6."""

from __future__ import annotations

import pytorch_lightning as pl


def restore_data_position(trainer: pl.Trainer) -> None:
    """Continue in the training data at the position of the checkpoint.

    Lightning 2.6 does so when it opens the data, but `estimated_stepping_batches` opens them before the checkpoint is
    read. Does nothing for a checkpoint at the end of an epoch.
    """
    loop = trainer.fit_loop
    assert hasattr(loop, "_load_combined_loader_states"), "the fit loop can restore the loaders' states"
    loop._load_combined_loader_states()
