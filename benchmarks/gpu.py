"""`train()` on a CUDA device, from real JPEG files, against a bare PyTorch loop that has nothing to read.

python -m benchmarks.gpu --data PATH/photos

Full training, the last block and the head, ResNet50, channels-last, fused AdamW, bf16 (the head: float32, as it is
trained), both sides eager or both compiled. The bare loop repeats one batch of random images (for the head: of
features) that already is on the device. Ours is `train()` with a decoded cache, or a feature cache for the head, and
`data.augment light`; its rate is the one that it reports, for which it waits for the device, in `--repeat` epochs
after a first one that does not count. The bare loop runs `--repeat` times, half of them before `train()` and half
after it, in one process. A population is 64 heads on the cached features. `--json` is written after each part.

An epoch should take seconds, so `--copies` writes each training photo so many times, JPEG files of another quality
each, with a short side of `--short-side`: larger than what a decoded photo keeps, as photos of cameras are.

It also runs on a CPU, to see that it works: `--image-size 32 --batch-size 8 --backbone shufflenet_v2_x0_5`.
"""

from __future__ import annotations

import logging
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from pytorch_lightning.loggers.logger import DummyLogger
from torch import nn

from benchmarks.common import parser, report, save, spread
from experiments.config import RunConfig, load_config, override, with_recipe
from experiments.console import say
from experiments.data.inputs import new_network, open_data_once, open_features_once, training_device
from experiments.train import train
from lightning_modules.heads.population import HeadPopulation, Member
from lightning_modules.metrics import IMAGES_PER_SECOND
from lightning_modules.network import find_head, trainable_modules
from lightning_modules.process import prepare_process

MODES = ("all", "last_block", "head")
POPULATION = 64


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


def _rate(values: dict[str, float]) -> str:
    return f"{values['median']:,.0f} img/s ({values['min']:,.0f} to {values['max']:,.0f}, n={values['n']})"


def main() -> None:
    """Measure and report."""
    command = parser(__doc__ or "")
    command.add_argument("--data", type=Path, required=True, help="train/CLASS/*.jpg and valid/CLASS/*.jpg")
    command.add_argument("--copies", type=int, default=8, help="of each training photo")
    command.add_argument("--short-side", type=int, default=320, help="of the files, in pixels")
    command.add_argument("--backbone", default="resnet50")
    command.add_argument("--batch-size", type=int, default=256)
    command.add_argument("--image-size", type=int, default=224)
    command.add_argument("--steps", type=int, default=40, help="of the bare loop")
    command.add_argument("--repeat", type=int, default=5)
    command.add_argument("--compile", action="store_true", help="compile both sides")
    command.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    arguments = command.parse_args()
    prepare_process()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    rows: list[tuple[str, str]] = []
    figures: dict[str, object] = {"compiled": arguments.compile}
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
            "trainer.compile": arguments.compile,
        }
        config = with_recipe(load_config(None, values))
        for mode in arguments.modes:
            own = override(config, {"model.trainable": mode} | ({"data.batch_size": 64} if mode == "head" else {}))
            steps, before = arguments.steps * (10 if mode == "head" else 1), -(-arguments.repeat // 2)
            bare_rates = [bare(own, steps) for _ in range(before)]
            mine = spread(ours(own, arguments.repeat))
            theirs = spread(bare_rates + [bare(own, steps) for _ in range(arguments.repeat - before)])
            ratio = mine["median"] / theirs["median"]
            rows.append((f"{mode}: train() / bare loop", f"{ratio:.3f}"))
            rows += [("  train()", _rate(mine)), ("  bare loop", _rate(theirs))]
            figures[mode] = {"ratio": ratio, "train": mine, "bare": theirs}
            save(figures, arguments.json)
            say(f"{mode}: {ratio:.3f}")
        if "head" in arguments.modes:
            together = spread(population(override(config, {"model.trainable": "head"}), arguments.repeat))
            rows.append((f"population of {POPULATION} heads", _rate(together).replace("img/s", "samples/s")))
            figures["population"] = together
    report(rows, figures, arguments.json)


if __name__ == "__main__":
    main()
