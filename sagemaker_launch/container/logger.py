"""The logger of a job: the run folder is kept beside the checkpoints, and each epoch is said in one line."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from experiments.run_folder import RunFolder
from lightning_modules import metrics
from sagemaker_launch.container.metric_lines import facts_line, metric_line, objective, write_line


class MetricLineLogger(Logger):
    """A Lightning logger that prints lines and keeps what it printed in a run folder."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self.folder = folder

    @property
    def name(self) -> str:
        """The job's name."""
        return str(self.folder.read()["name"])

    @property
    def version(self) -> str:
        """The run's key."""
        return str(self.folder.read()["key"])

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Say what an epoch came to; epochs count from 1."""
        del step
        values = dict(metrics)
        epoch = int(values.pop("epoch")) + 1
        self.folder.record(epoch, values)
        write_line(metric_line("metrics", epoch, values | best_so_far(self.folder)))

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Say what is known of the run only once it has started."""
        del args, kwargs
        self.folder.add_params(dict(params))
        write_line(facts_line(dict(params)))


def best_so_far(folder: RunFolder) -> dict[str, float]:
    """The objectives at their best, over all epochs and also across a restart."""
    best = {metrics.VAL_LOSS: min, metrics.VAL_ACCURACY: max}
    lines = folder.metric_lines()
    return {objective(name): choose(line.metrics[name] for line in lines) for name, choose in best.items()}
