"""The study: what continues it, who works on which trial, and what a kill leaves behind. Nothing is trained here."""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import math
import multiprocessing
import platform
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import optuna
import pytest
from filelock import FileLock, Timeout
from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner
from optuna.storages import BaseStorage
from optuna.trial import Trial, TrialState
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from experiments import patience
from experiments.config import RunConfig, load_config, override, to_flat, to_public
from experiments.errors import SweepError, UserError
from experiments.runs.folder import Outcome, RunFolder
from experiments.study import storage as study_storage
from experiments.study.claims import Claim, ClaimLostError, HeldClaims
from experiments.study.identity import Photos, StudyIdentity, read_identity, write_identity
from experiments.study.samplers import make_sampler
from experiments.study.search_space import ChoiceRange, FloatRange, IntRange, Point, SearchSpace
from experiments.study.storage import open_storage, study_folder
from experiments.study.study import (
    DURATION_MS,
    best_config,
    best_trial,
    count_failed,
    count_finished,
    load_study,
    make_pruner,
    open_study,
    trial_folder,
    trial_seconds,
)
from experiments.study.trials import NothingToClaim, claim_trial, suggest

SPACE: SearchSpace = {
    "optimizer.learning_rate": FloatRange(1e-4, 1e-1, log=True),
    "model.dropout": FloatRange(0.0, 0.5),
    "data.batch_size": ChoiceRange((32, 64, 128)),
    "trainer.max_epochs": IntRange(2, 8),
}
GRID: SearchSpace = {
    "optimizer.name": ChoiceRange(("sgd", "adamw")),
    "data.batch_size": ChoiceRange((32, 64)),
    "trainer.compile": ChoiceRange((False, True)),
}


PHOTOS = Photos("f" * 64, ("Beagle", "Poodle"), train=24, valid=8, test=8)


def make_config(folder: Path, **values: object) -> RunConfig:
    """A config of a quick sampler; `sampler` and the like are fields of the sweep."""
    sweep = {"sampler": "random", "pruner": "none", "n_trials": 3, **values}
    return load_config(None, {"output_dir": folder, **{f"sweep.{name}": value for name, value in sweep.items()}})


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return make_config(tmp_path / "runs")


def objective(point: Point) -> float:
    """Any function that tells points apart."""
    return sum(abs(math.log(float(value) + 2)) for value in point.values() if not isinstance(value, str))


def finish(study: optuna.Study, claimed: Claim | NothingToClaim, state: TrialState = TrialState.COMPLETE) -> None:
    assert isinstance(claimed, Claim)
    study.tell(claimed.trial, objective(claimed.point) if state == TrialState.COMPLETE else None, state=state)
    claimed.lock.release()


def run_trials(config: RunConfig, space: SearchSpace, count: int, *, reopen: bool = False) -> list[Point]:
    """The points of `count` finished trials; with `reopen`, each step is done by what looks like a new process."""
    study, target = open_study(config, space, PHOTOS)
    points = []
    for _ in range(count):
        claimed = claim_trial(study, config, space, target)
        if reopen:
            assert isinstance(claimed, Claim)
            claimed.lock.release()
            study, target = open_study(config, space, PHOTOS)
            claimed = claim_trial(study, config, space, target)
        assert isinstance(claimed, Claim)
        points.append(claimed.point)
        finish(study, claimed)
        if reopen:
            study, target = open_study(config, space, PHOTOS)
    return points


def is_inside(point: Point, space: SearchSpace) -> bool:
    """Whether every value has its range's type and lies in it."""
    for name, search_range in space.items():
        value = point[name]
        if isinstance(search_range, ChoiceRange):
            if (type(value), value) not in [(type(choice), choice) for choice in search_range.values]:
                return False
        elif (
            type(value) is not (float if isinstance(search_range, FloatRange) else int)
            or not search_range.low <= value <= search_range.high
        ):
            return False
    return point.keys() == space.keys()


