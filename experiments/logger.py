"""Lightning's logger that writes to a run folder."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from experiments.run_folder import RunFolder


class RunFolderLogger(Logger):
    """A Lightning logger that writes to a run folder."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self.folder = folder

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.folder.read()["name"])

    @property
    def version(self) -> str:
        """The run's key."""
        return str(self.folder.read()["key"])

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Note the metrics of an epoch; epochs count from 1, whatever the global step."""
        del step
        values = dict(metrics)
        self.folder.record(int(values.pop("epoch")) + 1, values)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Note facts about the run that are known only once it has started."""
        del args, kwargs
        self.folder.add_params(dict(params))
