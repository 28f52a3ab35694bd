"""What AWS would refuse is refused before anything is uploaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.config import RunConfig, load_config, override
from experiments.errors import UserError
from experiments.study.search_space import ChoiceRange, IntRange, SearchSpace
from sagemaker_launch.aws.api_model import LOCAL_STORAGE, broken_rules, violations
from sagemaker_launch.jobs.plan import plan_training, plan_tuning
from sagemaker_launch.settings.cloud import load_cloud
from tests.conftest import tiny
from tests.unit.sagemaker_launch.jobs.test_plan import SETTINGS, space
from tests.unit.sagemaker_launch.jobs.test_requests import EVERYTHING, train, tune


@pytest.fixture
def config(photos: Path, tmp_path: Path) -> RunConfig:
    return load_config(None, tiny(photos, tmp_path))


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("instance_type", "ml.m5.larg", "enum value set"),
        ("subnets", ["subnet_a"], "regular expression pattern"),
        ("environment", {"MY-VAR": "x"}, "regular expression pattern"),
        ("tags", {"team": "R&D"}, "regular expression pattern"),
        ("image_uri", "x" * 300, "length less than or equal to 255"),
    ],
)
def test_values_that_the_api_does_not_take_are_refused(
    config: RunConfig, setting: str, value: object, message: str
) -> None:
    group = {"security_group_ids": ["sg-1"]} if setting == "subnets" else {}
    settings = load_cloud(None, {**SETTINGS, "instance_type": "ml.m5.large", **group, setting: value})
    with pytest.raises(UserError, match=f"CreateTrainingJob would not be taken: .*{message}"):
        plan_training(settings, config)


def test_photos_of_a_manifest_are_not_streamed(config: RunConfig) -> None:
    settings = load_cloud(None, SETTINGS | {"input_mode": "FastFile"})
    with pytest.raises(UserError, match=r"FastFile streams a prefix of S3, .*set cloud\.input_mode File"):
        plan_training(settings, config)
    in_s3 = override(config, {"data.root": "s3://bucket/dogs", "trainer.max_epochs": 2})
    assert plan_training(settings, in_s3).build("dogs")


@pytest.mark.parametrize(
    ("instance_type", "has_local_disk"),
    [
        ("ml.g5.xlarge", True),
        ("ml.g4dn.2xlarge", True),
        ("ml.g6e.xlarge", True),
        ("ml.p4d.24xlarge", True),
        ("ml.p5en.48xlarge", True),
        ("ml.m5d.large", True),
        ("ml.c6id.xlarge", True),
        ("ml.m5.large", False),
        ("ml.c5n.xlarge", False),
        ("ml.p3.2xlarge", False),
        ("ml.t3.medium", False),
    ],
)
def test_a_key_of_a_disk_is_for_instances_without_a_disk_of_their_own(
    config: RunConfig, instance_type: str, has_local_disk: bool
) -> None:
    assert bool(LOCAL_STORAGE.match(instance_type)) is has_local_disk
    found = broken_rules(train(load_cloud(None, EVERYTHING | {"instance_type": instance_type})))
    assert [text.partition(" encrypts")[0] for text in found] == [instance_type] * has_local_disk


def test_a_search_has_no_more_jobs_than_points(config: RunConfig) -> None:
    two: SearchSpace = {"data.batch_size": ChoiceRange((32, 64))}
    settings = load_cloud(None, SETTINGS)
    with pytest.raises(UserError, match="the search space has 2 points, fewer than 4 training jobs"):
        plan_tuning(settings, override(config, {"sweep.n_trials": 4, "trainer.max_epochs": 2}), two)
    six: SearchSpace = {**two, "trainer.max_epochs": IntRange(2, 4)}
    assert broken_rules(tune(settings, override(RunConfig(), {"sweep.n_trials": 6}), six)) == []
    assert broken_rules(tune(settings, override(RunConfig(), {"sweep.n_trials": 7}), six))[0].startswith("the search")


def test_a_search_of_one_job_needs_no_other_setting(config: RunConfig) -> None:
    one = override(config, {"sweep.n_trials": 1})
    request = plan_tuning(load_cloud(None, SETTINGS), one, space(one)).build("dogs")
    limits = request["HyperParameterTuningJobConfig"]["ResourceLimits"]
    assert limits == {"MaxNumberOfTrainingJobs": 1, "MaxParallelTrainingJobs": 1}


def test_a_resource_has_at_most_fifty_tags() -> None:
    request: dict[str, Any] = train(load_cloud(None, EVERYTHING))
    request["Tags"] = [{"Key": f"key-{number}", "Value": ""} for number in range(51)]
    assert broken_rules(request) == ["a resource has at most 50 tags, got 51"]


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
