"""The publisher process: draws finished runs and sends MLflow what it lacks of run folders.

It only reads what the training processes write, so nothing waits for it, and a new process continues where a killed
one stopped. A run is done when MLflow has everything of it: see `RunFolder.is_published`.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

from filelock import Timeout

from experiments.config import tracking_uri
from experiments.console import say
from experiments.errors import TrackingError
from experiments.runs.folder import RunFolder
from experiments.tracking.drawers import drawn, open_drawers
from experiments.tracking.publisher import Phase, Publication, run_groups
from experiments.tracking.store import AWAY, RunStore, is_refusal, reason, wait_for_store
from experiments.tracking.system_metrics import SystemMonitor
from lightning_modules.locks import KernelLock

PUBLISH_SECONDS = 2.0
"""How often running runs are brought up to date in MLflow."""
SYSTEM_METRICS_SECONDS = 10.0
"""How often the machine is sampled; MLflow's own default."""
REGISTER_SECONDS = 60.0
"""How long this machine may compute to register a model: MLflow copies the export and packs it."""
MODEL_FILES = 10
"""Files that MLflow adds to a model (3.17.2: seven), and requests beside them."""
_Item = TypeVar("_Item")


def publish(publication: Publication, connection: Connection) -> None:
    """Publish run folders until the last phase comes over the connection, then do what it says.

    Args:
        connection: receives the last phase. Before each call to MLflow it is sent the seconds that the call may
            take, afterwards infinity; and at the end a text, which is empty or says what went wrong.
    """
    os.nice(5)
    holder, phase = KernelLock(publication.lock), Phase.FOLLOW
    while not holder.is_locked and phase is not Phase.INTERRUPTED:
        try:
            holder.acquire(timeout=PUBLISH_SECONDS)
        except Timeout:  # another process publishes these folders
            if connection.poll():
                phase = connection.recv()
    if not holder.is_locked:
        connection.send("")
        return
    with holder, open_drawers() as drawers:
        work = _Work(publication, connection, drawers)
        while phase is Phase.FOLLOW:
            work.update()
            if connection.poll(PUBLISH_SECONDS):
                phase = connection.recv()
        try:
            if phase is Phase.FINISH:
                work.finish()
            else:
                work.interrupt()
            connection.send("")
        except TrackingError as error:
            connection.send(str(error))


