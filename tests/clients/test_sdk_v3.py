"""The SageMaker SDK v3 against the rehearsal."""

from __future__ import annotations

import pytest

from tests.clients.conftest import RunScript
from tests.clients.environments import CLIENTS

CLIENT = CLIENTS["sdk_v3"]
SCRIPTS = {script.stem: script for script in CLIENT.scripts}
pytestmark = pytest.mark.slow


def test_jobs_and_endpoints_do_what_a_user_expects(run_script: RunScript) -> None:
    run_script(CLIENT, SCRIPTS["a_jobs_and_endpoints"], SAGEMAKER_VALIDATE_ROLE="false")
