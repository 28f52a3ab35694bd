"""The processes that draw finished runs, beside the one that sends them to MLflow."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

from experiments.console import guard_output, say
from experiments.runs.folder import RunFolder
from experiments.runs.processes import die_with_parent, pipe, start_process
from lightning_modules.cores import usable_cores
from lightning_modules.redaction import redact

MAX_DRAWERS = 4
"""Four processes draw as many runs per second as the publisher sends."""

_own = threading.local()


def open_drawers() -> ThreadPoolExecutor:
    """Threads with one process each, started when there is something to draw, at a lower priority than training.

    Not a ProcessPoolExecutor: the semaphores of a killed one remain, and Python warns about them.
    """
    return ThreadPoolExecutor(min(MAX_DRAWERS, usable_cores()), initializer=_start_drawer)


def drawn(folders: Sequence[RunFolder], drawers: ThreadPoolExecutor) -> Iterator[RunFolder]:
    """Yield the folders in order, finished ones once their pictures are drawn; the next ones are drawn meanwhile."""
    drawings = [
        (folder, drawers.submit(_have_drawn, folder.path) if folder.outcome and folder.needs_drawing else None)
        for folder in folders
    ]
    try:
        for folder, drawing in drawings:
            if drawing is not None:
                drawing.result()
            yield folder
    finally:
        for _, drawing in drawings:
            if drawing is not None:
                drawing.cancel()


def _start_drawer() -> None:
    _own.connection, theirs = pipe()  # closed with its thread, which ends the process
    start_process(_drawer, (theirs,), name="drawer", daemon=True)
    theirs.close()


def _have_drawn(path: Path) -> None:
    _own.connection.send(path)
    _own.connection.recv()


def _drawer(connection: Connection) -> None:
    die_with_parent()
    guard_output()
    while True:
        try:
            path = connection.recv()
        except EOFError:
            return
        draw_once(path)
        connection.send(None)


def draw_once(path: Path) -> None:
    """Draw a finished run, once. If a photo is gone, the pictures show that, and the run is published."""
    from experiments.figures.pictures import draw  # numpy and Pillow; other processes need neither

    folder = RunFolder(path)
    try:
        draw(folder)
    except Exception as error:
        if not folder.needs_drawing:
            return  # another process drew it at the same time, and was faster
        folder.artifacts.mkdir(exist_ok=True)
        text = redact(traceback.format_exc())
        (folder.artifacts / "pictures_error.txt").write_text(text, encoding="utf-8", errors="backslashreplace")
        say(f"{folder.path}: its pictures can't be drawn: {error}")
    folder.scores.unlink(missing_ok=True)
