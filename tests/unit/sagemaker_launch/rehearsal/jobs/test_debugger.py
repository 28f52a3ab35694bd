"""SageMaker Debugger in the rehearsal: what it refuses, and how it tells of rules."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from sagemaker_launch.aws.api_model import service_model
from sagemaker_launch.rehearsal.jobs.debugger import check_debugger, judge
from sagemaker_launch.rehearsal.jobs.training import TrainingJob
from sagemaker_launch.rehearsal.keys import KeyPair
from sagemaker_launch.rehearsal.machine.container import Container, ContainerSpec
from sagemaker_launch.rehearsal.rules import check_training_job
from tests.unit.sagemaker_launch.rehearsal.test_rules import TRAINING, change, refusal

IMAGE = "503895931360.dkr.ecr.us-east-1.amazonaws.com/sagemaker-debugger-rules:latest"


def rule(name: str, image: str = IMAGE) -> dict[str, Any]:
    return {"RuleConfigurationName": name, "RuleEvaluatorImage": image, "RuleParameters": {"rule_to_invoke": name}}


DEBUG: dict[str, Any] = {
    **TRAINING,
    "DebugHookConfig": {
        "S3OutputPath": "s3://bucket/debug",
        "LocalPath": "/opt/ml/output/tensors",
        "HookParameters": {"reductions": "abs_mean"},
        "CollectionConfigurations": [
            {"CollectionName": "losses", "CollectionParameters": {"train.save_interval": "1", "eval.end_step": "0"}}
        ],
    },
    "DebugRuleConfigurations": [rule("Overfit"), rule("DeadRelu"), rule("Mine", "my/rules:1")],
    "ProfilerConfig": {"S3OutputPath": "s3://bucket/debug", "ProfilingIntervalInMilliseconds": 500},
    "ProfilerRuleConfigurations": [rule("ProfilerReport")],
}
COLLECTION = "DebugHookConfig.CollectionConfigurations.0.CollectionParameters"


def test_what_aws_takes_passes() -> None:
    check_training_job(DEBUG)
    check_debugger(DEBUG, available=True)
    check_debugger({**TRAINING, "ProfilerConfig": {"DisableProfiler": True}}, available=False)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("DebugHookConfig.LocalPath", "/tensors", "LocalPath must lie below /opt/ml"),
        ("DebugHookConfig", None, "DebugHookConfig must be provided with DebugRuleConfigurations"),
        (f"{COLLECTION}.every", "5", "can't read parameter every of losses"),
        (f"{COLLECTION}.save_raw_tensor", "True", "can't read parameter save_raw_tensor of losses"),
        ("DebugHookConfig.HookParameters.save_all_of_it", "1", "can't read parameter save_all_of_it of HookParameters"),
        ("ProfilerConfig.ProfilingIntervalInMilliseconds", 300, "must be one of (100, 200, 500, 1000, 5000, 60000)"),
        ("DebugRuleConfigurations", [rule("Overfit")] * 2, "must be unique, Overfit is a duplicate"),
    ],
)
def test_a_job_that_debugger_can_not_watch_is_refused(path: str, value: object, message: str) -> None:
    assert message in refusal(lambda request: check_debugger(request, available=True), change(DEBUG, path, value))


def test_more_than_twenty_rules_are_refused() -> None:
    many = change(DEBUG, "DebugRuleConfigurations", [rule(f"r{number}") for number in range(21)])
    assert "length less than or equal to 20" in refusal(check_training_job, many)


def test_an_account_without_debugger_is_told_so() -> None:
    told = refusal(lambda request: check_debugger(request, available=False), DEBUG)
    assert told == "DebugHookConfig: Amazon SageMaker Debugger is not available to this account."


def statuses(job: TrainingJob) -> dict[str, tuple[str, str]]:
    told = job.describe()
    listed = [*told["DebugRuleEvaluationStatuses"], *told["ProfilerRuleEvaluationStatuses"]]
    return {one["RuleConfigurationName"]: (one["RuleEvaluationStatus"], one.get("StatusDetails", "")) for one in listed}


def test_rules_that_can_be_evaluated_are_and_the_others_say_why_not(tmp_path: Path) -> None:
    job = TrainingJob("arn:aws:sagemaker:us-east-1:123456789012:training-job/job", DEBUG)
    assert set(statuses(job).values()) == {("InProgress", "")}
    asked: list[Any] = []

    def run_rules(folder: Path, rules: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        asked.extend(rule["RuleConfigurationName"] for rule in rules)
        assert (folder / "training_job_end.ts").exists()
        found = {"RuleEvaluationStatus": "IssuesFound", "StatusDetails": "step 3: " + "x" * 2000}
        return [{"RuleConfigurationName": "Overfit", **found}]

    judge(job.rules, job.request, tmp_path, run_rules, end_now=lambda: False)
    assert asked == ["Overfit", "DeadRelu"]
    found = statuses(job)
    assert found["Overfit"] == ("IssuesFound", "step 3: " + "x" * 1016)
    left = {name: status for name, status in found.items() if name != "Overfit"}
    assert left == dict.fromkeys(left, ("Stopped", "not rehearsed: only AWS's own rules on tensors are"))


def test_a_service_that_stops_evaluates_nothing(tmp_path: Path) -> None:
    job = TrainingJob("arn:aws:sagemaker:us-east-1:123456789012:training-job/job", DEBUG)
    judge(job.rules, job.request, tmp_path, lambda *_: pytest.fail("evaluated"), end_now=lambda: True)
    assert {status for status, _ in statuses(job).values()} == {"Stopped"}


def test_a_rule_is_told_of_with_an_address_that_a_processing_job_may_have() -> None:
    long = DEBUG | {"TrainingJobName": "a" * 63}
    job = TrainingJob(f"arn:aws:sagemaker:us-east-1:123456789012:training-job/{'a' * 63}", long)
    (told, *_) = job.describe()["DebugRuleEvaluationStatuses"]
    shape = service_model().shape_for("ProcessingJobArn")
    assert re.fullmatch(shape.metadata["pattern"], told["RuleEvaluationJobArn"])


def test_where_opt_ml_is_elsewhere_smdebug_is_told_so(tmp_path: Path) -> None:
    spec = ContainerSpec(
        **{"job_name": "job", "job_arn": "arn", "region": "us-east-1", "command": ("train",), "hyperparameters": {}},
        **{"environment": {}, "channels": {}, "instance_type": "ml.m5.large", "hosts": {"algo-1": "127.0.0.1"}},
        **{"host": "algo-1", "network_isolation": False, "checkpoints": None, "endpoint_url": ""},
        debug_hook=DEBUG["DebugHookConfig"],
        keys=KeyPair("AKIAROLE", "secret of the role"),
    )
    container = Container(tmp_path / "tree", spec, None, None, [])
    container._write_config()
    told = json.loads(Path(container._environment()["SMDEBUG_CONFIG_FILE_PATH"]).read_text())
    assert told == DEBUG["DebugHookConfig"] | {"LocalPath": str(container.tensors)}
    assert container.tensors == tmp_path / "tree" / "ml" / "output" / "tensors"
