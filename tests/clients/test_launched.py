"""Each client attaches to what our own launcher made, and answers what the launcher reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.conftest import LIMIT, RunScript
from tests.clients.environments import CLIENTS, Client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(LIMIT)]


@pytest.mark.parametrize("client", [client for client in CLIENTS.values() if client.scripts], ids=lambda one: one.name)
def test_a_client_reads_what_the_launcher_reported(client: Client, run_script: RunScript, launched: Path) -> None:
    run_script(client, client.launched_script, LAUNCHED=str(launched))