@contextmanager
def another_process(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A process that has printed its first line; it is killed at the end, if not before."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


HOLD_A_LOCK = """
import sys
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("ready", flush=True)
sys.stdin.read()
"""


# The journal


def test_a_torn_last_line_of_the_journal_is_mended_and_the_study_continues(config: RunConfig) -> None:
    open_study(config, SPACE, PHOTOS)[0].set_user_attr("torn", "x" * 40)
    journal = study_folder(config) / "journal.log"
    whole = journal.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for cut in (start, start + 1, (start + len(whole)) // 2, len(whole) - 2, len(whole) - 1):
        journal.write_bytes(whole[:cut])
        study = load_study(config, "sweep")
        assert "torn" not in study.user_attrs
        study.set_user_attr("after", cut)
        attrs = load_study(config, "sweep").user_attrs
        assert attrs["after"] == cut
        assert attrs["metric"] == "val_loss"
        assert all(json.loads(line) for line in journal.read_bytes().splitlines())


def test_a_process_that_reads_on_after_a_torn_line_sees_what_others_write(config: RunConfig) -> None:
    reader, _ = open_study(config, SPACE, PHOTOS)
    with (study_folder(config) / "journal.log").open("ab") as journal:
        journal.write(b'{"op_code":2,"worker_id":"gone","study')
    assert reader.user_attrs["metric"] == "val_loss"
    load_study(config, "sweep").set_user_attr("other", 1)
    assert reader.user_attrs["other"] == 1
    reader.set_user_attr("own", 2)
    assert load_study(config, "sweep").user_attrs["own"] == 2


def test_a_writer_waits_for_the_lock_and_a_killed_process_gives_it_back(config: RunConfig) -> None:
    study, _ = open_study(config, SPACE, PHOTOS)
    lock = study_folder(config) / "journal.log.lock"
    with another_process(HOLD_A_LOCK, lock) as process, ThreadPoolExecutor(1) as thread:
        writing = thread.submit(study.set_user_attr, "after", 1)
        time.sleep(0.3)
        assert not writing.done()
        process.send_signal(signal.SIGKILL)
        process.wait()
        # Optuna's own locks would wait for 30 seconds.
        writing.result(timeout=5)
    assert lock.exists(), "the file stays; the lock must not"
    assert load_study(config, "sweep").user_attrs["after"] == 1


# Opening


def test_a_new_study_notes_what_it_was_made_with(config: RunConfig) -> None:
    study, target = open_study(config, SPACE, PHOTOS)
    assert target == 3
    assert study.direction.name == "MINIMIZE"
    assert study.user_attrs["metric"] == "val_loss"
    assert study.user_attrs["config"] == to_flat(config)
    assert (config.output_dir / "studies" / "sweep" / "journal.log").is_file()


def test_a_maximized_metric_makes_a_maximizing_study(tmp_path: Path) -> None:
    config = make_config(tmp_path, metric="val_accuracy", direction="maximize")
    assert open_study(config, SPACE, PHOTOS)[0].direction.name == "MAXIMIZE"


def test_a_study_that_was_killed_while_it_was_made_is_completed(config: RunConfig) -> None:
    optuna.create_study(study_name="sweep", storage=open_storage(config))
    study, target = open_study(config, SPACE, PHOTOS)
    assert target == 3
    assert study.user_attrs["config"] == to_flat(config)


@pytest.mark.parametrize(
    ("finished", "n_trials", "more", "target"),
    [
        (0, 3, 0, 3),
        (1, 3, 0, 3),
        (0, 3, 2, 3),  # of a study without finished trials, n_trials counts
        (1, 3, 2, 3),
        (2, 3, 2, 4),
        (3, 3, 0, 3),
        (3, 3, 2, 5),
        (3, 5, 0, 5),
        (3, 1, 0, 1),  # n_trials may be lowered
        (3, 1, 1, 4),
    ],
)
def test_how_many_trials_a_continued_study_ends_with(
    config: RunConfig, finished: int, n_trials: int, more: int, target: int
) -> None:
    run_trials(config, SPACE, finished)
    now = override(config, {"sweep.n_trials": n_trials})
    assert open_study(now, SPACE, PHOTOS, more=more)[1] == target
    assert open_study(now, SPACE, PHOTOS, more=more)[1] == target, "the same command goes on to the same end"


@pytest.mark.parametrize("finished_before", [0, 2])
def test_an_interrupted_addition_is_completed_before_another_begins(config: RunConfig, finished_before: int) -> None:
    run_trials(config, SPACE, finished_before)
    _, target = open_study(config, SPACE, PHOTOS, more=4)
    assert target == (finished_before + 4 if finished_before else 3)
    for _ in range(target - finished_before):
        assert open_study(config, SPACE, PHOTOS, more=4)[1] == target
        study, _ = open_study(config, SPACE, PHOTOS)
        finish(study, claim_trial(study, config, SPACE, target))
    assert open_study(config, SPACE, PHOTOS, more=4)[1] == target + 4


def test_a_failed_trial_is_replaced_by_another(config: RunConfig) -> None:
    study, target = open_study(config, SPACE, PHOTOS)
    for state in (TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED):
        finish(study, claim_trial(study, config, SPACE, target), state)
    finish(study, claim_trial(study, config, SPACE, target))
    assert claim_trial(study, config, SPACE, target) == NothingToClaim(done=True)
    assert (count_finished(study), count_failed(study)) == (3, 1)


def test_a_grid_has_no_other_point_for_one_that_failed(tmp_path: Path) -> None:
    config = make_config(tmp_path, sampler="grid", n_trials=8)
    study, target = open_study(config, GRID, PHOTOS)
    for number in range(8):
        finish(study, claim_trial(study, config, GRID, target), TrialState.FAIL if number == 3 else TrialState.COMPLETE)
    assert claim_trial(study, config, GRID, target) == NothingToClaim(done=True)


def test_fewer_than_no_more_trials_are_refused(config: RunConfig) -> None:
    run_trials(config, SPACE, 3)
    with pytest.raises(ValueError, match="more"):
        open_study(config, SPACE, PHOTOS, more=-1)


@pytest.mark.parametrize(
    "other",
    [
        {**SPACE, "data.batch_size": ChoiceRange((32, 64))},
        {**SPACE, "optimizer.weight_decay": FloatRange(0.0, 1.0)},
        {name: one for name, one in SPACE.items() if name != "model.dropout"},
        {**SPACE, "model.dropout": FloatRange(0.0, 0.6)},
    ],
    ids=["choices", "one more", "one less", "wider"],
)
def test_another_search_space_is_refused(config: RunConfig, other: SearchSpace) -> None:
    run_trials(config, SPACE, 1)
    with pytest.raises(ValueError, match=r"search must stay .* study 'sweep'.*sweep\.study_name"):
        open_study(config, other, PHOTOS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optimizer.weight_decay", 0.5),
        ("model.backbone", "resnet18"),
        ("model.weights", "none"),
        ("data.fraction", 0.5),
        ("data.image_size", 64),
        ("trainer.precision", "bf16-mixed"),
        ("trainer.early_stopping_patience", 3),
        ("seed", 1),
    ],
)
def test_another_config_is_refused_by_key(config: RunConfig, name: str, value: object) -> None:
    run_trials(config, SPACE, 1)
    rule = f"{name} must stay {to_flat(config)[name]!r} for study 'sweep'"
    with pytest.raises(ValueError, match=f"^{re.escape(rule)}.*, got {re.escape(repr(value))}$"):
        open_study(override(config, {name: value}), SPACE, PHOTOS)


def test_another_metric_is_refused(config: RunConfig) -> None:
    run_trials(config, SPACE, 1)
    other = override(config, {"sweep.metric": "val_accuracy", "sweep.direction": "maximize"})
    with pytest.raises(ValueError, match=r"^sweep\.metric must stay 'val_loss'"):
        open_study(other, SPACE, PHOTOS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sweep.n_trials", 9),
        ("sweep.timeout_seconds", 60.0),
        ("sweep.sampler", "tpe"),
        ("sweep.pruner", "median"),
        ("sweep.workers", 2),
        ("sweep.claim_timeout_seconds", 60.0),
        ("tracking.uri", "http://127.0.0.1:5000"),
        ("tracking.experiment", "other"),
        ("data.root", "elsewhere"),
        ("data.num_workers", 2),
        ("data.cache_dir", "elsewhere"),
        ("trainer.accelerator", "cpu"),
        ("trainer.compile", True),
        ("trainer.checkpoint_minutes", 5.0),
        ("search", "conf/search/head.yaml"),
        # The search decides it anyway.
        ("data.batch_size", 256),
    ],
)
def test_what_leaves_trials_comparable_may_change(config: RunConfig, name: str, value: object) -> None:
    run_trials(config, SPACE, 1)
    study, _ = open_study(override(config, {name: value}), SPACE, PHOTOS)
    assert len(study.trials) == 1


