"""Features in lower precision: how fast, and what the heads that are trained on them are worth.

python -m benchmarks.precision --data PATH/dogs6 --weights PATH/resnet50.safetensors

Images per second of the network without its head, engines in turn; seconds until a sweep has its features, from an
empty cache; and the best of 20 heads by val_loss, whose accuracies are those of the float32 network. `--network-only`
ends after the first of these.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.common import parser, report, spread
from benchmarks.sweep import settings
from experiments.config import RunConfig, override
from experiments.data.inputs import forget_opened, new_network, open_data_once, open_features_once, photo_data
from lightning_modules.caches.features import FeatureSet
from lightning_modules.heads.population import HeadPopulation, Member
from lightning_modules.network import find_head
from lightning_modules.openvino_cpu import OpenVino, Precision, convert, quantize
from lightning_modules.process import prepare_process

PRECISIONS: tuple[Precision, ...] = ("float32", "bf16", "int8")
HEADS, EPOCHS, BATCH, ROUNDS = 20, 20, 32, 7


def rates(config: RunConfig) -> dict[str, list[float]]:
    """Images per second of each engine, in turn."""
    trunk = without_head(config)
    side = config.data.image_size
    assert side is not None
    images = torch.rand(BATCH, 3, side, side)
    engines: dict[str, Callable[[Tensor], Tensor]] = {"PyTorch float32": trunk.to(memory_format=torch.channels_last)}
    converted = convert(without_head(config), side)
    for precision in PRECISIONS:
        wanted = quantize(converted, [images]) if precision == "int8" else converted
        engines[f"OpenVINO {precision}"] = OpenVino(wanted, torch.get_num_threads(), precision)
    found: dict[str, list[float]] = {name: [] for name in engines}
    with torch.inference_mode():
        for _ in range(ROUNDS + 1):
            for name, engine in engines.items():
                started = time.perf_counter()
                engine(images)
                found[name].append(BATCH / (time.perf_counter() - started))
    return {name: values[1:] for name, values in found.items()}


def without_head(config: RunConfig) -> nn.Module:
    """The network that computes features."""
    network = new_network(config, len(open_data_once(config).class_names)).eval()
    network.set_submodule(find_head(network), nn.Identity())
    return network


def best_head(features: FeatureSet, test: tuple[Tensor, Tensor]) -> dict[str, float]:
    """The lowest val_loss of 20 heads, and that head's accuracies."""
    draw = torch.Generator().manual_seed(0)
    drawn = torch.rand(HEADS, 2, generator=draw).tolist()
    members = [Member(1e-4 * 300**rate, 1e-3 * 1000**decay, BATCH, EPOCHS) for rate, decay in drawn]
    heads = HeadPopulation(features, members, optimizer="adamw", schedule="cosine", seed=0)
    found: dict[str, float] = {"val_loss": float("inf")}
    for _ in range(EPOCHS):
        for index, values in heads.train_epoch().items():
            if values["val_loss"] < found["val_loss"]:
                weight, bias = heads.head(index)
                right = (test[0] @ weight.T + bias).argmax(dim=1) == test[1]
                accuracies = {"val_accuracy": values["val_accuracy"], "test_accuracy": float(right.float().mean())}
                found = {"val_loss": values["val_loss"], **accuracies}
    return found


def test_features(config: RunConfig) -> tuple[Tensor, Tensor]:
    """The test photos in float32, and their labels."""
    folders = open_data_once(config)
    assert folders.test is not None, "the data set needs a test folder"
    trunk = without_head(config).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        inputs = photo_data(config, folders).split_inputs(folders.test, torch.device("cpu"))
        return torch.cat([trunk(images) for images in inputs]), torch.tensor(folders.test.labels)


def heads_on_each(config: RunConfig, figures: dict[str, object]) -> list[tuple[str, str]]:
    """Seconds until the features are there, and the best head on them, for each precision."""
    rows, test = [], test_features(config)
    for precision in PRECISIONS:
        forget_opened()
        open_data_once(config)
        started = time.perf_counter()
        features = open_features_once(override(config, {"data.feature_precision": precision}))
        seconds = time.perf_counter() - started
        best = best_head(features, test)
        figures[precision] = {"seconds": seconds, **best}
        scores = ", ".join(f"{name} {value:.4f}" for name, value in best.items())
        rows.append((f"features in {precision}", f"{seconds:.1f} s; {scores}"))
        print(*rows[-1], file=sys.stderr)
    return rows


def main() -> None:
    """Measure and report."""
    command = parser(__doc__ or "")
    command.add_argument("--data", type=Path, required=True)
    command.add_argument("--weights", type=Path, required=True)
    command.add_argument("--network-only", action="store_true")
    arguments = command.parse_args()
    prepare_process()
    rows, figures = [], dict[str, object]()
    with tempfile.TemporaryDirectory() as folder:
        config = override(settings(arguments.data, arguments.weights, Path(folder)), {"trainer.accelerator": "cpu"})
        speeds = rates(config)
        figures["images_per_second"] = speeds
        spreads = {name: spread(values) for name, values in speeds.items()}
        base = spreads["PyTorch float32"]["median"]
        figures["ratios"] = ratios = {name: found["median"] / base for name, found in spreads.items()}
        for name, found in spreads.items():
            text = f"{found['median']:.0f} images/s ({found['min']:.0f} to {found['max']:.0f})"
            rows.append((name, f"{text}, {ratios[name]:.2f} x"))
        if not arguments.network_only:
            rows += heads_on_each(config, figures)
    report(rows, figures, arguments.json)


if __name__ == "__main__":
    main()
