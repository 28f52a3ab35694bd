"""What AWS would refuse by its documentation is refused before anything is uploaded."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from botocore.validate import ParamValidator

from experiments.config import RunConfig, load_config, override
from experiments.errors import UserError
from experiments.study.search_space import ChoiceRange, IntRange, SearchSpace
from sagemaker_launch.aws.api_model import require_limits, service_model, violations
from sagemaker_launch.aws.combinations import _foreign_arn, broken_rules
from sagemaker_launch.aws.resources import validate
from sagemaker_launch.jobs.plan import plan_training, plan_tuning
from sagemaker_launch.settings.cloud import load_cloud
from tests.conftest import tiny
from tests.unit.sagemaker_launch.jobs.test_plan import SETTINGS, space
from tests.unit.sagemaker_launch.jobs.test_requests import BASIC, EVERYTHING, train, tune

TRAIN, TUNE = "CreateTrainingJob", "CreateHyperParameterTuningJob"
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/training:1"
FOREIGN = "arn:aws-cn:kms:cn-north-1:123456789012:key/1"


@pytest.fixture
def config(photos: Path, tmp_path: Path) -> RunConfig:
    return load_config(None, tiny(photos, tmp_path))


def test_photos_of_a_manifest_are_not_streamed(config: RunConfig) -> None:
    settings = load_cloud(None, SETTINGS | {"input_mode": "FastFile"})
    with pytest.raises(UserError, match=r"FastFile streams a prefix of S3, .*set cloud\.input_mode File"):
        plan_training(settings, config)
    in_s3 = override(config, {"data.root": "s3://bucket/dogs", "trainer.max_epochs": 2})
    assert plan_training(settings, in_s3).build("dogs")


def test_a_key_of_a_volume_is_for_instances_without_a_disk_of_their_own() -> None:
    def found(instance_type: str) -> list[str]:
        return broken_rules(TRAIN, train(load_cloud(None, EVERYTHING | {"instance_type": instance_type})))

    assert found("ml.m5.large") == found("ml.c5n.xlarge") == []
    (sentence,) = found("ml.g5.xlarge")
    assert sentence.startswith("ml.g5.xlarge encrypts its own NVMe disk") and "API_ResourceConfig" in sentence


def test_a_volume_is_no_larger_than_the_disk_that_takes_its_place() -> None:
    def found(**values: object) -> list[str]:
        return broken_rules(TRAIN, train(load_cloud(None, BASIC | values)))

    assert found(instance_type="ml.g4dn.xlarge") == found(instance_type="ml.r5d.large") == []  # with the default
    assert found(instance_type="ml.g4dn.xlarge", volume_size_gb=125) == []
    assert found(instance_type="ml.m5.xlarge", volume_size_gb=5000) == []
    (sentence,) = found(instance_type="ml.g4dn.xlarge", volume_size_gb=126)
    assert "VolumeSizeInGB 126 is more than the 125 GB of ml.g4dn.xlarge" in sentence
    assert "lower cloud.volume_size_gb" in sentence
    rule = {"debugger.enabled": True, "debugger.rule_instance_type": "ml.r5d.large", "debugger.rule_volume_size_gb": 76}
    sentences = broken_rules(TRAIN, train(load_cloud(None, BASIC | rule)))
    assert sentences and all("cloud.debugger.rule_volume_size_gb" in sentence for sentence in sentences)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (
            {"StoppingCondition": {"MaxRuntimeInSeconds": 28 * 86_400 + 1}},
            "MaxRuntimeInSeconds must be at most 2419200",
        ),
        ({"StoppingCondition": {"MaxRuntimeInSeconds": 9, "MaxWaitTimeInSeconds": 9}}, "must not be set when Enable"),
        ({"EnableManagedSpotTraining": True}, "Invalid MaxWaitTimeInSeconds"),
        (
            {
                "EnableManagedSpotTraining": True,
                "StoppingCondition": {"MaxRuntimeInSeconds": 9, "MaxWaitTimeInSeconds": 9},
                "ResourceConfig": {"KeepAlivePeriodInSeconds": 60},
            },
            "KeepAlivePeriodInSeconds is not supported with EnableManagedSpotTraining",
        ),
    ],
)
def test_times_that_do_not_fit_are_refused_for_both_kinds_of_job(change: dict[str, Any], rule: str) -> None:
    settings = load_cloud(None, BASIC)
    tuning = tune(settings)
    for operation, request in (
        (TRAIN, train(settings) | change),
        (TUNE, tuning | {"TrainingJobDefinition": tuning["TrainingJobDefinition"] | change}),
    ):
        (sentence,) = broken_rules(operation, request)
        assert rule in sentence and "(docs.aws.amazon.com/" in sentence


def test_a_month_is_the_longest_job(config: RunConfig) -> None:
    plan_training(load_cloud(None, SETTINGS | {"max_runtime_seconds": 2_419_200}), config)
    with pytest.raises(UserError, match=r"at most 2419200 \(28 days\), got 2419201: lower cloud\.max_runtime_seconds"):
        plan_training(load_cloud(None, SETTINGS | {"max_runtime_seconds": 2_419_201}), config)


@pytest.mark.parametrize(
    ("region", "values", "message"),
    [
        ("eu-central-1", {}, r"TrainingImage must be in the region eu-central-1 .*or set cloud\.image_uri"),
        (
            "cn-north-1",
            {"image_uri": IMAGE.replace("us-east-1", "cn-north-1")},
            r"must end its host with amazonaws\.com\.cn",
        ),
        (
            "us-east-1",
            {"role_arn": "arn:aws-cn:iam::123456789012:role/jobs"},
            r"RoleArn must be an ARN of aws, the part.*: set cloud\.role_arn to one of your account there",
        ),
        (
            "us-east-1",
            {"volume_kms_key": "arn:aws:kms:us-west-2:123456789012:key/1"},
            r"must be a key in us-east-1.*: set cloud\.volume_kms_key to a key there",
        ),
        ("us-gov-west-1", {"image_uri": IMAGE.replace("us-east-1", "us-gov-west-1")}, "an ARN of aws-us-gov"),
        ("mars-1", {}, r"cloud\.region must be a region of AWS such as us-east-1, got 'mars-1'"),
    ],
)
def test_names_of_another_region_or_partition_are_refused(
    config: RunConfig, region: str, values: dict[str, object], message: str
) -> None:
    base = {**SETTINGS, "instance_type": "ml.m5.large", "region": region}
    with pytest.raises(UserError, match=message):
        plan_training(load_cloud(None, base | values), config)


@pytest.mark.parametrize(
    ("operation", "request_body", "setting"),
    [
        (TRAIN, {"OutputDataConfig": {"KmsKeyId": FOREIGN}}, "cloud.output_kms_key"),
        (TUNE, {"TrainingJobDefinition": {"ResourceConfig": {"VolumeKmsKeyId": FOREIGN}}}, "cloud.volume_kms_key"),
        ("CreateEndpointConfig", {"KmsKeyId": FOREIGN}, "cloud.volume_kms_key"),
        ("CreateEndpointConfig", {"DataCaptureConfig": {"KmsKeyId": FOREIGN}}, "cloud.output_kms_key"),
        (
            "CreateEndpointConfig",
            {"AsyncInferenceConfig": {"OutputConfig": {"KmsKeyId": FOREIGN}}},
            "cloud.output_kms_key",
        ),
        ("CreateModel", {"ExecutionRoleArn": FOREIGN}, "cloud.role_arn"),
        ("CreateSchedule", {"Target": {"RoleArn": FOREIGN}}, "cloud.endpoint.schedule_role_arn"),
    ],
)
def test_a_foreign_name_is_refused_with_the_setting_that_has_it(
    operation: str, request_body: dict[str, object], setting: str
) -> None:
    (sentence,) = _foreign_arn(request_body, "us-east-1")
    assert f"set {setting} to" in sentence, operation


@pytest.mark.parametrize(
    ("region", "suffix", "partition"),
    [
        ("us-east-1", "amazonaws.com", "aws"),
        ("cn-northwest-1", "amazonaws.com.cn", "aws-cn"),
        ("us-gov-east-1", "amazonaws.com", "aws-us-gov"),
        ("eusc-de-east-1", "amazonaws.eu", "aws-eusc"),
    ],
)
def test_each_partition_has_its_own_names(config: RunConfig, region: str, suffix: str, partition: str) -> None:
    values = {
        "region": region,
        "role_arn": f"arn:{partition}:iam::123456789012:role/jobs",
        "image_uri": f"123456789012.dkr.ecr.{region}.{suffix}/training:1",
    }
    assert plan_training(load_cloud(None, SETTINGS | values), config).build("dogs")


def test_what_the_launcher_accepts_is_accepted_by_botocore_and_the_rules() -> None:
    """Two settings draw a good or a bad value; botocore's validator judges what the launcher lets through."""
    pools: dict[str, tuple[object, ...]] = {
        "instance_type": ("ml.m5.large", "ml.g4dn.xlarge", "ml.c7g.large", "ml.m5.larg"),
        "volume_size_gb": (1, 50, 200, 0),
        "max_runtime_seconds": (60, 86_400, 3_000_000),
        "keep_alive_seconds": (0, 60, 21_600, 21_601),
        "volume_kms_key": (None, "alias/x", "arn:aws:kms:us-west-2:123456789012:key/1"),
        "environment": ({}, {"A": "1"}, {"MY-VAR": "x"}),
        "tags": ({}, {"team": "vision"}, {"team": "R&D"}),
        "input_mode": ("File", "FastFile"),
    }
    draw, accepted = random.Random(7), 0
    validator, shape = ParamValidator(), service_model().operation_model(TRAIN).input_shape
    for _ in range(60):
        values = {name: draw.choice(pools[name]) for name in draw.sample(sorted(pools), 2)}
        settings = load_cloud(None, BASIC | {"instance_type": "ml.m5.large"} | values)
        request = train(settings)
        try:
            require_limits(settings, "cloud train")
            validate(TRAIN, request, region="us-east-1")
        except UserError:
            continue
        accepted += 1
        assert not validator.validate(request, shape).has_errors(), values
        assert violations(TRAIN, request) == broken_rules(TRAIN, request, "us-east-1") == [], values
    assert 10 < accepted < 55


