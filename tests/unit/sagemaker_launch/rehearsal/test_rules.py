"""What the rehearsed service refuses before anything runs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from moto.sagemaker.exceptions import SagemakerClientError

from sagemaker_launch.rehearsal.endpoints.rules import check_config, check_model
from sagemaker_launch.rehearsal.rules import (
    check_image,
    check_shape,
    check_training_job,
    check_tuning_job,
    check_warm_start,
    with_resource_config,
)

Request = dict[str, Any]
DEFINITION: Request = {
    "RoleArn": "arn:aws:iam::123456789012:role/SageMaker",
    "AlgorithmSpecification": {
        "TrainingImage": "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:2.14",
        "TrainingInputMode": "File",
        "MetricDefinitions": [{"Name": "val_loss", "Regex": "val_loss=([0-9.]+)"}],
    },
    "InputDataConfig": [
        {
            "ChannelName": "code",
            "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://bucket/code"}},
        }
    ],
    "OutputDataConfig": {"S3OutputPath": "s3://bucket/out"},
    "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 10},
    "StoppingCondition": {"MaxRuntimeInSeconds": 60},
}
TRAINING: Request = {**DEFINITION, "TrainingJobName": "job", "HyperParameters": {"a": "1"}}
RATE = {"Name": "rate", "MinValue": "0", "MaxValue": "1"}
TUNING: Request = {
    "HyperParameterTuningJobName": "tuning",
    "HyperParameterTuningJobConfig": {
        "Strategy": "Random",
        "HyperParameterTuningJobObjective": {"Type": "Minimize", "MetricName": "val_loss"},
        "ResourceLimits": {"MaxNumberOfTrainingJobs": 4, "MaxParallelTrainingJobs": 2},
        "ParameterRanges": {"ContinuousParameterRanges": [RATE]},
    },
    "TrainingJobDefinition": {**DEFINITION, "StaticHyperParameters": {"a": "1"}},
}
CREATED: dict[Callable[[Request], None], str] = {
    check_training_job: "CreateTrainingJob",
    check_tuning_job: "CreateHyperParameterTuningJob",
    check_model: "CreateModel",
    check_config: "CreateEndpointConfig",
}
M5 = {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 10}
RESOURCES = "TrainingJobDefinition.HyperParameterTuningResourceConfig"
CHOICES = [{"Name": "c", "Values": ["x", "y"]}, {"Name": "d", "Values": ["1", "2", "3"]}]


def change(request: Request, path: str, value: object) -> Request:
    """A copy with one leaf set, or deleted by None."""
    changed = copy.deepcopy(request)
    *parents, last = path.split(".")
    target: Any = changed
    for name in parents:
        target = target[int(name)] if isinstance(target, list) else target.setdefault(name, {})
    if value is None:
        del target[last]
    else:
        target[last] = value
    return changed


def refusal(check: Callable[[Request], None], request: Request) -> str:
    """The words with which a request is refused, by its shape or by the rules behind it."""

    def checked() -> None:
        if check in CREATED:
            check_shape(CREATED[check], request)
        check(request)

    with pytest.raises(SagemakerClientError) as error:
        checked()
    assert error.value.code == "ValidationException"
    return str(error.value.message)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("HyperParameters", {"optimizer.learning_rate": "1"}),
        ("HyperParameters", {f"h{number}": "x" * 2500 for number in range(100)}),
        ("Tags", [{"Key": "projet", "Value": "été"}]),
        ("Environment", {"A": "1"}),
    ],
)
def test_what_aws_takes_passes(path: str, value: object) -> None:
    check_training_job(change(TRAINING, path, value))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("TrainingJobName", "under_score", "'trainingJobName' failed to satisfy constraint"),
        ("TrainingJobName", "x" * 64, "length less than or equal to 63"),
        ("RoleArn", "SageMakerExecutionRole", "regular expression pattern: arn:aws"),
        ("RoleArn", None, "'roleArn' failed to satisfy constraint: Member must not be null"),
        ("HyperParameters", {f"h{number}": "1" for number in range(101)}, "length less than or equal to 100"),
        ("HyperParameters", {"a": "x" * 2501}, "length less than or equal to 2500"),
        ("HyperParameters", {"a": "two\nlines"}, "regular expression pattern"),
        ("HyperParameters", {"x" * 257: "1"}, "length less than or equal to 256"),
        ("ResourceConfig.InstanceType", "ml.huge", "enum value set"),
        ("ResourceConfig.InstanceCount", 0, "InstanceCount must be at least 1"),
        ("ResourceConfig", None, "ResourceConfig is required"),
        ("Unheard", "1", "unheard is not a field"),
        ("Tags", [{"Key": "aws:mine", "Value": "1"}], "aws: prefixed"),
        ("Tags", [{"Key": "a", "Value": "1"}, {"Key": "a", "Value": "2"}], "Duplicate tag key: a"),
        ("Tags", [{"Key": "a", "Value": "{}"}], "regular expression pattern"),
        ("AlgorithmSpecification.TrainingImage", None, "either TrainingImage or AlgorithmName"),
        ("AlgorithmSpecification.MetricDefinitions", [{"Name": "m", "Regex": "m=("}], "Invalid regular expression"),
        ("AlgorithmSpecification.MetricDefinitions", [{"Name": "m", "Regex": "m=.*"}], "needs a capture group"),
        ("StoppingCondition.MaxWaitTimeInSeconds", 90, "must not be set when EnableManagedSpotTraining is false"),
        ("EnableManagedSpotTraining", True, "Invalid MaxWaitTimeInSeconds"),
        ("InputDataConfig", DEFINITION["InputDataConfig"] * 2, "Channel names must be unique, code"),
        ("CheckpointConfig", {"S3Uri": "s3://b/c", "LocalPath": "/data"}, "must lie below /opt/ml"),
    ],
)
def test_a_training_job_is_refused_with_the_reason(path: str, value: object, message: str) -> None:
    assert message in refusal(check_training_job, change(TRAINING, path, value))


@pytest.mark.parametrize(
    ("image", "is_rehearsed"),
    [
        ("763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:2.6.0-cpu-py312", True),
        ("763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch:2.14-cu133-amzn2023-sagemaker", True),
        ("123456789012.dkr.ecr.us-east-1.amazonaws.com/mine:1", True),
        ("rehearsal.local/script", True),
        ("763104351884.dkr.ecr.us-east-1.amazonaws.com/tensorflow-training:2.19-cpu-py312", False),
        ("683313688378.dkr.ecr.us-east-1.amazonaws.com/sagemaker-xgboost:1.7-1", False),
        ("763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-inference:2.6.0-cpu-py312", False),
    ],
)
def test_an_image_that_nothing_here_stands_for_is_refused(image: str, is_rehearsed: bool) -> None:
    def check(_: Request) -> None:
        check_image(image, "123456789012", ("pytorch-training", "pytorch"))

    if is_rehearsed:
        check({})
    else:
        assert f"Image {image} works on AWS, but is not rehearsed: take pytorch-training or" in refusal(check, {})


def test_all_violations_of_the_model_are_told_at_once() -> None:
    request = change(change(TRAINING, "RoleArn", "nobody-that-is-long-enough"), "TrainingJobName", "a_b")
    told = refusal(check_training_job, request)
    assert told.startswith("2 validation errors detected: Value '")
    assert "'a_b' at 'trainingJobName'" in told
    assert "'nobody-that-is-long-enough' at 'roleArn'" in told


def test_a_spot_job_may_wait_as_long_as_it_runs() -> None:
    request = change(change(TRAINING, "EnableManagedSpotTraining", True), "StoppingCondition.MaxWaitTimeInSeconds", 60)
    check_training_job(request)


CONFIG = "HyperParameterTuningJobConfig"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("HyperParameterTuningJobName", "x" * 33, "length less than or equal to 32"),
        (f"{CONFIG}.HyperParameterTuningJobObjective.MetricName", "loss", "A metric is required for this"),
        (f"{CONFIG}.HyperParameterTuningJobObjective", None, "Objective must be provided"),
        (f"{CONFIG}.ParameterRanges", {}, "At least one hyperparameter range"),
        (
            f"{CONFIG}.ParameterRanges.ContinuousParameterRanges",
            [{**RATE, "Name": f"r{number}"} for number in range(31)],
            "less than or equal to 30",
        ),
        (
            f"{CONFIG}.ParameterRanges",
            {
                "ContinuousParameterRanges": [{**RATE, "Name": f"r{number}"} for number in range(16)],
                "IntegerParameterRanges": [{**RATE, "Name": f"i{number}"} for number in range(16)],
            },
            "must be at most 30, got 32",
        ),
        (f"{CONFIG}.ParameterRanges.ContinuousParameterRanges", [{**RATE, "Name": "a"}], "a is both static and tuned"),
        (f"{CONFIG}.ParameterRanges.ContinuousParameterRanges", [RATE, RATE], "rate is tuned twice"),
        (
            f"{CONFIG}.ParameterRanges",
            {"CategoricalParameterRanges": [{"Name": "c", "Values": ["x" * 257]}]},
            "length less than or equal to 256",
        ),
        (
            f"{CONFIG}.ParameterRanges",
            {"CategoricalParameterRanges": [{"Name": "c", "Values": [str(number) for number in range(31)]}]},
            "length less than or equal to 30",
        ),
        (
            "TrainingJobDefinition.StaticHyperParameters",
            {f"h{number}": "1" for number in range(99)},
            "at most 100 together",
        ),
        (f"{CONFIG}.ResourceLimits.MaxParallelTrainingJobs", 5, "5 training jobs at once are more than 4 in all"),
        (f"{CONFIG}.ResourceLimits.MaxNumberOfTrainingJobs", None, "MaxNumberOfTrainingJobs must be provided"),
        (f"{CONFIG}.Strategy", "Grid", "Grid takes only CategoricalParameterRanges, got ContinuousParameterRanges"),
        (f"{CONFIG}.StrategyConfig", {"HyperbandStrategyConfig": {}}, "must not be provided for strategy Random"),
        ("TrainingJobDefinition", None, "must be provided"),
        ("TrainingJobDefinition.ResourceConfig", None, "Exactly one of ResourceConfig and HyperParameterTuning"),
        ("TrainingJobDefinition.HyperParameterTuningResourceConfig", M5, "Exactly one of ResourceConfig and"),
        ("TrainingJobDefinition.EnableManagedSpotTraining", True, "Invalid MaxWaitTimeInSeconds"),
    ],
)
def test_a_tuning_job_is_refused_with_the_reason(path: str, value: object, message: str) -> None:
    assert message in refusal(check_tuning_job, change(TUNING, path, value))


def test_a_tuning_job_takes_its_resources_from_either_field() -> None:
    flexible = change(TUNING, "TrainingJobDefinition.ResourceConfig", None)
    flexible = change(flexible, RESOURCES, {**M5, "AllocationStrategy": "Prioritized"})
    check_tuning_job(flexible)
    assert with_resource_config(flexible["TrainingJobDefinition"])["ResourceConfig"] == M5
    several = change(flexible, RESOURCES, {"InstanceConfigs": [M5, {**M5, "InstanceType": "ml.m5.4xlarge"}]})
    check_tuning_job(several)
    assert with_resource_config(several["TrainingJobDefinition"])["ResourceConfig"] == M5
    twice = change(flexible, RESOURCES, {**M5, "InstanceConfigs": [M5]})
    assert "InstanceConfigs or InstanceType, and not both" in refusal(check_tuning_job, twice)
    nothing = change(flexible, RESOURCES, {"VolumeKmsKeyId": "key"})
    assert "ResourceConfig.InstanceType must be provided" in refusal(check_tuning_job, nothing)


def test_a_grid_runs_as_many_jobs_as_it_has_points() -> None:
    grid = change(TUNING, f"{CONFIG}.Strategy", "Grid")
    grid = change(grid, f"{CONFIG}.ParameterRanges", {"CategoricalParameterRanges": CHOICES})
    assert "must be 6, the number of combinations" in refusal(check_tuning_job, grid)
    check_tuning_job(change(grid, f"{CONFIG}.ResourceLimits.MaxNumberOfTrainingJobs", 6))
    check_tuning_job(change(grid, f"{CONFIG}.ResourceLimits.MaxNumberOfTrainingJobs", None))


def test_hyperband_stops_jobs_itself_and_needs_ordered_resources() -> None:
    hyperband = change(TUNING, f"{CONFIG}.Strategy", "Hyperband")
    early = change(hyperband, f"{CONFIG}.TrainingJobEarlyStoppingType", "Auto")
    assert "must be Off for strategy Hyperband" in refusal(check_tuning_job, early)
    bounds = {"HyperbandStrategyConfig": {"MinResource": 9, "MaxResource": 9}}
    unordered = change(hyperband, f"{CONFIG}.StrategyConfig", bounds)
    assert "MinResource must be less than MaxResource" in refusal(check_tuning_job, unordered)


def test_a_warm_start_takes_only_parents_of_its_kind() -> None:
    child = {**TUNING, "WarmStartConfig": {"WarmStartType": "IdenticalDataAndAlgorithm"}}
    check_warm_start(child, [TUNING])
    # A static hyperparameter may become tuned, and the other way round.
    moved = change(TUNING, f"{CONFIG}.ParameterRanges.ContinuousParameterRanges", [{**RATE, "Name": "a"}])
    check_warm_start(child, [change(moved, "TrainingJobDefinition.StaticHyperParameters", {"rate": "1"})])

    def with_parent(parent: Request) -> Callable[[Request], None]:
        return lambda request: check_warm_start(request, [parent])

    other = change(TUNING, "TrainingJobDefinition.StaticHyperParameters", {"a": "1", "b": "1"})
    assert refusal(with_parent(other), child).endswith("must be those of parent tuning: b")
    maximised = change(TUNING, f"{CONFIG}.HyperParameterTuningJobObjective.Type", "Maximize")
    assert "objective metric must be that of parent" in refusal(with_parent(maximised), child)
    other_data = change(TUNING, "TrainingJobDefinition.InputDataConfig.0.ChannelName", "photos")
    assert "InputDataConfig must be that of parent" in refusal(with_parent(other_data), child)
    check_warm_start({**child, "WarmStartConfig": {"WarmStartType": "TransferLearning"}}, [other_data])
