"""The config of a run, as frozen dataclasses.

`load_config` reads a YAML preset and overrides; `override` applies a sampled point, Optuna's at home or SageMaker's in
a job. Both go through the same typed parser, so the same values give the same `RunConfig`.
"""

from __future__ import annotations

import functools
import math
import os
import re
import shlex
from argparse import ArgumentError
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, get_args, get_origin

from experiments.errors import UserError
from experiments.fields import EVERY_COMMAND, Field, field, fields_of, unknown_field, used_by
from experiments.yaml_files import dump_yaml, read_yaml
from lightning_modules.files import file_sha256
from lightning_modules.metrics import DIRECTIONS
from lightning_modules.redaction import public_url, remember_url

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

SEARCHES = ("sweep", "cloud tune")
TRAINS = (*SEARCHES, "train", "cloud train")
FINDS_PHOTOS = (*TRAINS, "evaluate", "cloud sync", "cloud parity", "cloud debug-report")
LOCATES_PHOTOS = (*FINDS_PHOTOS, "cloud policy", "cloud rehearse")
"""Groups of commands that use the same fields."""
CUT_FIELDS = ("seed", "data.fraction", "data.valid_fraction")
"""Fields that say which photos of a data set a run trains on and which it is scored on."""
Settings = TypeVar("Settings")
"""A frozen dataclass whose fields a person sets."""
ConfigValue = bool | int | float | str | None
"""The value of a field once flattened."""


def require(condition: bool, key: str, rule: str, value: object) -> None:
    """Refuse a value with the key, the rule and the value.

    Raises:
        UserError: if `condition` is false.
    """
    if not condition:
        raise UserError(f"{key} must {rule}, got {value!r}")


def require_folder(key: str, folder: Path) -> None:
    """Refuse a folder in which nothing can be written, whether it exists or not.

    Args:
        key: the field or option that names the folder.

    Raises:
        UserError: if the folder, or the nearest existing folder above it, is a file or can't be written.
    """
    import tempfile  # `--help` does not need it

    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):  # root may write anywhere by its rights, but not to a read-only disk
            pass
    except OSError as error:
        raise UserError(
            f"{key} must be a folder that can be written, got {str(folder)!r}: {nearest}: {error.strerror}"
        ) from None


def require_output_file(option: str, path: Path) -> None:
    """Refuse a file that can't be written, before the work whose result it will have.

    Args:
        option: the option that names it.

    Raises:
        UserError: if it is a folder, or its folder can't be written.
    """
    if path.is_dir():
        raise UserError(f"{option} must name a file, got the folder {str(path)!r}")
    require_folder(f"the folder of {option}", path.parent)


def require_free_port(option: str, port: int) -> None:
    """Refuse a port of 127.0.0.1 that is in use, before the work that needs it.

    Raises:
        UserError: if it is in use, or this user may not use it.
    """
    import socket  # `--help` does not need it

    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a closed connection may linger
        try:
            tried.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(f"{option} must be a free port, got {port}: {error.strerror}; name another one") from None


