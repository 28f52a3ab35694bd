"""The IAM policies grant what they must and nothing beyond this project."""

from __future__ import annotations

import json

from sagemaker_launch.account.policy import policies
from sagemaker_launch.settings.cloud import load_cloud
from tests.unit.sagemaker_launch.jobs.test_requests import BASIC, EVERYTHING, ROLE


def test_nothing_but_the_prefix_the_tag_and_one_role_may_be_changed() -> None:
    launcher = policies(load_cloud(None, BASIC), "us-east-1")["launcher"]
    for statement in launcher["Statement"]:
        assert not any("*" in action for action in statement["Action"])
        changes = [
            action for action in statement["Action"] if not action.split(":")[1].startswith(("Get", "List", "Describe"))
        ]
        if not changes:
            continue
        service = changes[0].split(":")[0]
        if service in ("application-autoscaling", "cloudwatch", "scheduler"):
            # They know no tag of ours: a namespace, or names that only we give.
            narrow = "sagemaker" in json.dumps(statement.get("Condition", {}))
            assert narrow or all("alarm:*-" in one or "/delete-*" in one for one in statement["Resource"]), changes
        elif changes == ["iam:CreateServiceLinkedRole"]:
            assert statement["Resource"][0].endswith("/sagemaker.application-autoscaling.amazonaws.com/*")
        elif changes == ["iam:PassRole"]:
            assert statement["Resource"] == [ROLE]
            assert statement["Condition"]["StringEquals"]["iam:PassedToService"] == "sagemaker.amazonaws.com"
        elif changes[0].startswith("s3:"):
            assert statement["Resource"] == ["arn:aws:s3:::my-bucket/experiments/*"]
        else:
            assert "project" in json.dumps(statement["Condition"]), changes


def test_a_job_may_keep_tensors_and_the_logs_of_debuggers_rules() -> None:
    role = json.dumps(policies(load_cloud(None, BASIC), "us-east-1")["role"])
    assert "my-bucket/experiments/debug/*" in role
    assert "log-group:/aws/sagemaker/ProcessingJobs:*" in role


def test_keys_and_subnets_bring_their_own_rights() -> None:
    plain = json.dumps(policies(load_cloud(None, BASIC), "us-east-1"))
    everything = json.dumps(policies(load_cloud(None, EVERYTHING), "us-east-1"))
    assert "kms:" not in plain
    assert "ec2:" not in plain
    assert "key/1" in everything
    assert "ec2:CreateNetworkInterface" in everything
