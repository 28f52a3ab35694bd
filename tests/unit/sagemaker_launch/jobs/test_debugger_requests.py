"""What is sent about SageMaker Debugger: what smdebug reads, complete, and refused where no job can use it."""

from __future__ import annotations

from typing import Any

import pytest

from experiments.config import RunConfig
from sagemaker_launch.aws.resources import validate
from sagemaker_launch.jobs.requests import training_job, tuning_job
from sagemaker_launch.settings.cloud import CloudSettings, load_cloud
from tests.unit.sagemaker_launch.jobs.test_requests import BASIC, INPUTS, SPACE, sent_settings

CONFIG = RunConfig()
DEFAULTS: dict[str, object] = {"enabled": True}
EVERYTHING: dict[str, object] = DEFAULTS | {
    "losses_every": 2,
    "eval_losses_every": 3,
    "weights_every": 40,
    "gradients_every": 50,
    "biases_every": 60,
    "relu_every": 70,
    "include_regex": "fc_output,conv1.*",
    "custom_every": 80,
    "eval_every": 9,
    "reductions": ["abs_mean", "l2_norm", "std"],
    "rules": ["Overfit", "VanishingGradient"],
    "rule_image_uri": "1.dkr.ecr.us-east-1.amazonaws.com/rules:1",
    "rule_instance_type": "ml.m5.large",
    "rule_volume_size_gb": 20,
    "profiling_interval_ms": 1000,
}
BARE: dict[str, object] = DEFAULTS | {
    "eval_losses_every": 0,
    "weights_every": 0,
    "gradients_every": 0,
    "relu_every": 0,
    "raw_tensors": True,
    "rules": [],
    "profiler": False,
}


def settings(values: dict[str, object], **cloud: object) -> CloudSettings:
    return load_cloud(None, BASIC | {f"debugger.{name}": value for name, value in values.items()} | cloud)


def request(values: dict[str, object]) -> dict[str, Any]:
    return training_job(settings(values), CONFIG, INPUTS, "image", name="job")


def test_by_default_losses_of_each_step_and_statistics_of_the_rest_are_kept() -> None:
    sent = request(DEFAULTS)
    seldom = {"train.save_interval": "500", "eval.end_step": "0"}
    assert sent["DebugHookConfig"] == {
        "S3OutputPath": "s3://my-bucket/experiments/debug",
        "LocalPath": "/opt/ml/output/tensors",
        "HookParameters": {"reductions": "min,max,variance,abs_mean,l2_norm"},
        "CollectionConfigurations": [
            {
                "CollectionName": "losses",
                "CollectionParameters": {"train.save_interval": "1", "eval.save_interval": "1"},
            },
            {"CollectionName": "weights", "CollectionParameters": seldom},
            {"CollectionName": "gradients", "CollectionParameters": seldom},
            {"CollectionName": "relu_input", "CollectionParameters": seldom | {"include_regex": ".*relu_input"}},
            {"CollectionName": "relu_output", "CollectionParameters": seldom | {"include_regex": ".*relu_output"}},
        ],
    }
    assert sent["DebugRuleConfigurations"] == [
        {
            "RuleConfigurationName": rule,
            "RuleEvaluatorImage": "503895931360.dkr.ecr.us-east-1.amazonaws.com/sagemaker-debugger-rules:latest",
            "RuleParameters": {"rule_to_invoke": rule},
        }
        for rule in ("VanishingGradient", "Overfit", "Overtraining", "PoorWeightInitialization", "LossNotDecreasing")
    ]
    assert sent["ProfilerConfig"] == {
        "S3OutputPath": "s3://my-bucket/experiments/debug",
        "ProfilingIntervalInMilliseconds": 500,
    }
    assert [rule["RuleParameters"] for rule in sent["ProfilerRuleConfigurations"]] == [
        {"rule_to_invoke": "ProfilerReport"}
    ]


def test_without_debugger_nothing_of_it_is_sent() -> None:
    sent = request({"rules": [], "profiler": False})
    assert not [name for name in sent if name.startswith(("Debug", "Profiler"))]


@pytest.mark.parametrize("values", [DEFAULTS, EVERYTHING, BARE], ids=["defaults", "everything", "bare"])
def test_requests_are_valid(values: dict[str, object]) -> None:
    validate("CreateTrainingJob", request(values))


