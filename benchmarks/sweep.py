"""A sweep of heads against the plain loop.

python -m benchmarks.sweep --data PATH/dogs6 --weights PATH/resnet50.safetensors

Ours is the whole command, `python -m experiments sweep`, in a process of its own with an empty cache: start-up,
features, 20 trials of 5 epochs, pictures, MLflow, report. The plain loop is what a person would write: each epoch of
each trial decodes the photos and runs the frozen backbone, in one process for all trials, without tracking. It is
timed over the epochs of one or two trials and scaled to 20.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks.common import parser, report, spread
from experiments.config import RunConfig, load_config, override, secret_variables, to_flat
from experiments.study.study import load_study
from lightning_modules.network import create_network

TRIALS, EPOCHS, SIZE = 20, 5, 144


def settings(data: Path, weights: Path, output_dir: Path) -> RunConfig:
    """The sweep that is measured."""
    values: dict[str, object] = {
        "data.name": "folder",
        "data.root": data.resolve(),
        "data.image_size": SIZE,
        "data.crop_fraction": 1.0,
        "data.augment": "none",
        "data.cache_dir": output_dir / "cache",
        "model.weights": str(weights.resolve()),
        "model.trainable": "head",
        "trainer.max_epochs": EPOCHS,
        "output_dir": output_dir,
        "sweep.study_name": "benchmark",
        "sweep.n_trials": TRIALS,
        "sweep.pruner": "none",
        "search": Path("conf/search/head.yaml"),
    }
    return load_config(None, values)


def ours(config: RunConfig) -> float:
    """Seconds of the whole command."""
    defaults = to_flat(RunConfig())
    given = {name: value for name, value in to_flat(config).items() if value != defaults[name]}
    # What may hold a password comes from the environment, in the command too.
    fields = [f"--{name}={value}" for name, value in given.items() if name not in secret_variables()]
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "experiments", "sweep", *fields], check=True, capture_output=True)
    return time.perf_counter() - started


def plain(config: RunConfig, trials: int) -> tuple[list[float], list[float]]:
    """The loop that a person would write: seconds of each epoch, best val_loss of each trial."""
    assert config.data.root is not None
    transform = v2.Compose(
        [
            v2.ToImage(),
            v2.Resize(SIZE),
            v2.CenterCrop(SIZE),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    train, valid = (ImageFolder(str(config.data.root / split), transform) for split in ("train", "valid"))
    seconds, best = [], []
    for _ in range(trials):
        network = create_network("resnet50", len(train.classes), weights=config.model.weights).eval()
        network = network.to(memory_format=torch.channels_last).requires_grad_(False)
        head = network.get_submodule("fc").requires_grad_(True)
        optimizer = torch.optim.AdamW(head.parameters(), lr=config.optimizer.learning_rate)
        losses = []
        for _ in range(EPOCHS):
            started = time.perf_counter()
            for images, labels in DataLoader(train, config.data.batch_size, shuffle=True):
                loss = nn.functional.cross_entropy(network(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                total = sum(
                    float(nn.functional.cross_entropy(network(images), labels, reduction="sum"))
                    for images, labels in DataLoader(valid, config.data.batch_size)
                )
            losses.append(total / len(valid))
            seconds.append(time.perf_counter() - started)
            print(f"plain loop: an epoch in {seconds[-1]:.0f} s, val_loss {losses[-1]:.4f}", file=sys.stderr)
        best.append(min(losses))
    return seconds, best


def _seconds(values: dict[str, float]) -> str:
    return f"{values['median']:.1f} s ({values['min']:.1f} to {values['max']:.1f}, n={values['n']})"


def main() -> None:
    """Measure and report."""
    command = parser(__doc__ or "")
    command.add_argument("--data", type=Path, required=True)
    command.add_argument("--weights", type=Path, required=True)
    command.add_argument("--repeat", type=int, default=5, help="times that our sweep runs, each with an empty cache")
    command.add_argument("--plain-trials", type=int, default=2, help="trials of the plain loop that are timed")
    arguments = command.parse_args()
    sweeps, warm, values = [], [], []
    for _ in range(arguments.repeat):
        with tempfile.TemporaryDirectory() as folder:
            config = settings(arguments.data, arguments.weights, Path(folder))
            sweeps.append(ours(config))
            values.append(load_study(config, "benchmark").best_value)
            again = override(config, {"sweep.study_name": "again"})
            warm.append(ours(again))
        print(f"ours: {sweeps[-1]:.0f} s, with features on disk {warm[-1]:.0f} s", file=sys.stderr)
    epochs, losses = plain(settings(arguments.data, arguments.weights, Path()), arguments.plain_trials)
    scaled = spread(epochs)["median"] * TRIALS * EPOCHS
    cold, cached = spread(sweeps), spread(warm)
    figures = {
        "ratio": scaled / cold["median"],
        "ratio_features_on_disk": scaled / cached["median"],
        "ours_seconds": cold,
        "ours_seconds_features_on_disk": cached,
        "plain_epoch_seconds": spread(epochs),
        "plain_seconds_scaled": scaled,
        "ours_best_val_loss": min(values),
        "plain_best_val_loss": min(losses),
    }
    rows = [
        ("faster than the plain loop", f"{scaled / cold['median']:.0f}x"),
        ("  with features on disk", f"{scaled / cached['median']:.0f}x"),
        (f"ours, {TRIALS} trials x {EPOCHS} epochs, {SIZE} px", _seconds(cold)),
        ("  with features on disk", _seconds(cached)),
        ("plain loop, an epoch", _seconds(spread(epochs))),
        (f"plain loop, scaled from {len(epochs)} epochs", f"{scaled:.0f} s"),
        ("best val_loss of ours", f"{min(values):.4f}"),
        (f"best val_loss of {arguments.plain_trials} plain trials at default settings", f"{min(losses):.4f}"),
    ]
    report(rows, figures, arguments.json)


if __name__ == "__main__":
    main()
