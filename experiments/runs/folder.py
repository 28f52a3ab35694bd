"""A run on disk: its settings, metrics by epoch, and outcome. Written first; MLflow is a copy of it.

run.json          name, key, params, tags, times, outcome
metrics.jsonl     one line per epoch
scores.npz        the validation split by the best weights, until pictures are drawn of it
checkpoints/      while it runs
export/           the model
published.json    what MLflow has of it                   } written by the process that publishes,
system.jsonl      one line per sample of the machine       } all else by the one that trains
artifacts/        pictures and tables                     }
artifacts/recording/  how its layers train, with trainer.record
artifacts/profile/    where its time goes, with trainer.profile
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from experiments.console import say
from experiments.errors import UserError
from lightning_modules.cores import usable_cores
from lightning_modules.files import is_own_file, replaced_whole
from lightning_modules.metrics import BEST, OBJECTIVES
from lightning_modules.redaction import redact

LOCAL = {"origin": "local"}
"""Tag of the runs that this machine's commands make; a job can't know where the service runs it."""
ORIGINS: Mapping[str, str] = {"local": "at home", "rehearsal": "rehearsed job", "sagemaker": "SageMaker job"}
"""Where a run was made, its tag `origin`, in words."""
FINGERPRINT = "data.fingerprint"
"""Param with the fingerprint of the photos of a run."""
PACKAGE_TAG = "package."
"""Beginning of the tags that have the versions of packages."""
PACKAGES = (
    *("aiohappyeyeballs", "aiohttp", "aiosignal", "attrs", "docstring-parser", "filelock", "frozenlist", "fsspec"),
    *("idna", "jsonargparse", "lightning-utilities", "mlflow", "multidict", "numpy", "optuna", "packaging", "pillow"),
    *(
        "propcache",
        "pytorch-lightning",
        "pyyaml",
        "safetensors",
        "torch",
        "torchmetrics",
        "torchvision",
        "tqdm",
        "yarl",
    ),
)
"""Packages whose versions a run notes: those of training, and all in container/requirements.txt of `sagemaker_launch`,
which a job keeps if its image has them."""
RECORDING, PROFILE = "artifacts/recording", "artifacts/profile"
"""Folders of a run's recording and profile, below that of the run: MLflow gets them with the artifacts."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended, in Optuna's words; a job in the cloud may also be stopped."""

    state: Literal["COMPLETE", "PRUNED", "FAIL", "STOPPED"]
    value: float | None = None
    """The objective; for a pruned run, at the last epoch it reached, or the study's worst if it diverged."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the best weights, test scores included."""
    reason: str = ""
    """Why it failed or was pruned; without secrets, as run.json, MLflow, Optuna and reports show it."""

    def __post_init__(self) -> None:
        """Redact the reason, which may be another program's text."""
        object.__setattr__(self, "reason", redact(self.reason))


@dataclass(frozen=True)
class RunRecord:
    """The content of run.json."""

    name: str
    key: str
    """A tag of the run in MLflow, by which that run is found."""
    started_ms: int
    """Milliseconds since 1970, as MLflow counts."""
    params: Mapping[str, str]
    tags: Mapping[str, str]
    outcome: Outcome | None
    """None while the run is not finished."""
    ended_ms: int | None = None
    """When the run ended before it was reopened."""
    study: Mapping[str, Any] | None = None
    """The part of its study's identity that a trial stores."""

    @classmethod
    def of(cls, loaded: Any) -> RunRecord | None:
        """The record that a parsed run.json has; None if it has none. Entries of other versions are left out."""
        known = {field.name: field for field in fields(cls)}
        needed = {name for name, field in known.items() if field.default is MISSING}
        if not isinstance(loaded, dict) or not needed <= loaded.keys():
            return None
        values = {name: value for name, value in loaded.items() if name in known}
        return cls(**values | {"outcome": Outcome(**loaded["outcome"]) if loaded["outcome"] else None})

    @property
    def fingerprint(self) -> str | None:
        """Which photos the run saw; None before it has seen any."""
        return self.params.get(FINGERPRINT)

    @property
    def duration_ms(self) -> int:
        """How long a run that has ended took. The clock may have been set back in runs of older versions."""
        assert self.ended_ms is not None, "the run has ended"
        return max(0, self.ended_ms - self.started_ms)


