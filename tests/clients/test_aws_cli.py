"""The AWS CLI against the rehearsal."""

from __future__ import annotations

import pytest

from tests.clients.conftest import RunScript
from tests.clients.environments import CLIENTS

CLIENT = CLIENTS["aws_cli"]
SCRIPTS = {script.stem: script for script in CLIENT.scripts}
pytestmark = pytest.mark.slow


def test_commands_do_what_a_user_expects(run_script: RunScript) -> None:
    run_script(CLIENT, SCRIPTS["a_commands"])
