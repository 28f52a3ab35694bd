"""A job before it is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.config import RunConfig, load_config, override
from experiments.study.search_space import SearchSpace, load_search_space
from sagemaker_launch.aws import client as aws
from sagemaker_launch.aws.resources import TRAINING, TUNING
from sagemaker_launch.jobs.plan import plan_training, plan_tuning
from sagemaker_launch.settings.cloud import CloudSettings, load_cloud
from tests.conftest import tiny

SETTINGS: dict[str, object] = {
    "role_arn": "arn:aws:iam::123456789012:role/jobs",
    "bucket": "my-bucket",
    "region": "us-east-1",
    "image_uri": "123456789012.dkr.ecr.us-east-1.amazonaws.com/training:1",
    "price_per_hour": 2.0,
    "max_runtime_seconds": 1800,
}


@pytest.fixture(autouse=True)
def _no_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making a plan creates and uploads nothing."""
    monkeypatch.setattr(aws, "client", lambda *_, **__: pytest.fail("asked AWS"))


@pytest.fixture
def settings() -> CloudSettings:
    return load_cloud(None, SETTINGS)


@pytest.fixture
def config(photos: Path, tmp_path: Path) -> RunConfig:
    return load_config(None, tiny(photos, tmp_path))


def space(config: RunConfig) -> SearchSpace:
    assert config.search is not None
    return load_search_space(config.search)


def test_a_training_job_is_planned_without_aws(settings: CloudSettings, config: RunConfig) -> None:
    plan = plan_training(settings, config)
    request: dict[str, Any] = plan.build("dogs-1")
    assert (plan.job_type, plan.label, request["TrainingJobName"]) == (TRAINING, config.tracking.experiment, "dogs-1")
    assert plan.worst.usd == pytest.approx(1.0)
    assert "$1.00" in plan.worst.table()


def test_a_tuning_job_costs_at_worst_what_its_jobs_do(settings: CloudSettings, config: RunConfig) -> None:
    plan = plan_tuning(settings, config, space(config))
    limits = plan.build("dogs-1")["HyperParameterTuningJobConfig"]["ResourceLimits"]
    assert (plan.job_type, limits["MaxNumberOfTrainingJobs"]) == (TUNING, 3)
    assert plan.worst.usd == pytest.approx(3.0)


def test_what_comes_home_with_checkpoints_needs_them(config: RunConfig) -> None:
    without = load_cloud(None, SETTINGS | {"checkpoints": False})
    with pytest.raises(ValueError, match=r"cloud\.checkpoints must be true with trainer\.record or trainer\.profile"):
        plan_training(without, override(config, {"trainer.profile": True}))
