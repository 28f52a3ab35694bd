"""What commands cost on many photos: seconds and memory of each step.

python -m benchmarks.scale --photos 100000
python -m benchmarks.scale --photos 1000000 --steps list plan-check

The photos are made once: JPEGs of 16 x 16 pixels, 100 classes, a tenth of them for validation. They take 4 kB each on
most disks. Of more than 100,000 the others are hard links to these, which is enough for steps that open no file. Each
step runs in a process of its own; its memory is the largest resident set, less that of a process that only imports.

list         the class folders are listed and named, as `--dry-run` does first
scan         each photo is read, hashed and decoded; copies are found
scan again   the same, with what the first scan noted
plan-check   the launcher adds up the sizes of the photos
plan         the launcher hashes them and names their objects
diff         the plan is compared with a bucket that has half of them; both manifests are written (no network)
report       tables and pictures of a run that was scored on all photos, and its page
"""

from __future__ import annotations

import importlib
import io
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import parser, report

CLASSES = 100
DISTINCT = 100_000
"""Photos of their own content: more would fill the disk."""
STEPS = ("list", "scan", "scan again", "plan-check", "plan", "diff", "report")


def make_photos(root: Path, count: int) -> None:
    """Class folders with so many photos."""
    random = np.random.default_rng(0)
    folders = [
        [root / split / f"{number:03d}.class_{number}" for number in range(CLASSES)] for split in ("train", "valid")
    ]
    for folder in (*folders[0], *folders[1]):
        folder.mkdir(parents=True)
    sources: list[Path] = []
    for index in range(count):
        path = folders[index % 10 == 9][index // 10 % CLASSES] / f"photo_{index:07d}.jpg"
        if index < DISTINCT:
            file = io.BytesIO()
            Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype="uint8")).save(file, "JPEG")
            path.write_bytes(file.getvalue())
            sources.append(path)
        else:
            os.link(sources[index % DISTINCT], path)


def step_list(root: Path, _work: Path) -> str:
    """List the class folders."""
    from lightning_modules.folders import check_class_sizes, read_class_names

    names = read_class_names(root)
    check_class_sizes(root, fraction=1.0)
    return f"{len(names)} classes"


def step_scan(root: Path, work: Path) -> str:
    """Read, hash and decode each photo that was not scanned before."""
    from lightning_modules.folders import scan_class_folders

    folders = scan_class_folders(
        root, valid_fraction=0.1, fraction=1.0, max_bad_fraction=0.0, seed=0, cache_dir=work / "cache"
    )
    return f"{len(folders.train) + len(folders.valid)} photos"


def step_plan_check(root: Path, _work: Path) -> str:
    """Compare the size of the photos with the disk of a job."""
    from sagemaker_launch.shipping.storage import photo_bytes

    return f"{photo_bytes(root)} bytes"


def step_plan(root: Path, work: Path) -> str:
    """Hash the photos and name their objects."""
    from sagemaker_launch.shipping.storage import read_photo_set

    photos = read_photo_set(root)
    (work / "index.json").write_text(json.dumps(photos.index))
    return f"{len(photos.objects)} objects"


class Bucket:
    """What `Storage` asks of S3: a bucket that has half of the objects and takes the others."""

    def __init__(self, keys: list[str]) -> None:
        self.keys, self.sent, self.bytes = keys, 0, 0

    def get_paginator(self, operation: str) -> Bucket:
        """Listings have pages."""
        return self

    def paginate(self, *, Bucket: str, Prefix: str) -> Iterator[dict[str, Any]]:
        """Pages of 1,000 objects, as S3's."""
        for start in range(0, len(self.keys), 1000):
            page = [{"Key": key, "Size": 1} for key in self.keys[start : start + 1000] if key.startswith(Prefix)]
            yield {"Contents": page}

    def put_object(self, *, Body: bytes, **request: str) -> None:
        """Count what is sent."""
        self.sent += 1
        self.bytes += len(Body)


def step_diff(root: Path, work: Path) -> str:
    """Send what a bucket lacks, and both manifests."""
    from sagemaker_launch.settings.cloud import CloudSettings
    from sagemaker_launch.shipping.storage import PhotoSet, Storage

    index = json.loads((work / "index.json").read_text())
    photos = PhotoSet({name: root / path for path, name in index.items()}, index)
    settings = CloudSettings(bucket="bucket")
    bucket = Bucket([f"{settings.prefix}/data/objects/{name}" for name in sorted(photos.objects)[::2]])
    Storage(bucket, settings).upload_photos(photos)
    return f"{bucket.sent} objects sent, {bucket.bytes / 1e6:.0f} MB"