# Identity

CATS = Photos("c" * 64, ("Persian", "Siamese"), train=30, valid=6, test=0)


def journal(folder: Path) -> None:
    del folder


def sqlite(folder: Path) -> str:
    return f"sqlite:///{folder}/studies.db"


def finish_run(config: RunConfig, number: int, state: Literal["COMPLETE", "PRUNED", "FAIL"]) -> None:
    """The folder of a trial that has ended."""
    folder = trial_folder(config, number)
    folder.start(f"trial {number}", {}, {})
    folder.finish(Outcome(state))


@pytest.mark.parametrize("storage", [journal, sqlite])
def test_other_photos_are_refused_with_both_data_sets(tmp_path: Path, storage: Callable[[Path], str | None]) -> None:
    config = make_config(tmp_path, storage=storage(tmp_path))
    run_trials(config, SPACE, 1)
    with pytest.raises(UserError, match=r"^data\.root must hold the photos of study 'sweep': choose another") as caught:
        open_study(config, SPACE, CATS)
    for facts in ("ffffffffffff, 24 train", "Beagle, Poodle", "cccccccccccc, 30 train", "Persian, Siamese"):
        assert facts in str(caught.value)
    study, _ = open_study(config, SPACE, replace(PHOTOS))
    assert len(study.trials) == 1


@pytest.mark.parametrize("storage", [journal, sqlite])
@pytest.mark.parametrize("state", [None, TrialState.FAIL])
def test_a_study_without_a_finished_trial_holds_nobody_to_its_settings(
    tmp_path: Path, storage: Callable[[Path], str | None], state: TrialState | None
) -> None:
    config = make_config(tmp_path, storage=storage(tmp_path))
    study, target = open_study(config, SPACE, PHOTOS)
    claimed = claim_trial(study, config, SPACE, target)
    assert isinstance(claimed, Claim)
    finish_run(config, 0, "FAIL")
    if state is None:
        claimed.lock.release()  # its process was killed
    else:
        finish(study, claimed, state)
    corrected = override(config, {"model.backbone": "resnet18"})
    study, _ = open_study(corrected, {**SPACE, "model.dropout": FloatRange(0.0, 0.1)}, CATS)
    assert study.trials == []
    assert study.user_attrs["config"]["model.backbone"] == "resnet18"
    assert not trial_folder(config, 0).has_started
    assert RunFolder(study_folder(config) / "replaced-1" / "trials" / "0000").has_started


def test_a_maximizing_study_may_follow_a_minimizing_one_that_finished_no_trial(config: RunConfig) -> None:
    open_study(config, SPACE, PHOTOS)
    other = override(config, {"sweep.metric": "val_accuracy", "sweep.direction": "maximize"})
    assert open_study(other, SPACE, PHOTOS)[0].direction.name == "MAXIMIZE"


