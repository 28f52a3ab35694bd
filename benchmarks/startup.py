"""How long a person waits before anything happens.

python -m benchmarks.startup

`--help`, and the time from the command to the first training step of a sweep over tiny photos with a small network.
Beside them, in turn, what every program that trains waits for: torch, torchvision and an optimiser.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import parser, report, spread, write_photos

BARE = "import torch, torchvision; torch.optim.SGD([torch.zeros(1, requires_grad=True)])"


def bare_seconds() -> float:
    """A program that makes an optimiser."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", BARE], check=True)
    return time.perf_counter() - started


def help_seconds() -> float:
    """`python -m experiments sweep --help`."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "experiments", "sweep", "--help"], check=True, capture_output=True)
    return time.perf_counter() - started


def first_step_seconds(photos: Path) -> float:
    """From the command to the first line that reports an epoch, which takes a few milliseconds itself."""
    with tempfile.TemporaryDirectory() as folder:
        fields = {
            "data.name": "folder",
            "data.root": photos,
            "data.image_size": 32,
            "data.augment": "none",
            "data.cache_dir": f"{folder}/cache",
            "model.backbone": "shufflenet_v2_x0_5",
            "model.weights": "none",
            "output_dir": folder,
            "search": "conf/search/quick.yaml",
            "sweep.n_trials": 1,
            "trainer.max_epochs": 1,
        }
        command = [sys.executable, "-m", "experiments", "sweep", *(f"--{key}={value}" for key, value in fields.items())]
        started = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if "epoch 1/1" in line:
                    seconds = time.perf_counter() - started
            process.communicate()
        return seconds


def main() -> None:
    """Measure and report."""
    command = parser(__doc__ or "")
    command.add_argument("--repeat", type=int, default=7)
    arguments = command.parse_args()
    seconds: dict[str, list[float]] = {"help": [], "first step": [], "bare": []}
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder) / "photos", per_class=8, size=32)
        for _ in range(arguments.repeat):
            seconds["help"].append(help_seconds())
            seconds["first step"].append(first_step_seconds(Path(folder) / "photos"))
            seconds["bare"].append(bare_seconds())
    spreads = {name: spread(values) for name, values in seconds.items()}
    ratios = {name: spreads[name]["median"] / spreads["bare"]["median"] for name in ("help", "first step")}
    shown = {
        "help": "--help",
        "first step": "first training step of a sweep",
        "bare": "import torch, torchvision, make an optimiser",
    }
    rows = [
        (shown[name], f"{found['median']:.2f} s ({found['min']:.2f} to {found['max']:.2f}, n={found['n']})")
        for name, found in spreads.items()
    ]
    rows += [(f"{shown[name]} / the imports alone", f"{ratio:.2f}") for name, ratio in ratios.items()]
    report(rows, {"seconds": spreads, "ratios": ratios}, arguments.json)


if __name__ == "__main__":
    main()
