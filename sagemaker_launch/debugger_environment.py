"""Where Debugger's rules are evaluated on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def run_rules(cache_dir: Path, folder: Path, configurations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What rules find in a folder of tensors.

    Raises:
        ValueError: always, until it is written.
    """
    raise ValueError(
        f"{len(configurations)} rules can't be run on {folder}: {cache_dir} has no environment with smdebug"
    )