def step_report(root: Path, work: Path) -> str:
    """Score a run on all photos at random, draw it, and write the page of its comparison."""
    import optuna

    from experiments.config import load_config
    from experiments.figures.pictures import draw
    from experiments.report.compared_runs import other_runs
    from experiments.report.comparison import compare
    from experiments.report.report import write_report
    from experiments.runs.folder import FINGERPRINT, Outcome, RunFolder
    from experiments.runs.scoring import Scores
    from lightning_modules.listing import list_photos, split_folders

    paths = [path.relative_to(root) for folder in split_folders(root).values() for path in list_photos(folder)]
    labels = np.array([int(path.parent.name[:3]) for path in paths])
    random = np.random.default_rng(0)
    logits = random.standard_normal((len(paths), CLASSES), dtype=np.float32)
    logits[np.arange(len(paths)), labels] += 3
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    names = tuple(f"class {number}" for number in range(CLASSES))
    folder = RunFolder(work / "runs/train/run")
    folder.start("run", {"data.root": root, FINGERPRINT: "photos"}, {"origin": "local"})
    folder.record(1, {"val_loss": 1.0, "val_accuracy": 0.9})
    Scores(root, tuple(paths), labels, logits, names).save(folder.scores)
    folder.finish(Outcome("COMPLETE", 1.0, {"val_loss": 1.0, "val_accuracy": 0.9}))
    started = time.perf_counter()
    draw(folder)
    drawn = time.perf_counter() - started
    config = load_config(None, {"data.name": "folder", "data.root": root, "output_dir": work / "runs"})
    found = compare(other_runs(config, {"photos"}), config, class_names=names)
    assert found is not None
    study = optuna.create_study()
    study.add_trial(optuna.trial.create_trial(value=1.0))
    write_report([study], work / "report.html", comparisons=[found])
    return f"drawn in {drawn:.1f} s, page of {(work / 'report.html').stat().st_size / 1e6:.1f} MB"


IMPORTED = (
    "experiments.sweep",
    "experiments.report.report",
    "lightning_modules.folders",
    "sagemaker_launch.shipping.storage",
    "optuna.importance",
)
RUN: dict[str, Callable[[Path, Path], str]] = {
    "list": step_list,
    "scan": step_scan,
    "scan again": step_scan,
    "plan-check": step_plan_check,
    "plan": step_plan,
    "diff": step_diff,
    "report": step_report,
}


def _peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 if sys.platform != "darwin" else 1024**2)


def _measure(step: str, root: Path, work: Path, connection: Connection) -> None:
    for module in IMPORTED:
        importlib.import_module(module)
    before = _peak_mb()
    started, processor = time.perf_counter(), time.process_time()
    said = RUN[step](root, work)
    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    connection.send((seconds, processor, _peak_mb() - before, said))


def measure(step: str, root: Path, work: Path) -> tuple[float, float, float, str]:
    """Seconds, seconds of processor time, and MB of a step beyond its imports; and what it found."""
    context = multiprocessing.get_context("spawn")  # memory of its own
    ours, theirs = context.Pipe()
    process = context.Process(target=_measure, args=(step, root, work, theirs))
    process.start()
    theirs.close()
    found: tuple[float, float, float, str] = ours.recv()
    process.join()
    return found


def main() -> None:
    """Measure and report."""
    command = parser(__doc__ or "")
    command.add_argument("--photos", type=int, default=100_000)
    command.add_argument("--root", type=Path, help="where the photos are, or are made; by default they are removed")
    command.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    arguments = command.parse_args()
    rows: list[tuple[str, str]] = []
    figures: dict[str, object] = {"photos": arguments.photos}
    with tempfile.TemporaryDirectory() as name:
        root, work = arguments.root or Path(name) / "photos", Path(name)
        if not root.is_dir():
            started = time.perf_counter()
            make_photos(root, arguments.photos)
            print(f"photos made in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        for step in arguments.steps:
            seconds, processor, megabytes, said = measure(step, root, work)
            figures[step] = {"seconds": seconds, "processor_seconds": processor, "megabytes": megabytes}
            rows.append((step, f"{seconds:.1f} s, {processor:.1f} of processor time, {megabytes:.0f} MB; {said}"))
            print(f"{step}: {rows[-1][1]}", file=sys.stderr)
    report(rows, figures, arguments.json)


if __name__ == "__main__":
    main()