class _Work:
    """The run folders of one publisher."""

    def __init__(self, publication: Publication, connection: Connection, drawers: ThreadPoolExecutor) -> None:
        self._config, self._publication = publication.config, publication
        self._connection, self._drawers = connection, drawers
        self._parent = RunFolder(publication.parent) if publication.parent else None
        self._limit = self._config.tracking.flush_timeout_seconds
        self._store: RunStore | None = None
        self._parent_run_id: str | None = None
        self._monitor, self._sampled = SystemMonitor(), -math.inf
        self._said: dict[str, str] = {}
        self._done: set[Path] = set()
        """Folders that MLflow has completely; they are checked again at the end only."""

    def update(self) -> None:
        """Bring MLflow up to date, as far as it answers, until the last phase comes."""
        sample: Mapping[str, float] | None = None
        if time.monotonic() - self._sampled >= SYSTEM_METRICS_SECONDS:
            self._sampled, sample = time.monotonic(), self._monitor.sample()
        try:
            store = self._ask(self._open)
        except AWAY as error:
            self._say_once("store", error)
            return
        for folder in drawn(self._folders(but=self._done), self._drawers):
            if self._connection.poll():
                return
            self._record_system(folder, sample)
            try:
                self._ask(partial(store.push, folder, self._parent_run_id))
                self._said.pop(folder.path.name, None)
            except AWAY as error:
                self._say_once(folder.path.name, error)
                if not is_refusal(error):
                    return
            # A run may end, or be drawn, at any moment. The next call sends what this one missed.
            if folder.is_published:
                self._done.add(folder.path)

    def finish(self) -> None:
        """Publish everything that has ended, and register the model of a single run.

        Raises:
            TrackingError: if MLflow does not answer, or refuses a run.
        """
        store = self._ask(partial(wait_for_store, self._open, self._config))
        refusals: list[TrackingError] = []
        for folder in self._ended():
            if folder is not self._parent and folder.path not in self._done:
                self._record_system(folder, None)
            try:
                while folder.path not in self._done or not folder.is_published:
                    self._ask(partial(store.push_or_wait, folder, self._parent_run_id))
                    self._done.add(folder.path)
            except TrackingError as error:
                if not error.is_refusal:
                    raise
                refusals.append(error)  # MLflow takes the others
        if self._parent is not None and self._parent.outcome is None:
            self._ask(partial(store.wait, partial(store.push_killed, self._parent), self._parent))
        if refusals:
            raise refusals[0]
        if self._publication.registers:
            self._register(store, RunFolder(self._publication.runs))
        self._refill(store)

    def interrupt(self) -> None:
        """Publish complete runs and mark the others as killed in MLflow, without waiting."""
        try:
            store = self._ask(self._open)
            for folder in [*self._folders(), *([self._parent] if self._parent else [])]:
                parent_run_id = None if folder is self._parent else self._parent_run_id
                if folder.outcome is None:
                    self._ask(partial(store.push_killed, folder, parent_run_id))
                elif folder.path not in self._done and not folder.needs_drawing:
                    self._ask(partial(store.push, folder, parent_run_id))
        except AWAY as error:
            say(f"{self._mlflow} did not hear that the command was interrupted: {reason(error, self._uri)}")

    def _open(self) -> RunStore:
        """The store, as soon as it answers and has the parent's run."""
        if self._store is None:
            store = RunStore(self._config, before_call=self._before_call)
            if self._parent is not None:
                self._parent_run_id = store.push(self._parent)
            self._done = store.find_complete(self._folders())
            self._store = store
        return self._store

    def _folders(self, but: Set[Path] = frozenset()) -> list[RunFolder]:
        """The folders of runs that have started, but for some, which are not read."""
        runs = self._publication.runs
        folders = [RunFolder(path) for path in sorted(runs.parent.glob(runs.name)) if path not in but]
        return [folder for folder in folders if folder.has_started]

    def _ended(self) -> Iterator[RunFolder]:
        """The folders of runs that have ended, drawn; the parent's last."""
        yield from drawn([folder for folder in self._folders() if folder.outcome is not None], self._drawers)
        if self._parent is not None and self._parent.outcome is not None:
            yield self._parent

    def _record_system(self, folder: RunFolder, sample: Mapping[str, float] | None) -> None:
        """Record a sample of system metrics in a running run, and once in a run that had ended before."""
        if (sample and folder.outcome is None) or not folder.system_lines():
            folder.record_system(sample or self._monitor.sample())

    def _register(self, store: RunStore, folder: RunFolder) -> None:
        if folder.outcome is None or folder.outcome.state != "COMPLETE" or folder.published.model_uri is not None:
            return
        from experiments.tracking.registry import register  # imports pandas and MLflow's models

        self._limit = seconds_to_register(folder.export, self._limit)
        name = self._config.tracking.experiment
        self._ask(partial(store.wait, partial(register, store, folder, name=name), folder))

    def _refill(self, store: RunStore) -> None:
        """Publish what MLflow lacks of this experiment's other runs, for example after its database was deleted.

        A run that was deleted in MLflow's UI stays deleted.
        """
        groups = [group for group in run_groups(self._config) if group.lock != self._publication.lock]
        try:
            known = self._ask(partial(store.find_known, [folder for group in groups for folder in group.runs]))
            for group in groups:
                lacking = [folder for folder in group.runs if folder.path not in known and not folder.needs_drawing]
                lock = KernelLock(group.lock)
                if not lacking or self._connection.poll() or not lock.try_acquire():
                    continue
                try:
                    parent_run_id = self._ask(partial(store.push_killed, group.parent)) if group.parent else None
                    for folder in lacking:
                        self._ask(partial(store.push, folder, parent_run_id))
                finally:
                    lock.release()
        except AWAY as error:  # the command has done its own work
            say(
                f"{self._mlflow} does not take an earlier run, the next command tries again: {reason(error, self._uri)}"
            )

    def _ask(self, call: Callable[[], _Item]) -> _Item:
        """Make calls to MLflow, each of which announces how long it may take."""
        try:
            return call()
        finally:
            self._connection.send(math.inf)

    def _before_call(self) -> None:
        self._connection.send(self._limit)

    def _say_once(self, topic: str, error: BaseException) -> None:
        text = f"{self._mlflow} does not take a run, training continues: {reason(error, self._uri)}"
        if self._said.get(topic) != text:
            say(text)
        self._said[topic] = text

    @property
    def _uri(self) -> str:
        return tracking_uri(self._config)

    @property
    def _mlflow(self) -> str:
        return f"MLflow at {self._uri}"


def seconds_to_register(export: Path, seconds: float) -> float:
    """How long registering a model may take: MLflow uploads its files one after the other, in one call.

    Args:
        seconds: how long one request may take.
    """
    return REGISTER_SECONDS + seconds * (MODEL_FILES + sum(path.is_file() for path in export.rglob("*")))
