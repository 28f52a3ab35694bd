"""What SageMaker Debugger costs a training: `PYTHONPATH=SMDEBUG python -m benchmarks.debugger CONFIG`.

Two copies of a network train in turns in one process, and smdebug watches one of them. SMDEBUG is a folder that holds
smdebug (`pip download --no-deps smdebug==1.0.34`, unpacked), CONFIG what SageMaker writes as debughookconfig.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path

import torch
from torch import nn
from torchvision.models import get_model

from benchmarks.common import machine
from sagemaker_launch.container.smdebug.recorder import TensorRecorder

STEPS, LAYERS_INTERVAL = 10_000, 500
"""Assumed run: its length, and how often layers are saved."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    plain = get_model(arguments.network, num_classes=10)
    watched = copy.deepcopy(plain)
    images = torch.randn(arguments.batch, 3, arguments.size, arguments.size)
    labels = torch.randint(10, (arguments.batch,))
    step_plain, step_watched = (stepper(network, images, labels) for network in (plain, watched))
    recorder = TensorRecorder(arguments.config)
    for _ in range(3):
        step_plain(nn.CrossEntropyLoss())
        step_watched(nn.CrossEntropyLoss())
    loss = nn.CrossEntropyLoss()
    recorder.watch(watched, [loss])
    recorder.set_mode("TRAIN")
    saving = step_watched(loss)  # step 0 saves the layers too
    step_watched(loss)  # and is on disk when the next one begins
    bytes_of_layers = size_of(recorder.folder)
    without, beside = [], []
    for _ in range(arguments.steps):
        without.append(step_plain(nn.CrossEntropyLoss()))
        beside.append(step_watched(loss))
    recorder.close()
    recorder.check()
    bytes_of_a_loss = (size_of(recorder.folder) - bytes_of_layers) / (arguments.steps + 1)
    median = statistics.median(without)
    extra = statistics.median(beside) - median
    of_layers = max(0.0, saving - median) / LAYERS_INTERVAL
    result = {
        "milliseconds_without": 1000 * median,
        "milliseconds_with": 1000 * statistics.median(beside),
        "milliseconds_of_a_step_that_saves_layers": 1000 * saving,
        "share": (extra + of_layers) / median,
        "bytes_of_a_loss": bytes_of_a_loss,
        "bytes_of_the_layers": bytes_of_layers,
        "megabytes_of_10000_steps": (bytes_of_a_loss * STEPS + bytes_of_layers * STEPS / LAYERS_INTERVAL) / 1e6,
        "machine": machine(),
    }
    print(json.dumps(result, indent=1))


def stepper(network: nn.Module, images: torch.Tensor, labels: torch.Tensor):  # type: ignore[no-untyped-def]
    """A training step, which says how many seconds it took."""
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

    def step(loss: nn.Module) -> float:
        started = time.perf_counter()
        optimizer.zero_grad()
        loss(network(images), labels).backward()
        optimizer.step()
        return time.perf_counter() - started

    return step


def size_of(folder: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