def test_a_search_has_no_more_jobs_than_points(config: RunConfig) -> None:
    two: SearchSpace = {"data.batch_size": ChoiceRange((32, 64))}
    settings = load_cloud(None, SETTINGS)
    with pytest.raises(UserError, match="the search space has 2 points, fewer than 4 training jobs"):
        plan_tuning(settings, override(config, {"sweep.n_trials": 4, "trainer.max_epochs": 2}), two)
    six: SearchSpace = {**two, "trainer.max_epochs": IntRange(2, 4)}
    assert broken_rules(TUNE, tune(settings, override(RunConfig(), {"sweep.n_trials": 6}), six)) == []
    (sentence,) = broken_rules(TUNE, tune(settings, override(RunConfig(), {"sweep.n_trials": 7}), six))
    assert sentence.startswith("the search space has 6 points")


def test_a_search_of_one_job_needs_no_other_setting(config: RunConfig) -> None:
    one = override(config, {"sweep.n_trials": 1})
    request = plan_tuning(load_cloud(None, SETTINGS), one, space(one)).build("dogs")
    limits = request["HyperParameterTuningJobConfig"]["ResourceLimits"]
    assert limits == {"MaxNumberOfTrainingJobs": 1, "MaxParallelTrainingJobs": 1}


def test_a_resource_has_at_most_fifty_tags() -> None:
    request: dict[str, Any] = train(load_cloud(None, EVERYTHING))
    request["Tags"] = [{"Key": f"key-{number}", "Value": ""} for number in range(51)]
    (sentence,) = broken_rules(TRAIN, request)
    assert sentence.startswith("a resource has at most 50 tags, got 51")
