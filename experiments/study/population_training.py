"""Train several trials of a sweep at once, as one batched matrix product, with the results that `train()` has alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from experiments.callbacks.checkpoints import BEST_CHECKPOINT, CHECKPOINT_FOLDER, AtomicCheckpointIO
from experiments.callbacks.history import NotANumberError, bad_val_loss, best_epoch, diverged, has_stalled, run_metrics
from experiments.config import RunConfig
from experiments.console import say
from experiments.data.inputs import training_device
from experiments.runs.folder import Outcome, RunFolder
from experiments.runs.scoring import Scores
from experiments.task import HeadTask
from experiments.train import data_facts
from lightning_modules import metrics
from lightning_modules.heads.population import HeadPopulation, Member

SAY_SECONDS = 2.0
"""Seconds between progress lines: an epoch of small heads takes milliseconds."""


class ReportEpoch(Protocol):
    """Reports an epoch of a run, as `PruningCallback.report` does."""

    def __call__(self, epoch: int, value: float, ends: bool) -> bool:
        """Report the objective of an epoch.

        Args:
            epoch: counted from 1.
            value: the objective.
            ends: whether training ends with this epoch anyway.

        Returns:
            Whether to prune the run.
        """


@dataclass(frozen=True)
class PopulationRun:
    """One of the runs that are trained together."""

    task: HeadTask
    folder: RunFolder
    report: ReportEpoch


def shared_config(config: RunConfig) -> RunConfig:
    """The config without the fields that may differ within a population. Runs with equal ones train together."""
    return replace(
        config,
        data=replace(config.data, batch_size=1),
        model=replace(config.model, dropout=0.0, label_smoothing=0.0),
        optimizer=replace(config.optimizer, learning_rate=1.0, weight_decay=0.0, warmup_epochs=0.0),
        trainer=replace(config.trainer, max_epochs=1, early_stopping_patience=0),
    )


def train_population(
    runs: Sequence[PopulationRun], *, check: Callable[[], None]
) -> Iterator[tuple[PopulationRun, Outcome | NotANumberError]]:
    """Train runs together, from their first epoch: there are no checkpoints to resume from after a kill.

    Args:
        runs: runs whose shared configs are equal.
        check: called between two epochs; raises to stop.

    Yields:
        Each run when it has ended, with its checkpoint and scores written; with the error of `train()` if it diverged.
    """
    sweep = runs[0].task.config.sweep
    population = new_population([run.task for run in runs])
    for run in runs:
        run.folder.add_params(data_facts(run.task.folders))
    histories: list[dict[int, dict[str, float]]] = [{} for _ in runs]
    best: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    reported_at = time.monotonic()
    while population.member_indices:
        check()
        staying = []
        for index, values in population.train_epoch().items():
            run, epoch, history = runs[index], population.epoch, histories[index]
            history[epoch] = values
            run.folder.record(epoch, values)
            if not math.isfinite(values[metrics.VAL_LOSS]):
                yield run, diverged(epoch, bad_val_loss(values[metrics.VAL_LOSS]))
                continue
            best_yet = best_epoch(history, sweep.metric, sweep.direction)
            if best_yet == epoch:
                best[index] = population.head(index)
            trainer = run.task.config.trainer
            ends = epoch == trainer.epochs or has_stalled(epoch, best_yet, trainer.early_stopping_patience)
            pruned = run.report(epoch, values[sweep.metric], ends)
            if ends:
                _write_checkpoint(run.folder, best_yet, *best[index])
                scores = _score(run.task, *best[index])
                scores.save(run.folder.scores)
                scored = {**run_metrics(history, best_yet), **scores.metrics("val")}
                yield run, Outcome("COMPLETE", history[best_yet][sweep.metric], scored)
            elif pruned:
                yield run, Outcome("PRUNED", values[sweep.metric], reason=f"pruned after epoch {epoch}")
            else:
                staying.append(index)
        population.keep(staying)
        if (waited := time.monotonic() - reported_at) > SAY_SECONDS or not staying:
            say(f"population: epoch {population.epoch}, {len(staying)} of {len(runs)} trials continue")
            reported_at += waited


def new_population(tasks: Sequence[HeadTask]) -> HeadPopulation:
    """Untrained heads of tasks whose shared configs are equal, on the features of the tasks."""
    config = tasks[0].config
    return HeadPopulation(
        tasks[0].features.to(training_device(config)),
        [_member(task.config) for task in tasks],
        optimizer=config.optimizer.name,
        schedule=config.optimizer.schedule,
        seed=config.seed,
        gradient_clip=config.trainer.gradient_clip,
    )


def _member(config: RunConfig) -> Member:
    return Member(
        learning_rate=config.optimizer.learning_rate,
        weight_decay=config.optimizer.weight_decay,
        batch_size=config.data.batch_size,
        max_epochs=config.trainer.epochs,
        warmup_epochs=config.optimizer.warmup_epochs,
        dropout=config.model.dropout,
        label_smoothing=config.model.label_smoothing,
    )


def _score(task: HeadTask, weight: torch.Tensor, bias: torch.Tensor) -> Scores:
    """The scores of a head for the validation split, computed in float64."""
    inputs = task.features.valid[0].double()
    log_probabilities = (inputs @ weight.double().T + bias.double()).log_softmax(dim=1).numpy()
    return Scores.of_split(task.folders, task.folders.valid, log_probabilities)


def _write_checkpoint(folder: RunFolder, epoch: int, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Write the best weights as `train()` does; epochs count from 1 here and from 0 in a checkpoint."""
    state = {"network.weight": weight, "network.bias": bias}
    path = folder.path / CHECKPOINT_FOLDER / BEST_CHECKPOINT
    AtomicCheckpointIO().save_checkpoint({"state_dict": state, "epoch": epoch - 1}, path)
