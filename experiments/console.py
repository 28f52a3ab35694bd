"""How a command speaks to the person who waits."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from tqdm import tqdm


def say(text: str) -> None:
    """A line for the person who waits, past any bar, on standard error: results go to standard output."""
    tqdm.write(text, file=sys.stderr)


def invocation(module: str, *words: str) -> str:
    """What to type to run a module of ours with this Python: plain `python` only where a shell would find this one."""
    found = shutil.which("python")
    interpreter = Path(sys.executable)
    if found and Path(found).absolute() == interpreter:
        name = "python"
    elif interpreter.is_relative_to(Path.cwd()):
        name = str(interpreter.relative_to(Path.cwd()))
    else:
        name = str(interpreter)
    return shlex.join([name, "-m", module, *words])


def duration(seconds: float) -> str:
    """Seconds as a person says them: 45 s, 3 min, 1 h 20 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