@dataclass(frozen=True)
class MetricLine:
    """The metrics of one epoch (or, for system metrics, of one sample)."""

    step: int
    timestamp_ms: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Published:
    """The state of a run in MLflow: content of published.json."""

    store: str = ""
    """The MLflow server or database, without its password. In another store, the run must still be published."""
    run_id: str | None = None
    files: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Each file that was sent after the run had ended, with the size and the time of change that it had then."""
    model_uri: str | None = None
    """The registered version, models:/NAME/VERSION."""
    is_champion: bool = False
    """Whether the version became the model's champion."""


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()  # loggers may be called from any thread
        self.artifacts = path / "artifacts"
        self.export = path / "export"
        self.scores = path / "scores.npz"
        self.recording = path / RECORDING
        self._clock: tuple[int, float] | None = None
        """A time in milliseconds since 1970, and the monotonic clock's at that moment."""

    @property
    def has_started(self) -> bool:
        """Whether the run was ever started. One whose run.json is damaged counts as not started."""
        return self._find() is not None

    def start(
        self,
        name: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        *,
        study: Mapping[str, Any] | None = None,
        key: str | None = None,
        started_ms: int | None = None,
    ) -> None:
        """Write settings and start of the run.

        Args:
            study: the part of its study's identity that a trial stores.
            key: tag by which the run in MLflow is found; by default random.
            started_ms: when it began; by default now.
        """
        if (self.path / "run.json").is_file() and not self.has_started:
            self._set_aside()
        self._write(
            "run.json",
            RunRecord(
                name=name,
                key=key or uuid.uuid4().hex,
                started_ms=started_ms or self._now_ms(),
                params=_texts(params),
                tags=dict(tags),
                outcome=None,
                study=study,
            ),
        )

    def _set_aside(self) -> None:
        """Move a damaged run folder away."""
        number = next(number for number in itertools.count(1) if not (self.path / f"damaged-{number}").exists())
        aside = self.path / f"damaged-{number}"
        aside.mkdir()
        files = ("metrics.jsonl", "system.jsonl", "published.json", "scores.npz", "run.json")
        for name in ("checkpoints", "artifacts", "export", *files):
            if (self.path / name).exists():
                (self.path / name).rename(aside / name)

    def _find(self) -> RunRecord | None:
        """The record of the run; None if there is none, or if it is damaged, which is reported."""
        if not (self.path / "run.json").is_file():
            return None
        try:
            return self.read()
        except UserError as error:
            _say_once(str(error))
            return None

    def read(self) -> RunRecord:
        """The record of the run.

        Raises:
            UserError: if it is damaged.
        """
        path = self.path / "run.json"
        record = RunRecord.of(_load(path, _status(path)))
        if record is None:
            raise UserError(
                f"{path} is damaged, it has {_content(path)}: the run is left out. The command that made it trains it "
                "again, and keeps its files in damaged-1"
            )
        return record

    def add_params(self, params: Mapping[str, object]) -> None:
        """Add params of the run."""
        with self._lock:
            record = self.read()
            self._write("run.json", replace(record, params={**record.params, **_texts(params)}))

    def add_tags(self, tags: Mapping[str, str]) -> None:
        """Add tags of the run."""
        with self._lock:
            record = self.read()
            self._write("run.json", replace(record, tags={**record.tags, **tags}))

    def record(self, step: int, metrics: Mapping[str, float], *, timestamp_ms: int | None = None) -> None:
        """Append the metrics of an epoch, unless they were written before a kill."""
        with self._lock:
            if (step, frozenset(metrics)) not in self._recorded:
                self._append("metrics.jsonl", MetricLine(step, timestamp_ms or self._now_ms(), dict(metrics)))
                self._recorded.add((step, frozenset(metrics)))

    def keep_epochs(self, epochs: Mapping[int, Mapping[str, float]]) -> None:
        """Make metrics.jsonl agree with the checkpoint that a run resumes from.

        In the cloud it may be older or newer than the checkpoint: lines of later epochs are removed, missing ones are
        added.

        Args:
            epochs: the metrics of each epoch of the checkpoint.
        """
        with self._lock:
            kept = [line for line in self.metric_lines() if line.step in epochs]
            missing = epochs.keys() - {line.step for line in kept}
            kept += [MetricLine(epoch, self._now_ms(), dict(epochs[epoch])) for epoch in missing]
            kept.sort(key=lambda line: line.step)
            with replaced_whole(self.path / "metrics.jsonl") as part:
                part.write_text("".join(f"{json.dumps(asdict(line))}\n" for line in kept))
            self._recorded = {(line.step, frozenset(line.metrics)) for line in kept}

    def record_system(self, metrics: Mapping[str, float]) -> None:
        """Append a sample of system metrics."""
        self._append("system.jsonl", MetricLine(len(self.system_lines()), self._now_ms(), dict(metrics)))

    def metric_lines(self) -> list[MetricLine]:
        """All complete lines of metrics.jsonl."""
        return self._lines("metrics.jsonl")

    def curves(self) -> dict[str, dict[int, float]]:
        """Each metric's value by epoch, from 1."""
        curves: dict[str, dict[int, float]] = {}
        for line in self.metric_lines():
            for name, value in line.metrics.items():
                curves.setdefault(name, {})[line.step] = value
        return curves

    def system_lines(self) -> list[MetricLine]:
        """All complete lines of system.jsonl."""
        return self._lines("system.jsonl")

    @property
    def fingerprint(self) -> str | None:
        """Which photos the run saw; None before it has seen any."""
        record = self._find()
        return record.fingerprint if record else None

    @property
    def outcome(self) -> Outcome | None:
        """How the run ended; None while it runs."""
        record = self._find()
        return record.outcome if record else None

    def finish(self, outcome: Outcome, *, ended_ms: int | None = None) -> None:
        """Write the outcome of the run."""
        with self._lock:
            self._write("run.json", replace(self.read(), outcome=outcome, ended_ms=ended_ms or self._now_ms()))

    def final_metrics(self) -> dict[str, float]:
        """The metrics of the outcome, under their names in MLflow.

        MLflow shows a metric's last value, which is the last epoch's: what counts gets a name of its own.
        """
        found = self.outcome.metrics if self.outcome else {}
        of_epochs = {key for line in self.metric_lines() for key in line.metrics}
        return {
            f"{BEST}{key}" if key in OBJECTIVES else key: value
            for key, value in found.items()
            if key not in of_epochs or key in OBJECTIVES
        }

    @property
    def needs_drawing(self) -> bool:
        """Whether pictures of the run are still to be drawn."""
        tried = any((self.artifacts / name).is_file() for name in ("recording.png", "pictures_error.txt"))
        return self.scores.is_file() or (self.recording.is_dir() and not tried)

    def reopen(self) -> None:
        """Continue a run that had ended, such as a study that gets more trials."""
        with self._lock:
            self._write("run.json", replace(self.read(), outcome=None))

    @property
    def run_id(self) -> str | None:
        """ID of the run in MLflow; None before it has one."""
        return self.published.run_id

    @property
    def is_published(self) -> bool:
        """Whether MLflow has everything that the run will ever have.

        The order matters: an outcome is final, after it the pictures are drawn once, and after them nothing is written.
        So a file that is written while this property is read can't be missed.
        """
        return self.outcome is not None and not self.needs_drawing and self.files() == self.published.files

    def files(self) -> dict[str, list[int]]:
        """Size in bytes and time of change in nanoseconds of each file that MLflow gets, by its path in the folder."""
        found = [self.path / name for name in ("run.json", "metrics.jsonl", "system.jsonl")]
        found += sorted(self.artifacts.rglob("*"))
        return {
            path.relative_to(self.path).as_posix(): [status.st_size, status.st_mtime_ns]
            for path in found
            if path.is_file() and is_own_file(path.relative_to(self.path).as_posix())
            for status in [path.stat()]
        }

    @property
    def published(self) -> Published:
        """The content of published.json; empty if there is none."""
        path = self.path / "published.json"
        noted: Any = _load(path, _status(path)) if path.is_file() else {}
        if not isinstance(noted, dict):
            _say_once(f"{path} is damaged: it has {_content(path)}. MLflow is asked what it has of the run")
            noted = {}
        names = {field.name for field in fields(Published)}
        return Published(**{name: value for name, value in noted.items() if name in names})  # older notes have others

    def note_published(self, published: Published) -> None:
        """Replace published.json."""
        if self.published != published:
            self._write("published.json", published)

    def _now_ms(self) -> int:
        """The current time, but no earlier than the last time in the folder: the clock may have been set back."""
        if self._clock is None:
            record = self._find()
            noted = [record.started_ms] if record else []
            noted += [line.timestamp_ms for line in (*self.metric_lines()[-1:], *self.system_lines()[-1:])]
            self._clock = max(now_ms(), *noted, 0), time.monotonic()
        since_ms, since = self._clock
        return since_ms + round(1000 * (time.monotonic() - since))

    @functools.cached_property
    def _recorded(self) -> set[tuple[int, frozenset[str]]]:
        return {(line.step, frozenset(line.metrics)) for line in self.metric_lines()}

    def _append(self, name: str, line: MetricLine) -> None:
        # A kill may cut off the last line: it is ended here, and skipped when read.
        with (self.path / name).open("a+b") as file:
            if file.tell() and not _ends_with_newline(file):
                file.write(b"\n")
            file.write(json.dumps(asdict(line)).encode() + b"\n")

    def _lines(self, name: str) -> list[MetricLine]:
        path = self.path / name
        lines = path.read_bytes().split(b"\n") if path.is_file() else []
        parsed = [_metric_line(line) for line in lines]
        for number, line in enumerate(lines[:-1], start=1):
            if parsed[number - 1] is None and line.strip():
                _say_once(f"{path}: line {number} is no line of metrics, and is left out")
        return [line for line in parsed if line is not None]

    def _write(self, name: str, record: RunRecord | Published) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        with replaced_whole(self.path / name) as part, part.open("w") as file:
            json.dump(asdict(record), file, indent=1)
            file.flush()
            os.fsync(file.fileno())