def test_a_study_that_somebody_works_on_is_not_replaced(config: RunConfig) -> None:
    study, target = open_study(config, SPACE, PHOTOS)
    held = claim_trial(study, config, SPACE, target)
    assert isinstance(held, Claim)
    with pytest.raises(
        UserError, match=r"sweep\.study_name must name a study that no other command works on.*trial 0 is being"
    ):
        open_study(override(config, {"seed": 1}), SPACE, PHOTOS)
    assert len(load_study(config, "sweep").trials) == 1
    held.lock.release()


def test_a_new_storage_does_not_take_over_the_trials_of_another_study(config: RunConfig, tmp_path: Path) -> None:
    run_trials(config, SPACE, 1)
    finish_run(config, 0, "COMPLETE")
    moved = {"sweep.storage": sqlite(tmp_path)}
    with pytest.raises(UserError, match=r"^seed must stay 0 for study 'sweep'"):
        open_study(override(config, {**moved, "seed": 1}), SPACE, PHOTOS)
    with pytest.raises(UserError, match=r"^data\.root must hold the photos"):
        open_study(override(config, moved), SPACE, CATS)


def test_a_study_moves_from_its_journal_to_a_database(config: RunConfig, tmp_path: Path) -> None:
    points = run_trials(config, SPACE, 2)
    study, _ = open_study(override(config, {"sweep.storage": sqlite(tmp_path)}), SPACE, PHOTOS)
    assert [trial.params for trial in study.trials] == points
    assert study.user_attrs["photos"]["fingerprint"] == PHOTOS.fingerprint
    study._storage.remove_session()


def test_a_trial_folder_of_other_settings_is_refused(config: RunConfig) -> None:
    identity, folder = StudyIdentity.of(config, SPACE, PHOTOS), trial_folder(config, 0)
    here = override(config, {"optimizer.learning_rate": 0.01})
    folder.start("trial 0", to_public(here), {}, study=identity.for_trial())
    identity.check_trial(folder, here)
    identity.check_trial(folder, override(here, {"data.root": "moved", "sweep.workers": 2}))
    with pytest.raises(UserError, match=r"learning_rate is 0\.01 there and 0\.02 here.*move that folder away"):
        identity.check_trial(folder, override(here, {"optimizer.learning_rate": 0.02}))
    with pytest.raises(UserError, match="it belongs to another study"):
        StudyIdentity.of(config, SPACE, CATS).check_trial(folder, here)


def test_an_identity_survives_its_file(config: RunConfig, tmp_path: Path) -> None:
    identity = StudyIdentity.of(config, SPACE, PHOTOS)
    assert read_identity(tmp_path / "study.json") is None
    write_identity(tmp_path / "study.json", identity)
    assert read_identity(tmp_path / "study.json") == identity


# Claiming


def test_a_claimed_trial_is_new_locked_and_inside_the_space(config: RunConfig) -> None:
    study, target = open_study(config, SPACE, PHOTOS)
    claimed = claim_trial(study, config, SPACE, target)
    assert isinstance(claimed, Claim)
    assert claimed.trial.number == 0
    assert claimed.folder.path == trial_folder(config, 0).path
    assert is_inside(claimed.point, SPACE)
    assert study.trials[0].params == claimed.point
    with pytest.raises(Timeout):
        FileLock(claimed.folder.path / "lock").acquire(timeout=0)


def test_nothing_is_claimed_once_all_trials_have_finished(config: RunConfig) -> None:
    run_trials(config, SPACE, 3)
    study, target = open_study(config, SPACE, PHOTOS)
    assert claim_trial(study, config, SPACE, target) == NothingToClaim(done=True, waiting_for=())
    assert len(study.trials) == 3


def test_a_trial_that_nobody_holds_is_taken_over_as_it_was_drawn(config: RunConfig) -> None:
    study, target = open_study(config, SPACE, PHOTOS)
    first = claim_trial(study, config, SPACE, target)
    assert isinstance(first, Claim)
    first.lock.release()
    study, target = open_study(config, SPACE, PHOTOS)
    again = claim_trial(study, config, SPACE, target)
    assert isinstance(again, Claim)
    assert (again.trial.number, again.point) == (0, first.point)
    assert len(study.trials) == 1


def test_a_free_trial_is_taken_over_even_where_no_new_one_may_start(config: RunConfig) -> None:
    study, target = open_study(config, SPACE, PHOTOS)
    assert claim_trial(study, config, SPACE, target, new=False) == NothingToClaim(done=True)
    first = claim_trial(study, config, SPACE, target)
    assert isinstance(first, Claim)
    first.lock.release()
    again = claim_trial(study, config, SPACE, target, new=False)
    assert isinstance(again, Claim)
    assert again.trial.number == 0


