"""The code blocks of README.md and docs/, and the commands in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import REPOSITORY

NEEDS = ("# needs AWS", "# needs Docker", "# needs buildah")
"""First lines of blocks whose commands no test runs: they need what the machine of a test lacks."""


@dataclass(frozen=True)
class Block:
    """What stands between two fences."""

    location: str
    info: str
    text: str

    @property
    def needs_more(self) -> bool:
        """Whether it says that it needs AWS or another thing."""
        return self.text.startswith(NEEDS)

    @property
    def holds_commands(self) -> bool:
        """Whether a person types what stands in it."""
        return self.info == "sh"

    @property
    def lines(self) -> list[str]:
        """Without comments; a line goes on after a backslash, and within JSON in quotes."""
        joined = re.sub(r"\\\n\s*|(?<=,)\n\s+(?=\")", "", self.text).splitlines()
        return [line for line in (re.sub(r"(^|\s+)# .*", "", line).strip() for line in joined) if line]


@dataclass(frozen=True)
class Command:
    """A line that a person types."""

    location: str
    line: str
    needs_more: bool

    @property
    def words(self) -> str:
        """The line as it is typed with the environment active, without where its output goes."""
        return re.sub(r"^\.venv/bin/", "", self.line.partition(" > ")[0])


def blocks(path: Path) -> list[Block]:
    """The code blocks of a page."""
    found = []
    text = path.read_text()
    for match in re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text[: match.start()].count("\n") + 1
        found.append(Block(f"{path.relative_to(REPOSITORY)}:{line}", match[1], match[2]))
    return found


def pages() -> list[Path]:
    """README.md and docs/."""
    return [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


def commands(*paths: Path) -> list[Command]:
    """The commands of some pages, in their order."""
    return [
        Command(block.location, line, block.needs_more)
        for path in paths
        for block in blocks(path)
        if block.holds_commands
        for line in block.lines
    ]
