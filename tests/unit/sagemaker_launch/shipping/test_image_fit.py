"""Images that can't run our code on an instance are refused before anything is uploaded."""

from __future__ import annotations

import re
import tomllib

import pytest

from experiments.errors import UserError
from sagemaker_launch.aws.image_uris import read_image_uri
from sagemaker_launch.settings.cloud import load_cloud
from sagemaker_launch.shipping.image_fit import MIN_PYTHON, MIN_TORCH, check_serving_image, check_training_image
from sagemaker_launch.shipping.shipment import SERVING_CUDA, own_serving_image, serving_cuda, serving_device
from tests.conftest import REPOSITORY
from tests.unit.sagemaker_launch.jobs.test_requests import BASIC

DLC = "763104351884.dkr.ecr.us-east-1.amazonaws.com"
NEWEST = f"{DLC}/pytorch:2.14-cu133-amzn2023-sagemaker"


@pytest.mark.parametrize(
    ("uri", "device", "cuda", "python", "torch"),
    [
        (NEWEST, "cuda", (13, 3), None, (2, 14)),
        (f"{DLC}/pytorch-training:2.5.1-cpu-py311-ubuntu22.04-sagemaker", "cpu", None, (3, 11), (2, 5)),
        (f"{DLC}/pytorch-inference:2.6.0-gpu-py312-cu124-ubuntu22.04-sagemaker", "cuda", (12, 4), (3, 12), (2, 6)),
        (f"{DLC}/ray:serve-ml-sagemaker-cuda", "cuda", None, None, None),
        (f"{DLC}/team/dogs-serving:0.1.0-cpu", "cpu", None, None, None),
        (f"{DLC}/training@sha256:abc", None, None, None, None),
        (f"{DLC}/pytorch-like:3.1-focus", None, None, None, (3, 1)),
    ],
)
def test_a_tag_says_what_is_in_the_image(uri: str, device: object, cuda: object, python: object, torch: object) -> None:
    image = read_image_uri(uri)
    assert image is not None and image.region == "us-east-1" and image.suffix == "amazonaws.com"
    assert (image.device, image.cuda, image.python, image.torch) == (device, cuda, python, torch)


@pytest.mark.parametrize("uri", ["rehearsal.local/serving", "registry.corp.example/dogs:1-cpu", "image"])
def test_an_image_elsewhere_says_nothing(uri: str) -> None:
    assert read_image_uri(uri) is None
    check_training_image(uri, "ml.g5.xlarge")


@pytest.mark.parametrize(
    ("uri", "instance_type", "message"),
    [
        (
            NEWEST,
            "ml.p3.2xlarge",
            r"cloud\.instance_type must have GPUs of compute capability 7\.5 .*CUDA 13\.3 .*got ml\.p3",
        ),
        (NEWEST, "ml.p2.xlarge", "got ml.p2.xlarge with 3.7"),
        (f"{DLC}/pytorch-training:2.9-gpu-py312-cu128-x", "ml.p2.xlarge", "capability 7.0 or newer"),
        (NEWEST, "ml.m5.large", r"cloud\.image_uri must have PyTorch for the CPU, which ml\.m5\.large needs"),
        (
            f"{DLC}/pytorch-training:2.7-cpu-py312",
            "ml.g5.xlarge",
            "must have PyTorch for CUDA, which ml.g5.xlarge needs",
        ),
        (f"{DLC}/pytorch-training:2.6-gpu-py310-cu124", "ml.g5.xlarge", r"must have Python 3\.11 or newer"),
        (f"{DLC}/pytorch-training:2.1.0-gpu-py311-cu121", "ml.g5.xlarge", r"must have PyTorch 2\.6 or newer"),
        (f"{DLC}/pytorch-training-arm64:2.7-cpu-py312", "ml.m5.large", "must be built for x86-64 processors"),
        (NEWEST, "ml.trn1.2xlarge", "our code uses no other accelerator"),
    ],
)
def test_a_training_image_that_does_not_fit_is_refused(uri: str, instance_type: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_training_image(uri, instance_type)


@pytest.mark.parametrize(
    ("uri", "instance_type"),
    [
        (NEWEST, "ml.g4dn.xlarge"),
        (f"{DLC}/pytorch-training:2.6.0-gpu-py312-cu126-x", "ml.p3.2xlarge"),
        (f"{DLC}/training:1", "ml.m5.large"),
        (f"{DLC}/training:1", "ml.g99.large"),  # newer than this code
    ],
)
def test_an_image_that_fits_or_says_nothing_is_taken(uri: str, instance_type: str) -> None:
    check_training_image(uri, instance_type)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"endpoint.instance_type": "ml.c7g.large"}, "must be built for Arm processors, which ml.c7g.large has"),
        ({"endpoint.instance_type": "ml.m6gd.large"}, "must be built for Arm"),
        ({"endpoint.instance_type": "ml.p3.2xlarge"}, r"cloud\.endpoint\.instance_type must have GPUs .*7\.5"),
        ({"endpoint.instance_type": "ml.inf2.xlarge"}, "uses no other accelerator"),
    ],
)
def test_our_serving_image_is_refused_where_it_does_not_run(values: dict[str, object], message: str) -> None:
    settings = load_cloud(None, BASIC | values)
    image = own_serving_image(settings, "us-east-1", serving_device(settings))
    with pytest.raises(UserError, match=message):
        check_serving_image(image, serving_cuda(settings, image), settings.endpoint.instance_type)


def test_a_serverless_endpoint_has_a_processor_whatever_its_instance_type() -> None:
    settings = load_cloud(None, BASIC | {"endpoint.kind": "serverless", "endpoint.instance_type": "ml.g5.xlarge"})
    image = own_serving_image(settings, "us-east-1", serving_device(settings))
    assert image.endswith("-cpu")
    check_serving_image(image, serving_cuda(settings, image), None)
    with pytest.raises(UserError, match="must have PyTorch for the CPU, which a serverless endpoint needs"):
        check_serving_image(image.replace("-cpu", "-cuda"), None, None)


def test_our_image_in_china_has_the_host_of_china() -> None:
    settings = load_cloud(None, {**BASIC, "role_arn": "arn:aws-cn:iam::123456789012:role/jobs"})
    assert own_serving_image(settings, "cn-north-1", "cpu").startswith(
        "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn/"
    )


def test_versions_are_those_of_the_project() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={MIN_PYTHON[0]}.{MIN_PYTHON[1]}"
    assert any(each.startswith(f"torch>={MIN_TORCH[0]}.{MIN_TORCH[1]},") for each in project["dependencies"])
    pinned = (REPOSITORY / "sagemaker_launch" / "serving" / "requirements-cuda.txt").read_text()
    found = re.search(r"^cuda-toolkit==(\d+)\.(\d+)", pinned, re.MULTILINE)
    assert found is not None and (int(found[1]), int(found[2])) == SERVING_CUDA
