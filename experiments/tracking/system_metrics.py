"""MLflow's own monitors of the machine, which are no part of its documented interface; written against MLflow 3.17."""

from __future__ import annotations

import logging

from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

SYSTEM = "system/"
"""Prefix of the metrics that MLflow's UI shows in its tab of system metrics."""

_log = logging.getLogger(__name__)


class SystemMonitor:
    """Samples processor, memory, disk, network and GPU with MLflow's own monitors."""

    def __init__(self) -> None:
        self._monitors: list[BaseMetricsMonitor] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        try:
            self._monitors.append(GPUMonitor())
        except (ImportError, RuntimeError) as error:  # no nvidia-ml-py, or no NVIDIA driver
            _log.debug("no GPU metrics: %s", error)

    def sample(self) -> dict[str, float]:
        """The state of the machine now."""
        values: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.clear_metrics()
            monitor.collect_metrics()
            found = monitor.aggregate_metrics()
            assert isinstance(found, dict), "a monitor has its metrics by name"
            values |= {f"{SYSTEM}{key}": float(value) for key, value in found.items()}
        return values
