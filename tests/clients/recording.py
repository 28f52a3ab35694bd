"""What a script of a client records: which operations work, and which are not rehearsed.

Scripts run in the environment of their client, so this module needs the standard library only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

FILE = "CLIENT_OPERATIONS"
"""Environment variable with the file of the records, one line of JSON per operation."""
WORKS = "works"
NOT_REHEARSED = "not rehearsed"
REFUSAL = "works on AWS, but is not rehearsed"
"""Words of the rehearsal for an operation or a field of AWS that it does not have."""


@contextmanager
def works(operation: str) -> Iterator[None]:
    """Record that the operation works, unless the block raises."""
    yield
    _record(operation, WORKS)


@contextmanager
def not_rehearsed(operation: str) -> Iterator[None]:
    """Record that the rehearsal refuses the operation in words that say so.

    Raises:
        AssertionError: if the block ends without an error, or with one that says something else.
    """
    try:
        yield
    except Exception as error:
        if REFUSAL not in str(error):
            raise AssertionError(f"{operation}: the client's error does not say {REFUSAL!r}: {error}") from error
    else:
        raise AssertionError(f"{operation} ended without an error")
    _record(operation, NOT_REHEARSED)


def error_of(kind: type[Exception], call: Callable[[], object]) -> Any:
    """The error of a call that must fail.

    Raises:
        AssertionError: if it does not.
    """
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__} was raised")


def _record(operation: str, outcome: str) -> None:
    with open(os.environ[FILE], "a") as file:  # noqa: PTH123 - a script of few imports
        file.write(json.dumps({"operation": operation, "outcome": outcome}) + "\n")
    print(f"{operation}: {outcome}", flush=True)
