"""The only training path there is: `train()`.

A local run calls it, every Optuna trial calls it, and the SageMaker container calls it. It reads no environment
variable and no command line, and does not know where it runs: what differs comes in as a logger or a callback.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import nn

from experiments.callbacks.checkpoints import BEST_CHECKPOINT, CHECKPOINT_FOLDER, AtomicCheckpointIO, Checkpoints
from experiments.callbacks.compiling import CompileWhenItPays, compile_network
from experiments.callbacks.history import History, diverged, run_metrics
from experiments.callbacks.profiling import step_profiler
from experiments.config import CUT_FIELDS, ConfigValue, RunConfig, to_flat, to_public
from experiments.console import say
from experiments.data.inputs import (
    feature_data,
    new_head,
    new_network,
    open_data_once,
    open_decoded_once,
    open_features_once,
    photo_data,
    precision,
    preprocessing,
    training_device,
    uses_features,
)
from experiments.errors import InterruptedRunError
from experiments.runs.folder import FINGERPRINT, RECORDING
from experiments.runs.scoring import Scores, predict_log_probabilities, score_split
from lightning_modules.caches.features import FeatureData
from lightning_modules.classifier import ImageClassifier
from lightning_modules.data import ClassFolderData
from lightning_modules.export import write_export
from lightning_modules.folders import ClassFolders
from lightning_modules.heads.head import HeadClassifier
from lightning_modules.insight.recorder import Recorder
from lightning_modules.insight.recording import Finding
from lightning_modules.insight.rules import NOT_FINITE
from lightning_modules.launchers import cluster_environment
from lightning_modules.memory import keep_memory
from lightning_modules.network import Trainable, find_head, trains_batch_norm
from lightning_modules.threads import limit_threads


@dataclass(frozen=True)
class TrainResult:
    """What training came to. The weights of the best epoch stand in a checkpoint: see `trained_network`."""

    config: RunConfig
    output_dir: Path
    data: ClassFolderData
    validation: Scores
    """The validation split, by the weights of the best epoch in float32."""
    history: Mapping[int, Mapping[str, float]]
    """Metrics by epoch, in the precision of training; epochs count from 1."""
    best_epoch: int

    @property
    def metrics(self) -> Mapping[str, float]:
        """The metrics of the best epoch, among them the objective, and the highest accuracy of all epochs."""
        return run_metrics(self.history, self.best_epoch)

    @property
    def scored(self) -> dict[str, float]:
        """The metrics of the best epoch with its float32 validation scores, those of the exported network."""
        return {**self.metrics, **self.validation.metrics("val")}


def train(
    config: RunConfig,
    *,
    output_dir: Path,
    logger: Logger,
    callbacks: Sequence[Callback] = (),
    single_steps: bool = False,
) -> TrainResult:
    """Train one classifier, from the last checkpoint in `output_dir` if there is one.

    Args:
        config: what to train.
        output_dir: where checkpoints go; a run that was killed goes on from here.
        logger: gets the metrics of each epoch.
        callbacks: pruning, progress, debugging: what the caller wants to happen on the way.
        single_steps: whether they must see each step; a head on cached features takes many at once otherwise.

    Raises:
        ValueError: for data or weights that do not fit the config.
        FileNotFoundError: if data or weights are missing.
        NotANumberError: if the loss is no longer a number.
        InterruptedRunError: after SIGTERM, at the end of an epoch.
    """
    num_processes = config.trainer.devices * config.trainer.num_nodes
    environment = cluster_environment(num_processes)  # first: it says which process writes to the logger
    keep_memory()
    limit_threads()
    folders = open_data_once(config)
    logger.log_hyperparams(data_facts(folders))
    network: nn.Module
    data: ClassFolderData | FeatureData
    trainable: Trainable = config.model.trainable
    single_steps |= config.trainer.record != "none" or config.trainer.profile
    single_steps |= num_processes > 1
    at_once = uses_features(config) and not single_steps
    if uses_features(config):
        features = open_features_once(config)
        # The head alone is trained, on what the frozen backbone made of the photos.
        network, trainable = new_head(features, config.model.dropout), "all"
        data = feature_data(config, features, steps_at_once=at_once)
    else:
        network = new_network(config, len(folders.class_names))
        no_single_image = trains_batch_norm(network, trainable)
        data = photo_data(config, folders, open_decoded_once(config), no_single_image=no_single_image)
        if config.trainer.compile is True:
            compile_network(network)
    options: dict[str, Any] = {
        "num_classes": len(folders.class_names),
        "trainable": trainable,
        "optimizer": config.optimizer.name,
        "learning_rate": config.optimizer.learning_rate,
        "weight_decay": config.optimizer.weight_decay,
        "backbone_learning_rate_scale": config.optimizer.backbone_learning_rate_scale,
        "schedule": config.optimizer.schedule,
        "warmup_epochs": config.optimizer.warmup_epochs,
        "label_smoothing": config.model.label_smoothing,
        "seed": config.seed,
    }
    if at_once:
        steps = math.ceil(len(folders.train) / config.data.batch_size)
        clip = config.trainer.gradient_clip
        model: ImageClassifier = HeadClassifier(network, steps_per_epoch=steps, gradient_clip=clip, **options)
    else:
        model = ImageClassifier(network, **options)

    history = History(config.sweep.metric, config.sweep.direction, patience=config.trainer.early_stopping_patience)
    checkpoints = Checkpoints(output_dir / CHECKPOINT_FOLDER, history, minutes=config.trainer.checkpoint_minutes)
    own: list[Callback] = [history, *callbacks, checkpoints]
    on_gpu = training_device(config).type == "cuda"
    if not on_gpu:
        # Lightning has torch look for a driver whenever it is asked for GPUs. Each step of an optimiser asks: 0.16 ms.
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    if config.trainer.compile == "auto" and on_gpu and not uses_features(config):
        own.append(CompileWhenItPays())
    if config.trainer.record != "none":
        own.insert(1, new_recorder(config, output_dir, logger, history))
    if config.trainer.profile:
        own.append(step_profiler(config, output_dir, logger))
    trainer = pl.Trainer(
        max_epochs=config.trainer.epochs,
        accelerator=config.trainer.accelerator,
        devices=config.trainer.devices,
        num_nodes=config.trainer.num_nodes,
        precision="32-true" if uses_features(config) else precision(config),  # a head has nothing to gain
        gradient_clip_val=None if at_once else config.trainer.gradient_clip or None,
        logger=logger,
        callbacks=own,
        plugins=[AtomicCheckpointIO(), *([environment] if environment else [])],
        default_root_dir=output_dir,  # Lightning looks there for checkpoints of a Slurm job that was requeued
        benchmark=on_gpu,  # all batches but the last of an epoch have one size
        use_distributed_sampler=False,  # the data module divides the images itself, without counting one twice
        num_sanity_val_steps=0,
        log_every_n_steps=1,  # nothing is logged in a step, and larger values draw a warning
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    try:
        trainer.fit(model, datamodule=data, ckpt_path=checkpoints.find_whole())
    except SIGTERMException as error:
        # Lightning listens to SIGTERM too, and ends the process after the epoch as if nothing were left to do.
        raise InterruptedRunError from error
    if failure := trainer.strategy.broadcast(history.failure):
        raise diverged(max(history.epochs), failure)

    # Only the first of several machines has written checkpoints.
    best: Any = None
    if trainer.is_global_zero:
        best = torch.load(checkpoints.best, map_location="cpu", weights_only=True)
    best = trainer.strategy.broadcast(best)
    model.load_state_dict(best["state_dict"], strict=False)
    device = trainer.strategy.root_device
    model.eval().to(device)
    log_probabilities = predict_log_probabilities(model, data.validation_inputs(device))
    valid = Scores.of_split(folders, folders.valid, log_probabilities)
    return TrainResult(config, output_dir, photo_data(config, folders), valid, history.epochs, history.best_epoch)


def new_recorder(config: RunConfig, output_dir: Path, logger: Logger, history: History) -> Recorder:
    """A recorder that says what its rules find, and notes it with the run."""
    assert config.trainer.record != "none"

    def tell(finding: Finding) -> None:
        say(f"rule {finding.rule}: {finding.message}")
        logger.log_hyperparams({f"rule.{finding.rule}": finding.message})
        if config.trainer.on_rule == "stop" and finding.rule == NOT_FINITE:
            history.failure = finding.message

    return Recorder(
        output_dir / RECORDING,
        detail=config.trainer.record,
        on_finding=tell,
        stop=config.trainer.on_rule == "stop",
    )


def trained_network(config: RunConfig, num_classes: int, output_dir: Path) -> nn.Module:
    """The whole network with the weights of the best epoch of the run in `output_dir`, in eval mode on the CPU."""
    best = torch.load(output_dir / CHECKPOINT_FOLDER / BEST_CHECKPOINT, map_location="cpu", weights_only=True)
    trained = {name.removeprefix("network."): value for name, value in best["state_dict"].items()}
    network = new_network(config, num_classes)
    if uses_features(config):
        network.get_submodule(find_head(network)).load_state_dict(trained)
    else:
        network.load_state_dict(trained, strict=False)
    return network.eval()


def export(
    config: RunConfig, folders: ClassFolders, output_dir: Path, folder: Path, metrics: Mapping[str, float]
) -> Path:
    """Write the export folder of the run in `output_dir`.

    Args:
        metrics: those of the best epoch, and what was measured after training, such as the test score.
    """
    return write_export(
        trained_network(config, len(folders.class_names), output_dir),
        folder,
        backbone=config.model.backbone,
        class_names=folders.class_names,
        preprocessing=preprocessing(config),
        metrics=metrics,
        data=exported_data(config, folders),
        config=to_public(config),
        golden_photos=folders.valid.paths,
    )


def score_and_export(
    result: TrainResult, folder: Path, scores_file: Path, *, score_test: bool = True
) -> dict[str, float]:
    """End a run that is not a trial: write its export, and score the test split, once, where there is one.

    Args:
        folder: the export folder to write.
        scores_file: gets the scores of the test split, or else those of the validation split.
        score_test: false leaves the test split alone, as a search must.

    Returns:
        The metrics of the best epoch, and those of the test split.
    """
    config, folders, scores = result.config, result.data.folders, result.validation
    measured = result.scored
    if score_test and folders.test is not None:
        network = trained_network(config, len(folders.class_names), result.output_dir)
        scores = score_split(network, result.data, folders.test)
        measured |= scores.metrics("test")
    scores.save(scores_file)
    export(config, folders, result.output_dir, folder, measured)
    return measured


def data_facts(folders: ClassFolders) -> dict[str, str | int]:
    """What a run notes about its data beside its config."""
    return {
        FINGERPRINT: folders.fingerprint,
        "data.classes": len(folders.class_names),
        "data.train_images": len(folders.train),
        "data.valid_images": len(folders.valid),
        "data.test_images": len(folders.test) if folders.test else 0,
        "data.bad_files": len(folders.bad_files),
        "data.leaked_images": folders.leaked,
    }


def exported_data(config: RunConfig, folders: ClassFolders) -> dict[str, ConfigValue]:
    """What `model.json` says of the photos: the facts, and the fields that divide them, from which `evaluate` does."""
    facts: dict[str, ConfigValue] = {**data_facts(folders)}
    cut = {name: to_flat(config)[name] for name in CUT_FIELDS}
    return {name.removeprefix("data."): value for name, value in (facts | cut).items()}
