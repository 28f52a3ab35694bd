"""An endpoint before it is deployed."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.config import RunConfig, load_config
from experiments.errors import UserError
from sagemaker_launch.aws import client as aws
from sagemaker_launch.endpoints.plan import plan_endpoint
from sagemaker_launch.jobs.budget import OverBudgetError
from sagemaker_launch.settings.cloud import load_cloud
from tests.unit.sagemaker_launch.jobs.test_plan import SETTINGS


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.setattr(aws, "client", lambda *_, **__: pytest.fail("asked AWS"))
    return load_config(None, {"output_dir": tmp_path})


def test_an_endpoint_is_planned_without_aws(config: RunConfig) -> None:
    settings = load_cloud(None, SETTINGS | {"endpoint.max_instances": 2, "endpoint.budget_usd_per_hour": 3.99})
    plan = plan_endpoint(settings, config, "dogs", ttl="1h")
    assert plan.name == "dogs" and plan.worst.usd == pytest.approx(4.0)
    with pytest.raises(OverBudgetError, match=r"budget_usd_per_hour must be at least 4\.00, the worst case, got 3\.99"):
        plan.worst.check_budget(settings)


def test_a_name_that_aws_refuses_is_refused_before_a_model_is_fetched(config: RunConfig) -> None:
    with pytest.raises(UserError, match="NAME must"):
        plan_endpoint(load_cloud(None, SETTINGS), config, "no_underscores")
