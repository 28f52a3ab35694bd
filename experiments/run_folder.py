"""A run on disk: what it was, its metrics by epoch, how it ended. Written first; MLflow is a copy of it.

run.json        name, key, params, tags, times, outcome
metrics.jsonl   one line an epoch
checkpoints/    while it runs
artifacts/      pictures and tables
export/         the model
"""

from __future__ import annotations

import functools
import json
import os
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Outcome:
    """How a run ended, in Optuna's words."""

    state: Literal["COMPLETE", "PRUNED", "FAIL"]
    value: float | None = None
    """The objective; for a pruned run, at the last epoch it reached."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the weights that count, test scores included."""
    reason: str = ""
    """Why it failed."""


@dataclass(frozen=True)
class MetricLine:
    """The metrics of one epoch (or, for system metrics, of one sample)."""

    step: int
    timestamp_ms: int
    metrics: dict[str, float]


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()  # the training thread and the one that pushes to MLflow share the folder
        self.artifacts = path / "artifacts"
        self.export = path / "export"

    @property
    def exists(self) -> bool:
        """Whether the run was ever started."""
        return (self.path / "run.json").is_file()

    def start(self, name: str, params: Mapping[str, object], tags: Mapping[str, str]) -> None:
        """Note what the run is."""
        self._write(
            {
                "name": name,
                "key": uuid.uuid4().hex,
                "started_ms": now_ms(),
                "params": {key: str(value) for key, value in params.items()},
                "tags": dict(tags),
                "outcome": None,
                "pushed": False,
            }
        )

    def read(self) -> dict[str, Any]:
        """All of run.json."""
        loaded: dict[str, Any] = json.loads((self.path / "run.json").read_text())
        return loaded

    def update(self, **values: Any) -> None:
        """Replace some entries of run.json."""
        with self._lock:
            self._write(self.read() | values)

    def add_params(self, params: Mapping[str, object]) -> None:
        """Note more of what the run is."""
        with self._lock:
            self.update(params=self.read()["params"] | {key: str(value) for key, value in params.items()})

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append the metrics of one epoch, unless they stand there from before a kill."""
        with self._lock:
            if (step, frozenset(metrics)) in self._recorded:
                return
            line = json.dumps(asdict(MetricLine(step, now_ms(), dict(metrics)))) + "\n"
            # What a kill may cut off is the last line: it is closed here, and skipped when read.
            with (self.path / "metrics.jsonl").open("a+b") as file:
                if file.tell() and not _ends_with_newline(file):
                    file.write(b"\n")
                file.write(line.encode())
            self._recorded.add((step, frozenset(metrics)))

    @functools.cached_property
    def _recorded(self) -> set[tuple[int, frozenset[str]]]:
        return {(line.step, frozenset(line.metrics)) for line in self.metric_lines()}

    def metric_lines(self) -> list[MetricLine]:
        """All whole lines of metrics.jsonl."""
        path = self.path / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        return [MetricLine(**parsed) for line in lines if (parsed := _parse(line)) is not None]

    @property
    def outcome(self) -> Outcome | None:
        """How the run ended; None while it runs."""
        raw = self.read()["outcome"] if self.exists else None
        return Outcome(**raw) if raw else None

    def finish(self, outcome: Outcome) -> None:
        """Note how the run ended."""
        self.update(outcome=asdict(outcome), ended_ms=now_ms(), pushed=False)

    def reopen(self) -> None:
        """Go on with a run that had ended, as a study does that gets more trials."""
        self.update(outcome=None, pushed=False)

    def _write(self, values: Mapping[str, Any]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        part = self.path / ".run.json.part"
        with part.open("w") as file:
            json.dump(values, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path / "run.json")


def now_ms() -> int:
    """Milliseconds since 1970, as MLflow counts."""
    return time.time_ns() // 1_000_000


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:  # no JSON, or no text
        return None


def _ends_with_newline(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")
