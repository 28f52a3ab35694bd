"""The IAM policies grant what they must and nothing beyond this project, as AWS's documented evaluation decides."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from experiments.config import load_config
from experiments.errors import UserError
from sagemaker_launch.account.policy import characters_beyond, policies
from sagemaker_launch.aws import partitions
from sagemaker_launch.endpoints.lease import Lease
from sagemaker_launch.endpoints.requests import (
    DIMENSION,
    create_endpoint,
    endpoint_tags,
    schedule,
    update_alarms,
    update_endpoint,
    wake_alarm,
)
from sagemaker_launch.settings.cloud import load_cloud
from tests.iam import is_allowed
from tests.unit.sagemaker_launch.jobs.test_requests import BASIC, EVERYTHING, ROLE

SCHEDULE_ROLE = "arn:aws:iam::123456789012:role/schedules"
SETTINGS = load_cloud(
    None, BASIC | {"project": "dogs", "endpoint.schedule_role_arn": SCHEDULE_ROLE, "endpoint.max_latency_ms": 100}
)
NEIGHBOURS = ("cats", "dogs-2", "dog", "dogs/2", "x.dogs")
"""Other projects of the account, some of them with a name that contains ours, or is contained."""
OWN, FOREIGN = {"aws:ResourceTag/project": "dogs"}, {"aws:ResourceTag/project": "cats"}
SCALING = "application-autoscaling"
UNTAGGED: dict[str, str] = {}
SAGEMAKER, SCHEDULER = "sagemaker.amazonaws.com", "scheduler.amazonaws.com"
KINDS = ("training-job", "hyper-parameter-tuning-job", "model", "endpoint-config", "endpoint")
CREATED_BY = {
    "training-job": "CreateTrainingJob",
    "hyper-parameter-tuning-job": "CreateHyperParameterTuningJob",
    "model": "CreateModel",
    "endpoint-config": "CreateEndpointConfig",
    "endpoint": "CreateEndpoint",
}


def arn(service: str, resource: str) -> str:
    return f"arn:aws:{service}:us-east-1:123456789012:{resource}"


def may(action: str, resource: str, context: dict[str, str] | None = None) -> bool:
    return is_allowed(policies(SETTINGS, "us-east-1")["launcher"], action, resource, context)


def requested(tags: dict[str, str]) -> dict[str, str]:
    return {f"aws:RequestTag/{key}": value for key, value in tags.items()}


def tags_of(request: dict[str, Any]) -> dict[str, str]:
    return requested({tag["Key"]: tag["Value"] for tag in request["Tags"]})


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_created_gets_the_projects_tag_in_the_same_call(kind: str) -> None:
    resource, operation = arn("sagemaker", f"{kind}/new"), CREATED_BY[kind]
    ours = requested({"project": "dogs", "team": "vision"})
    assert may(f"sagemaker:{operation}", resource, ours)
    assert may("sagemaker:AddTags", resource, ours | {"sagemaker:TaggingAction": operation})
    for tags in ({}, {"project": "cats"}, {"team": "vision"}):
        assert not may(f"sagemaker:{operation}", resource, requested(tags))
        assert not may("sagemaker:AddTags", resource, requested(tags) | {"sagemaker:TaggingAction": operation})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("owner", [FOREIGN, UNTAGGED], ids=["foreign", "untagged"])
def test_no_tag_makes_a_foreign_resource_one_of_this_project(kind: str, owner: dict[str, str]) -> None:
    resource = arn("sagemaker", f"{kind}/theirs")
    for tags in ({"project": "dogs"}, {"project": "dogs", "expires": "never"}, {"expires": "never"}, {}):
        assert not may("sagemaker:AddTags", resource, owner | requested(tags))
        # A call that creates one thing does not tag another kind of it.
        others = {operation for other, operation in CREATED_BY.items() if ("job" in other) != ("job" in kind)}
        for operation in (*others, "CreateNotebookInstance", "CreateProcessingJob", "UpdateEndpoint"):
            assert not may(
                "sagemaker:AddTags", resource, owner | requested(tags) | {"sagemaker:TaggingAction": operation}
            )
    for action in ("DeleteTags", *MUTATIONS[kind]):
        assert not may(f"sagemaker:{action}", resource, owner | requested({"project": "dogs"}))


MUTATIONS = {
    "training-job": ("StopTrainingJob", "UpdateTrainingJob", "DeleteTrainingJob"),
    "hyper-parameter-tuning-job": ("StopHyperParameterTuningJob", "DeleteHyperParameterTuningJob"),
    "model": ("DeleteModel",),
    "endpoint-config": ("DeleteEndpointConfig", "UpdateEndpoint"),
    "endpoint": (
        *("UpdateEndpoint", "DeleteEndpoint", "InvokeEndpoint", "InvokeEndpointAsync"),
        "UpdateEndpointWeightsAndCapacities",
    ),
}


def test_a_new_lease_keeps_the_endpoint_in_the_project() -> None:
    endpoint = arn("sagemaker", "endpoint/ours")
    lease = Lease("me", datetime(2026, 12, 1, tzinfo=UTC))
    renewed = requested({tag["Key"]: tag["Value"] for tag in endpoint_tags(SETTINGS, "ours", lease)})
    assert may("sagemaker:AddTags", endpoint, OWN | renewed), "as set_lease sends it"
    assert may("sagemaker:AddTags", endpoint, OWN | requested(lease.tags))
    assert not may("sagemaker:AddTags", endpoint, OWN | requested({"project": "cats"}))
    assert not may("sagemaker:DeleteTags", endpoint, OWN)
    for kind in set(KINDS) - {"endpoint"}:
        assert not may("sagemaker:AddTags", arn("sagemaker", f"{kind}/ours"), OWN | requested({"team": "x"}))


def test_an_endpoint_is_created_updated_asked_and_deleted() -> None:
    endpoint, config = arn("sagemaker", "endpoint/ours"), arn("sagemaker", "endpoint-config/ours-1")
    assert may(
        "sagemaker:CreateEndpoint", endpoint, tags_of(create_endpoint(SETTINGS, "ours", "ours-1", Lease("me", None)))
    )
    for action in MUTATIONS["endpoint"]:
        assert may(f"sagemaker:{action}", endpoint, OWN)
    for action in MUTATIONS["endpoint-config"]:
        assert may(f"sagemaker:{action}", config, OWN)


def alarms_of(project: str) -> Iterator[str]:
    settings = load_cloud(None, BASIC | {"project": project, "endpoint.max_latency_ms": 100})
    for alarm in (*update_alarms(settings, "ours"), wake_alarm(settings, "ours", "arn:policy")):
        yield alarm["AlarmName"]
    if project == "dogs":
        request = update_endpoint(settings, "ours", "config")["DeploymentConfig"]["AutoRollbackConfiguration"]
        yield from (alarm["AlarmName"] for alarm in request["Alarms"])


@pytest.mark.parametrize("action", ["PutMetricAlarm", "DeleteAlarms"])
def test_alarms_of_others_stay(action: str) -> None:
    assert all(may(f"cloudwatch:{action}", arn("cloudwatch", f"alarm:{name}")) for name in alarms_of("dogs"))
    theirs = [name for project in NEIGHBOURS for name in alarms_of(project)]
    scaled_by_others = ("TargetTracking-table/theirs-AlarmHigh", "TargetTracking-service/c/s-AlarmHigh")
    for name in (*theirs, "checkout-latency", "api-5xx", "dogs-latency", *scaled_by_others):
        assert not may(f"cloudwatch:{action}", arn("cloudwatch", f"alarm:{name}")), name


@pytest.mark.parametrize("action", ["CreateSchedule", "UpdateSchedule", "DeleteSchedule"])
def test_schedules_of_others_stay(action: str) -> None:
    def name(project: str) -> str:
        settings = load_cloud(None, BASIC | {"project": project, "endpoint.schedule_role_arn": SCHEDULE_ROLE})
        return str(schedule(settings, "ours", datetime(2026, 12, 1, tzinfo=UTC))["Name"])

    assert may(f"scheduler:{action}", arn("scheduler", f"schedule/default/{name('dogs')}"))
    for other in (*map(name, NEIGHBOURS), "delete-backups", "nightly"):
        assert not may(f"scheduler:{action}", arn("scheduler", f"schedule/default/{other}")), other
    assert not may(f"scheduler:{action}", arn("scheduler", f"schedule/theirs/{name('dogs')}"))


def test_a_role_is_passed_to_its_service_only() -> None:
    assert may("iam:PassRole", ROLE, {"iam:PassedToService": SAGEMAKER})
    assert may("iam:PassRole", SCHEDULE_ROLE, {"iam:PassedToService": SCHEDULER})
    for role, service in ((ROLE, SCHEDULER), (SCHEDULE_ROLE, SAGEMAKER), (ROLE, "lambda.amazonaws.com")):
        assert not may("iam:PassRole", role, {"iam:PassedToService": service})
    assert not may("iam:PassRole", ROLE)
    assert not may("iam:PassRole", "arn:aws:iam::123456789012:role/admin", {"iam:PassedToService": SAGEMAKER})


def test_the_bucket_is_open_below_the_prefix_only() -> None:
    bucket, prefix = "arn:aws:s3:::my-bucket", "experiments"
    assert may("s3:PutObject", f"{bucket}/{prefix}/data/x") and may(
        "s3:ListBucket", bucket, {"s3:prefix": f"{prefix}/a"}
    )
    for key in ("x", f"{prefix}", f"{prefix}-2/x", "other/experiments/x"):
        assert not may("s3:GetObject", f"{bucket}/{key}") and not may("s3:PutObject", f"{bucket}/{key}")
    for listed in ({}, {"s3:prefix": ""}, {"s3:prefix": "experiments-2/"}):
        assert not may("s3:ListBucket", bucket, listed)
    assert not may("s3:DeleteObject", f"{bucket}/{prefix}/data/x")
    assert not may("s3:GetObject", "arn:aws:s3:::my-bucket-2/experiments/x")


def test_only_endpoints_are_scaled() -> None:
    key, dimension = "application-autoscaling:service-namespace", "application-autoscaling:scalable-dimension"
    target = arn("application-autoscaling", "scalable-target/x")
    endpoints = {key: "sagemaker", dimension: "sagemaker:variant:DesiredInstanceCount"}
    for action in ("RegisterScalableTarget", "DeregisterScalableTarget", "PutScalingPolicy"):
        assert may(f"application-autoscaling:{action}", target, endpoints)
        assert not may(f"application-autoscaling:{action}", target, endpoints | {key: "ecs"})
        assert not may(f"application-autoscaling:{action}", target, {key: "sagemaker", dimension: "other"})
        assert not may(f"application-autoscaling:{action}", target)


@pytest.mark.parametrize("of", ["launcher", "role"])
def test_a_key_is_granted_to_services_of_aws_only(of: str) -> None:
    policy, key = policies(load_cloud(None, EVERYTHING), "us-east-1")[of], arn("kms", "key/1")
    assert is_allowed(policy, "kms:CreateGrant", key, {"kms:GrantIsForAWSResource": "true"})
    assert not is_allowed(policy, "kms:CreateGrant", key, {"kms:GrantIsForAWSResource": "false"})
    assert not is_allowed(policy, "kms:CreateGrant", key)
    assert all(is_allowed(policy, f"kms:{action}", arn("kms", "key/2")) for action in ("Decrypt", "GenerateDataKey"))
    assert not is_allowed(policy, "kms:Decrypt", arn("kms", "key/3"))
    assert not any(is_allowed(policy, f"kms:{action}", key) for action in ("PutKeyPolicy", "ScheduleKeyDeletion"))


def test_a_job_changes_network_interfaces_of_its_subnets_only() -> None:
    role, interface = policies(load_cloud(None, EVERYTHING), "us-east-1")["role"], arn("ec2", "network-interface/eni-1")
    needed = (
        interface,
        arn("ec2", "subnet/subnet-1"),
        arn("ec2", "subnet/subnet-2"),
        arn("ec2", "security-group/sg-1"),
    )
    assert all(is_allowed(role, "ec2:CreateNetworkInterface", resource) for resource in needed)
    assert not is_allowed(role, "ec2:CreateNetworkInterface", arn("ec2", "subnet/subnet-9"))
    for action in ("DeleteNetworkInterface", "CreateNetworkInterfacePermission", "DeleteNetworkInterfacePermission"):
        assert is_allowed(role, f"ec2:{action}", interface, {"ec2:Subnet": arn("ec2", "subnet/subnet-1")})
        assert not is_allowed(role, f"ec2:{action}", interface, {"ec2:Subnet": arn("ec2", "subnet/subnet-9")})
        assert not is_allowed(role, f"ec2:{action}", interface)


def test_the_schedules_role_deletes_own_endpoints_and_nothing_else() -> None:
    role, endpoint = policies(SETTINGS, "us-east-1")["schedule_role"], arn("sagemaker", "endpoint/ours")
    assert is_allowed(role, "sagemaker:DeleteEndpoint", endpoint, OWN)
    assert not is_allowed(role, "sagemaker:DeleteEndpoint", endpoint, FOREIGN)
    assert not is_allowed(role, "sagemaker:DeleteEndpoint", endpoint)
    assert not is_allowed(role, "sagemaker:UpdateEndpoint", endpoint, OWN)


def test_the_schedules_role_may_delete_a_scaled_endpoint() -> None:
    """Else the endpoint outlives its lease."""
    role = policies(SETTINGS, "us-east-1")["schedule_role"]
    endpoints = {f"{SCALING}:service-namespace": "sagemaker", f"{SCALING}:scalable-dimension": DIMENSION}
    target = arn(SCALING, "scalable-target/x")
    assert is_allowed(role, f"{SCALING}:DeregisterScalableTarget", target, endpoints)
    assert not is_allowed(
        role, f"{SCALING}:DeregisterScalableTarget", target, endpoints | {f"{SCALING}:service-namespace": "ecs"}
    )
    tracking = arn("cloudwatch", "alarm:TargetTracking-endpoint/ours/variant/AllTraffic-AlarmHigh-1")
    assert is_allowed(role, "cloudwatch:DeleteAlarms", tracking)
    assert not is_allowed(role, "cloudwatch:PutMetricAlarm", tracking)
    assert not is_allowed(role, f"{SCALING}:RegisterScalableTarget", target, endpoints)


def test_the_launcher_may_scale_an_endpoint() -> None:
    endpoint = arn("sagemaker", "endpoint/ours")
    tracking = arn("cloudwatch", "alarm:TargetTracking-endpoint/ours/variant/AllTraffic-AlarmHigh-1")
    assert may("sagemaker:UpdateEndpointWeightsAndCapacities", endpoint, OWN)
    assert may("cloudwatch:PutMetricAlarm", tracking) and may("cloudwatch:DeleteAlarms", tracking)


def test_the_endpoints_role_reads_the_alarms_that_roll_an_update_back() -> None:
    role = policies(SETTINGS, "us-east-1")["role"]
    assert is_allowed(role, "cloudwatch:DescribeAlarms", arn("cloudwatch", "alarm:checkout-5xx"))


@pytest.mark.parametrize(
    ("root", "inside", "outside"),
    [
        ("s3://other-team/photos", "photos/train/a/1.jpg", "photos-2/train/a/1.jpg"),
        ("s3://other-team", "train/a/1.jpg", None),
    ],
)
def test_a_data_set_in_another_bucket_is_read_by_the_role(root: str, inside: str, outside: str | None) -> None:
    config = load_config(None, {"data.name": "folder", "data.root": root})
    role, bucket = policies(SETTINGS, "us-east-1", config)["role"], "arn:aws:s3:::other-team"
    assert is_allowed(role, "s3:GetObject", f"{bucket}/{inside}")
    assert is_allowed(role, "s3:ListBucket", bucket, {"s3:prefix": inside.rpartition("train")[0]})
    assert not is_allowed(role, "s3:PutObject", f"{bucket}/{inside}")
    assert not is_allowed(role, "s3:GetObject", f"{bucket}-2/{inside}")
    assert not is_allowed(role, "s3:ListBucket", "arn:aws:s3:::my-bucket", {"s3:prefix": "photos/"})
    if outside:
        assert not is_allowed(role, "s3:GetObject", f"{bucket}/{outside}")
        assert not is_allowed(role, "s3:ListBucket", bucket, {"s3:prefix": "photos-2/"})
    assert "other-team" not in json.dumps(policies(SETTINGS, "us-east-1"))


def test_a_key_is_named_by_its_arn_in_a_policy() -> None:
    """IAM refuses a policy whose resource is no ARN."""
    settings = load_cloud(None, BASIC | {"output_kms_key": "1234abcd", "volume_kms_key": arn("kms", "key/5")})
    text = json.dumps(policies(settings, "us-east-1"))
    assert arn("kms", "key/1234abcd") in text and arn("kms", "key/5") in text and '"1234abcd"' not in text
    for alias in ("alias/photos", arn("kms", "alias/photos")):
        with pytest.raises(UserError, match=r"output_kms_key must be the id or the ARN of a key in a policy, .* got"):
            policies(load_cloud(None, BASIC | {"output_kms_key": alias}), "us-east-1")


def test_the_serving_image_is_pushed_to_its_own_repository_only() -> None:
    policy = policies(SETTINGS, "us-east-1")["image"]
    push = ("InitiateLayerUpload", "UploadLayerPart", "CompleteLayerUpload", "PutImage", "BatchCheckLayerAvailability")
    for action in (*push, "CreateRepository", "DescribeRepositories"):
        assert is_allowed(policy, f"ecr:{action}", arn("ecr", "repository/dogs-serving"))
        assert not is_allowed(policy, f"ecr:{action}", arn("ecr", "repository/cats-serving"))
    assert not is_allowed(policy, "ecr:DeleteRepository", arn("ecr", "repository/dogs-serving"))


@pytest.mark.parametrize("values", [BASIC, EVERYTHING], ids=["basic", "everything"])
def test_a_policy_fits_into_iam(values: dict[str, object]) -> None:
    settings = load_cloud(None, values | {"endpoint.schedule_role_arn": SCHEDULE_ROLE})
    assert all(characters_beyond(policy) <= 0 for policy in policies(settings, "us-east-1").values())


@pytest.mark.parametrize("of", ["launcher", "role", "schedule_role", "image"])
def test_no_statement_names_all_actions_or_what_settings_could_widen(of: str) -> None:
    for statement in policies(load_cloud(None, EVERYTHING), "us-east-1")[of]["Statement"]:
        assert not any("*" in action for action in statement["Action"])
        changes = [
            action
            for action in statement["Action"]
            if not action.split(":")[1].startswith(("Get", "List", "Describe", "Batch"))
        ]
        if changes and "*" in statement["Resource"]:
            assert statement.get("Condition"), changes


@pytest.mark.parametrize(
    "values",
    [
        {"role_arn": "arn:aws:iam::123456789012:role/*"},
        {"endpoint.schedule_role_arn": "arn:aws:iam::123456789012:role/a*"},
        {"output_kms_key": "*"},
        {"volume_kms_key": "arn:aws:kms:us-east-1:123456789012:key/*"},
        {"project": "*"},
        {"project": "dogs~5xx"},
        {"project": "${aws:username}"},
        {"prefix": "*"},
        {"bucket": "my-*"},
    ],
)
def test_a_setting_with_a_wildcard_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"^cloud.{next(iter(values))} must "):
        load_cloud(None, BASIC | values)


def test_a_job_may_keep_tensors_and_the_logs_of_debuggers_rules() -> None:
    role = json.dumps(policies(load_cloud(None, BASIC), "us-east-1")["role"])
    assert "my-bucket/experiments/debug/*" in role
    rules = arn("logs", "log-group:/aws/sagemaker/ProcessingJobs:log-stream:x")
    assert is_allowed(policies(load_cloud(None, BASIC), "us-east-1")["role"], "logs:PutLogEvents", rules)


def test_keys_and_subnets_bring_their_own_rights() -> None:
    plain = json.dumps(policies(load_cloud(None, BASIC), "us-east-1"))
    everything = json.dumps(policies(load_cloud(None, EVERYTHING), "us-east-1"))
    assert "kms:" not in plain
    assert "ec2:" not in plain
    assert "key/1" in everything
    assert "ec2:CreateNetworkInterface" in everything


def test_a_profile_that_is_not_there_does_not_matter_to_a_printed_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    partitions._partitions.cache_clear()
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    assert policies(SETTINGS, "us-east-1")["role"]["Statement"]