CLAIM_AND_WAIT = """
import sys
from pathlib import Path
from experiments.study.study import open_study
from experiments.study.trials import claim_trial
from tests.unit.experiments.study.test_study import PHOTOS, SPACE, make_config
config = make_config(Path(sys.argv[1]), n_trials=1)
study, target = open_study(config, SPACE, PHOTOS)
claimed = claim_trial(study, config, SPACE, target)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_a_trial_waits_for_its_process_and_is_taken_over_when_that_is_killed(tmp_path: Path) -> None:
    config = make_config(tmp_path, n_trials=1)
    with another_process(CLAIM_AND_WAIT, tmp_path) as process:
        study, target = open_study(config, SPACE, PHOTOS)
        assert claim_trial(study, config, SPACE, target) == NothingToClaim(
            done=False, waiting_for=(f"trial 0 on {platform.node()}",)
        )
        drawn = study.trials[0].params
        process.send_signal(signal.SIGKILL)
        process.wait()
    claimed = claim_trial(study, config, SPACE, target)
    assert isinstance(claimed, Claim)
    assert (claimed.trial.number, claimed.point) == (0, drawn)
    finish(study, claimed)
    assert claim_trial(study, config, SPACE, target) == NothingToClaim(done=True)


def test_a_held_trial_is_left_alone_and_a_new_one_starts_beside_it(config: RunConfig) -> None:
    study, target = open_study(config, SPACE, PHOTOS)
    first = claim_trial(study, config, SPACE, target)
    assert isinstance(first, Claim)
    first.lock.release()
    with FileLock(first.folder.path / "lock"):
        second = claim_trial(study, config, SPACE, target)
    assert isinstance(second, Claim)
    assert second.trial.number == 1


def test_threads_that_claim_at_once_share_the_trials(config: RunConfig) -> None:
    config = override(config, {"sweep.n_trials": 8})
    open_study(config, SPACE, PHOTOS)
    start, end = threading.Barrier(4, timeout=30), threading.Barrier(4, timeout=30)

    def work(_: int) -> list[int]:
        study, target = open_study(config, SPACE, PHOTOS)
        claims = []
        start.wait()
        while isinstance(claimed := claim_trial(study, config, SPACE, target), Claim):
            claims.append(claimed)
        assert not claimed.done
        end.wait()
        return [claimed.trial.number for claimed in claims]

    with ThreadPoolExecutor(4) as threads:
        numbers = [number for claimed_numbers in threads.map(work, range(4)) for number in claimed_numbers]
    assert sorted(numbers) == list(range(8))


def claim_until_done(folder: Path) -> list[int]:
    """In a process of its own: run trials until the study has them all."""
    config = make_config(folder, n_trials=12)
    study, target = open_study(config, SPACE, PHOTOS)
    numbers = []
    while True:
        claimed = claim_trial(study, config, SPACE, target)
        if isinstance(claimed, Claim):
            numbers.append(claimed.trial.number)
            finish(study, claimed)
        elif claimed.done:
            return numbers


@pytest.mark.slow
def test_processes_that_claim_at_once_share_the_trials(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as processes:
        numbers = [
            number for claimed_numbers in processes.map(claim_until_done, [tmp_path] * 2) for number in claimed_numbers
        ]
    assert sorted(numbers) == list(range(12))
    study = load_study(make_config(tmp_path), "sweep")
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 12


@pytest.mark.parametrize("storage", [journal, sqlite])
def test_the_lock_of_a_trial_decides_independent_of_the_host_name(
    tmp_path: Path, storage: Callable[[Path], str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path, storage=storage(tmp_path), n_trials=1)
    study, target = open_study(config, SPACE, PHOTOS)
    first = claim_trial(study, config, SPACE, target)
    assert isinstance(first, Claim)
    before = platform.node()
    monkeypatch.setattr(platform, "node", lambda: "a-new-container")
    assert claim_trial(study, config, SPACE, target) == NothingToClaim(False, (f"trial 0 on {before}",))
    first.lock.release()  # its process was killed
    again = claim_trial(study, config, SPACE, target)
    assert isinstance(again, Claim)
    assert (again.trial.number, again.point) == (0, first.point)
    again.lock.release()
    (again.folder.path / "claim").write_bytes(b"\xff\0")  # a damaged one is none
    assert isinstance(
        claim_trial(study, config, SPACE, target), Claim if config.sweep.storage is None else NothingToClaim
    )
    study._storage.remove_session()


def two_machines(tmp_path: Path, **values: object) -> tuple[RunConfig, RunConfig]:
    """Configs of two machines with disks of their own that share a database."""
    here, there = (make_config(tmp_path / name, storage=sqlite(tmp_path), **values) for name in ("here", "there"))
    return here, there


def test_another_machine_takes_a_trial_over_when_its_holder_was_silent_for_too_long(tmp_path: Path) -> None:
    here, there = two_machines(tmp_path, n_trials=1, claim_timeout_seconds=1.0)
    study, target = open_study(here, SPACE, PHOTOS)
    first = claim_trial(study, here, SPACE, target)
    assert isinstance(first, Claim)
    first.lock.release()  # it was killed, and the other machine cannot see that
    other, _ = open_study(there, SPACE, PHOTOS)
    waiting = NothingToClaim(False, (f"trial 0 on {platform.node()}",))
    assert claim_trial(other, there, SPACE, target) == waiting
    time.sleep(1.1)
    second = claim_trial(other, there, SPACE, target)
    assert isinstance(second, Claim)
    assert second.point == first.point
    assert claim_trial(study, here, SPACE, target) == waiting, "its old folder is no claim any more"
    study._storage.remove_session()
    other._storage.remove_session()


def test_a_heartbeat_keeps_a_claim_also_where_the_clocks_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = two_machines(tmp_path, n_trials=1, claim_timeout_seconds=0.6)
    study, target = open_study(here, SPACE, PHOTOS)
    first = claim_trial(study, here, SPACE, target)
    assert isinstance(first, Claim)
    other, _ = open_study(there, SPACE, PHOTOS)
    with HeldClaims([first], study._storage, here) as held:
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + 86_400)
        time.sleep(1.0)
        assert isinstance(claim_trial(other, there, SPACE, target), NothingToClaim)
        held.check()
    study._storage.remove_session()
    other._storage.remove_session()


def test_a_holder_that_returns_after_its_claim_was_taken_learns_of_it(tmp_path: Path) -> None:
    here, there = two_machines(tmp_path, n_trials=2, claim_timeout_seconds=0.4)
    study, target = open_study(here, SPACE, PHOTOS)
    claims = [claim_trial(study, here, SPACE, target) for _ in range(2)]
    assert isinstance(claims[0], Claim)
    assert isinstance(claims[1], Claim)
    time.sleep(0.5)  # a laptop that was closed
    other, _ = open_study(there, SPACE, PHOTOS)
    taken = claim_trial(other, there, SPACE, target)
    assert isinstance(taken, Claim)
    with HeldClaims(claims, study._storage, here) as held:
        held.confirm(1)
        with pytest.raises(ClaimLostError, match=r"trial 0 belongs to another process on .*claim_timeout_seconds"):
            held.confirm(0)
        with pytest.raises(ClaimLostError):
            held.check()
    finish(other, taken)
    study._storage.remove_session()
    other._storage.remove_session()


def test_a_trial_that_somebody_ended_is_not_told_again(tmp_path: Path) -> None:
    config = make_config(tmp_path, storage=sqlite(tmp_path), n_trials=1)
    study, target = open_study(config, SPACE, PHOTOS)
    claimed = claim_trial(study, config, SPACE, target)
    assert isinstance(claimed, Claim)
    with HeldClaims([claimed], study._storage, config) as held:
        study.tell(0, state=TrialState.FAIL)  # by hand
        with pytest.raises(ClaimLostError):
            held.give_back(0)
    study._storage.remove_session()


def test_a_trial_that_nobody_claimed_is_taken_over_after_the_timeout(tmp_path: Path) -> None:
    config = make_config(tmp_path, storage=sqlite(tmp_path), n_trials=1, claim_timeout_seconds=0.4)
    study, target = open_study(config, SPACE, PHOTOS)
    study.ask()  # and its process is killed
    waiting = NothingToClaim(done=False, waiting_for=("trial 0 on ?",))
    assert claim_trial(study, config, SPACE, target) == waiting, "somebody may be about to claim it"
    time.sleep(0.5)
    assert isinstance(claim_trial(study, config, SPACE, target), Claim)
    study._storage.remove_session()


# Times


def test_a_trial_took_as_long_as_its_run_after_the_clock_was_set_back() -> None:
    start = datetime(2026, 10, 25, 2, 59)
    trial = optuna.trial.create_trial(value=0.5)
    trial.datetime_start, trial.datetime_complete = start, start - timedelta(minutes=58)  # summer time has ended
    assert trial_seconds(trial) == 0.0
    trial.user_attrs = {DURATION_MS: 120_000}
    assert trial_seconds(trial) == 120.0
    trial.user_attrs, trial.datetime_complete = {}, None
    assert trial_seconds(trial) is None


# Databases that are locked, or away


def test_a_locked_database_is_waited_for_and_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(patience, "SILENT_SECONDS", 0.0)
    config = make_config(tmp_path, storage=sqlite(tmp_path))
    study, _ = open_study(config, SPACE, PHOTOS)
    with contextlib.closing(sqlite3.connect(tmp_path / "studies.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with ThreadPoolExecutor(1) as threads:
            written = threads.submit(study.set_user_attr, "key", "value")
            time.sleep(1.5)
            assert not written.done()
            other.execute("ROLLBACK")
            written.result(30)
    assert study.user_attrs["key"] == "value"
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("waiting for sweep.storage")]
    assert len(lines) == 1
    assert lines[0].endswith("for 2 min at most")
    study._storage.remove_session()


class _RestartingDriver:
    """Fails as psycopg does while its server restarts, in the middle of a transaction, then works again."""

    def __init__(self, storage: BaseStorage, times: int) -> None:
        self.left = times
        event.listen(storage._backend.engine, "before_cursor_execute", self.fail)

    def fail(self, *args: object) -> None:
        if self.left:
            self.left -= 1
            raise OperationalError("UPDATE", {}, Exception("server closed the connection unexpectedly"))


def test_a_call_is_made_again_from_its_beginning_when_its_database_restarts(tmp_path: Path) -> None:
    config = make_config(tmp_path, storage=sqlite(tmp_path))
    study, target = open_study(config, SPACE, PHOTOS)
    for number in range(2):
        driver = _RestartingDriver(study._storage, 3)
        claimed = claim_trial(study, config, SPACE, target)
        assert isinstance(claimed, Claim)
        assert driver.left == 0
        assert claimed.trial.number == number
        _RestartingDriver(study._storage, 3)
        finish(study, claimed)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2
    study._storage.remove_session()


# Drawing


@pytest.mark.parametrize(("sampler", "trials"), [("random", 4), ("tpe", 13), ("cmaes", 5)])
def test_an_interrupted_study_draws_what_it_would_have_drawn(tmp_path: Path, sampler: str, trials: int) -> None:
    whole = make_config(tmp_path / "whole", sampler=sampler, n_trials=trials)
    cut = make_config(tmp_path / "cut", sampler=sampler, n_trials=trials)
    assert run_trials(cut, SPACE, trials, reopen=True) == run_trials(whole, SPACE, trials)


def kill_after(drawn: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no process draw more than so many values."""
    suggest_one, count = Trial._suggest, itertools.count()

    def killed(trial: Trial, *arguments: object) -> object:
        if next(count) == drawn:
            raise KeyboardInterrupt
        return suggest_one(trial, *arguments)

    monkeypatch.setattr(Trial, "_suggest", killed)


