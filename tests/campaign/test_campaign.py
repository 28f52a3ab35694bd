"""A seeded sample of the campaign; `python -m tests.campaign.campaign FOLDER` runs all of it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.campaign.campaign import Campaign, campaign
from tests.campaign.faults import KINDS
from tests.campaign.scenarios import SCENARIOS

pytestmark = pytest.mark.slow

SHARE = float(os.environ.get("CAMPAIGN_SHARE", "0.04"))
"""Of the cases; 1 runs all, which takes hours."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaign]:
    with campaign(tmp_path_factory.mktemp("campaign") / "home") as found:
        yield found


@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", SCENARIOS)
def test_whatever_aws_answers_nothing_is_unaccounted_for(name: str, running: Campaign) -> None:
    before = len(running.findings)
    running.try_scenario(name, list(KINDS), SHARE, seed=list(SCENARIOS).index(name))
    assert any(key[0] == name for key in running.counts), "no case of it was drawn"
    assert running.findings[before:] == [], "\n".join(map(str, running.findings[before:]))
