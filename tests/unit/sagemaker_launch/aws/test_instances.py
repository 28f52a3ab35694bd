"""Facts about instance types, compared with AWS's own answers that moto and botocore ship."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import moto
import pytest
import torch

from experiments.yaml_files import read_yaml
from sagemaker_launch.aws.api_model import service_model
from sagemaker_launch.aws.instances import (
    GPU_CAPABILITIES,
    INFERENCE_AMIS,
    family,
    inference_ami,
    is_arm,
    local_disk_gb,
)
from sagemaker_launch.aws.prices import PRICES
from sagemaker_launch.container.machines import has_gpu
from sagemaker_launch.shipping.image_fit import OLDEST_CAPABILITIES
from sagemaker_launch.shipping.shipment import SERVING_CUDA


@pytest.fixture(scope="module")
def ec2() -> dict[str, Any]:
    """AWS's answer to DescribeInstanceTypes by SageMaker's names, as far as SageMaker has the types."""
    file = Path(moto.__file__).parent / "ec2" / "resources" / "instance_types.json.gz"
    described = json.loads(gzip.decompress(file.read_bytes()))
    shapes = ("TrainingInstanceType", "ProductionVariantInstanceType")
    names = {name for shape in shapes for name in service_model().shape_for(shape).enum}
    return {name: described[name[3:]] for name in sorted(names) if name[3:] in described}


def test_local_disks_are_those_of_ec2(ec2: dict[str, Any]) -> None:
    assert len(ec2) > 250
    for name, described in ec2.items():
        assert local_disk_gb(name) == described.get("InstanceStorageInfo", {}).get("TotalSizeInGB"), name


def test_processors_and_gpus_are_those_of_ec2(ec2: dict[str, Any]) -> None:
    for name, described in ec2.items():
        assert is_arm(name) == (described["ProcessorInfo"]["SupportedArchitectures"] == ["arm64"]), name
        gpus = described.get("GpuInfo", {}).get("Gpus", [{}])
        assert has_gpu(name) == (gpus[0].get("Manufacturer") == "NVIDIA"), name


def test_every_gpu_of_sagemaker_has_its_capability() -> None:
    shapes = ("TrainingInstanceType", "ProductionVariantInstanceType")
    names = {name for shape in shapes for name in service_model().shape_for(shape).enum if has_gpu(name)}
    assert {family(name) for name in names} <= set(GPU_CAPABILITIES)


def test_gpus_of_the_price_table_have_kernels_in_our_pytorch() -> None:
    assert torch.version.cuda is None or SERVING_CUDA[0] == int(torch.version.cuda.split(".")[0])
    oldest = next(kernels for cuda, kernels in OLDEST_CAPABILITIES if cuda <= SERVING_CUDA)
    flags = torch._C._cuda_getArchFlags() or ""  # none in a build without CUDA
    compiled = [int(number) for number in re.findall(r"sm_(\d+)", flags)]
    assert not compiled or min(compiled) == 10 * oldest[0] + oldest[1]
    table = read_yaml(PRICES, "prices")
    assert isinstance(table, dict)
    gpus = [name for name in table["us-east-1"] if has_gpu(name)]
    assert gpus and all(GPU_CAPABILITIES[family(name)] >= oldest for name in gpus)


def test_inference_amis_are_those_of_the_api_reference() -> None:
    documented = re.sub(
        r"<[^>]+>", "", service_model().shape_for("ProductionVariant").members["InferenceAmiVersion"].documentation
    )
    for name, (major, minor) in INFERENCE_AMIS.items():
        assert re.search(rf"{name}\s.*?CUDA version: {major}\.{minor}", documented, re.DOTALL), name
    assert inference_ami((13, 0)) == inference_ami((13, 3)) == "al2023-ami-sagemaker-inference-gpu-4-1"
    assert inference_ami((12, 4)) == "al2-ami-sagemaker-inference-gpu-3-1"
    assert inference_ami((11, 8)) == "al2-ami-sagemaker-inference-gpu-2-1"
    assert inference_ami((12, 8)) == "al2023-ami-sagemaker-inference-gpu-4-1"
