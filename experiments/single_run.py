"""`experiments train`: one model, scored once on the test split, exported and registered."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from filelock import AcquireReturnProxy, Timeout

from experiments.callbacks.checkpoints import best_so_far
from experiments.callbacks.progress import EpochProgress
from experiments.config import RunConfig, override, to_flat, to_public, weights_digest, with_recipe
from experiments.console import say
from experiments.data.inputs import forget_opened, open_data_once, say_data
from experiments.errors import CommandError, InterruptedRunError, UserError
from experiments.interrupts import Interrupts, Watch
from experiments.preflight import check_training
from experiments.runs.folder import LOCAL, Outcome, RunFolder, environment_tags
from experiments.runs.intervals import metric_text
from experiments.runs.logger import RunFolderLogger
from experiments.study.epochs import resolve_config, train_longer
from experiments.study.study import best_config, load_study
from experiments.task import task_of
from experiments.tracking.publisher import LOCK_FILE, Publication, Publisher
from experiments.train import data_facts, export, score_and_export, train
from lightning_modules.launchers import is_first_process
from lightning_modules.locks import KernelLock
from lightning_modules.process import prepare_process

RUN_FOLDER = "EXPERIMENTS_RUN_FOLDER"
"""Environment variable that tells the processes of further devices where the first one trains."""

FIRST_PROCESS = "first_process.lock"
"""Lock file in the run folder, held while the first of several processes trains there; claims use another lock."""
FOLDER_SECONDS = 60.0
"""How long a further process waits for the first one's run folder, once it has looked through the photos."""


@dataclass(frozen=True)
class TrainedModel:
    """Result of `experiments train`."""

    metrics: Mapping[str, float]
    """Metrics of the best epoch and of the test split, and the highest accuracy of all epochs."""
    facts: Mapping[str, str]
    """Facts of the run, its data included."""
    export: Path
    model_uri: str
    champion: bool
    """Whether the version is now the champion: no earlier one on the same photos was better by `sweep.metric`."""


def train_and_register(
    config: RunConfig,
    *,
    from_best: str | None = None,
    overrides: Mapping[str, object] | None = None,
) -> TrainedModel:
    """Train, score the test split once, export, register.

    Args:
        from_best: take the settings of this study's best trial instead of those in `config`.
        overrides: what the user set on top of them.

    Raises:
        UserError: for settings that do not fit, or a study without a complete trial.
        TrackingError: if MLflow does not answer; the same command continues.
        InterruptedRunError: after Ctrl-C; the same command continues.
    """
    tags: dict[str, str] = {}
    if from_best is not None:
        best, trial = best_config(load_study(config, from_best), config)
        config = override(best, overrides or {})
        tags = {"study": from_best, "trial": str(trial.number)}
    name = f"train {from_best or config.data.name}"
    folder = train_run(config, run_path_prefix(config), name, tags, registers=True)
    outcome, published = folder.outcome, folder.published
    assert outcome is not None and published.model_uri is not None, "the publisher has registered it"
    return TrainedModel(
        outcome.metrics, folder.read().params, folder.export, published.model_uri, published.is_champion
    )


def train_run(
    config: RunConfig,
    path_prefix: Path,
    name: str,
    tags: Mapping[str, str],
    *,
    score_test: bool = True,
    registers: bool = False,
) -> RunFolder:
    """Train, score, export and publish a run. An earlier run with this prefix continues where it stopped.

    Args:
        path_prefix: the run folder's path, without `-` and its number.
        name: of the run, in MLflow.
        tags: further tags of the run.
        score_test: false leaves the test split alone.
        registers: whether the model is registered, too.

    Raises:
        UserError: for settings that do not fit the photos or weights.
        TrackingError: if MLflow does not answer.
        InterruptedRunError: after Ctrl-C.
    """
    prepare_process()
    num_processes = config.trainer.num_processes
    if not is_first_process(num_processes):
        _train_along(config, path_prefix)
    check_training(config)
    forget_opened()
    say_data(config)
    config = resolve_config(config)
    folder, lock = _claim_folder(path_prefix, open_data_once(config).fingerprint, registers=registers)
    os.environ[RUN_FOLDER] = str(folder.path)
    first = contextlib.nullcontext() if num_processes == 1 else KernelLock(folder.path / FIRST_PROCESS)
    with lock, first, Interrupts() as interrupts:
        if not folder.has_started:
            folder.start(name, to_public(config), {**LOCAL, **environment_tags(), **tags})
        publication = Publication(config, folder.path, folder.path / LOCK_FILE, registers=registers)
        with Publisher(publication, interrupts.raise_if_requested) as publisher:
            if folder.outcome is not None:
                say(f"{folder.path} is trained; what MLflow lacks of it is sent now")
                return folder
            watches = [Watch(interrupts.raise_if_requested), Watch(publisher.check)]
            try:
                metrics = _train(config, folder, watches, score_test=score_test)
            except InterruptedRunError:
                raise InterruptedRunError(_export_so_far(config, folder)) from None
            except CommandError:
                raise
            except Exception as error:
                folder.finish(Outcome("FAIL", reason=f"{type(error).__name__}: {error}"))
                raise
            folder.finish(Outcome("COMPLETE", metrics[config.sweep.metric], metrics))
    return folder