@pytest.mark.parametrize("drawn", [0, 2])
@pytest.mark.parametrize("sampler", ["random", "tpe", "cmaes", "grid"])
def test_a_trial_that_was_cut_off_while_it_was_drawn_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str, drawn: int
) -> None:
    space = GRID if sampler == "grid" else SPACE
    [whole] = run_trials(make_config(tmp_path / "whole", sampler=sampler), space, 1)
    config = make_config(tmp_path / "cut", sampler=sampler)
    study, target = open_study(config, space, PHOTOS)
    with monkeypatch.context() as patch:
        kill_after(drawn, patch)
        with pytest.raises(KeyboardInterrupt):
            claim_trial(study, config, space, target)
    gc.collect()  # the lock goes with the frames that held it
    study, target = open_study(config, space, PHOTOS)
    noted = study.trials[0].params
    assert list(noted.items()) == list(whole.items())[:drawn]
    claimed = claim_trial(study, config, space, target)
    assert isinstance(claimed, Claim)
    assert claimed.trial.number == 0
    assert is_inside(claimed.point, space)
    assert study.trials[0].params == claimed.point
    assert claimed.point.items() >= noted.items()
    if drawn == 0 or sampler == "grid":
        assert claimed.point == whole, "it must draw what it would have drawn"


@pytest.mark.parametrize(
    ("sampler", "trials"),
    # TPE and GP draw at random for their first ten trials.
    [("random", 5), ("tpe", 12), ("gp", 12), ("cmaes", 6)],
)
def test_every_sampler_draws_inside_the_space(tmp_path: Path, sampler: str, trials: int) -> None:
    points = run_trials(make_config(tmp_path, sampler=sampler, n_trials=trials), SPACE, trials)
    assert all(is_inside(point, SPACE) for point in points)
    assert len({point["optimizer.learning_rate"] for point in points}) == trials


