"""What is sent about SageMaker Debugger: what smdebug reads, complete, and refused where no job can use it."""

from __future__ import annotations

import copy
from dataclasses import fields
from typing import Any

import pytest

from experiments.config import RunConfig
from sagemaker_launch.aws.resources import LostFieldError, check_described, validate
from sagemaker_launch.jobs.fidelity import _of_debugger, check_sent
from sagemaker_launch.jobs.requests import training_job, tuning_job
from sagemaker_launch.settings.cloud import CloudSettings, load_cloud
from sagemaker_launch.settings.debugger import DebuggerSettings
from tests.unit.sagemaker_launch.jobs.test_requests import BASIC, INPUTS, SPACE, leaves

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
def test_requests_are_valid_and_carry_every_setting(values: dict[str, object]) -> None:
    sent = request(values)
    validate("CreateTrainingJob", sent)
    check_sent(settings(values), CONFIG, sent)
    assert {field.name for field in fields(DebuggerSettings)} == set(_of_debugger(settings(values).debugger, sent))
    check_described(sent, copy.deepcopy(sent), {tag["Key"]: tag["Value"] for tag in sent["Tags"]})


def test_every_value_about_debugger_that_gets_lost_is_noticed() -> None:
    sent = request(EVERYTHING)
    about = {name: value for name, value in sent.items() if name.startswith(("Debug", "Profiler"))}
    places = {"S3OutputPath", "LocalPath", "RuleConfigurationName"}  # settings of no field about Debugger
    for path in leaves(about):
        if path[-1] in places:
            continue
        changed = copy.deepcopy(sent)
        place: Any = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = "7" if isinstance(place[path[-1]], str) else 7
        with pytest.raises(LostFieldError, match=r"cloud\.debugger\."):
            check_sent(settings(EVERYTHING), CONFIG, changed)
    for name in about:
        if name != "ProfilerRuleConfigurations":
            with pytest.raises(LostFieldError, match=r"cloud\.debugger\."):
                check_sent(settings(EVERYTHING), CONFIG, {key: value for key, value in sent.items() if key != name})


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
