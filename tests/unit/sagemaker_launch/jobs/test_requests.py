"""What is sent to SageMaker: complete, valid by botocore's own model, and nothing configured gets lost."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from experiments.config import RunConfig, load_config, override
from experiments.fields import fields_of
from experiments.study.epochs import with_max_epochs
from experiments.study.search_space import ChoiceRange, FloatRange, IntRange, SearchSpace, study_space
from sagemaker_launch.aws.resources import LostFieldError, check_described, validate
from sagemaker_launch.container.hyperparameters import decode, encode
from sagemaker_launch.jobs.fidelity import _expected, check_sent
from sagemaker_launch.jobs.requests import training_job, tuning_job
from sagemaker_launch.settings.cloud import CloudSettings, load_cloud
from sagemaker_launch.shipping.storage import Inputs
from tests.conftest import REPOSITORY

INPUTS = Inputs("s3://b/p/data/sets/x/manifest.json", "s3://b/p/code/x/", "s3://b/p/weights/x/")
ROLE = "arn:aws:iam::123456789012:role/jobs"
BASIC: dict[str, object] = {"role_arn": ROLE, "bucket": "my-bucket", "region": "us-east-1"}
EVERYTHING: dict[str, object] = BASIC | {
    "spot": True,
    "max_wait_seconds": 9000,
    "subnets": ["subnet-1", "subnet-2"],
    "security_group_ids": ["sg-1"],
    "volume_kms_key": "arn:aws:kms:us-east-1:123456789012:key/1",
    "output_kms_key": "arn:aws:kms:us-east-1:123456789012:key/2",
    "network_isolation": True,
    "encrypt_inter_container_traffic": True,
    "environment": {"LEVEL": "1"},
    "tags": {"team": "vision"},
    "retry_attempts": 3,
    "instance_count": 2,
    "early_stopping": True,
    "warm_start_from": ["parent-1"],
    "target_value": 0.5,
    "max_jobs_without_improvement": 5,
    "input_mode": "FastFile",
}
SPACE: SearchSpace = {
    "optimizer.learning_rate": FloatRange(1e-5, 1e-1, log=True),
    "trainer.max_epochs": IntRange(2, 8),
    "data.batch_size": ChoiceRange((32, 64)),
    "optimizer.name": ChoiceRange(("sgd", "adamw")),
}
GRID: SearchSpace = {"data.batch_size": ChoiceRange((32, 64)), "optimizer.name": ChoiceRange(("sgd", "adamw"))}


def tune(settings: CloudSettings, config: RunConfig | None = None, space: SearchSpace = SPACE) -> dict[str, Any]:
    config = with_max_epochs(override(config or RunConfig(seed=7), {"trainer.max_epochs": 5}), space)
    return tuning_job(settings, config, space, INPUTS, "image", name="job")


def train(settings: CloudSettings, config: RunConfig | None = None) -> dict[str, Any]:
    return training_job(settings, config or RunConfig(seed=7), INPUTS, "image", name="job")


@pytest.mark.parametrize("values", [BASIC, EVERYTHING], ids=["basic", "everything"])
def test_requests_are_valid_and_carry_every_setting(values: dict[str, object]) -> None:
    settings, config = load_cloud(None, values), RunConfig(seed=7)
    for operation, request in (
        ("CreateTrainingJob", train(settings, config)),
        ("CreateHyperParameterTuningJob", tune(settings, config)),
    ):
        validate(operation, request)
        check_sent(settings, config, request)
        json.dumps(request)


def test_every_setting_is_looked_for_on_the_wire() -> None:
    settings = load_cloud(None, EVERYTHING)
    sent = {name: field for name, field in fields_of(CloudSettings).items() if field.sent}

    def settings_of(command: str) -> set[str]:
        return {name.partition(".")[0] for name, field in sent.items() if field.is_used_by([command])}

    def looked_for(request: dict[str, Any]) -> set[str]:
        return {name.partition(".")[0] for name in _expected(settings, RunConfig(), request)}

    of_both = settings_of("cloud train")
    assert of_both | settings_of("cloud tune") == looked_for(tune(settings)) - {"seed", "metric definitions"}
    assert of_both == looked_for(train(settings)) - {"metric definitions"}


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values in a request."""
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in leaves(inner, (*path, key))]
    if isinstance(value, list):
        return [leaf for index, inner in enumerate(value) for leaf in leaves(inner, (*path, index))]
    return [path]


def test_a_value_that_aws_dropped_or_changed_is_named() -> None:
    request = tune(load_cloud(None, EVERYTHING))
    sent = {key: value for key, value in request.items() if key != "Tags"}
    tags = {tag["Key"]: tag["Value"] for tag in request["Tags"]}
    check_described(request, copy.deepcopy(sent) | {"CreationTime": "now"}, tags)
    with pytest.raises(LostFieldError, match=r"Tags\.team"):
        check_described(request, sent, {"project": tags["project"]})
    for path in leaves(sent):
        changed = copy.deepcopy(sent)
        place: Any = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = "something else"
        with pytest.raises(LostFieldError, match=str(path[-2] if isinstance(path[-1], int) else path[-1])):
            check_described(request, changed, tags)


