"""The table of clients in docs/cloud.md has what the scripts of the clients declare, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients import table
from tests.clients.environments import CLIENTS, declared
from tests.clients.recording import NOT_REHEARSED, WORKS


def test_the_page_has_the_rows_of_the_scripts() -> None:
    rows = table.committed_rows()
    assert len(rows) > 0
    assert rows == table.declared_rows(), f"run tests/clients with {table.WRITE}=1"
    assert {outcome for *_, outcome in rows} <= {WORKS, NOT_REHEARSED}


def test_an_operation_is_declared_once() -> None:
    keys = [(client, operation) for client, operation, _ in table.declared_rows()]
    assert [key for key in keys if keys.count(key) > 1] == []


def test_requirements_pin_every_package() -> None:
    for client in CLIENTS.values():
        lines = client.requirements.read_text().splitlines()
        assert all(line.count("==") == 1 for line in lines), client.requirements.name
        assert len({line.partition("==")[0].lower() for line in lines}) == len(lines), client.requirements.name


def test_operations_are_read_from_the_source(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("if True:\n    with works('b'):\n        pass\nwith not_rehearsed('a'):\n    pass\n")
    assert declared(script) == [("b", WORKS), ("a", NOT_REHEARSED)]


def test_rows_are_written_in_the_order_of_the_scripts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{table.HEAD}| old client | `gone` | works |\n\nafter\n")
    monkeypatch.setattr(table, "PAGE", page)
    monkeypatch.setattr(table, "CACHE", tmp_path)
    first, *_, last = table.declared_rows()
    table.write_rows([last])
    table.write_rows([first])
    assert table.committed_rows() == [first, last]
    assert page.read_text().startswith("before\n") and page.read_text().endswith(" |\n\nafter\n")
