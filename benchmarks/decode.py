"""What photos cost before the network sees them.

python -m benchmarks.decode --data PATH/photos

Epochs over the training photos without a network, batch 64, all of them in turn in one process: `ImageFolder` and
torchvision's transforms in a `DataLoader` with a process a core, as a person would write it; our own batches from the
files; our own batches from the decoded cache; and two copies in memory of as many bytes as those batches hold, into new
memory, as a batch needs it, and into memory that was written before.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks.common import parser, report, spread
from experiments.config import load_config, with_recipe
from experiments.data.inputs import open_data_once, open_decoded_once, photo_data
from lightning_modules.process import prepare_process

BATCH_SIZE = 64


def main() -> None:
    """Measure and report."""
    command = parser(__doc__ or "")
    command.add_argument("--data", type=Path, required=True, help="class folders of JPEG files")
    command.add_argument("--image-size", type=int, default=224)
    command.add_argument("--repeat", type=int, default=5)
    arguments = command.parse_args()
    size = arguments.image_size
    prepare_process()
    with tempfile.TemporaryDirectory() as folder:
        values: dict[str, object] = {"data.name": "folder", "data.root": arguments.data, "data.image_size": size}
        values |= {"data.batch_size": BATCH_SIZE, "data.cache_dir": Path(folder)}
        config = with_recipe(load_config(None, values))
        folders = open_data_once(config)
        started = time.perf_counter()
        decoded = open_decoded_once(config)
        first_pass = (len(folders.train) + len(folders.valid)) / (time.perf_counter() - started)
        cached = photo_data(config, folders, decoded).train_dataloader()
        from_files = photo_data(config, folders).train_dataloader()
        transform = v2.Compose([v2.ToImage(), v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()])
        usual = DataLoader(
            ImageFolder(str(arguments.data / "train"), transform),
            BATCH_SIZE,
            shuffle=True,
            num_workers=torch.get_num_threads(),
            persistent_workers=True,
        )
        like_them = [torch.empty_like(batch.pixels) for batch in cached]
        sources = [batch.pixels for batch in cached]

        def epoch(loader: object) -> None:
            for _ in loader:
                pass

        def clone() -> None:
            for source in sources:
                source.clone()

        def copy() -> None:
            for target, source in zip(like_them, sources, strict=True):
                target.copy_(source)

        ways: dict[str, Callable[[], None]] = {
            "ImageFolder in a DataLoader": lambda: epoch(usual),
            "ours, from files": lambda: epoch(from_files),
            "ours, from the decoded cache": lambda: epoch(cached),
            "a copy into new memory": clone,
            "a copy into used memory": copy,
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(arguments.repeat + 1):
            for name, way in ways.items():
                started = time.perf_counter()
                way()
                if turn:  # the first one warms up
                    rates[name].append(len(folders.train) / (time.perf_counter() - started))
    spreads = {name: spread(values) for name, values in rates.items()}
    usual_rate, cached_rate = (
        spreads[name]["median"] for name in ("ImageFolder in a DataLoader", "ours, from the decoded cache")
    )
    ratios = {"usual": cached_rate / usual_rate, "copy": cached_rate / spreads["a copy into new memory"]["median"]}
    rows = [
        ("decoded cache / ImageFolder", f"{ratios['usual']:.1f}x"),
        ("decoded cache / copy into new memory", f"{ratios['copy']:.2f}"),
    ]
    rows += [
        (f"  {name}", f"{spread['median']:,.0f} photos/s ({spread['min']:,.0f} to {spread['max']:,.0f})")
        for name, spread in spreads.items()
    ]
    rows.append(("  first pass, once", f"{first_pass:,.0f} photos/s"))
    report(rows, {"ratios": ratios, "photos_per_second": spreads, "first_pass": first_pass}, arguments.json)


if __name__ == "__main__":
    main()