def _train(config: RunConfig, folder: RunFolder, watches: Sequence[Watch], *, score_test: bool) -> dict[str, float]:
    """Train, score the test split if `score_test` is true, and write the export."""
    result = train(
        config,
        output_dir=folder.path,
        logger=RunFolderLogger(folder),
        callbacks=[EpochProgress("train", data_facts(open_data_once(config))), *watches],
    )
    if advice := train_longer(result.best_epoch, config.trainer.epochs):
        say(advice)
    say("scoring the test split and exporting the model" if score_test else "exporting the model")
    return score_and_export(result, folder.export, folder.scores, score_test=score_test)


def _export_so_far(config: RunConfig, folder: RunFolder) -> str:
    """Export the best epoch of an interrupted run, and describe it; the export at the end of the run replaces it."""
    best = best_so_far(folder.path)
    if best is None:
        return " before the first epoch was finished, so there is no model yet"
    epoch, metrics = best
    export(task_of(config), folder.path, folder.export, metrics)
    done, metric = max(folder.curves()[config.sweep.metric]), config.sweep.metric
    scored = metric_text(metric, metrics[metric], data_facts(open_data_once(config)))
    model = f"epoch {epoch} ({scored}) in {folder.export}"
    return f" after epoch {done} of {config.trainer.epochs}; best model so far: {model}"


def _train_along(config: RunConfig, path_prefix: Path) -> NoReturn:
    """Train as one of the further processes: Lightning, torchrun or srun runs the same command for each."""
    with Interrupts() as interrupts:
        if RUN_FOLDER in os.environ:  # Lightning has started it
            folder = RunFolder(Path(os.environ[RUN_FOLDER]))
        else:
            open_data_once(config)  # takes as long as in the first process
            folder = _folder_of_first_process(path_prefix, interrupts.raise_if_requested)
        train(
            resolve_config(config),
            output_dir=folder.path,
            logger=RunFolderLogger(folder),
            callbacks=[Watch(interrupts.raise_if_requested)],
        )
    sys.exit()


def _folder_of_first_process(path_prefix: Path, check: Callable[[], None]) -> RunFolder:
    """The run folder that the first process holds, in a folder that all machines share."""
    until = time.monotonic() + FOLDER_SECONDS
    while time.monotonic() < until:
        for path in sorted(path_prefix.parent.glob(f"{path_prefix.name}-*/run.json")):
            folder = RunFolder(path.parent)
            if _has_first_process(folder):
                return folder
        check()
        time.sleep(0.2)
    raise CommandError(
        f"the first process of this training must write to {path_prefix.parent} within {FOLDER_SECONDS:g} seconds: all "
        "machines must share output_dir, and the output of that process says whether it stopped"
    )


def _has_first_process(folder: RunFolder) -> bool:
    lock = KernelLock(folder.path / FIRST_PROCESS)
    is_free = lock.try_acquire()
    lock.release()
    return not is_free


def run_path_prefix(config: RunConfig, folder: str = "train") -> Path:
    """The path of the run folders of a config, without `-` and a number, in a folder below `output_dir`.

    It is the same whether the config leaves the sizes of photos to the backbone or sets the same sizes, and another one
    for other content of the weights file.
    """
    flat = json.dumps(to_flat(with_recipe(config))) + weights_digest(config.model.weights)
    return config.output_dir / folder / hashlib.sha256(flat.encode()).hexdigest()[:8]


def complete_run(path_prefix: Path) -> RunFolder | None:
    """The newest run with this prefix that was trained to its end."""
    folders = [RunFolder(path.parent) for path in sorted(path_prefix.parent.glob(f"{path_prefix.name}-*/run.json"))]
    complete = [folder for folder in folders if folder.outcome is not None and folder.outcome.state == "COMPLETE"]
    return complete[-1] if complete else None


def _claim_folder(
    path_prefix: Path, fingerprint: str, *, registers: bool
) -> tuple[RunFolder, AcquireReturnProxy[KernelLock]]:
    """The folder of the first run with this prefix that has not gone through all steps, or a new one.

    The steps are: trained, published, registered. The same command continues with the next one. After the last one, or
    after a training that failed, it trains a new run. A run on other photos is left as it is.

    Args:
        fingerprint: of the photos now.
    """
    for number in range(10_000):
        folder = RunFolder(path_prefix.with_name(f"{path_prefix.name}-{number:03d}"))
        folder.path.mkdir(parents=True, exist_ok=True)
        try:
            lock = KernelLock(folder.path / "lock").acquire(timeout=0)
        except Timeout:
            continue  # another process is training it
        if not _has_all_steps(folder, registers=registers) and folder.fingerprint in (None, fingerprint):
            return folder, lock
        lock.lock.release()
    raise UserError(f"output_dir must have room for one more run of {path_prefix}, got 10,000 of them")


def _has_all_steps(folder: RunFolder, *, registers: bool) -> bool:
    if folder.outcome is None:
        return False
    published = folder.is_published and (folder.published.model_uri is not None or not registers)
    return published or folder.outcome.state != "COMPLETE"
