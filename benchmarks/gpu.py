"""`train()` on a CUDA device, from real JPEG files, against a bare PyTorch loop that has nothing to read.

python -m benchmarks.gpu --data PATH/photos --json FILE

One call of under four minutes. Its parts, in this order: the last block, the head, a population of 64 heads, all
layers, and the first pass over the photos; then the last block and all layers again, both sides compiled. A part
begins only if `--seconds` are not over; what was left out is named. The JSON file is written after each part.

Training is ResNet50, channels-last, fused AdamW, bf16 (the head: float32, as it is trained). The bare loop repeats one
batch of random images (for the head: of features) that already is on the device. Ours is `train()` with a decoded
cache, or a feature cache for the head, and `data.augment light`; its rate is the one that it reports, for which it
waits for the device, in `--repeat` epochs after a first one that does not count. The bare loop runs `--repeat` times,
half of them before `train()` and half after it, in one process.

The first pass reads, decodes and resizes the files and computes their features. It is compared with the slower of two
limits: the frozen network on one batch that is on the device, and our threads that decode without a network. Beside
them, what nvJPEG decodes on the GPU.

An epoch should take seconds, so `--copies` writes each training photo so many times, JPEG files of another quality
each, with a short side of `--short-side`: larger than what a decoded photo keeps, as photos of cameras are.

It also runs on a CPU, to see that it works: `--image-size 32 --batch-size 8 --backbone shufflenet_v2_x0_5 --copies 1`.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
import torchvision
from PIL import Image
from pytorch_lightning.loggers.logger import DummyLogger
from torch import nn

from benchmarks.common import parser, report, save, spread
from experiments.config import RunConfig, load_config, override, with_recipe
from experiments.console import say
from experiments.data.inputs import (
    forget_opened,
    new_network,
    open_data_once,
    open_features_once,
    photo_data,
    training_device,
)
from experiments.train import train
from lightning_modules.heads.population import HeadPopulation, Member
from lightning_modules.metrics import IMAGES_PER_SECOND
from lightning_modules.network import find_head, trainable_modules
from lightning_modules.process import prepare_process

MODES = ("last_block", "head", "population", "all", "first_pass")
COMPILED_TOO = ("last_block", "all")
"""A head trains on features, without torch.compile, and the first pass runs once."""
POPULATION = 64
SAMPLES_PER_SECOND = 1_000_000
"""The goal for a population."""


def enlarge(source: Path, target: Path, *, copies: int, short_side: int) -> None:
    """Write the photos of a data set again, those to train on `copies` times."""

    def write(path: Path) -> None:
        image = Image.open(path).convert("RGB")
        scale = short_side / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)))
        name = path.relative_to(source)
        for copy in range(copies if name.parts[0] == "train" else 1):
            image.save(target / name.with_name(f"{name.stem}-{copy}.jpg"), quality=80 + copy)

    paths = [path for split in ("train", "valid") for path in sorted((source / split).glob("*/*.jpg"))]
    for folder in {path.parent for path in paths}:
        (target / folder.relative_to(source)).mkdir(parents=True)
    with ThreadPoolExecutor() as pool:
        list(pool.map(write, paths))


def ours(config: RunConfig, repeat: int) -> list[float]:
    """Images a second in each epoch after the first one."""
    config = override(config, {"trainer.max_epochs": repeat + 1})
    with tempfile.TemporaryDirectory() as folder:
        result = train(config, output_dir=Path(folder), logger=DummyLogger())
    return [values[IMAGES_PER_SECOND] for epoch, values in result.history.items() if epoch > 1]


def bare(config: RunConfig, steps: int) -> float:
    """Images a second of a loop without files, metrics, schedule or framework."""
    device, batch_size, size = training_device(config), config.data.batch_size, config.data.image_size
    assert size is not None, "with_recipe() has set it"
    classes = len(open_data_once(config).class_names)
    network: nn.Module = new_network(config, classes)
    head = network.get_submodule(find_head(network))
    labels = torch.randint(classes, (batch_size,), device=device)
    if config.model.trainable == "head":
        assert isinstance(head, nn.Linear)
        network, inputs = head, torch.rand(batch_size, head.in_features, device=device)
        trained: list[nn.Module] = [head]
    else:
        inputs = torch.rand(batch_size, 3, size, size, device=device).to(memory_format=torch.channels_last)
        trained = trainable_modules(network, config.model.trainable)
    network.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)
    for part in trained:
        part.train().requires_grad_(True)
    if config.trainer.compile is True:
        network.compile(dynamic=False)
    torch.backends.cudnn.benchmark = device.type == "cuda"
    bf16 = device.type == "cuda" and config.model.trainable != "head"
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, fused=device.type == "cuda")

    def run(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                loss = nn.functional.cross_entropy(network(inputs).float(), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss.item()  # waits for the device
        return time.perf_counter() - started

    run(max(3, steps // 4))
    return steps * batch_size / run(steps)


def population(config: RunConfig, repeat: int) -> list[float]:
    """Samples a second of heads that train together, each epoch after the first one, validation included."""
    features = open_features_once(config).to(training_device(config))
    members = [
        Member(learning_rate=1e-3 * 1.05**k, weight_decay=1e-2, batch_size=64, max_epochs=50) for k in range(POPULATION)
    ]
    heads = HeadPopulation(features, members, optimizer="adamw", schedule="cosine", seed=0)
    rates = []
    for _ in range(repeat + 1):
        started = time.perf_counter()
        heads.train_epoch()
        rates.append(POPULATION * features.train.shape[1] / (time.perf_counter() - started))
    return rates[1:]


def first_pass(config: RunConfig, repeat: int) -> dict[str, dict[str, float]]:
    """Photos a second: of a sweep's pass over the files, and of what limits it."""
    device, folders = training_device(config), open_data_once(config)
    photos = sum(len(split.paths) for split in (folders.train, folders.valid))
    assert config.data.image_size is not None, "with_recipe() has set it"
    batch_size = 256 if device.type == "cuda" else 32
    images = torch.rand(batch_size, 3, config.data.image_size, config.data.image_size, device=device)
    images = images.to(memory_format=torch.channels_last)
    network = new_network(config, len(folders.class_names)).eval().to(device).to(memory_format=torch.channels_last)
    files = override(config, {"data.batch_size": batch_size, "data.augment": "none"})

    def ours() -> float:
        forget_opened()
        with tempfile.TemporaryDirectory() as folder:
            own = override(config, {"data.cache_dir": Path(folder), "data.cache_views": 1, "data.augment": "none"})
            open_data_once(own)  # the pass begins after the files have been looked through
            return _photos_per_second(photos, lambda: open_features_once(own))

    def network_alone() -> float:
        def run() -> None:
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                for _ in range(-(-photos // batch_size)):
                    scores = network(images)
            scores.sum().item()  # waits for the device

        return _photos_per_second(photos, run)

    def decoding_alone() -> float:
        loaders = photo_data(files, folders)

        def run() -> None:
            for split in (folders.train, folders.valid):
                for _ in loaders.split_inputs(split, torch.device("cpu")):
                    pass

        return _photos_per_second(photos, run)

    ways = {"ours": ours, "network alone": network_alone, "decoding alone": decoding_alone}
    if device.type == "cuda":
        read = [torchvision.io.read_file(str(path)) for path in folders.train.paths]
        ways["nvJPEG alone, train split"] = lambda: _photos_per_second(
            len(read), lambda: torchvision.io.decode_jpeg(read, mode=torchvision.io.ImageReadMode.RGB, device=device)
        )
    network_alone()  # chooses its kernels
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeat):
        for name, way in ways.items():
            rates[name].append(way())
    return {name: spread(values) for name, values in rates.items()}


def _photos_per_second(photos: int, run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return photos / (time.perf_counter() - started)


def _rate(values: dict[str, float], unit: str = "img/s") -> str:
    return f"{values['median']:,.0f} {unit} ({values['min']:,.0f} to {values['max']:,.0f}, n={values['n']})"


def main() -> None:
    """Measure and report."""
    command = parser(__doc__ or "")
    command.add_argument("--data", type=Path, required=True, help="train/CLASS/*.jpg and valid/CLASS/*.jpg")
    command.add_argument("--copies", type=int, default=4, help="of each training photo")
    command.add_argument("--short-side", type=int, default=320, help="of the files, in pixels")
    command.add_argument("--backbone", default="resnet50")
    command.add_argument("--batch-size", type=int, default=256)
    command.add_argument("--image-size", type=int, default=224)
    command.add_argument("--steps", type=int, default=40, help="of the bare loop")
    command.add_argument("--repeat", type=int, default=3)
    command.add_argument("--seconds", type=float, default=180, help="no part begins later; the last one takes up to 60")
    command.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    arguments = command.parse_args()
    started = time.monotonic()
    prepare_process()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    rows: list[tuple[str, str]] = []
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        enlarge(arguments.data, folder / "photos", copies=arguments.copies, short_side=arguments.short_side)
        values = {
            "data.name": "folder",
            "data.root": folder / "photos",
            "data.image_size": arguments.image_size,
            "data.batch_size": arguments.batch_size,
            "data.cache_dir": folder / "cache",
            "data.cache_views": 2,
            "model.backbone": arguments.backbone,
            "model.weights": "none",
        }
        config = with_recipe(load_config(None, values))
        say(f"{time.monotonic() - started:.0f} s: the photos are written")

        def against_bare(mode: str, *, compiled: bool) -> dict[str, object]:
            own = override(config, {"model.trainable": mode, "trainer.compile": compiled})
            own = override(own, {"data.batch_size": 64}) if mode == "head" else own
            steps, before = arguments.steps * (10 if mode == "head" else 1), -(-arguments.repeat // 2)
            bare_rates = [bare(own, steps) for _ in range(before)]
            mine = spread(ours(own, arguments.repeat))
            theirs = spread(bare_rates + [bare(own, steps) for _ in range(arguments.repeat - before)])
            rows.extend([("  train()", _rate(mine)), ("  bare loop", _rate(theirs))])
            return {"ratio": mine["median"] / theirs["median"], "train": mine, "bare": theirs}

        def population_alone() -> dict[str, object]:
            together = spread(population(override(config, {"model.trainable": "head"}), arguments.repeat))
            rows.append((f"  {POPULATION} heads", _rate(together, "samples/s")))
            return {"ratio": together["median"] / SAMPLES_PER_SECOND, "samples_per_second": together}

        def pass_against_limits() -> dict[str, object]:
            rates = first_pass(override(config, {"model.trainable": "head"}), arguments.repeat)
            rows.extend((f"  {way}", _rate(rate)) for way, rate in rates.items())
            limit = min(rates[way]["median"] for way in ("network alone", "decoding alone"))
            return {"ratio": rates["ours"]["median"] / limit, "photos_per_second": rates}

        parts: list[tuple[str, Callable[[], dict[str, object]]]] = []
        for mode in (mode for mode in MODES if mode in arguments.modes):
            if mode == "population":
                parts.append((f"population / {SAMPLES_PER_SECOND:,} samples/s", population_alone))
            elif mode == "first_pass":
                parts.append(("first pass / its limit", pass_against_limits))
            else:
                parts.append((f"{mode}: train() / bare loop", partial(against_bare, mode, compiled=False)))
        for mode in (mode for mode in COMPILED_TOO if mode in arguments.modes):
            name = f"{mode}, compiled: train() / bare loop"
            parts.append((name, partial(against_bare, mode, compiled=True)))
        for name, part in parts:
            if time.monotonic() - started > arguments.seconds:
                rows.append((name, "left out: no time"))
                figures[name] = None
            else:
                place = len(rows)
                figures[name] = measured = part()
                rows.insert(place, (name, f"{measured['ratio']:.3f}"))
            save(figures, arguments.json)
            say(f"{time.monotonic() - started:.0f} s: {name}: {rows[place][1] if figures[name] else 'left out'}")
    report(rows, figures, arguments.json)


if __name__ == "__main__":
    main()
