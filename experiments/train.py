"""The training path of a single run: `train()`. `study/population_training.py` trains many heads at once.

A local run calls it, a trial that trains alone calls it, and the SageMaker container calls it. It reads no environment
variable and no command line, and does not know where it runs: what differs comes in as a logger or a callback.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import nn

from experiments.callbacks.checkpoints import (
    BEST_CHECKPOINT,
    CHECKPOINT_FOLDER,
    AtomicCheckpointIO,
    Checkpoints,
    read_checkpoint,
)
from experiments.callbacks.compiling import CompileWhenItPays
from experiments.callbacks.history import History, diverged, run_metrics
from experiments.callbacks.profiling import step_profiler
from experiments.callbacks.recording import new_recorder
from experiments.config import CUT_FIELDS, ConfigValue, RunConfig, to_flat, to_public
from experiments.data.inputs import photo_data, preprocessing, training_device
from experiments.errors import InterruptedRunError
from experiments.runs.folder import FINGERPRINT
from experiments.runs.scoring import Scores, predict_log_probabilities, score_split
from experiments.task import Task, task_of
from lightning_modules.export import write_export
from lightning_modules.folders import ClassFolders
from lightning_modules.launchers import cluster_environment


@dataclass(frozen=True)
class TrainResult:
    """The outcome of a training. The weights of the best epoch are in a checkpoint: see `trained_network`."""

    task: Task
    output_dir: Path
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
        config: what to train, as `resolve_config` returns it.
        output_dir: folder of checkpoints; a run that was killed resumes from them.
        logger: gets the metrics of each epoch.
        callbacks: further callbacks, for pruning, progress or debugging.
        single_steps: whether they must see each step; a head on cached features takes many at once otherwise.

    Raises:
        ValueError: for data or weights that do not fit the config.
        FileNotFoundError: if data or weights are missing.
        NotANumberError: if the loss is no longer a number.
        InterruptedRunError: after SIGTERM, at the end of an epoch.
    """
    options = config.trainer
    environment = cluster_environment(options.num_processes)  # first: it says which process writes to the logger
    task = task_of(config, single_steps=single_steps)
    logger.log_hyperparams(data_facts(task.folders))
    model, data = task.build()

    history = History(config.sweep.metric, config.sweep.direction, patience=options.early_stopping_patience)
    checkpoints = Checkpoints(output_dir / CHECKPOINT_FOLDER, history, minutes=options.checkpoint_minutes)
    all_callbacks: list[Callback] = [history]
    if options.record != "none":
        all_callbacks.append(new_recorder(options.record, options.on_rule, output_dir, logger, history))
    all_callbacks += [*callbacks, checkpoints]
    if task.compiles_when_it_pays:
        all_callbacks.append(CompileWhenItPays())
    if options.profile:
        all_callbacks.append(step_profiler(task.profile_settings, task.loading_threads, output_dir, logger))

    trainer = pl.Trainer(
        max_epochs=options.epochs,
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        precision=task.precision,
        gradient_clip_val=task.gradient_clip,
        logger=logger,
        callbacks=all_callbacks,
        plugins=[AtomicCheckpointIO(), *([environment] if environment else [])],
        default_root_dir=output_dir,  # Lightning looks there for checkpoints of a Slurm job that was requeued
        benchmark=training_device(config).type == "cuda",  # all batches but the last of an epoch have one size
        use_distributed_sampler=False,  # the data module divides the images itself, without counting one twice
        num_sanity_val_steps=0,
        log_every_n_steps=1,  # nothing is logged in a step, and larger values draw a warning
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    try:
        trainer.fit(model, datamodule=data, ckpt_path=checkpoints.find_resumable())
    except SIGTERMException as error:
        # Lightning handles SIGTERM too: it returns after the epoch as if the training were complete.
        raise InterruptedRunError from error
    if failure := trainer.strategy.broadcast(history.failure):
        raise diverged(max(history.epochs), failure)

    # Only the first of several machines has written checkpoints.
    best: Any = None
    if trainer.is_global_zero:
        best = read_checkpoint(checkpoints.best)
    best = trainer.strategy.broadcast(best)
    model.load_state_dict(best["state_dict"], strict=False)
    device = trainer.strategy.root_device
    log_probabilities = predict_log_probabilities(model.eval().to(device), data.validation_inputs(device))
    validation = Scores.of_split(task.folders, task.folders.valid, log_probabilities)
    return TrainResult(task, output_dir, validation, history.epochs, history.best_epoch)


def trained_network(task: Task, output_dir: Path) -> nn.Module:
    """The whole network with the weights of the best epoch of the run in `output_dir`, in eval mode on the CPU."""
    best = read_checkpoint(output_dir / CHECKPOINT_FOLDER / BEST_CHECKPOINT)
    trained = {name.removeprefix("network."): value for name, value in best["state_dict"].items()}
    return task.assemble(trained).eval()


def export(task: Task, output_dir: Path, folder: Path, metrics: Mapping[str, float]) -> Path:
    """Write the export folder of the run in `output_dir`.

    Args:
        metrics: those of the best epoch, and what was measured after training, such as the test score.
    """
    return write_export(
        trained_network(task, output_dir),
        folder,
        backbone=task.config.model.backbone,
        class_names=task.folders.class_names,
        preprocessing=preprocessing(task.config),
        metrics=metrics,
        data=exported_data(task),
        config=to_public(task.config),
        golden_photos=task.folders.valid.paths,
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
    task, scores, measured = result.task, result.validation, result.scored
    if score_test and task.folders.test is not None:
        network = trained_network(task, result.output_dir)
        scores = score_split(network, photo_data(task.config, task.folders), task.folders.test)
        measured |= scores.metrics("test")
    scores.save(scores_file)
    export(task, result.output_dir, folder, measured)
    return measured


def data_facts(folders: ClassFolders) -> dict[str, str | int]:
    """Facts about the data of a run, recorded beside its config."""
    return {
        FINGERPRINT: folders.fingerprint,
        "data.classes": len(folders.class_names),
        "data.train_images": len(folders.train),
        "data.valid_images": len(folders.valid),
        "data.test_images": len(folders.test) if folders.test else 0,
        "data.bad_files": len(folders.bad_files),
        "data.leaked_images": folders.leaked,
    }


def exported_data(task: Task) -> dict[str, ConfigValue]:
    """The entry `data` of `model.json`: facts about the photos, and the fields by which `evaluate` divides them."""
    facts: dict[str, ConfigValue] = {**data_facts(task.folders)}
    cut = {name: to_flat(task.config)[name] for name in CUT_FIELDS}
    return {name.removeprefix("data."): value for name, value in (facts | cut).items()}