@dataclass(frozen=True)
class DataConfig:
    """The photos."""

    name: Literal["digits", "folder", "dog_images"] = field("digits", "photos", sent=True, used_by=LOCATES_PHOTOS)
    """Data set: `digits` (embedded, no download), `folder` (your own class folders), `dog_images` (133 breeds)."""
    root: Path | None = field(None, "photos", used_by=(*LOCATES_PHOTOS, "cloud deploy", "cloud serve"))
    """Folder with train, valid and test; digits and dog_images are kept there."""
    image_size: int | None = field(None, "result")
    """Side of the network's square input, in pixels; by default that of torchvision's weights of the backbone."""
    crop_fraction: float | None = field(None, "result")
    """Share of the resized short side that the evaluation crop keeps; 1.0 keeps all of it. By default that of
    torchvision's weights of the backbone."""
    batch_size: int = field(64, "result", used_by=(*TRAINS, "evaluate"))
    """Images per step and device."""
    num_workers: int = field(0, "speed")
    """Threads that load batches; 0 takes one per core, up to four."""
    fraction: float = field(1.0, "result", tunable=False)
    """Share of the training images used, stratified by class and drawn with the seed."""
    valid_fraction: float = field(0.2, "result", tunable=False)
    """Share of train that becomes the validation split if there is no valid folder."""
    augment: Literal["none", "light", "strong"] = field("light", "result")
    """Training augmentation: light is a random crop, flip and some colour; strong adds two random operations per image
    and random erasing, and mixes half of the batches (MixUp or CutMix) unless the backbone's features are cached."""
    max_bad_fraction: float = field(0.01, "result", tunable=False, used_by=(*TRAINS, "evaluate"))
    """Largest share of unreadable files that a run accepts; a single one is always accepted, unless this is 0."""
    cache: Literal["auto", "none", "decoded", "features"] = field("auto", "result")
    """What is computed once for all trials: `features` of a frozen backbone (what `auto` does for trainable head), or
    the `decoded` photos (what `auto` does otherwise, if they fit into cache_max_gb)."""
    cache_views: int = field(8, "result")
    """Augmented views of each training image that a feature cache keeps; each epoch draws one."""
    feature_precision: Literal["auto", "float32", "bf16", "int8"] = field("auto", "result", tunable=False)
    """Precision in which a feature cache computes the training images; `auto` is that of trainer.precision. On a CPU
    OpenVINO computes `bf16` and `int8`, in a half and a quarter of the time. Validation is always in float32."""
    cache_max_gb: float = field(20.0, "speed")
    """Largest size of the caches in cache_dir, in 10^9 bytes; the least recently used ones are removed first."""
    cache_dir: Path = field(Path("runs/cache"), "place", used_by=(*FINDS_PHOTOS, "cloud deploy", "cloud serve"))
    """Folder of the caches and of the hashes of files."""

    def __post_init__(self) -> None:
        """Refuse values that no run can use."""
        size, crop = self.image_size, self.crop_fraction
        require(size is None or 16 <= size <= 1024, "data.image_size", "be 16..1024", size)
        require(crop is None or 0.5 <= crop <= 1, "data.crop_fraction", "be 0.5..1", crop)
        require(self.batch_size >= 1, "data.batch_size", "be >= 1", self.batch_size)
        require(self.num_workers >= 0, "data.num_workers", "be >= 0", self.num_workers)
        require(0 < self.fraction <= 1, "data.fraction", "be in (0, 1]", self.fraction)
        require(0 < self.valid_fraction < 1, "data.valid_fraction", "be in (0, 1)", self.valid_fraction)
        require(
            0 <= self.max_bad_fraction <= 1,
            "data.max_bad_fraction",
            "be 0..1",
            self.max_bad_fraction,
        )
        require(self.cache_views >= 1, "data.cache_views", "be >= 1", self.cache_views)
        require(self.cache_max_gb > 0, "data.cache_max_gb", "be > 0", self.cache_max_gb)

    @property
    def own_root(self) -> Path:
        """The folder of class folders of data.name folder.

        Raises:
            UserError: if there is none. A preset may leave it to the command line of the commands that open photos.
        """
        rule = "name the folder of class folders when data.name is 'folder'"
        require(self.root is not None, "data.root", rule, self.root)
        assert self.root is not None
        return self.root