def test_a_grid_goes_through_all_combinations_once(tmp_path: Path) -> None:
    points = run_trials(make_config(tmp_path, sampler="grid", n_trials=8), GRID, 8)
    assert all(is_inside(point, GRID) for point in points)
    combinations = itertools.product(
        *(search_range.values for search_range in GRID.values() if isinstance(search_range, ChoiceRange))
    )
    assert sorted(map(str, (tuple(point.values()) for point in points))) == sorted(map(str, combinations))


def test_a_study_over_a_grid_ends_with_the_grid(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    size = math.prod(
        len(search_range.values) for search_range in GRID.values() if isinstance(search_range, ChoiceRange)
    )
    config = make_config(tmp_path, sampler="grid", n_trials=size + 5)
    assert len(run_trials(config, GRID, size)) == size
    assert f"the grid has {size} points" in caplog.text
    study, target = open_study(config, GRID, PHOTOS)
    assert claim_trial(study, config, GRID, target) == NothingToClaim(done=True)


def test_a_grid_of_ranges_is_refused(tmp_path: Path) -> None:
    config = make_config(tmp_path, sampler="grid")
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate must be a choice for sampler grid"):
        make_sampler(optuna.create_study(), config, SPACE, 0)


def test_another_seed_draws_other_points(tmp_path: Path) -> None:
    config = make_config(tmp_path / "0")
    other = override(config, {"seed": 1, "output_dir": tmp_path / "1"})
    assert run_trials(config, SPACE, 2) != run_trials(other, SPACE, 2)


@pytest.mark.parametrize("seed", [2**16, 2**31, 2**32 - 1])
def test_every_seed_that_torch_takes_can_draw(tmp_path: Path, seed: int) -> None:
    config = override(make_config(tmp_path), {"seed": seed})
    [point] = run_trials(config, SPACE, 1)
    assert is_inside(point, SPACE)


def test_a_drawn_point_is_read_back_and_makes_a_config(config: RunConfig) -> None:
    study, _ = open_study(config, {**SPACE, **GRID}, PHOTOS)
    trial = study.ask()
    drawn = suggest(trial, {**SPACE, **GRID})
    stored = load_study(config, "sweep")
    assert suggest(Trial(stored, trial._trial_id), {**SPACE, **GRID}) == drawn
    flat = to_flat(override(config, drawn))
    assert {name: (type(flat[name]), flat[name]) for name in drawn} == {
        name: (type(value), value) for name, value in drawn.items()
    }


# Pruning


def pruned_after(pruner: optuna.pruners.BasePruner) -> list[int]:
    """Epochs after which trials are pruned that are worse than all those before them."""
    study = optuna.create_study(pruner=pruner)
    pruned = []
    for number in range(24):
        trial = study.ask()
        for epoch in range(1, 10):
            trial.report(float(number), epoch)
            if trial.should_prune():
                pruned.append(epoch)
                break
        study.tell(trial, float(number))
    return pruned


@pytest.mark.parametrize(
    ("name", "kind", "prunes"),
    [("hyperband", HyperbandPruner, True), ("median", MedianPruner, True), ("none", NopPruner, False)],
)
def test_pruners_act_on_trials_that_fall_behind(tmp_path: Path, name: str, kind: type, prunes: bool) -> None:
    config = override(make_config(tmp_path, pruner=name), {"trainer.max_epochs": 9})
    pruner = make_pruner(config)
    assert type(pruner) is kind
    assert bool(pruned_after(pruner)) is prunes


def test_hyperband_takes_a_run_of_one_epoch(tmp_path: Path) -> None:
    config = override(make_config(tmp_path, pruner="hyperband"), {"trainer.max_epochs": 1})
    trial = optuna.create_study(pruner=make_pruner(config)).ask()
    trial.report(1.0, 1)
    assert trial.should_prune() in (False, True)


# Finding a study again


def test_the_best_config_has_the_best_trials_settings(config: RunConfig) -> None:
    study, _ = open_study(config, SPACE, PHOTOS)
    assert best_trial(study) is None
    with pytest.raises(ValueError, match="study 'sweep' has no complete trial yet"):
        best_config(study, config)
    points = run_trials(config, SPACE, 3)
    best = min(points, key=objective)
    found, trial = best_config(load_study(config, "sweep"), config)
    assert found == override(config, best)
    assert trial.params == best


@pytest.mark.parametrize("storage", [journal, sqlite])
def test_an_unknown_study_is_refused_with_those_there_are(
    tmp_path: Path, storage: Callable[[Path], str | None]
) -> None:
    config = make_config(tmp_path, storage=storage(tmp_path))
    for name in ("digits", "dogs"):
        study, _ = open_study(override(config, {"sweep.study_name": name}), SPACE, PHOTOS)
        study._storage.remove_session()
    with pytest.raises(ValueError, match=r"study must exist .*'cats'") as error:
        load_study(config, "cats")
    assert "digits" in str(error.value)
    assert "dogs" in str(error.value)
    assert not study_folder(override(config, {"sweep.study_name": "cats"})).exists()


def test_a_folder_without_a_study_in_it_is_not_said_to_be_in_a_database(config: RunConfig) -> None:
    study_folder(config).mkdir(parents=True)
    with pytest.raises(ValueError, match="'sweep'") as error:
        load_study(config, "sweep")
    assert "sweep.storage" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:secret@127.0.0.1:1/db",
        "postgresql+psycopg://user:s3%40secret@127.0.0.1:1/db",
        "postgresql://127.0.0.1:1/db?user=user&password=secret",
        "nonsense://user:secret@127.0.0.1:1/db",
        "mysql://user:secret@127.0.0.1:1/db",
    ],
)
def test_a_password_in_the_storage_url_is_never_shown(tmp_path: Path, url: str) -> None:
    config = make_config(tmp_path, storage=url)
    with pytest.raises(ValueError, match=r"sweep\.storage must be a database that answers") as error:
        open_study(config, SPACE, PHOTOS)
    assert "127.0.0.1:1/db" in str(error.value)
    assert "secret" not in "".join(traceback.format_exception(error.value))