def test_changing_any_setting_changes_the_request() -> None:
    """A setting that is not sent would be lost silently: the job would run with AWS's default."""
    changes: dict[str, object] = EVERYTHING | {"enabled": False, "raw_tensors": True, "profiler": False}
    needs: dict[str, dict[str, object]] = {
        "custom_every": {"include_regex": "fc_output"},
        "rule_volume_size_gb": {"rule_instance_type": "ml.m5.large"},
    }
    names = [name.removeprefix("debugger.") for name in sent_settings("cloud train", "debugger.")]
    assert {"enabled", "rules", "custom_every"} <= set(names)
    for name in names:
        before = DEFAULTS | needs.get(name, {})
        assert request(before) != request(before | {name: changes[name]}), f"cloud.debugger.{name} is not sent"


@pytest.mark.parametrize(
    ("region", "image"),
    [
        ("eu-central-1", "482524230118.dkr.ecr.eu-central-1.amazonaws.com/sagemaker-debugger-rules:latest"),
        ("cn-north-1", "618459771430.dkr.ecr.cn-north-1.amazonaws.com.cn/sagemaker-debugger-rules:latest"),
    ],
)
def test_each_region_has_its_own_image_of_rules(region: str, image: str) -> None:
    sent = training_job(settings(DEFAULTS, region=region), CONFIG, INPUTS, "image", name="job")
    assert {rule["RuleEvaluatorImage"] for rule in sent["DebugRuleConfigurations"]} == {image}


def test_a_region_without_an_image_of_rules_asks_for_one() -> None:
    with pytest.raises(ValueError, match=r"cloud\.debugger\.rule_image_uri must be set: .* for eu-south-2"):
        training_job(settings(DEFAULTS, region="eu-south-2"), CONFIG, INPUTS, "image", name="job")
    own = settings(DEFAULTS | {"rule_image_uri": "mine"}, region="eu-south-2")
    sent = training_job(own, CONFIG, INPUTS, "image", name="job")
    assert {rule["RuleEvaluatorImage"] for rule in sent["DebugRuleConfigurations"]} == {"mine"}


def test_a_tuning_job_refuses_debugger_and_offers_the_recorder() -> None:
    with pytest.raises(ValueError, match=r"cloud\.debugger\.enabled must be false in a tuning job: .*--recorder"):
        tuning_job(settings(DEFAULTS), CONFIG, SPACE, INPUTS, "image", name="job")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"losses_every": 0}, r"cloud\.debugger\.losses_every must be >= 1: smdebug always keeps losses, got 0"),
        ({"weights_every": -1}, r"cloud\.debugger\.weights_every must be >= 0, got -1"),
        ({"include_regex": "("}, r"cloud\.debugger\.include_regex must be regular expressions"),
        ({"include_regex": "a" * 257}, r"cloud\.debugger\.include_regex must be .* at most 256 characters"),
        ({"reductions": ["l2"]}, r"cloud\.debugger\.reductions must name what smdebug knows, got 'l2'"),
        ({"reductions": ["mean"]}, r"cloud\.debugger\.reductions must have abs_mean and l2_norm"),
        ({"rules": ["Overfitt"]}, r"unknown rule 'Overfitt'; did you mean Overfit\?"),
        ({"rules": ["x"]}, r"unknown rule 'x'; rules are VanishingGradient, "),
        ({"rules": ["Overfit", "Overfit"]}, r"cloud\.debugger\.rules must name each rule once"),
        ({"gradients_every": 0}, r"cloud\.debugger\.gradients_every must be > 0 with rule VanishingGradient"),
        ({"relu_every": 0}, r"cloud\.debugger\.relu_every must be > 0 with rule PoorWeightInitialization"),
        ({"eval_losses_every": 0}, r"cloud\.debugger\.eval_losses_every must be > 0 with rule Overfit"),
        ({"rule_instance_type": "m5.large"}, r"cloud\.debugger\.rule_instance_type must begin with ml\."),
        ({"profiling_interval_ms": 300}, r"cloud\.debugger\.profiling_interval_ms must be one of \(100, 200, 500"),
        ({"wights_every": 1}, r"'debugger\.wights_every'; did you mean debugger\.weights_every\?"),
    ],
)
def test_what_debugger_can_not_use_is_refused_by_name(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(values)


def test_several_machines_with_checkpoints_are_refused_as_smdebug_does() -> None:
    with pytest.raises(ValueError, match=r"cloud\.checkpoints must be false with cloud\.debugger\.enabled"):
        settings(DEFAULTS, instance_count=2)
    assert settings(DEFAULTS, instance_count=2, checkpoints=False).debugger.enabled
