"""Commands of the AWS CLI, as a user types them.

Scripts run in the environment of their client, so this module needs the standard library only.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any


def aws(*arguments: str) -> str:
    """Type a command, and read what it prints."""
    done = subprocess.run(["aws", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def answer(*arguments: str, query: str = "@") -> Any:
    """The answer of an operation, or what a JMESPath expression takes from it."""
    printed = aws(*arguments, "--output", "json", "--query", query)
    return json.loads(printed) if printed.strip() else None
