"""Lightning's logger that writes to a run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from experiments.runs.folder import RunFolder


class RunFolderLogger(Logger):
    """A Lightning logger that writes to a run folder.

    Args:
        on_epoch: told of each epoch (counted from 1) and its metrics, once they are written.
        on_facts: told of what is known about the run only once it has started.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        on_epoch: Callable[[int, Mapping[str, float]], None] = lambda _epoch, _metrics: None,
        on_facts: Callable[[Mapping[str, object]], None] = lambda _facts: None,
    ) -> None:
        super().__init__()
        self.folder = folder
        self._on_epoch, self._on_facts = on_epoch, on_facts

    @property
    def name(self) -> str:
        """The run's name."""
        return self.folder.read().name

    @property
    def version(self) -> str:
        """The run's key."""
        return self.folder.read().key

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Record the metrics of an epoch; epochs count from 1, independent of the global step."""
        del step
        values = dict(metrics)
        epoch = int(values.pop("epoch")) + 1
        self.folder.record(epoch, values)
        self._on_epoch(epoch, values)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Note facts about the run that are known only once it has started."""
        del args, kwargs
        self.folder.add_params(dict(params))
        self._on_facts(dict(params))
