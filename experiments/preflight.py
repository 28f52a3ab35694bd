"""Checks before a photo is opened, a study is created or a model is trained.

Everything that can be checked in about a second is checked here, so that a mistake costs no time.
"""

from __future__ import annotations

import importlib.util
import itertools
import tempfile
from pathlib import Path

import torch

from experiments.config import RunConfig, override, require, require_folder, with_recipe
from experiments.data.datasets import check_photos
from experiments.data.inputs import on_gpu, openvino_precision, preprocessing
from experiments.errors import UserError
from experiments.study.search_space import SearchSpace, check_against, extremes
from experiments.study.storage import open_storage
from experiments.task import HeadTask, Task, task_of
from experiments.tracking.check import check_tracking
from lightning_modules.locks import KernelLock
from lightning_modules.network import check_network

CHECKED_BY_VALUE = (
    "data.image_size",
    "data.cache",
    "model.backbone",
    "model.weights",
    "model.trainable",
    "model.dropout",
    "trainer.precision",
)
"""Fields whose values are checked together, also the values that a search can draw."""

SMALLEST = "data.batch_size"
"""The smallest value of this field is checked with them."""


def check_sweep(config: RunConfig, space: SearchSpace) -> None:
    """Refuse a sweep that no trial, or not every trial, can complete.

    Raises:
        UserError: naming key, rule, value and next step.
    """
    for name in ("trainer.devices", "trainer.num_nodes"):
        value = getattr(config.trainer, name.rpartition(".")[2])
        require(value == 1, name, "be 1 in a sweep (use sweep.workers)", value)
    check_against(space, config)
    check_locations(config)
    drawn = {name: extremes(space[name]) for name in CHECKED_BY_VALUE if name in space}
    if SMALLEST in space:
        drawn[SMALLEST] = (min(extremes(space[SMALLEST]), key=float),)
    for values in itertools.product(*drawn.values()):
        check_model(override(config, dict(zip(drawn, values, strict=True))))
    if config.sweep.storage is not None:
        open_storage(config)


def check_training(config: RunConfig) -> None:
    """Refuse a training that cannot end with a registered model.

    Raises:
        UserError: naming key, rule, value and next step.
    """
    check_locations(config)
    check_model(config)


def check_locations(config: RunConfig) -> None:
    """Refuse photos, an output folder or a tracking store that cannot be used."""
    check_photos(config.data)
    require_folder("output_dir", config.output_dir)
    check_locks(config.output_dir)
    check_tracking(config)


def check_locks(folder: Path) -> None:
    """Refuse a folder on a file system without locks, whether it exists or not.

    Raises:
        UserError: naming it.
    """
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    with (
        tempfile.TemporaryDirectory(prefix=".locks-", dir=nearest) as lock_folder,
        KernelLock(Path(lock_folder) / "lock"),
    ):
        pass


def check_model(config: RunConfig) -> None:
    """Refuse a network, its weights or a device that cannot be used."""
    check_device(config)
    check_network(
        config.model.backbone,
        weights=config.model.weights,
        dropout=config.model.dropout,
        image_size=preprocessing(with_recipe(config)).image_size,
        trainable=config.model.trainable,
        batch_size=config.data.batch_size,
    )
    check_feature_precision(config, task_of(config))


def check_feature_precision(config: RunConfig, task: Task) -> None:
    """Refuse a precision of features where there are none, or that this machine can't compute."""
    wanted = config.data.feature_precision
    if wanted == "auto":
        return
    without_features = "be auto where no features are cached (model.trainable head has them)"
    require(isinstance(task, HeadTask), "data.feature_precision", without_features, wanted)
    if wanted == "int8":
        with_gpu = "be auto, float32 or bf16 on a GPU (trainer.accelerator cpu has int8)"
        require(not on_gpu(config), "data.feature_precision", with_gpu, wanted)
    packages = {None: (), "bf16": ("openvino",), "int8": ("openvino", "nncf")}[openvino_precision(config)]
    missing = " and ".join(name for name in packages if importlib.util.find_spec(name) is None)
    without_packages = f"be auto or float32 without {missing} (pip install '.[quantized]')"
    require(not missing, "data.feature_precision", without_packages, wanted)


def check_device(config: RunConfig) -> None:
    """Refuse an accelerator, devices or a precision that this machine lacks."""
    accelerator, devices = config.trainer.accelerator, config.trainer.devices
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if accelerator == "gpu" and not (has_cuda or has_mps):
        raise UserError("trainer.accelerator must be auto or cpu on this machine: PyTorch finds no GPU, got 'gpu'")
    if accelerator == "mps" and not has_mps:
        raise UserError("trainer.accelerator must be auto, cpu or gpu on this machine: there is no MPS, got 'mps'")
    on_gpu = accelerator in ("auto", "gpu") and has_cuda
    if on_gpu:
        gpus = torch.cuda.device_count()
        require(devices <= gpus, "trainer.devices", f"be at most {gpus}, the GPUs of this machine", devices)
    # Lightning would train in bf16-mixed instead, with a warning.
    if config.trainer.precision == "16-mixed" and not (on_gpu or has_mps):
        raise UserError("trainer.precision must be auto, 32-true or bf16-mixed without a GPU, got '16-mixed'")
