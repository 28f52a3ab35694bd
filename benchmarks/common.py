"""What every benchmark says beside its figures: the machine, the packages, medians and spreads."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from PIL import Image


def machine() -> dict[str, object]:
    """Where the figures come from."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")),
        platform.processor(),
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    packages = {name: metadata.version(name) for name in ("torch", "torchvision", "pytorch-lightning", "optuna")}
    return {"cpu": model, "cores": cores, "gpu": gpu, "python": platform.python_version(), **packages}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest of some measurements."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def write_photos(root: Path, *, per_class: int, size: int) -> None:
    """Two classes of JPEGs with noise in them."""
    random = np.random.default_rng(0)
    for split, count in (("train", per_class), ("valid", 4)):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (size, size, 3), dtype="uint8")
                Image.fromarray(pixels).save(root / split / name / f"{number}.jpg")


def parser(description: str) -> argparse.ArgumentParser:
    """A command line with `--json`."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    return made


def report(rows: Sequence[tuple[str, str]], figures: dict[str, object], path: Path | None) -> None:
    """Print a table, ratios first, and write all figures as JSON."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    where = machine()
    print(f"{'machine':<{width}}  {where['cpu']}, {where['cores']} cores, GPU {where['gpu']}, torch {where['torch']}")
    save(figures, path)


def save(figures: dict[str, object], path: Path | None) -> None:
    """Write what was measured so far as JSON, if it is wanted."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"figures": figures, "machine": machine()}, indent=1) + "\n")


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []
