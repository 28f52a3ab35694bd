"""The table *client x operation* in docs/cloud.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lightning_modules.locks import KernelLock
from tests.clients.environments import CACHE, CLIENTS, Client, declared
from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "docs" / "cloud.md"
HEAD = "| client | operation | in the rehearsal |\n|---|---|---|\n"
WRITE = "WRITE_CLIENTS"
"""With this environment variable, a script that passes writes its rows."""

Row = tuple[str, str, str]
"""Client, operation, outcome."""


def declared_rows() -> list[Row]:
    """All rows that the scripts declare, in the order of the table."""
    return [
        row for client in CLIENTS.values() for script in client.scripts for row in rows_of(client, declared(script))
    ]


def rows_of(client: Client, operations: Iterable[tuple[str, str]]) -> list[Row]:
    """The rows of some operations of a client."""
    return [(client.label, f"`{operation}`", outcome) for operation, outcome in operations]


def committed_rows() -> list[Row]:
    """The rows of the page."""
    return list(_parse(PAGE.read_text().partition(HEAD)[2]))


def write_rows(rows: Iterable[Row]) -> None:
    """Replace the outcome of these rows, and leave out the rows that no script declares."""
    with KernelLock(CACHE / "table.lock"):
        before, head, rest = PAGE.read_text().partition(HEAD)
        assert head, f"{PAGE.name} has no table of clients"
        outcomes = {(client, operation): outcome for client, operation, outcome in (*_parse(rest), *rows)}
        kept = [
            (*key, outcomes[key])
            for client, operation, _ in declared_rows()
            if (key := (client, operation)) in outcomes
        ]
        after = rest[len("".join(_lines(_parse(rest)))) :]
        PAGE.write_text("".join((before, head, *_lines(kept), after)))


def _parse(text: str) -> Iterator[Row]:
    for line in text.splitlines():
        if not line.startswith("| "):
            return
        client, operation, outcome = line.removeprefix("| ").removesuffix(" |").split(" | ")
        yield client, operation, outcome


def _lines(rows: Iterable[Row]) -> Iterator[str]:
    return (f"| {' | '.join(row)} |\n" for row in rows)
