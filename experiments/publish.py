"""What the publisher process does: draw finished runs and keep MLflow up to date with run folders, while others train.

It only reads what the training processes write, so that nothing waits for it, and a new one takes up where one that was
killed left off.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

from filelock import FileLock, Timeout

from experiments.config import RunConfig, public_url
from experiments.drawing import drawn, open_drawers
from experiments.errors import TrackingError
from experiments.run_folder import RunFolder
from experiments.tracking import AWAY, RunStore, SystemMonitor, first_line

PUBLISH_SECONDS = 2.0
"""How often running runs are brought up to date in MLflow."""
SYSTEM_METRICS_SECONDS = 10.0
"""How often the machine is sampled; MLflow's own default."""


def publish(config: RunConfig, runs: Path, lock: Path, parent: Path | None, connection: Connection) -> None:
    """Publish run folders until a word comes over the connection, then all that have ended.

    Args:
        runs: a run folder, or a glob pattern of them.
        lock: of two processes that publish the same folders, one works and the other waits for it.
        parent: the run folder of the study that they belong to.
        connection: gets "" when MLflow has answered and "" at the end, or what went wrong; gives `finish`, or
            `interrupted` if the runs that have not ended go on later.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the training process says what they mean
    os.nice(5)
    try:
        store = RunStore(config)
        connection.send("")
        holder, word = FileLock(lock, is_singleton=False), ""
        while not holder.is_locked:
            try:
                holder.acquire(timeout=PUBLISH_SECONDS)
            except Timeout:
                word = word or (connection.recv() if connection.poll() else "")
                if word == "interrupted":
                    return
        with holder, open_drawers() as drawers:
            _publish(store, runs, RunFolder(parent) if parent else None, connection, word, drawers)
        connection.send("")
    except TrackingError as error:
        connection.send(str(error))


def _publish(
    store: RunStore,
    runs: Path,
    parent: RunFolder | None,
    connection: Connection,
    word: str,
    drawers: ThreadPoolExecutor,
) -> None:
    parent_run_id = store.push_or_wait(parent) if parent else None
    monitor, sampled, away = SystemMonitor(), 0.0, False
    done: set[Path] = set()
    while not word:
        word = connection.recv() if connection.poll(PUBLISH_SECONDS) else ""
        sample: Mapping[str, float] | None = None
        if time.monotonic() - sampled >= SYSTEM_METRICS_SECONDS:
            sampled, sample = time.monotonic(), monitor.sample()
        for folder in drawn(_folders(runs, done), drawers):
            # One that has ended since the drawers began is done the next time.
            ended = folder.outcome is not None and not folder.is_undrawn
            if not (ended and folder.is_published):
                if sample or not folder.system_lines():
                    sample = sample or monitor.sample()
                    folder.record_system(sample)
                try:
                    store.push(folder, parent_run_id)
                    away = False
                except AWAY as error:
                    if not away:
                        text = f"MLflow at {public_url(store.uri)} is away, training goes on: {first_line(error)}"
                        print(text, file=sys.stderr, flush=True)
                    away = True
                    break
            if ended:
                done.add(folder.path)
    left = _folders(runs, done)
    for folder in drawn([one for one in left if one.outcome is not None], drawers):
        store.push_or_wait(folder, parent_run_id)
    if parent is not None and word == "finish":
        store.push_or_wait(parent)
    if word == "interrupted":
        for folder in [*left, *([parent] if parent else [])]:
            if folder is parent or folder.outcome is None:
                store.set_status(folder, "KILLED")


def _folders(runs: Path, done: set[Path]) -> list[RunFolder]:
    folders = [RunFolder(path) for path in sorted(runs.parent.glob(runs.name)) if path not in done]
    return [folder for folder in folders if folder.exists]
