"""Sends a container's output to CloudWatch, and finds metrics in it by regular expressions."""

from __future__ import annotations

import math
import re
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO

from moto.cloudwatch.models import CloudWatchBackend, cloudwatch_backends
from moto.logs.models import LogsBackend, logs_backends

MAX_EVENT_CHARACTERS = 256_000
"""Longer messages become several events. CloudWatch takes 1 MB per event (API_PutLogEvents, 2026), and a character has
at most 4 bytes."""

METRICS_NAMESPACE = "/aws/sagemaker/TrainingJobs"
"""CloudWatch's namespace of the metrics that jobs report (AWS documentation, 2025)."""

LAST_LINES = 20
"""Last lines of a container's output, for a failure that the job does not explain."""


@dataclass(frozen=True)
class MetricPoint:
    """One value that a job reported."""

    value: float
    time: datetime


Publish = Callable[[str, MetricPoint], None]
"""Takes the name of a metric and a value."""


def publish_nowhere(name: str, point: MetricPoint) -> None:
    """Publish nothing."""


class Metrics:
    """The values that a job reported, by metric name, in order."""

    def __init__(self, definitions: Sequence[Mapping[str, str]], publish: Publish = publish_nowhere) -> None:
        """Begin without a value.

        Args:
            definitions: MetricDefinitions of the job.
            publish: called with each value.
        """
        self._regexes = [(one["Name"], re.compile(one["Regex"])) for one in definitions]
        self._publish = publish
        self._points: dict[str, list[MetricPoint]] = {}
        self._lock = threading.Lock()

    def read(self, line: str) -> None:
        """Find metrics in one line of output."""
        now = datetime.now(UTC)
        for name, regex in self._regexes:
            for match in regex.finditer(line):
                try:
                    value = float32(float(match[1]))
                except (ValueError, TypeError, OverflowError):
                    continue  # a regex that matched something else; AWS drops it silently, too
                point = MetricPoint(value, now)
                with self._lock:
                    self._points.setdefault(name, []).append(point)
                self._publish(name, point)

    def points(self, name: str) -> list[MetricPoint]:
        """All values of a metric."""
        with self._lock:
            return list(self._points.get(name, ()))

    def last(self) -> dict[str, MetricPoint]:
        """The last value of each metric, which is its final value."""
        with self._lock:
            return {name: points[-1] for name, points in self._points.items()}


def float32(value: float) -> float:
    """Round to single precision, which is what the API keeps of a metric (shape `MetricValue`: float)."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


class JobMetrics:
    """The metrics of one job in CloudWatch, where the SDK's analytics and the console's graphs read them."""

    def __init__(self, account: str, region: str, job_name: str) -> None:
        self._backend: CloudWatchBackend = cloudwatch_backends[account][region]
        self._dimensions = [{"Name": "TrainingJobName", "Value": job_name}]

    def put(self, name: str, point: MetricPoint) -> None:
        """Add a value, unless it is NaN or infinite, which PutMetricData refuses (API reference, 2026)."""
        if math.isfinite(point.value):
            # moto's times have no zone.
            datum = {"MetricName": name, "Value": point.value, "Timestamp": point.time.replace(tzinfo=None)}
            self._backend.put_metric_data(METRICS_NAMESPACE, [{**datum, "Dimensions": self._dimensions}])


class LogStream:
    """One stream of a log group."""

    def __init__(self, account: str, region: str, group: str, name: str) -> None:
        self._backend: LogsBackend = logs_backends[account][region]
        self._group, self._name = group, name
        self._backend.ensure_log_group(group)
        self._backend.ensure_log_stream(group, name)

    def put(self, events: Sequence[tuple[int, str]]) -> None:
        """Append events: milliseconds since 1970 and text."""
        batch = [{"timestamp": when, "message": text} for when, text in events]
        self._backend.put_log_events(self._group, self._name, batch)


class OutputReader:
    """Reads a container's output to its end: each line to the metrics, and in batches to the log."""

    def __init__(self, output: IO[bytes], metrics: Metrics, stream: LogStream, flush_seconds: float) -> None:
        """Start reading."""
        self.error: BaseException | None = None
        """The error that ended reading, raised in the job's thread."""
        self._output, self._metrics, self._stream = output, metrics, stream
        self._flush_seconds = flush_seconds
        self._pending: list[tuple[int, str]] = []
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._guard, args=(work,)) for work in (self._read, self._flush)]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait until all output is read and sent."""
        for thread in self._threads:
            thread.join()
        if self.error is not None:
            raise self.error

    def last_lines(self, max_characters: int) -> str:
        """The last lines that are not empty, as many as fit; at least the start of the last one."""
        text = ""
        for line in reversed(self._last):
            if text and len(line) + 1 + len(text) > max_characters:
                break
            text = f"{line}\n{text}" if text else line
        return text[:max_characters]

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self.error = error

    def _read(self) -> None:
        try:
            for raw in self._output:
                line = raw.decode(errors="replace").rstrip("\r\n")
                self._metrics.read(line)
                if line.strip():
                    self._last.append(line)
                now = time.time_ns() // 1_000_000
                # CloudWatch takes no empty messages.
                pieces = range(0, len(line), MAX_EVENT_CHARACTERS)
                events = [(now, line[start : start + MAX_EVENT_CHARACTERS]) for start in pieces]
                with self._lock:
                    self._pending += events
        finally:
            self._output.close()
            self._ended.set()

    def _flush(self) -> None:
        ended = False
        while not ended:
            ended = self._ended.wait(self._flush_seconds)
            with self._lock:
                events, self._pending = self._pending, []
            # CloudWatch takes 10,000 events per call.
            for start in range(0, len(events), 10_000):
                self._stream.put(events[start : start + 10_000])
