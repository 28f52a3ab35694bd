"""The form of the pages: lines that fit a screen, and decisions that are complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.unit.test_architecture import OURS

DOCS = REPOSITORY / "docs"
DECISIONS = DOCS / "decisions"
PAGES = (
    *(REPOSITORY / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted(DOCS.rglob("*.md")),
)
MAX_COLUMNS = 120
GIVEN_BY_A_JOB = {"code/inference.py", "code/serve.py", "train.py"}
"""Files of an archive or a channel, and a name that is ours, too."""
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


def test_the_architecture_page_explains_before_its_tables() -> None:
    before, _, tables = (DOCS / "architecture.md").read_text().partition("\n## Tables\n")
    assert len(before.splitlines()) <= 100
    objects = re.findall(r"^\*\*(\w+(?: \w+)?)\*\*", before.partition("## Ten objects")[2], re.MULTILINE)
    assert len(objects) == 10, objects
    assert "\n| " in tables
    assert "\n| " not in before


@pytest.mark.parametrize("page", ["architecture.md", "internals.md"])
def test_a_module_that_a_page_names_exists(page: str) -> None:
    found = {
        path.relative_to(REPOSITORY).as_posix()
        for room in (*OURS, "tests")
        for path in (REPOSITORY / room).rglob("*.py")
    }
    # A page may leave out the package of its section: `study/claims.py`, `rules.py`.
    named = set(re.findall(r"(?<![\w/.-])[a-z_]+(?:/[a-z_]+)*\.py\b", (DOCS / page).read_text())) - GIVEN_BY_A_JOB
    assert len(named) > 15
    assert [name for name in sorted(named) if not any(f"/{path}".endswith(f"/{name}") for path in found)] == []
