"""How long a person waits before anything happens.

python -m benchmarks.startup

`--help`, and the time from the command to the first training step of a sweep over tiny photos with a small network.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import parser, report, spread, write_photos


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
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder) / "photos", per_class=8, size=32)
        shown = spread([help_seconds() for _ in range(arguments.repeat)])
        step = spread([first_step_seconds(Path(folder) / "photos") for _ in range(arguments.repeat)])
    rows = [
        ("--help", f"{shown['median']:.2f} s ({shown['min']:.2f} to {shown['max']:.2f})"),
        ("first training step of a sweep", f"{step['median']:.1f} s ({step['min']:.1f} to {step['max']:.1f})"),
    ]
    report(rows, {"help_seconds": shown, "first_step_seconds": step}, arguments.json)


if __name__ == "__main__":
    main()
