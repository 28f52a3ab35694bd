"""What AWS would refuse by its model of the API is refused before anything is uploaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import regex

from experiments.config import RunConfig, load_config
from experiments.errors import UserError
from sagemaker_launch.aws.api_model import SURROGATES, require_limits, service_model, violations
from sagemaker_launch.jobs.plan import plan_training
from sagemaker_launch.settings.cloud import load_cloud
from tests.conftest import tiny
from tests.unit.sagemaker_launch.jobs.test_plan import SETTINGS
from tests.unit.sagemaker_launch.jobs.test_requests import EVERYTHING, train


@pytest.fixture
def config(photos: Path, tmp_path: Path) -> RunConfig:
    return load_config(None, tiny(photos, tmp_path))


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("tags", {"team": "R&D"}, "regular expression pattern"),
        ("image_uri", "x" * 300, "length less than or equal to 255"),
    ],
)
def test_values_that_the_api_does_not_take_are_refused(
    config: RunConfig, setting: str, value: object, message: str
) -> None:
    settings = load_cloud(None, {**SETTINGS, setting: value})
    with pytest.raises(UserError, match=f"CreateTrainingJob would not be taken: .*{message}"):
        plan_training(settings, config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"instance_type": "ml.m5.larg"},
            r"cloud\.instance_type must be one .* such as ml\.m5\.large, .*got 'ml\.m5\.larg'",
        ),
        (
            {"subnets": ["subnet_a"], "security_group_ids": ["sg-1"]},
            r"cloud\.subnets must have at most 16 entries, each",
        ),
        ({"environment": {"MY-VAR": "x"}}, r"cloud\.environment must have .* each name must match \[a-zA-Z_\]"),
        ({"keep_alive_seconds": 21_601}, r"cloud\.keep_alive_seconds must be 0\.\.21600, got 21601"),
        ({"volume_size_gb": 0}, r"cloud\.volume_size_gb must be >= 1, got 0"),
        ({"max_runtime_seconds": 0}, r"cloud\.max_runtime_seconds must be >= 1, got 0"),
        ({"max_jobs_without_improvement": 2}, r"cloud\.max_jobs_without_improvement must be >= 3, got 2"),
        ({"endpoint.instance_type": "ml.c5.huge"}, r"cloud\.endpoint\.instance_type must be one that SageMaker has"),
        ({"endpoint.startup_timeout_seconds": 59}, r"startup_timeout_seconds must be 60\.\.3600, got 59"),
        ({"endpoint.max_concurrency": 201}, r"max_concurrency must be 1\.\.200, got 201"),
    ],
)
def test_a_setting_has_the_limits_of_the_api(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        require_limits(load_cloud(None, values), "cloud tune", "cloud train", "cloud deploy")


def test_limits_are_those_of_botocore_and_the_defaults_keep_them() -> None:
    longest = service_model().shape_for("KeepAlivePeriodInSeconds").metadata["max"]
    require_limits(load_cloud(None, {"keep_alive_seconds": longest}), "cloud tune", "cloud train", "cloud deploy")


def test_limits_of_other_commands_are_left_alone() -> None:
    require_limits(load_cloud(None, {"endpoint.startup_timeout_seconds": 59}), "cloud train")


@pytest.mark.parametrize("service", ["sagemaker", "application-autoscaling", "cloudwatch", "scheduler"])
def test_every_pattern_of_the_models_can_be_read(service: str) -> None:
    model = service_model(service)
    patterns = {str(model.shape_for(name).metadata.get("pattern", "")) for name in model.shape_names}
    assert all(regex.compile(pattern.replace(*SURROGATES)) for pattern in patterns)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RoleArn": None}, "'roleArn' failed to satisfy constraint: Member must not be null"),
        (
            {"ResourceConfig": "ml.m5.large"},
            "'resourceConfig' failed to satisfy constraint: Member must be a structure",
        ),
        ({"Tags": {"Key": "a"}}, "'tags' failed to satisfy constraint: Member must be a list"),
        ({"EnableNetworkIsolation": "yes"}, "Member must be a boolean"),
        ({"Unheard": 1}, "unheard is not a field that botocore here knows"),
    ],
)
def test_wrong_types_and_fields_are_named(change: dict[str, Any], message: str) -> None:
    assert message in violations("CreateTrainingJob", train(load_cloud(None, EVERYTHING)) | change)[0]
