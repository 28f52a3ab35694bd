"""The form of the pages: lines that fit a screen, and decisions that are complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

DOCS = REPOSITORY / "docs"
DECISIONS = DOCS / "decisions"
PAGES = (
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted(DOCS.rglob("*.md")),
)
MAX_COLUMNS = 120
ENTRY = re.compile(r"## (\d+)\. (.+)\n\n(\S+) · (in force|replaced by \d+) · (.+)\n\n\S")
INDEX_ROW = re.compile(r"\| (\d+) \| (.+) \| \[(.+)\]\((.+)\) \| (\S+) \|")


def prose(text: str) -> list[str]:
    """The lines of a page but for code, tables, images and lines that are one link."""
    without_code = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [line for line in without_code.splitlines() if not re.match(r"\||!\[| {4}|\S*\[[^]]*\]\(\S+\)\S*$", line)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_a_line_of_prose_fits_a_screen(page: Path) -> None:
    lines = prose(page.read_text())
    assert lines, page
    assert [line for line in lines if len(line) > MAX_COLUMNS] == []


def test_code_and_tables_may_be_wide() -> None:
    wide = "x" * 200
    assert prose(f"```sh\n{wide}\n```\n| {wide} |\n![{wide}](a.png)\n{wide} y") == ["", f"{wide} y"]


def test_every_decision_has_a_number_a_date_a_status_and_what_decided_it() -> None:
    found = {}
    for page in sorted(DECISIONS.glob("*.md")):
        if page.name == "README.md":
            continue
        text = page.read_text()
        entries = ENTRY.findall(text)
        assert len(entries) == text.count("\n## "), f"{page.name} has an entry that is not written as the others"
        numbers = [int(number) for number, *_ in entries]
        assert numbers == sorted(numbers), page.name
        for number, title, date, status, _ in entries:
            assert re.fullmatch(r"20\d\d-\d\d-\d\d", date), (page.name, number)
            assert int(number) not in found, f"two decisions have the number {number}"
            found[int(number)] = (title, page.stem, page.name, date)
            if status.startswith("replaced"):
                assert int(status.split()[-1]) > int(number)
    assert sorted(found) == list(range(1, len(found) + 1))
    index = {int(number): (*rest,) for number, *rest in INDEX_ROW.findall((DECISIONS / "README.md").read_text())}
    assert index == found, "docs/decisions/README.md lists every decision with its title, package and date"