def test_a_study_that_has_begun_waits_for_its_database_when_a_command_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_storage, "STORAGE_SECONDS", 0.5)
    config = make_config(tmp_path, storage="postgresql+psycopg://user:hush@127.0.0.1:1/db")
    config = override(config, {"tracking.flush_timeout_seconds": 0.5})
    with pytest.raises(UserError, match="must be a database that answers"):
        open_storage(config)
    study_folder(config).mkdir(parents=True)
    (study_folder(config) / "study.json").write_text("{}")
    started = time.monotonic()
    with pytest.raises(
        SweepError, match=r"127\.0\.0\.1:1/db was locked by another process, or did not answer, for 0\.5"
    ):
        open_storage(config)
    assert time.monotonic() - started >= 0.5


def test_a_study_that_has_begun_does_not_wait_for_a_host_that_does_not_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_such_host(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_such_host)
    config = make_config(tmp_path, storage="postgresql+psycopg://user:hush@typo.example/db")
    study_folder(config).mkdir(parents=True)
    (study_folder(config) / "study.json").write_text("{}")
    with pytest.raises(UserError, match=r"sweep\.storage must name a host that exists, got 'typo\.example'") as error:
        open_storage(config)
    assert "hush" not in "".join(traceback.format_exception(error.value))


def test_a_database_that_accepts_and_stays_silent_is_refused_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_storage, "CONNECT_SECONDS", 2)  # the least that libpq takes
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql+psycopg://user:hush@127.0.0.1:{silent.getsockname()[1]}/db"
        started = time.monotonic()
        with pytest.raises(UserError, match=r"sweep\.storage must be a database that answers"):
            open_storage(make_config(tmp_path, storage=url))
        assert time.monotonic() - started < 30
