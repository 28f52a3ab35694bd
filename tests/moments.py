"""Kills a sweep at seeded moments, changes the machine around it, runs it again and compares.

python -m tests.moments PHOTOS FOLDER COUNT      prints one line of JSON

Between a kill and the same command the machine gets another name, the runs folder is moved, or the study's database is
restarted in the middle of its work. Moments are boundaries of `tests/kills.py`, drawn with a seed.
"""

from __future__ import annotations

import json
import os
import platform
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage

from experiments.config import RunConfig, load_config, override
from experiments.study.study import load_study
from experiments.task import task_of
from tests.conftest import tiny
from tests.kills import SEARCH, Boundaries, differences, in_a_child, left, prepare_process
from tests.postgres import Server, find_binaries, running_server

SEED = 20
WRITES = (
    *("_create_new_trial", "_set_trial_param", "set_trial_intermediate_value", "set_trial_state_values"),
    "set_trial_system_attr",
)
"""What writes to a study's database, but for heartbeats, which come by a clock."""


def watch_database() -> None:
    """Let a write to a database be a boundary too."""
    install = Boundaries.install

    def installing(boundaries: Boundaries) -> None:
        install(boundaries)
        for name in WRITES:
            method = getattr(RDBStorage, name)
            setattr(RDBStorage, name, boundaries.around(method, lambda *_, name=name, **__: f"database {name}"))

    Boundaries.install = installing  # type: ignore[assignment]


def change_the_machine(change: str, config: RunConfig, moment: int) -> RunConfig:
    """What happens to the machine between a kill and the same command."""
    if change == "host":
        name = f"box-{moment}"
        platform.node = lambda: name  # children are forked from here
    if change == "moved":
        moved = config.output_dir.with_name(f"moved to {moment}")
        config.output_dir.rename(moved)
        return override(config, {"output_dir": moved})
    return config


@contextmanager
def restarting(server: Server | None) -> Iterator[None]:
    """Restart a database in the middle of what is done while this is entered."""
    restarts = 0 if server is None else os.fork()  # this process has no threads, and must not have any
    if server is not None and restarts == 0:
        try:
            time.sleep(0.5)
            server.control("stop")
            server.control("start")
        finally:
            os._exit(0)
    try:
        yield
    finally:
        if restarts:
            os.waitpid(restarts, 0)


def try_moments(config: RunConfig, count: int, server: Server | None) -> dict[str, Any]:
    """Kill a sweep at `count` moments, a third for each kind of change, and compare."""
    started, draw = time.monotonic(), random.Random(SEED)
    url = server.url if server else f"sqlite:///{config.output_dir}/study.db"
    config.output_dir.mkdir(parents=True, exist_ok=True)
    # A kill may come between a trial's creation and its claim.
    shared = override(config, {"sweep.storage": url, "sweep.claim_timeout_seconds": 1.0})
    names: dict[str, list[str]] = {}
    expected: dict[str, Any] = {}
    for where, base_config in (("journal", config), ("database", shared)):
        whole = override(base_config, {"output_dir": config.output_dir / where})
        _, names[where] = in_a_child("pruning", whole, 0)
        found = left("pruning", whole)
        assert not expected or differences(expected, found, exact=True) == [], "a database changes no metric"
        expected = found
    optuna.delete_study(study_name="tiny", storage=url)
    differing: list[str] = []
    moments: list[str] = []
    for number in range(count):
        change = ("host", "moved", "database")[number % 3]
        where, base = ("database", shared) if change == "database" else ("journal", config)
        boundary = draw.randrange(len(names[where]))
        cut = override(base, {"output_dir": config.output_dir / f"cut {number}"})
        ended_by, _ = in_a_child("pruning", cut, boundary + 1)
        assert ended_by == signal.SIGKILL, (change, boundary, names[where][boundary])
        moments.append(f"{change}: {names[where][boundary]}")
        cut = change_the_machine(change, cut, number)
        with restarting(server if change == "database" else None):
            in_a_child("pruning", cut, 0)
        trials, found = load_study(cut, "tiny").trials, left("pruning", cut)
        states = Counter(trial.state.name for trial in trials)
        if states["COMPLETE"] + states["PRUNED"] != cut.sweep.n_trials or len(trials) != cut.sweep.n_trials:
            differing.append(f"{moments[-1]}: {dict(states)}")
        if change == "database":
            optuna.delete_study(study_name="tiny", storage=url)  # Hyperband decides by a study's name
        differing += [f"{moments[-1]}: {difference}" for difference in differences(expected, found, exact=True)]
        if (config.output_dir / f"cut {number}").exists() and change == "moved":
            differing.append(f"{moments[-1]}: something was written into the old place")
    seconds = round(time.monotonic() - started, 1)
    return {"kills": len(moments), "moments": moments, "metrics": len(expected), "differing": differing} | {
        "server": server is not None,
        "seconds": seconds,
    }


def main(photos: Path, folder: Path, count: int) -> None:
    """Try moments."""
    prepare_process()
    watch_database()
    config = load_config(None, tiny(photos, folder) | SEARCH)
    child = os.fork()  # this process computes nothing: threads do not survive a fork
    if child == 0:
        task_of(config).open()
        os._exit(0)
    os.waitpid(child, 0)
    binaries = find_binaries()
    with running_server(binaries) if binaries else nullcontext(None) as server:
        print(json.dumps(try_moments(config, count, server)), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
