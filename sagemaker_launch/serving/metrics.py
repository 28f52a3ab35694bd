"""Metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50)


class Metrics:
    """The server's figures, and the process's own (memory, processor time, open files)."""

    def __init__(self, queue_depth: Callable[[], float], in_progress: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "serving_requests", "Requests to /invocations by status.", ["status"], registry=self.registry
        )
        self.seconds = Histogram(
            "serving_request_duration_seconds",
            "From a request's first byte to its answer.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.batch_size = Histogram(
            "serving_batch_size",
            "Images that went through the network at once.",
            buckets=[2.0**power for power in range(9)],
            registry=self.registry,
        )
        Gauge("serving_queue_depth", "Images that wait for the network.", registry=self.registry).set_function(
            queue_depth
        )
        Gauge("serving_requests_in_progress", "Requests that are in.", registry=self.registry).set_function(in_progress)