@functools.cache
def environment_tags() -> Mapping[str, str]:
    """The environment of a run: commit, Python, the packages that it needs, and the machine."""
    tags = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):  # a job has no optuna
            tags[f"{PACKAGE_TAG}{name}"] = metadata.version(name)
    tags |= {"python": platform.python_version(), "host": platform.node(), **_hardware_tags()}
    if git := shutil.which("git"):  # neither a bare machine nor a job's image need have it
        # Git refuses a repository of another user by default. The code of this one is running already.
        command, source_folder = [git, "-c", "safe.directory=*", "rev-parse", "HEAD"], Path(__file__).parent
        found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=source_folder)
        if found.returncode == 0:
            tags["mlflow.source.git.commit"] = found.stdout.strip()
    return tags


def _hardware_tags() -> dict[str, str]:
    """The machine as this process may use it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    tags = {
        "hardware.processor": _processor(),
        "hardware.cores": str(usable_cores()),
        "hardware.memory_gb": f"{memory / 1e9:.1f}",
    }
    # A training process has imported torch; for others a tag is not worth seconds.
    if torch := sys.modules.get("torch"):
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        threads = min(torch.get_num_threads(), usable_cores())  # as `prepare_process` sets it
        tags |= {"hardware.gpu": ", ".join(names) or "none", "hardware.threads": str(threads)}
    return tags


def _processor() -> str:
    """The processor's model; Python knows its family only."""
    path = Path("/proc/cpuinfo")
    models = re.findall(r"^model name\s*: (.+)$", path.read_text() if path.is_file() else "", re.MULTILINE)
    return models[0] if models else platform.processor() or platform.machine()


