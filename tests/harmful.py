"""Objects that run code where they are unpickled."""

from __future__ import annotations

from pathlib import Path


class TouchesAFile:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)
