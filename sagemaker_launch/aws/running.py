"""No command ends without saying what is still running, and costs money."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from botocore.exceptions import BotoCoreError, ClientError

from experiments.cli import explanation
from experiments.console import say
from experiments.errors import CommandError, UserError

ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
"""What ends a command whose terminal or machine goes away."""


class StillRunningError(CommandError):
    """A command ended, and something that it started, or was asked to end, is left; the message says what."""


@dataclass
class Running:
    """What a command has made in AWS, as far as it knows."""

    usd_per_hour: float = 0.0
    """The highest cost of what runs."""
    commands: Callable[[str], Mapping[str, str]] = lambda _name: {}
    """From a name, what each command does, to the command."""
    is_certain: bool = False
    """Whether AWS has said that it exists."""
    made: list[str] = field(default_factory=list)
    """What was made beside it, or for it, and costs nothing."""
    missing: str = ""
    """What it lacks now, or what is not known of it, as a sentence."""
    _name: str = ""
    _named: str = ""

    def starts(self, name: str, named: str = "") -> None:
        """Note what is about to be created.

        Args:
            named: as the line names it.
        """
        self._name, self._named, self.is_certain = name, named or name, False

    def exists(self, name: str, named: str = "") -> None:
        """Note what AWS has."""
        self._name, self._named, self.is_certain = name, named or name, True

    def has_ended(self) -> None:
        """Note that nothing is left."""
        self._name = self.missing = ""
        self.made.clear()

    def text(self) -> str:
        """What is left, what it costs, and how to reconnect to it and end it; empty if nothing is left."""
        lines = [self.missing] if self.missing else []
        if self.made:
            lines.append(f"may be left, at no cost: {', '.join(self.made)}")
        if self._name and self.is_certain:
            lines.append(f"{self._named} keeps running, for up to ${self.usd_per_hour:.2f} an hour")
        elif self._name:
            lines.append(f"{self._named} may be running, for up to ${self.usd_per_hour:.2f} an hour")
        if not lines:
            return ""
        lines += [f"{does}: {command}" for does, command in self.commands(self._name).items()]
        return "\n".join(lines)


@contextmanager
def keeps_running(running: Running, *, ended_by: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """If anything ends the block early, say what is left in AWS.

    Args:
        ended_by: errors after which nothing is left.

    Raises:
        StillRunningError: in place of an error of AWS, of the machine or of ours.
    """
    try:
        with ending_signals_raise():
            yield
    except ended_by:
        raise
    except Exception as error:
        text, explained = running.text(), explanation(error)
        if not text:
            raise
        if explained is None:  # a bug, which keeps its traceback
            say(text)
            raise
        raise StillRunningError(f"{explained}\n{text}") from error
    except BaseException:  # Ctrl-C, or a signal
        if text := running.text():
            say(f"\n{text}")
        raise


def end_each(names: Sequence[str], end: Callable[[str], str]) -> None:
    """End several things, whatever happens to one of them, and print a line for each.

    Args:
        end: ends one, and returns the line.

    Raises:
        StillRunningError: naming those that may still run.
        UserError: if each one is a mistake of the user.
    """
    left, problems = list(names), dict[str, Exception]()
    try:
        with ending_signals_raise():
            for name in names:
                try:
                    print(end(name))
                    left.remove(name)
                except (ClientError, CommandError, UserError) as error:
                    problems[name] = error
                except BotoCoreError as error:  # no answer: there will be none for the others
                    problems[name] = error
                    break
    except BaseException:
        say(f"\n{_may_run(left)}")
        raise
    if problems and all(isinstance(error, UserError) for error in problems.values()):
        raise UserError("\n".join(map(str, problems.values())))
    if problems:
        raise StillRunningError("\n".join([*(f"{name}: {error}" for name, error in problems.items()), _may_run(left)]))


def _may_run(names: Sequence[str]) -> str:
    return f"may still run, and cost money: {', '.join(names)}. The same command ends what is left"


@contextmanager
def ending_signals_raise() -> Iterator[None]:
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