@pytest.mark.parametrize(
    ("path", "field"),
    [
        (("TrainingJobDefinition", "VpcConfig"), "cloud.subnets"),
        (("TrainingJobDefinition", "EnableNetworkIsolation"), "cloud.network_isolation"),
        (("TrainingJobDefinition", "CheckpointConfig"), "cloud.checkpoints"),
        (("TrainingJobDefinition", "Environment"), "cloud.environment"),
        (("HyperParameterTuningJobConfig", "RandomSeed"), "seed"),
        (("TrainingJobDefinition", "AlgorithmSpecification", "MetricDefinitions"), "metric definitions"),
    ],
)
def test_a_setting_that_does_not_reach_the_request_is_named(path: tuple[str, ...], field: str) -> None:
    settings, config = load_cloud(None, EVERYTHING), RunConfig(seed=7)
    request = tune(settings, config)
    place = request
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    with pytest.raises(LostFieldError, match=field):
        check_sent(settings, config, request)


def test_a_seed_of_zero_is_sent() -> None:
    assert tune(load_cloud(None, BASIC), RunConfig(seed=0))["HyperParameterTuningJobConfig"]["RandomSeed"] == 0


def test_ranges_say_what_the_search_space_says() -> None:
    ranges = tune(load_cloud(None, BASIC))["HyperParameterTuningJobConfig"]["ParameterRanges"]
    assert ranges["ContinuousParameterRanges"] == [
        {"Name": "optimizer__learning_rate", "MinValue": "1e-05", "MaxValue": "0.1", "ScalingType": "Logarithmic"}
    ]
    assert ranges["IntegerParameterRanges"] == [
        {"Name": "trainer__max_epochs", "MinValue": "2", "MaxValue": "8", "ScalingType": "Linear"}
    ]
    assert ranges["CategoricalParameterRanges"][1] == {"Name": "optimizer__name", "Values": ["sgd", "adamw"]}


def test_a_tuned_field_is_not_sent_as_a_static_one_too() -> None:
    static = tune(load_cloud(None, BASIC))["TrainingJobDefinition"]["StaticHyperParameters"]
    assert not {"optimizer__learning_rate", "data__batch_size", "trainer__max_epochs"} & static.keys()
    assert static["model__backbone"] == '"resnet50"'


def test_hyperband_takes_the_longest_tuned_training_for_all() -> None:
    request = tune(load_cloud(None, BASIC | {"strategy": "Hyperband"}))
    tuning = request["HyperParameterTuningJobConfig"]
    assert tuning["StrategyConfig"]["HyperbandStrategyConfig"] == {"MinResource": 1, "MaxResource": 8}
    assert "IntegerParameterRanges" not in tuning["ParameterRanges"]
    assert request["TrainingJobDefinition"]["StaticHyperParameters"]["trainer__max_epochs"] == "8"


def test_a_grid_has_a_job_for_each_point_and_choices_only() -> None:
    settings = load_cloud(None, BASIC | {"strategy": "Grid"})
    request = tune(settings, space=GRID)
    assert request["HyperParameterTuningJobConfig"]["ResourceLimits"]["MaxNumberOfTrainingJobs"] == 4
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate must be a choice"):
        tune(settings)


def test_keep_alive_is_refused_where_the_service_resets_it() -> None:
    settings = load_cloud(None, BASIC | {"keep_alive_seconds": 600})
    assert train(settings)["ResourceConfig"]["KeepAlivePeriodInSeconds"] == 600
    with pytest.raises(ValueError, match=r"cloud\.keep_alive_seconds must be 0 in a tuning job"):
        tune(settings)


def test_a_gpu_machine_starts_one_process_a_gpu() -> None:
    gpu = train(load_cloud(None, BASIC | {"instance_type": "ml.g5.12xlarge"}))
    cpu = train(load_cloud(None, BASIC | {"instance_type": "ml.m5.large"}))
    assert gpu["HyperParameters"]["sagemaker_torch_distributed_enabled"] == "true"
    assert "sagemaker_torch_distributed_enabled" not in cpu["HyperParameters"]


@pytest.mark.parametrize("preset", sorted((REPOSITORY / "conf").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_and_its_search_can_be_sent(preset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    config, settings = load_config(preset), load_cloud(None, BASIC)
    request = tune(settings, config, study_space(config))
    validate("CreateHyperParameterTuningJob", request)


def test_what_a_training_job_is_told_is_the_config() -> None:
    config = override(RunConfig(), {"optimizer.learning_rate": 0.123, "trainer.max_epochs": 9})
    assert decode(train(load_cloud(None, BASIC), config)["HyperParameters"]) == decode(encode(config))
