"""All private parts of Lightning that we use. `pyproject.toml` has the versions; written against Lightning 2.6."""

from __future__ import annotations

import pytorch_lightning as pl


def restore_place_in_data(trainer: pl.Trainer) -> None:
    """Go on in the training data where the checkpoint was.

    Lightning 2.6 does so as it opens the data. `estimated_stepping_batches` has had them opened before the checkpoint
    is read. Nothing happens if the checkpoint ends an epoch.
    """
    loop = trainer.fit_loop
    assert hasattr(loop, "_load_combined_loader_states"), "the fit loop can restore the loaders' states"
    loop._load_combined_loader_states()
