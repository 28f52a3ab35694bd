"""Where Debugger's rules are evaluated on this machine."""

from __future__ import annotations

from pathlib import Path


def debugger_python(cache_dir: Path) -> Path:
    """An interpreter that has smdebug.

    Raises:
        RuntimeError: always, until it is written.
    """
    raise RuntimeError(f"no environment with smdebug can be built in {cache_dir} yet")
