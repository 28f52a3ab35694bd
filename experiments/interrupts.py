"""Stop work between two batches: after the first Ctrl-C (the second one stops at once), or if a check fails."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import Any

from pytorch_lightning.callbacks import Callback

from experiments.errors import EXIT_INTERRUPTED, STOP_SIGNALS, InterruptedRunError


class Watch(Callback):
    """Calls a check after each batch, which raises if something else has failed."""

    def __init__(self, check: Callable[[], None]) -> None:
        self.check = check

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Check."""
        self.check()

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Check."""
        self.check()


class Interrupts:
    """A context manager in which signals request a stop. It does nothing outside of the main thread."""

    def __init__(self, signals: Sequence[int] = STOP_SIGNALS) -> None:
        self.requested = False
        self._signals = signals
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        _entered.append(self)
        if threading.current_thread() is threading.main_thread():
            for number in self._signals:
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        _entered.remove(self)

    def raise_if_requested(self) -> None:
        """Raise if a stop was requested.

        Raises:
            InterruptedRunError: if so.
        """
        if self.requested:
            raise InterruptedRunError

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self.requested and hasattr(sys, "ps1"):
            raise InterruptedRunError  # a notebook or a Python prompt keeps running
        if self.requested:
            # No clean-up: checkpoints and run folders are whole at any moment.
            os._exit(EXIT_INTERRUPTED)
        self.requested = True
        # Not print: the signal may interrupt a print of the main thread, and a buffer can't be entered twice.
        with contextlib.suppress(OSError):  # `train 2>&1 | tee log`: the same Ctrl-C has ended tee
            os.write(2, b"\nstopping after this batch; once more to stop at once\n")


_entered: list[Interrupts] = []


def raise_if_interrupted() -> None:
    """Raise if this process was asked to stop. Long work calls it after each batch.

    Raises:
        InterruptedRunError: if so.
    """
    for interrupts in _entered:
        interrupts.raise_if_requested()
