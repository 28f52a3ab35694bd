"""The holder of a trial: it has the lock of the trial's folder, and in a database also writes a heartbeat.

The kernel releases the lock when its holder dies, independent of the host's name. A machine that shares only
the study's database does not see that lock. It takes a trial over when its holder has written no heartbeat for
`sweep.claim_timeout_seconds`. A holder may have been suspended or cut off for so long: it asks the database before it
tells anything, and stops when another one has the trial.
"""

from __future__ import annotations

import platform
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial

from experiments.config import RunConfig
from experiments.errors import CommandError, InterruptedRunError
from experiments.runs.folder import RunFolder
from experiments.study.optuna_private import id_of
from experiments.study.search_space import Point
from experiments.study.storage import database_seconds
from lightning_modules.locks import KernelLock

CLAIM = "claim"
"""User attribute of a trial: its holder. Also the file in the trial's folder that says for which holder it was made."""
UNCLAIMED = "unclaimed_since"
"""User attribute of a running trial that was found without a holder: when that was, by the database's clock."""
BEAT_SECONDS = 30.0
"""Most seconds between two heartbeats; a quarter of `sweep.claim_timeout_seconds` if that is less."""

LAST_BEAT_SECONDS = 5.0
"""How long the end of a claim waits for a heartbeat that is being written: the database may not answer."""


class ClaimLostError(CommandError):
    """Another process has taken over a trial of this process."""


@dataclass(frozen=True)
class Holder:
    """The holder of a trial, as the study stores it."""

    key: str
    host: str
    """For messages only: a container that is created again has another host name."""
    seconds: float
    """Time of the last heartbeat, by the database's clock; 0 in a journal."""

    @classmethod
    def of(cls, attributes: Mapping[str, Any]) -> Holder:
        """The holder that a trial's user attributes name; its key is empty if there is none."""
        return cls(**attributes.get(CLAIM, {"key": "", "host": "?", "seconds": 0.0}))


@dataclass(frozen=True)
class Claim:
    """A trial that this process works on, and its lock, which the kernel releases when the process dies."""

    trial: Trial
    point: Point
    folder: RunFolder
    lock: KernelLock
    key: str
    """The holder's key in the study's storage."""


def is_claimed_here(trial: FrozenTrial, folder: RunFolder, config: RunConfig) -> bool:
    """Whether a running trial was claimed with this folder, so that its lock says whether a process works on it."""
    claim_file = folder.path / CLAIM
    if config.sweep.storage is None:
        return True
    return claim_file.is_file() and claim_file.read_bytes() == Holder.of(trial.user_attrs).key.encode()


def is_abandoned(trial: FrozenTrial, folder: RunFolder, storage: BaseStorage, config: RunConfig) -> bool:
    """Whether a running trial has no holder, provided that the lock of its folder is free."""
    if is_claimed_here(trial, folder, config):
        return True
    holder = Holder.of(trial.user_attrs)
    now = database_seconds(storage)
    since = holder.seconds or trial.user_attrs.get(UNCLAIMED)
    if since is None:  # a process may be about to claim it
        storage.set_trial_user_attr(id_of(trial), UNCLAIMED, now)
        return False
    return float(now - since) > config.sweep.claim_timeout_seconds


def acquire_trial(
    trial: Trial | FrozenTrial, folder: RunFolder, storage: BaseStorage, config: RunConfig
) -> tuple[KernelLock, str] | None:
    """Become the holder of a trial that has none: the lock and the holder's key, or None if its folder is locked."""
    lock = lock_trial(folder)
    if lock is None:
        return None
    key, is_shared = uuid.uuid4().hex, config.sweep.storage is not None
    (folder.path / CLAIM).write_text(key)
    _note(storage, trial, Holder(key, platform.node(), database_seconds(storage) if is_shared else 0.0))
    return lock, key


def lock_trial(folder: RunFolder) -> KernelLock | None:
    """Lock a trial's folder; None if another process has done so."""
    folder.path.mkdir(parents=True, exist_ok=True)
    lock = KernelLock(folder.path / "lock")
    return lock if lock.try_acquire() else None


def _note(storage: BaseStorage, trial: Trial | FrozenTrial, holder: Holder) -> None:
    storage.set_trial_user_attr(id_of(trial), CLAIM, asdict(holder))


class HeldClaims:
    """A context manager in which a thread writes a heartbeat of each claim to the study's database.

    With a journal the locks are enough, and no heartbeat is written. On exit the locks of the claims are released.
    """

    def __init__(self, claims: Sequence[Claim], storage: BaseStorage, config: RunConfig) -> None:
        self._claims = {claimed.trial.number: claimed for claimed in claims}
        self._locks = [claimed.lock for claimed in claims]
        self._storage = storage
        self.lost: Claim | None = None
        """The first claim that another process was found to hold."""
        self._reason = ""
        self._is_shared = config.sweep.storage is not None
        self._seconds = min(BEAT_SECONDS, config.sweep.claim_timeout_seconds / 4)
        self._writing, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)

    def __enter__(self) -> HeldClaims:
        if self._is_shared:
            self._thread.start()
        return self

    def __exit__(
        self, exception_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        # A heartbeat that is under way would take the trial from its next holder.
        if self._writing.acquire(timeout=LAST_BEAT_SECONDS):
            self._claims.clear()
            self._writing.release()
        for lock in self._locks:
            lock.release()

    def check(self) -> None:
        """Raise if a heartbeat has found another holder. Costs nothing.

        Raises:
            ClaimLostError: if so.
        """
        if self.lost is not None:
            raise ClaimLostError(self._reason)

    def confirm(self, number: int) -> None:
        """Ask the database whether this process still holds a trial, before anything is reported about it.

        Raises:
            ClaimLostError: if it is not.
        """
        if self._is_shared:
            self._beat(number)
        self.check()

    def give_back(self, number: int) -> None:
        """End the heartbeat of a trial whose outcome Optuna is about to be told.

        Raises:
            ClaimLostError: if another process holds it.
        """
        self.confirm(number)
        with self._writing:
            self._claims.pop(number)

    def _beat_on(self) -> None:
        while not self._ended.wait(self._seconds):
            for number in list(self._claims):
                try:
                    self._beat(number)
                except (CommandError, InterruptedRunError):
                    break  # the training thread gets the same error and reports it

    def _beat(self, number: int) -> None:
        with self._writing:
            claimed = self._claims.get(number)
            if claimed is None or self.lost is not None:
                return
            trial = self._storage.get_trial(id_of(claimed.trial))
            holder = Holder.of(trial.user_attrs)
            if holder.key == claimed.key and not trial.state.is_finished():
                try:
                    seconds = database_seconds(self._storage)
                    _note(self._storage, trial, Holder(claimed.key, holder.host, seconds))
                    return
                except UpdateFinishedTrialError:
                    pass  # it has ended since
            self._reason = (
                f"trial {number} belongs to another process on {holder.host}, as this one was silent for longer than "
                "sweep.claim_timeout_seconds: it is left to that one"
            )
            self.lost = claimed
