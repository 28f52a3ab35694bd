"""Kills commands at every boundary, runs them again and compares everything that they leave with an undisturbed run.

python -m tests.kills PHOTOS FOLDER CASE[:every|:kinds|:some]...      prints one line of JSON per case

A boundary is a moment at which what stands on disk may differ from what stood there before: before and after each file
that is written, renamed or removed and each entry of the study's journal, and after each callback at the end of an
epoch. Between two boundaries a kill leaves the same files wherever it comes. Each attempt is a process of its own,
forked from this one, which has imported everything, and ends by SIGKILL.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytorch_lightning as pl
import torch
from optuna.storages.journal import JournalFileBackend

import experiments.tracking.store  # noqa: F401 - with MLflow, once for all attempts
from experiments import single_run as training
from experiments import sweep
from experiments.callbacks.checkpoints import read_checkpoint
from experiments.callbacks.history import NotANumberError
from experiments.config import RunConfig, load_config, override
from experiments.errors import UserError
from experiments.runs.folder import RunFolder, environment_tags
from experiments.study import workers
from experiments.study.study import load_study
from experiments.study.trials import claim_trial
from experiments.task import task_of
from lightning_modules.caches import features
from tests.conftest import tiny
from tests.unpublished import NoPublisher

LONG = {"trainer.max_epochs": 12, "optimizer.schedule": "constant"}
SEARCH = {"sweep.sampler": "random", "sweep.n_trials": 4, "trainer.max_epochs": 4, "sweep.pruner": "hyperband"}
DIVERGING = "optimizer.learning_rate: {type: choice, values: [0.01, 0.02, 1.0e+30, 1.0e+31]}"
"""A search space in which half of the trials have a loss that is no number."""
CASES: dict[str, dict[str, object]] = {
    "max_epochs": {"trainer.max_epochs": 2},
    "checkpoint_minutes": {"trainer.max_epochs": 2, "trainer.checkpoint_minutes": 1e-9, "data.batch_size": 5},
    "early_stopping": LONG | {"trainer.early_stopping_patience": 1, "optimizer.learning_rate": 3.0},
    "rule": LONG | {"trainer.record": "full", "trainer.on_rule": "stop", "optimizer.learning_rate": 1e-9},
    "rule_within_epoch": LONG
    | {"trainer.record": "full", "trainer.on_rule": "stop", "optimizer.learning_rate": 1e-9, "data.batch_size": 2}
    | {"trainer.checkpoint_minutes": 1e-9},
    "not_a_number": LONG | {"optimizer.learning_rate": 1e30, "optimizer.name": "sgd"},
    "photos": LONG | {"model.trainable": "all", "trainer.early_stopping_patience": 1, "optimizer.learning_rate": 0.05},
    "pruning": SEARCH,
    "timeout": SEARCH | {"sweep.timeout_seconds": 3600},
    "diverging": SEARCH | {"optimizer.name": "sgd", "sweep.pruner": "none", "search": DIVERGING},
    "population": SEARCH | {"sweep.population": 3},
}
SEARCHES = ("pruning", "timeout", "diverging", "population")
"""Cases that are sweeps; the others are trainings."""
VALUE, TELL, NOTE = "before journal entry 5", "before journal entry 6", "before journal entry 9"
"""A value of a trial's point, a trial's end and a note of the pruner reach the study."""
SOME = {
    "pruning": (VALUE, NOTE, TELL, "before removing checkpoints"),
    "timeout": (TELL, "before writing export"),
    "diverging": (TELL, "after writing last.ckpt"),
}
"""Boundaries of a search that differ in what a resumed run has to do."""
SOME_OF_TRAINING = (
    "after History.on_validation_end",
    "after writing last.ckpt",
    "before writing scores.npz",
    "after writing export",
)
TIMEOUT_TRIALS = 2
"""Trials that have started when the time of the sweep is over: a clock would make the case another one each time."""
CLOCK = ("epoch_seconds", "images_per_second")


class Boundaries:
    """Counts boundaries, and ends the process at one of them.

    Args:
        kill_at: the number of the last one, from 1; 0 for none.
    """

    def __init__(self, kill_at: int) -> None:
        self.kill_at, self.names = kill_at, list[str]()

    def reach(self, name: str) -> None:
        """Be at a boundary."""
        self.names.append(name)
        if len(self.names) == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, function: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
        """A function with a boundary before and after it."""

        def wrapped(*args: Any, **named: Any) -> Any:
            self.reach(f"before {name(*args)}")
            result = function(*args, **named)
            self.reach(f"after {name(*args)}")
            return result

        return wrapped

    def after(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """A function with a boundary after it."""

        def wrapped(*args: Any, **named: Any) -> Any:
            result = function(*args, **named)
            self.reach(f"after {name}")
            return result

        return wrapped

    def install(self) -> None:
        """Watch everything that writes."""
        build = pl.Trainer.__init__

        def building(trainer: pl.Trainer, **options: Any) -> None:
            build(trainer, **options)
            for callback in trainer.callbacks:
                for hook in ("on_validation_end", "on_train_epoch_end", "on_fit_end"):
                    setattr(callback, hook, self.after(getattr(callback, hook), f"{type(callback).__name__}.{hook}"))

        pl.Trainer.__init__ = building  # type: ignore[assignment]
        replace: Any = Path.replace
        Path.replace = self.around(replace, lambda _, target: f"writing {base_name(target)}")
        shutil.rmtree = self.around(shutil.rmtree, lambda path, **_: f"removing {base_name(path)}")  # type: ignore[assignment]
        RunFolder._append = self.around(RunFolder._append, lambda _, name, __: f"appending to {name}")
        JournalFileBackend.append_logs = self.around(
            JournalFileBackend.append_logs, lambda _, logs: f"journal entry {logs[0]['op_code']}"
        )


def base_name(path: Path | str) -> str:
    """The name of a file without the number of its trial."""
    return Path(path).name


def prepare_process() -> None:
    """Leave out what has nothing to do with a training and takes seconds."""
    environment_tags()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    features.IMAGES_AT_ONCE = 5  # many batches of Lightning's per epoch
    training.Publisher = sweep.Publisher = NoPublisher  # type: ignore[assignment]
    sweep.report_studies = write_no_report  # type: ignore[assignment]


def write_no_report(studies: list[optuna.Study], config: RunConfig) -> Path:
    """Stands for the report, which reads only."""
    path = config.output_dir / "report.html"
    path.write_text("a report")
    return path


def run_case(case: str, config: RunConfig) -> None:
    """What the command of a case does, without MLflow."""
    if case not in SEARCHES:
        with contextlib.suppress(NotANumberError):  # its outcome is noted
            training.train_run(config, training.run_path_prefix(config), "train", {})
        return
    if case == "timeout":

        def claim_in_time(study: optuna.Study, *args: Any, new: bool, **named: Any) -> Any:
            return claim_trial(
                study, *args, new=new and len(study.get_trials(deepcopy=False)) < TIMEOUT_TRIALS, **named
            )

        workers.claim_trial = claim_in_time  # type: ignore[assignment]
    sweep.run_sweep(config)


def in_a_child(case: str, config: RunConfig, kill_at: int) -> tuple[int, list[str]]:
    """Run a case in a process of its own.

    Returns:
        The signal that ended it, and the boundaries that it reached where none did.
    """
    config.output_dir.mkdir(parents=True, exist_ok=True)
    log, names = config.output_dir / "log", config.output_dir / "boundaries"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with log.open("ab") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            boundaries = Boundaries(kill_at)
            boundaries.install()
            run_case(case, config)
            names.write_text(json.dumps(boundaries.names))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status), []
    if os.WEXITSTATUS(status):
        raise RuntimeError(f"{case}, killed at {kill_at}: {log.read_text()[-3000:]}")
    return 0, json.loads(names.read_text())


def left(case: str, config: RunConfig) -> dict[str, Any]:
    """Every number that a case leaves but for those of a clock, by what it is."""
    found: dict[str, Any] = {}
    for path in sorted(config.output_dir.glob("**/run.json")):
        folder = RunFolder(path.parent)
        # A training that was killed after its run had ended trains a new one: the newest must be equal too.
        name = path.parent.name if case in SEARCHES else "run"
        for line in folder.metric_lines():
            found |= {f"{name} epoch {line.step} {key}": value for key, value in line.metrics.items()}
        outcome = folder.outcome
        assert outcome is not None, path
        found |= {f"{name} state": outcome.state, f"{name} value": outcome.value, f"{name} reason": outcome.reason}
        found |= {f"{name} outcome {key}": value for key, value in outcome.metrics.items()}
        if folder.export.is_dir():
            manifest = json.loads((folder.export / "model.json").read_text())
            found |= {f"{name} export {key}": value for key, value in manifest["metrics"].items()}
            found[f"{name} export weights"] = manifest["sha256"]
        checkpoints = {path.name: read_checkpoint(path) for path in path.parent.glob("checkpoints/*.ckpt")}
        epochs = [len(checkpoint["callbacks"]["History"]["epochs"]) for checkpoint in checkpoints.values()]
        found[f"{name} resumes after epoch"] = max(epochs, default=0)
        if outcome.state == "FAIL":
            # Killed between both files and resumed from `best`, it fails in its next epoch and writes no `last`.
            checkpoints.pop("last.ckpt", None)
        found[f"{name} checkpoints"] = sorted(checkpoints)
    if case in SEARCHES:
        for trial in load_study(config, config.sweep.study_name).trials:
            name = f"trial {trial.number}"
            found |= {f"{name} state": trial.state.name, f"{name} value": trial.value}
            found |= {f"{name} param {key}": value for key, value in trial.params.items()}
            found |= {f"{name} epoch {epoch}": value for epoch, value in trial.intermediate_values.items()}
            found |= {f"{name} note {key}": value for key, value in trial.system_attrs.items()}
    return {key: value for key, value in found.items() if not key.endswith(CLOCK)}


def chosen(case: str, names: list[str], which: str) -> list[int]:
    """Which boundaries to die at: every one, the last of each kind, or the last of some kinds."""
    last = {name: number for number, name in enumerate(names, start=1)}
    if which == "every":
        return list(range(1, len(names) + 1))
    some = SOME.get(case, SOME_OF_TRAINING)
    return sorted(number for name, number in last.items() if which == "kinds" or name in some)


def differences(expected: dict[str, Any], found: dict[str, Any], *, exact: bool) -> list[str]:
    """What is not equal, in words."""

    def equal(first: Any, other: Any) -> bool:
        if not exact and isinstance(first, float) and isinstance(other, float):
            return math.isclose(first, other, rel_tol=1e-5)
        return str(first) == str(other)  # NaN is NaN

    return [
        f"{key}: {expected.get(key)} became {found.get(key)}"
        for key in sorted(expected.keys() | found.keys())
        if not equal(expected.get(key), found.get(key)) and (exact or not key.endswith("weights"))
    ]


def try_case(case: str, which: str, config: RunConfig) -> dict[str, Any]:
    """Kill a case at its boundaries, one after the other, and compare."""
    started = time.monotonic()
    whole = override(config, {"output_dir": config.output_dir / case / "whole"})
    _, names = in_a_child(case, whole, 0)
    expected, differing, kills = left(case, whole), list[str](), 0
    for number in chosen(case, names, which):
        cut = override(config, {"output_dir": config.output_dir / case / "killed"})
        ended_by, _ = in_a_child(case, cut, number)
        assert ended_by == signal.SIGKILL, (case, number)
        kills += 1
        in_a_child(case, cut, 0)
        # Which heads train together after a kill decides how their products are rounded.
        found = differences(expected, left(case, cut), exact=case != "population")
        differing += [f"killed {names[number - 1]} ({number}): {difference}" for difference in found]
        shutil.rmtree(cut.output_dir)
    epochs = re.findall(r"^(.+) epoch (\d+) val_loss$", "\n".join(expected), re.MULTILINE)
    return {
        "case": case,
        "boundaries": len(names),
        "kills": kills,
        "kinds": sorted(set(names)),
        "metrics": len(expected),
        "differing": differing,
        "states": sorted({str(value) for key, value in expected.items() if key.endswith(" state")}),
        "epochs": dict(sorted(epochs, key=lambda epoch: int(epoch[1]))),
        "seconds": round(time.monotonic() - started, 1),
    }


def main(photos: Path, folder: Path, cases: list[str]) -> None:
    """Try cases."""
    prepare_process()
    for case_name in cases:
        case, _, which = case_name.partition(":")
        if case not in CASES:
            raise UserError(f"CASE must be one of {', '.join(CASES)}, got {case!r}")
        values = tiny(photos, folder) | {"trainer.max_epochs": 3} | CASES[case]
        if values["search"] == DIVERGING:
            values["search"] = folder / "diverging.yaml"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "diverging.yaml").write_text(DIVERGING)
        config = load_config(None, values)
        child = os.fork()  # this process computes nothing: threads do not survive a fork
        if child == 0:
            task_of(config).open()
            os._exit(0)
        os.waitpid(child, 0)
        print(json.dumps(try_case(case, which or "every", config)), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
