"""The SageMaker SDK v3 against the rehearsal."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.conftest import LIMIT, RunScript
from tests.clients.environments import CLIENTS

CLIENT = CLIENTS["sdk_v3"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(LIMIT)]


@pytest.mark.parametrize("script", CLIENT.own_scripts, ids=lambda script: script.stem)
def test_a_script_does_what_a_user_expects(script: Path, run_script: RunScript) -> None:
    run_script(CLIENT, script)
