"""No command ends without saying what is still running, and costs money."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

from experiments.cli import explanation
from experiments.console import say
from experiments.errors import CommandError

ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
"""What ends a command whose terminal or machine goes away."""


class StillRunningError(CommandError):
    """A command ended, and something that costs money keeps running; the message says what."""


@contextmanager
def keeps_running(
    name: str, usd_per_hour: float, commands: Mapping[str, str], *, ended_by: tuple[type[Exception], ...]
) -> Iterator[None]:
    """If anything ends the block early, say what keeps running, what it costs, and how to reconnect to it and stop it.

    Args:
        name: what keeps running.
        usd_per_hour: its highest cost.
        commands: what each does, to the command.
        ended_by: errors after which it no longer runs.

    Raises:
        StillRunningError: in place of an error of AWS, of the machine or of ours.
    """
    lines = [f"{name} keeps running, for up to ${usd_per_hour:.2f} an hour"]
    lines += [f"{does}: {command}" for does, command in commands.items()]
    text = "\n".join(lines)
    try:
        with _ending_signals_raise():
            yield
    except ended_by:
        raise
    except Exception as error:
        explained = explanation(error)
        if explained is None:  # a bug, which keeps its traceback
            say(text)
            raise
        raise StillRunningError(f"{explained}\n{text}") from error
    except BaseException:  # Ctrl-C, or a signal
        say(f"\n{text}")
        raise


@contextmanager
def _ending_signals_raise() -> Iterator[None]:
    """Let signals end the block as an exception does; by default they end the process at once."""

    def end(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, end) for number in ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
