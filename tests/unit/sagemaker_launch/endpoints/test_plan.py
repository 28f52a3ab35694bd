"""An endpoint before it is deployed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from experiments.config import RunConfig, load_config
from experiments.errors import UserError
from sagemaker_launch.aws import client as aws
from sagemaker_launch.aws.image_uris import CONTAINER_ACCOUNTS
from sagemaker_launch.aws.partitions import dns_suffix
from sagemaker_launch.endpoints.lease import Lease
from sagemaker_launch.endpoints.plan import plan_endpoint
from sagemaker_launch.endpoints.requests import create_endpoint, deployment, planned_requests
from sagemaker_launch.jobs.budget import OverBudgetError
from sagemaker_launch.settings.cloud import load_cloud
from sagemaker_launch.shipping.shipment import find_serving_image
from tests.unit.sagemaker_launch.jobs.test_plan import SETTINGS
from tests.unit.sagemaker_launch.shipping.test_image_fit import DLC


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.setattr(aws, "client", lambda *_, **__: pytest.fail("asked AWS"))
    return load_config(None, {"output_dir": tmp_path})


def test_an_endpoint_is_planned_without_aws(config: RunConfig) -> None:
    settings = load_cloud(None, SETTINGS | {"endpoint.max_instances": 2, "endpoint.budget_usd_per_hour": 3.99})
    plan = plan_endpoint(settings, config, "dogs", ttl="1h")
    assert plan.name == "dogs" and plan.worst.usd == pytest.approx(4.0)
    with pytest.raises(OverBudgetError, match=r"budget_usd_per_hour must be at least 4\.00, the worst case, got 3\.99"):
        plan.worst.check_budget(settings)


def test_a_name_that_aws_refuses_is_refused_before_a_model_is_fetched(config: RunConfig) -> None:
    with pytest.raises(UserError, match="NAME must"):
        plan_endpoint(load_cloud(None, SETTINGS), config, "no_underscores")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"endpoint.memory_mb": 3000, "endpoint.kind": "serverless"}, "MemorySizeInMB must be one of 1024, 2048"),
        ({"endpoint.kind": "serverless", "volume_kms_key": "alias/x"}, "KmsKeyId is not supported for serverless"),
        ({"endpoint.instance_type": "ml.c7g.large"}, "must be built for Arm processors"),
        ({"endpoint.instance_type": "ml.p3.2xlarge"}, "must have GPUs of compute capability 7.5 or newer"),
        ({"endpoint.inference_ami": "al2-ami-sagemaker-inference-gpu-2"}, "inference_ami must be left out without an"),
        ({"endpoint.image": "aws", "endpoint.kind": "serverless"}, "image must be own or torchserve for kind serverl"),
        (
            {"endpoint.image": "aws", "endpoint.environment": {"SERVING_MAX_BATCH": "4"}},
            "environment must have no SERVING_ variables with cloud.endpoint.image aws",
        ),
        ({"endpoint.image": "aws", "endpoint.instance_type": "ml.c7g.large"}, "must be built for Arm processors"),
        (
            {"endpoint.image": "aws", "endpoint.image_uri": f"{DLC}/pytorch-inference:2.6.0-cpu-py312"},
            "image_uri must name AWS's repository ray, or a copy of that name, for cloud.endpoint.image aws",
        ),
        (
            {"endpoint.image": "torchserve", "endpoint.image_uri": f"{DLC}/ray:serve-ml-sagemaker-cpu-v1"},
            "image_uri must name AWS's repository pytorch-inference",
        ),
        (
            {"endpoint.image": "aws", "endpoint.image_uri": "rehearsal.local/serving"},
            "leave it out .--cloud.endpoint.image_uri null",
        ),
        ({"endpoint.alarms": [" "]}, "UpdateEndpoint would not be taken: .*alarmName"),
        ({"tags": {"expires": "never"}}, "cloud.tags must leave 'expires' to --ttl"),
        ({"tags": {"endpoint": "x"}}, "cloud.tags must leave 'endpoint' to NAME"),
        ({"region": "cn-north-1"}, "ExecutionRoleArn must be an ARN of aws-cn"),
        (
            {"endpoint.schedule_role_arn": "arn:aws-cn:iam::123456789012:role/s"},
            "CreateSchedule would not be taken: RoleArn must be an ARN of aws,",
        ),
        (
            {"endpoint.image_uri": "123456789012.dkr.ecr.us-west-2.amazonaws.com/serving:1"},
            "Image must be in the region us-east-1",
        ),
    ],
)
def test_what_aws_would_refuse_is_refused_before_a_model_is_fetched(
    config: RunConfig, values: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plan_endpoint(load_cloud(None, SETTINGS | values), config, "dogs", ttl="1h")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"precision": "int8", "instance_type": "ml.g5.xlarge"}, "be float32 or bf16 on ml.g5.xlarge, which has GPUs"),
        ({"precision": "bf16"}, "be float32 or int8 on ml.c5.xlarge, which has no GPU, got 'bf16'"),
        ({"precision": "bf16", "kind": "serverless"}, "be float32 or int8 on a serverless endpoint"),
        ({"precision": "int8"}, r"be float32 without nncf \(pip install '.\[quantized\]'\), got 'int8'"),
    ],
)
def test_a_precision_that_cannot_be_served_is_refused_at_once(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, values: dict[str, str], message: str
) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    settings = load_cloud(None, SETTINGS | {f"endpoint.{name}": value for name, value in values.items()})
    with pytest.raises(UserError, match=f"cloud.endpoint.precision must {message}"):
        plan_endpoint(settings, config, "dogs", ttl="1h")


@pytest.mark.parametrize(
    ("precision", "machine", "variable"),
    [
        ("float32", "ml.c5.xlarge", None),
        ("int8", "ml.c5.xlarge", "int8"),
        ("bf16", "ml.g5.xlarge", "bf16"),
    ],
)
def test_the_precision_reaches_the_server(precision: str, machine: str, variable: str | None) -> None:
    settings = load_cloud(None, SETTINGS | {"endpoint.precision": precision, "endpoint.instance_type": machine})
    version = deployment(settings, "dogs", "image", "s3://b/m")
    assert version.model["PrimaryContainer"]["Environment"].get("SERVING_PRECISION") == variable


@pytest.mark.parametrize(
    ("values", "ami", "device"),
    [
        ({"endpoint.instance_type": "ml.g5.xlarge"}, "al2023-ami-sagemaker-inference-gpu-4-1", "cuda"),
        (
            {"endpoint.instance_type": "ml.g5.xlarge", "endpoint.kind": "async"},
            "al2023-ami-sagemaker-inference-gpu-4-1",
            "cuda",
        ),
        (
            {"endpoint.instance_type": "ml.g5.xlarge", "endpoint.inference_ami": "al2-ami-sagemaker-inference-gpu-3-1"},
            "al2-ami-sagemaker-inference-gpu-3-1",
            "cuda",
        ),
        (
            {
                "endpoint.instance_type": "ml.g4dn.xlarge",
                "endpoint.image": "torchserve",
                "endpoint.image_uri": f"{DLC}/pytorch-inference:2.6.0-gpu-py312-cu124",
            },
            "al2-ami-sagemaker-inference-gpu-3-1",
            "cuda",
        ),
        (
            {"endpoint.instance_type": "ml.g5.xlarge", "endpoint.image": "aws"},
            "al2-ami-sagemaker-inference-gpu-3-1",
            "cuda",
        ),
        (
            {"endpoint.instance_type": "ml.g7e.2xlarge", "endpoint.image": "aws"},
            "al2023-ami-sagemaker-inference-gpu-4-1",
            "cuda",
        ),
        ({"endpoint.instance_type": "ml.c5.xlarge", "endpoint.image": "aws"}, None, None),
        ({"endpoint.instance_type": "ml.c5.xlarge"}, None, None),
        ({"endpoint.instance_type": "ml.g5.xlarge", "endpoint.kind": "serverless"}, None, None),
    ],
)
def test_an_endpoint_with_gpus_asks_for_their_driver_and_needs_them(
    config: RunConfig, values: dict[str, object], ami: str | None, device: str | None
) -> None:
    settings = load_cloud(None, SETTINGS | values)
    plan = plan_endpoint(settings, config, "dogs", ttl="1h")
    version = deployment(settings, "dogs", plan.image, "s3://my-bucket/model.tar.gz")
    assert version.config["ProductionVariants"][0].get("InferenceAmiVersion") == ami
    assert version.model["PrimaryContainer"]["Environment"].get("SERVING_DEVICE") == device


def test_the_users_own_tag_owner_wins(config: RunConfig) -> None:
    settings = load_cloud(None, SETTINGS | {"tags": {"owner": "Team Vision"}, "endpoint.owner": "anna"})
    plan = plan_endpoint(settings, config, "dogs", ttl="1h")
    tags = {tag["Key"]: tag["Value"] for tag in create_endpoint(settings, "dogs", "dogs-1", plan.lease)["Tags"]}
    assert tags["owner"] == "Team Vision"
    assert Lease.read(tags) == plan.lease


def test_an_endpoint_in_china_has_the_names_of_china(config: RunConfig) -> None:
    role = "arn:aws-cn:iam::123456789012:role/jobs"
    values = {"region": "cn-north-1", "role_arn": role, "endpoint.schedule_role_arn": role}
    settings = load_cloud(None, {**SETTINGS, **values})
    plan = plan_endpoint(settings, config, "dogs", ttl="1h")
    version = deployment(settings, "dogs", plan.image, "s3://my-bucket/model.tar.gz")
    sent = json.dumps([request for _, _, request in planned_requests(settings, "dogs", version, plan.lease)])
    assert ".dkr.ecr.cn-north-1.amazonaws.com.cn/" in sent and "arn:aws-cn:scheduler:::aws-sdk" in sent
    assert "arn:aws:" not in sent and "amazonaws.com/" not in sent


@pytest.mark.parametrize(
    ("region", "instance_type", "image"),
    [
        ("us-east-1", "ml.c5.xlarge", "763104351884.dkr.ecr.us-east-1.amazonaws.com/ray:serve-ml-sagemaker-cpu-v1"),
        ("eu-south-1", "ml.g5.xlarge", "692866216735.dkr.ecr.eu-south-1.amazonaws.com/ray:serve-ml-sagemaker-cuda-v1"),
        (
            "cn-north-1",
            "ml.c5.xlarge",
            "727897471807.dkr.ecr.cn-north-1.amazonaws.com.cn/ray:serve-ml-sagemaker-cpu-v1",
        ),
    ],
)
def test_the_image_with_ray_serve_is_that_of_the_region_and_the_device(
    config: RunConfig, region: str, instance_type: str, image: str
) -> None:
    role = f"arn:aws{'-cn' if region.startswith('cn-') else ''}:iam::123456789012:role/jobs"
    values = {"region": region, "role_arn": role, "endpoint.image": "aws", "endpoint.instance_type": instance_type}
    settings = load_cloud(None, SETTINGS | values)
    assert find_serving_image(settings, region, config.data.cache_dir) == image


def test_a_region_without_the_image_is_refused_with_a_way_out(config: RunConfig) -> None:
    settings = load_cloud(None, SETTINGS | {"region": "us-gov-west-1", "endpoint.image": "aws"})
    with pytest.raises(UserError, match=r"image_uri must be set in us-gov-west-1.*choose cloud\.endpoint\.image own"):
        find_serving_image(settings, "us-gov-west-1", config.data.cache_dir)
    assert {region for region in CONTAINER_ACCOUNTS if not dns_suffix(region).startswith("amazonaws.com")} == set()