def now_ms() -> int:
    """Milliseconds since 1970, as MLflow counts."""
    return time.time_ns() // 1_000_000


def _texts(params: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in params.items()}


def _status(path: Path) -> tuple[int, int, int]:
    """Distinguishes two versions of a file that is replaced as a whole: each is another file."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=1024)
def _load(path: Path, status: tuple[int, int, int]) -> Any:
    """The JSON of a file, parsed again only when the file has changed; None if it has none."""
    del status
    return _parse(path.read_bytes())


def _metric_line(line: bytes) -> MetricLine | None:
    """Parse a line of metrics; None if a kill has cut it off, or if it is something else."""
    parsed = _parse(line)
    if not isinstance(parsed, dict) or parsed.keys() != {field.name for field in fields(MetricLine)}:
        return None
    found = MetricLine(**parsed)
    numbers = found.metrics.values() if isinstance(found.metrics, dict) else [None]
    has_numbers = isinstance(found.step, int) and isinstance(found.timestamp_ms, int)
    return found if has_numbers and all(isinstance(value, float | int) for value in numbers) else None


@functools.cache
def _say_once(text: str) -> None:
    say(text)


def _content(path: Path) -> str:
    """Describe the content of a damaged file."""
    content = path.read_bytes()
    return f"{len(content)} bytes, {content[:20]!r}…" if content else "no bytes"


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:  # no JSON, or no text
        return None


def _ends_with_newline(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")
