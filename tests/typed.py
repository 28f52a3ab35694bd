"""Runs the commands of a page one after the other, in one process: each would import PyTorch for seconds.

python -m tests.typed STEPS      a JSON list of (line, program, words, file that gets its output)
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

from experiments.cli import main as experiments
from sagemaker_launch.cli import main as sagemaker_launch


def run_steps(steps: list[tuple[str, str, list[str], str]]) -> None:
    """Run commands up to the first that fails."""
    for line, program, words, output in steps:
        print("$", line, flush=True)
        typed = [path for word in words for path in (expand(word) if "*" in word else [word])]
        with contextlib.ExitStack() as stack:
            out = stack.enter_context(Path(output).open("w")) if output else sys.stdout
            stack.enter_context(contextlib.redirect_stdout(out))
            own = {"experiments": experiments, "sagemaker_launch": sagemaker_launch}.get(program)
            code = own(typed) if own else subprocess.run(typed, check=False).returncode
        if code:
            sys.exit(f"{line}: exit code {code}")


def expand(pattern: str) -> list[str]:
    """What a shell makes of a pattern."""
    return sorted(str(path) for path in Path().glob(pattern))


if __name__ == "__main__":
    run_steps(json.loads(Path(sys.argv[1]).read_text()))