@dataclass(frozen=True)
class ModelConfig:
    """The classifier."""

    backbone: str = field("resnet50", "result")
    """Any torchvision classifier by its torchvision name."""
    weights: str = field("imagenet", "result", own_in_job=True, used_by=(*TRAINS, "cloud parity"))
    """`imagenet` (torchvision's best), `none` (random), or the path of a .safetensors or .pth state dict."""
    trainable: Literal["head", "last_block", "all"] = field("head", "result")
    """What training changes; the rest stays frozen, its BatchNorm statistics included."""
    dropout: float = field(0.0, "result")
    """Share of the features dropped in front of the head while training, in place of the backbone's own dropout there;
    0 leaves the backbone as it is."""
    label_smoothing: float = field(0.0, "result")
    """Label smoothing of the training loss; validation and test losses are plain cross entropy."""

    def __post_init__(self) -> None:
        """Refuse values that no run can use."""
        require(0 <= self.dropout < 1, "model.dropout", "be in [0, 1)", self.dropout)
        require(
            0 <= self.label_smoothing < 1,
            "model.label_smoothing",
            "be in [0, 1)",
            self.label_smoothing,
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser and its schedule."""

    name: Literal["sgd", "adamw"] = field("adamw", "result")
    """SGD (Nesterov momentum 0.9) or AdamW; neither decays norms and biases."""
    learning_rate: float = field(3e-3, "result")
    """Peak learning rate after warm-up."""
    weight_decay: float = field(1e-2, "result")
    """Weight decay of layers; norms, biases, layer scales and position embeddings have none."""
    backbone_learning_rate_scale: float = field(1.0, "result")
    """Learning rate of the backbone as a share of learning_rate."""
    schedule: Literal["constant", "cosine", "one_cycle"] = field("cosine", "result")
    """Schedule of the learning rate over the whole run."""
    warmup_epochs: float = field(0.0, "result")
    """Epochs of linear warm-up; for one_cycle of the rising part, where 0 means 30 % of the run."""

    def __post_init__(self) -> None:
        """Refuse values that no run can use."""
        require(self.learning_rate > 0, "optimizer.learning_rate", "be > 0", self.learning_rate)
        require(self.weight_decay >= 0, "optimizer.weight_decay", "be >= 0", self.weight_decay)
        require(
            self.backbone_learning_rate_scale > 0,
            "optimizer.backbone_learning_rate_scale",
            "be > 0",
            self.backbone_learning_rate_scale,
        )
        require(self.warmup_epochs >= 0, "optimizer.warmup_epochs", "be >= 0", self.warmup_epochs)


@dataclass(frozen=True)
class TrainerConfig:
    """How long and on what."""

    max_epochs: int | None = field(None, "result")
    """Passes over the training images; null takes as many as trainer.min_steps needs."""
    min_steps: int = field(2000, "study", sent=True)
    """Optimiser steps of a run, rounded up to whole epochs, where trainer.max_epochs is null. They are counted once, in
    batches of data.batch_size. Early stopping may end a run sooner, unlike Lightning's min_steps."""
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = field(
        "auto", "speed", sent=False, own_in_job=True, used_by=(*TRAINS, "cloud parity")
    )
    """Lightning's accelerator here; jobs have their own."""
    devices: int = field(1, "result", tunable=False, sent=False, own_in_job=True, used_by=("sweep", "train"))
    """Devices per node; more than one trains with DDP."""
    num_nodes: int = field(1, "result", tunable=False, sent=False, own_in_job=True, used_by=("sweep", "train"))
    """Number of nodes that train together."""
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = field("auto", "result")
    """Lightning's precision; auto is bf16-mixed on a CUDA device that supports it, else 32-true."""
    compile: bool | Literal["auto"] = field("auto", "speed")
    """Compile the network with torch.compile; auto does so on CUDA after the first epoch, if that saves time."""
    gradient_clip: float = field(0.0, "result")
    """Largest gradient norm; 0 does not clip."""
    early_stopping_patience: int = field(30, "result")
    """Epochs without a better sweep.metric before training stops; 0 never stops early. The schedule is still that of
    trainer.max_epochs: a run that stops early does not reach the small learning rates at the end of a cosine."""
    checkpoint_minutes: float = field(0.0, "speed")
    """Minutes after which a checkpoint is also written within an epoch; 0 writes at the end of each epoch only."""
    record: Literal["none", "light", "full"] = field("none", "result")
    """Record losses by step and, every 50th (light) or 10th (full) step, gradients, weights, updates and activations of
    the layers, and check them with rules."""
    on_rule: Literal["warn", "stop"] = field("warn", "result")
    """What a broken rule of the recorder does: warn, or also end the training, with the best epoch so far."""
    profile: bool = field(False, "watch")
    """Measure some steady steps, which costs seconds, and say what slows them down: profile/profile.html in MLflow,
    with PyTorch's trace."""

    def __post_init__(self) -> None:
        """Refuse values that no run can use."""
        require(self.max_epochs is None or self.max_epochs >= 1, "trainer.max_epochs", "be >= 1", self.max_epochs)
        require(self.min_steps >= 1, "trainer.min_steps", "be >= 1", self.min_steps)
        require(self.devices >= 1, "trainer.devices", "be >= 1", self.devices)
        require(self.num_nodes >= 1, "trainer.num_nodes", "be >= 1", self.num_nodes)
        require(self.gradient_clip >= 0, "trainer.gradient_clip", "be >= 0", self.gradient_clip)
        require(
            self.early_stopping_patience >= 0,
            "trainer.early_stopping_patience",
            "be >= 0",
            self.early_stopping_patience,
        )
        require(self.checkpoint_minutes >= 0, "trainer.checkpoint_minutes", "be >= 0", self.checkpoint_minutes)

    @property
    def num_processes(self) -> int:
        """Processes that train together, one per device."""
        return self.devices * self.num_nodes

    @property
    def epochs(self) -> int:
        """`max_epochs` of a run whose epochs are decided."""
        assert self.max_epochs is not None, "resolve_config() sets it before a training or a study begins"
        return self.max_epochs


@dataclass(frozen=True)
class TrackingConfig:
    """Where MLflow keeps the runs."""

    uri: str | None = field(None, "place", secret=True)
    """MLflow tracking server or database; by default SQLite under output_dir."""
    experiment: str = field("", "place")
    """Name of the MLflow experiment and of the registered model; by default that of the data folder for data.name
    folder, else `experiments`."""
    flush_timeout_seconds: float = field(120.0, "study")
    """Longest wait for each answer of MLflow at the end of a command; then it fails, and the same command continues."""

    def __post_init__(self) -> None:
        """Refuse values that no run can use."""
        require(
            self.flush_timeout_seconds > 0,
            "tracking.flush_timeout_seconds",
            "be > 0",
            self.flush_timeout_seconds,
        )


@dataclass(frozen=True)
class SweepConfig:
    """The Optuna study."""

    n_trials: int = field(20, "study", used_by=SEARCHES)
    """Finished trials (complete or pruned) that the study ends with."""
    max_failures: int = field(3, "study")
    """Failed trials that one command replaces by new points; one more ends the sweep with an error."""
    timeout_seconds: float | None = field(None, "study", used_by=SEARCHES)
    """No new trial starts after this long; running ones finish."""
    sampler: Literal["tpe", "gp", "cmaes", "random", "grid"] | None = field(None, "study")
    """How Optuna chooses the next point. By default tpe, and gp (a Gaussian process) for the first 200 trials of heads
    that train together, which need fewer epochs with it."""
    pruner: Literal["hyperband", "median", "none"] | None = field(None, "study")
    """How Optuna stops bad trials, at the end of each epoch. By default hyperband, and none where the sampler is gp or
    cmaes, which learn more from complete trials."""
    storage: str | None = field(None, "place", secret=True, used_by=(*TRAINS, "report", "ui"))
    """Optuna storage URL (postgresql://, mysql://, sqlite:///); by default a journal file under output_dir."""
    study_name: str = field("", "study")
    """Name of the study; the same name continues it. By default that of the data folder for data.name folder, else
    `sweep`."""
    claim_timeout_seconds: float = field(300.0, "study")
    """Seconds without a heartbeat after which another machine takes over a trial in a shared storage."""
    workers: int = field(1, "study")
    """Processes that work on the study, each on its share of the cores or on one GPU."""
    population: int = field(0, "study")
    """Trials of a worker that train at once, as one batched product over cached features; 0 takes 10 with cached
    features, else 1."""
    metric: Literal["val_loss", "val_accuracy"] = field("val_loss", "result", tunable=False, used_by=TRAINS)
    """Objective of the best epoch, early stopping, pruning, the best trial and the champion."""
    direction: Literal["minimize", "maximize"] = field("minimize", "result", tunable=False, used_by=TRAINS)
    """Whether a smaller or a larger metric is better."""

    def __post_init__(self) -> None:
        """Refuse values that no run can use."""
        require(self.n_trials >= 1, "sweep.n_trials", "be >= 1", self.n_trials)
        require(self.max_failures >= 0, "sweep.max_failures", "be >= 0", self.max_failures)
        require(
            self.timeout_seconds is None or self.timeout_seconds > 0,
            "sweep.timeout_seconds",
            "be > 0",
            self.timeout_seconds,
        )
        require(self.claim_timeout_seconds > 0, "sweep.claim_timeout_seconds", "be > 0", self.claim_timeout_seconds)
        require(self.workers >= 1, "sweep.workers", "be >= 1", self.workers)
        require(self.population >= 0, "sweep.population", "be >= 0", self.population)
        require(
            self.study_name not in (".", "..") and not set(self.study_name) & set("/\\\0"),
            "sweep.study_name",
            "be usable as a folder name",
            self.study_name,
        )
        better = DIRECTIONS[self.metric]
        require(
            self.direction == better,
            "sweep.direction",
            f"be {better} for {self.metric}",
            self.direction,
        )


@dataclass(frozen=True)
class RunConfig:
    """Settings of a run, a study and their folders."""

    data: DataConfig = used_by(DataConfig(), *TRAINS)
    model: ModelConfig = used_by(ModelConfig(), *TRAINS)
    optimizer: OptimizerConfig = used_by(OptimizerConfig(), *TRAINS)
    trainer: TrainerConfig = used_by(TrainerConfig(), *TRAINS)
    tracking: TrackingConfig = used_by(TrackingConfig(), *EVERY_COMMAND)
    sweep: SweepConfig = used_by(SweepConfig(), "sweep")
    seed: int = field(0, "result", tunable=False, used_by=TRAINS)
    """Seed of the initial head, the order of images, augmentation, splits and the sampler."""
    search: Path | None = field(None, "study", used_by=SEARCHES)
    """Search-space YAML that a sweep draws from; null is a built-in one for model.trainable: of the head, or of all
    layers."""
    output_dir: Path = field(Path("runs"), "place", used_by=EVERY_COMMAND)
    """Folder of studies, runs and the local MLflow store."""

    def __post_init__(self) -> None:
        """Set the default names of study and experiment, and refuse values that no run can use."""
        if not self.sweep.study_name:
            named = replace(self.sweep, study_name=_folder_name(self.data) or "sweep")
            object.__setattr__(self, "sweep", named)
        if not self.tracking.experiment:
            named_tracking = replace(self.tracking, experiment=_folder_name(self.data) or "experiments")
            object.__setattr__(self, "tracking", named_tracking)
        require(self.seed >= 0, "seed", "be >= 0", self.seed)
        require(self.seed < 2**32, "seed", "be < 2**32", self.seed)
        require(
            self.data.cache != "features" or self.model.trainable == "head",
            "data.cache",
            "be auto, none or decoded unless model.trainable is head",
            self.data.cache,
        )
        cached = self.model.trainable == "head" and self.data.cache in ("auto", "features")
        require(
            self.sweep.population <= 1 or cached,
            "sweep.population",
            "be 0 or 1 without cached features (model.trainable head)",
            self.sweep.population,
        )
        require(
            self.sweep.population <= 1 or self.trainer.record == "none",
            "trainer.record",
            "be none with sweep.population, whose heads are trained at once",
            self.trainer.record,
        )
        require(
            self.trainer.on_rule == "warn" or self.trainer.record != "none",
            "trainer.on_rule",
            "be warn without trainer.record light or full, which has the rules",
            self.trainer.on_rule,
        )
        for name, value in to_flat(self).items():
            require(not isinstance(value, float) or math.isfinite(value), name, "be finite", value)
            if isinstance(value, str) and _field(name).secret:
                remember_url(value)


def _folder_name(data: DataConfig) -> str:
    """Name of the user's own data folder, without the characters that MLflow refuses in a model's name; else empty."""
    if data.name != "folder" or data.root is None:
        return ""
    return re.sub(r"[:\\]", "_", Path(os.path.normpath(data.root.absolute())).name)


def field_names(settings_type: type = RunConfig) -> list[str]:
    """Dotted names of all fields, in the order a person reads them."""
    return list(fields_of(settings_type))


def decides_result(name: str) -> bool:
    """Whether a field decides the metrics of a run: it may not change within a study."""
    return _field(name).role == "result"


def is_needed_to_repeat(name: str) -> bool:
    """Whether a command that repeats a run must set a field."""
    return decides_result(name) or _field(name).role == "photos"


def weights_digest(weights: str) -> str:
    """SHA-256 of the file of `model.weights`, whose content decides the results; empty where there is no file."""
    path = Path(weights)
    return file_sha256(path) if weights not in ("imagenet", "none") and path.is_file() else ""


def is_tunable(name: str) -> bool:
    """Whether a search may draw a field."""
    return decides_result(name) and _field(name).tunable


def is_sent(name: str) -> bool:
    """Whether the hyperparameters of a job contain a field."""
    return _field(name).sent


def is_own_in_job(name: str) -> bool:
    """Whether a job has its own value of a field, such as its copy of the photos."""
    return _field(name).own_in_job


def _field(name: str) -> Field:
    fields = fields_of(RunConfig)
    if name not in fields:
        raise unknown_field(name, RunConfig)
    return fields[name]


def noted_fields(params: Mapping[str, str]) -> dict[str, str | None]:
    """The fields among the params of a run, which keeps their values as text."""
    return {name: None if params[name] == "None" else params[name] for name in field_names() if name in params}


def to_flat(config: RunConfig) -> dict[str, ConfigValue]:
    """Dotted names and plain values, from which `override` builds the same config."""
    flat: dict[str, ConfigValue] = {}
    for name in field_names():
        value: object = functools.reduce(getattr, name.split("."), config)
        flat[name] = str(value) if isinstance(value, Path) else value  # type: ignore[assignment]
    return flat


def to_public(config: RunConfig) -> dict[str, ConfigValue]:
    """`to_flat` without the passwords that URLs may hold, so that it can be stored and shown."""
    flat = to_flat(config)
    urls = {name: value for name, value in flat.items() if _field(name).secret and isinstance(value, str)}
    return flat | {name: public_url(value) for name, value in urls.items()}


def secret_variables() -> dict[str, str]:
    """The fields that may hold a password, and the environment variable that sets each: others can read an argument."""
    return {
        name: f"EXPERIMENTS_{name.replace('.', '_').upper()}"
        for name, field in fields_of(RunConfig).items()
        if field.secret
    }


def secret_environment(config: RunConfig) -> dict[str, str]:
    """The variables with which another command gets the values of those fields."""
    values = to_flat(config)
    return {variable: str(values[name]) for name, variable in secret_variables().items() if values[name] is not None}


def option_text(name: str, value: object) -> str:
    """A field as a person types it on a command line."""
    return f"--{name} {shlex.quote('null' if value is None else str(value))}"


def tracking_uri(config: RunConfig) -> str:
    """The MLflow server or database that keeps the runs of this config."""
    return config.tracking.uri or sqlite_url(config.output_dir / "mlflow.db")


def sqlite_url(path: Path) -> str:
    """The URL of an SQLite database. `?`, `#`, `%` and what is not ASCII are encoded in it."""
    from sqlalchemy import URL  # `--help` does not need it

    url = URL.create("sqlite", database=str(path.resolve()))
    if f"/{url.database}" not in url.render_as_string():
        # MLflow 3.17 creates the folder that sqlite:/// names, without decoding it. With the driver's name it does not.
        url = url.set(drivername="sqlite+pysqlite")
    return url.render_as_string()


def to_yaml(config: RunConfig) -> str:
    """The config as a preset that `load_config` reads back."""
    return dump_yaml(_nest(to_flat(config)))


def override(config: RunConfig, values: Mapping[str, object]) -> RunConfig:
    """The same run with some fields replaced.

    Args:
        values: dotted field name to value; text is read as on the command line ("1e-05", "false", "null").

    Raises:
        UserError: for an unknown field or a value that its field refuses, naming both.
    """
    return _build(RunConfig, {**to_flat(config), **_known(values, RunConfig)})


def with_recipe(config: RunConfig, drawn: Collection[str] = ()) -> RunConfig:
    """The config with the sizes that the backbone's weights were made for, where it leaves them open.

    Call this before anything reads, records or sends them.

    Args:
        drawn: fields that each trial draws. If the backbone is one of them, each trial calls this itself.

    Raises:
        UserError: for an unknown backbone.
    """
    size, crop = config.data.image_size, config.data.crop_fraction
    if "model.backbone" in drawn or None not in (size, crop):
        return config
    from lightning_modules.network import recipe  # needed only if a size is open: torchvision is slow to import

    preprocessing = recipe(config.model.backbone)
    data = replace(
        config.data,
        image_size=preprocessing.image_size if size is None else size,
        crop_fraction=preprocessing.image_size / preprocessing.resize_size if crop is None else crop,
    )
    return replace(config, data=data)


def load_config(preset: Path | None = None, overrides: Mapping[str, object] | None = None) -> RunConfig:
    """Read a preset, and apply the environment and overrides: `secret_variables` set the fields with passwords.

    Args:
        preset: YAML file with the sections of `RunConfig`; relative paths in it are kept as written.
        overrides: dotted field name to value, as for `override`.

    Raises:
        UserError: if there is no such preset; for an unknown field or a value that its field refuses, naming both.
    """
    found = {name: os.environ[variable] for name, variable in secret_variables().items() if os.environ.get(variable)}
    return load_settings(RunConfig, preset, {**found, **(overrides or {})})


def load_settings(
    settings_type: type[Settings],
    preset: Path | None,
    overrides: Mapping[str, object],
    *,
    option: str = "--config",
    prefix: str = "",
) -> Settings:
    """`load_config` for any frozen dataclass, such as the settings of the cloud.

    Args:
        option: the option that names the preset.
        prefix: prefix of the fields on the command line.
    """
    values: dict[str, object] = {}
    if preset is not None:
        loaded = read_yaml(preset, option)
        loaded = {} if loaded is None else loaded
        require(isinstance(loaded, dict), str(preset), "hold sections or fields, such as 'seed: 1'", loaded)
        assert isinstance(loaded, dict)
        values = _known(_flatten(loaded, settings_type), settings_type, str(preset))
    return _build(settings_type, {**values, **_known(overrides, settings_type)}, prefix)


@functools.cache
def _parser(settings_type: type) -> ArgumentParser:
    from jsonargparse import ArgumentParser  # half of the time of `--help`, which needs none

    # allow_abbrev=True would silently take --max_ep for trainer.max_epochs.
    parser = ArgumentParser(allow_abbrev=False, exit_on_error=False, add_help=False)
    parser.add_class_arguments(settings_type)
    return parser


def _build(settings_type: type[Settings], values: Mapping[str, object], prefix: str = "") -> Settings:
    parser = _parser(settings_type)  # type: ignore[arg-type]
    try:
        built = parser.instantiate(parser.parse_object(_nest(values)))
    except ArgumentError as error:
        raise _refused(settings_type, values, error, prefix) from error
    return settings_type(**vars(built))


def _refused(settings_type: type, values: Mapping[str, object], error: ArgumentError, prefix: str) -> UserError:
    """Our message for a value that jsonargparse refuses."""
    named = re.match(r'Parser key "([^"]+)"', str(error))
    assert named is not None, "names were checked before: only a value can be refused"
    name = named[1]
    return UserError(f"{prefix}{name} must {fields_of(settings_type)[name].rule}, got {values[name]!r}")


def _known(values: Mapping[str, object], settings_type: type, source: str = "") -> dict[str, object]:
    fields = fields_of(settings_type)
    for name, value in values.items():
        if name not in fields:
            raise unknown_field(name, settings_type, source=source)
        require(value is not None or type(None) in get_args(fields[name].hint), name, "have a value", value)
    return dict(values)


def _flatten(nested: Mapping[str, object], settings_type: type, prefix: str = "") -> dict[str, object]:
    """Flatten a preset to dotted names; a field that is a mapping, such as tags, remains a mapping."""
    flat: dict[str, object] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        is_section = any(known.startswith(f"{name}.") for known in fields_of(settings_type))
        is_mapping = name in fields_of(settings_type) and get_origin(fields_of(settings_type)[name].hint) is dict
        if isinstance(value, Mapping) and not is_mapping and (value or is_section):
            flat |= _flatten(value, settings_type, f"{name}.")
        else:
            flat[name] = value
    return flat


def _nest(flat: Mapping[str, object]) -> dict[str, object]:
    nested: dict[str, object] = {}
    for name, value in flat.items():
        section, _, key = name.rpartition(".")
        target = nested.setdefault(section, {}) if section else nested
        assert isinstance(target, dict)
        target[key] = value
    return nested
