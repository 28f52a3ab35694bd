"""SageMaker SDK v2 against the rehearsal, with the cells of a notebook."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.conftest import LIMIT, RunScript
from tests.clients.environments import CLIENTS, environment

CLIENT = CLIENTS["sdk_v2"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(LIMIT)]


@pytest.mark.parametrize("script", CLIENT.own_scripts, ids=lambda script: script.stem)
def test_a_script_does_what_it_declares(script: Path, run_script: RunScript, photos: Path) -> None:
    smdebug = environment(CLIENTS["smdebug"]) / "python"
    run_script(CLIENT, script, PHOTOS=str(photos), SMDEBUG_PYTHON=str(smdebug))
