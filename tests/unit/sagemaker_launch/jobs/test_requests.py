"""What is sent to SageMaker: complete, valid by botocore's own model, and nothing configured gets lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.config import RunConfig, load_config, override
from experiments.fields import fields_of
from experiments.study.epochs import with_max_epochs
from experiments.study.search_space import ChoiceRange, FloatRange, IntRange, SearchSpace, study_space
from sagemaker_launch.aws.resources import validate
from sagemaker_launch.container.hyperparameters import decode, encode
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
    "instance_type": "ml.m5.xlarge",
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
        json.dumps(request)


CHANGES: dict[str, object] = {name: value for name, value in EVERYTHING.items() if name not in BASIC} | {
    "role_arn": "arn:aws:iam::123456789012:role/others",
    "project": "cats",
    "instance_type": "ml.m5.2xlarge",
    "input_mode": "FastFile",
    "volume_size_gb": 77,
    "max_runtime_seconds": 4321,
    "checkpoints": False,
    "keep_alive_seconds": 600,
    "strategy": "Random",
    "max_parallel_jobs": 3,
}
"""Another value of each setting that a request carries."""
NEEDS: dict[str, dict[str, object]] = {
    "max_wait_seconds": {"spot": True},
    "subnets": {"subnets": ["subnet-9"], "security_group_ids": ["sg-1"]},
    "security_group_ids": {"subnets": ["subnet-1"], "security_group_ids": ["sg-9"]},
}
"""What else a setting needs, on both sides of the comparison."""


def sent_settings(command: str, prefix: str = "") -> list[str]:
    """Settings that a command's request must carry."""
    fields = fields_of(CloudSettings).items()
    names = [name for name, field in fields if field.sent and field.is_used_by([command])]
    return [name for name in names if name.startswith("debugger.") == bool(prefix)]


@pytest.mark.parametrize(("command", "build"), [("cloud train", train), ("cloud tune", tune)])
def test_changing_any_setting_changes_the_request(command: str, build: Callable[[CloudSettings], object]) -> None:
    """A setting that is not sent would be lost silently: the job would run with AWS's default."""
    names = sent_settings(command)
    assert {"role_arn", "subnets", "environment"} <= set(names)
    for name in names:
        before = BASIC | NEEDS.get(name, {})
        after = before | {name: CHANGES[name]}
        assert build(load_cloud(None, before)) != build(load_cloud(None, after)), f"cloud.{name} is not sent"


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
    assert ranges["CategoricalParameterRanges"][1] == {"Name": "optimizer__name", "Values": ['"sgd"', '"adamw"']}


def test_sagemakers_sdk_can_attach_to_each_job() -> None:
    """Its estimators read each hyperparameter as JSON, and these three of AWS's toolkit by name."""
    request = tune(load_cloud(None, BASIC))
    ranges = request["HyperParameterTuningJobConfig"]["ParameterRanges"]
    tuned = {each["Name"]: value for each in ranges["CategoricalParameterRanges"] for value in each["Values"]}
    single = train(load_cloud(None, BASIC | {"instance_count": 2}))["HyperParameters"]
    for hyperparameters in (single, request["TrainingJobDefinition"]["StaticHyperParameters"] | tuned):
        read = {name: json.loads(value) for name, value in hyperparameters.items()}
        assert read["sagemaker_program"] == "entry.py"
        assert read["sagemaker_submit_directory"].endswith("/sourcedir.tar.gz")
        assert read["sagemaker_container_log_level"] == 20


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


def test_the_hyperparameters_of_a_training_job_are_the_config() -> None:
    config = override(RunConfig(), {"optimizer.learning_rate": 0.123, "trainer.max_epochs": 9})
    assert decode(train(load_cloud(None, BASIC), config)["HyperParameters"]) == decode(encode(config))
