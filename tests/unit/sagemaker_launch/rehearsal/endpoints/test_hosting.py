"""What the rehearsed service refuses about the capacities of an endpoint's variants, without a process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from moto.sagemaker.exceptions import SagemakerClientError

from sagemaker_launch.rehearsal.endpoints.endpoints import Endpoint, Fleet, Resource, Variant
from sagemaker_launch.rehearsal.endpoints.hosting import Hosting
from tests.unit.sagemaker_launch.rehearsal.endpoints.test_rules import CAPTURE, CONFIG, MODEL, VARIANT


@pytest.fixture
def hosting() -> Hosting:
    """An account with 6 instances, of which the variants `a` and `b` of the endpoint `both` have 2 each."""
    machine: Any = SimpleNamespace(
        settings=SimpleNamespace(account="123456789012", quotas={}, max_endpoint_instances=6)
    )
    process: Any = None
    variants = [
        Variant({**VARIANT, "VariantName": name}, MODEL["PrimaryContainer"], process, weight, 2)
        for name, weight in (("a", 1.0), ("b", 0.0))
    ]
    found = Hosting("us-east-1", machine)
    endpoint = Endpoint("arn:both", "both", [], Fleet(Resource("EndpointConfig", "arn:both", CONFIG), variants))
    endpoint.blue, endpoint.green, endpoint.status = endpoint.green, None, "InService"
    runner: Any = SimpleNamespace(rescale=lambda apply: apply())
    found.endpoints["both"], found._runners["both"] = endpoint, runner
    return found


def rescale(hosting: Hosting, **desired: dict[str, float]) -> None:
    wanted = [{"VariantName": name, **values} for name, values in desired.items()]
    request = {"EndpointName": "both", "DesiredWeightsAndCapacities": wanted}
    hosting.update_endpoint_weights_and_capacities(request)


@pytest.mark.parametrize(
    "fields",
    [
        {"AsyncInferenceConfig": {"OutputConfig": {"S3OutputPath": "https://bucket/out"}}},
        {"AsyncInferenceConfig": {"OutputConfig": {"S3OutputPath": "s3://b/out", "S3FailurePath": "https://b/failed"}}},
        {"DataCaptureConfig": CAPTURE | {"DestinationS3Uri": "https://bucket/captured"}},
    ],
)
def test_an_output_of_a_config_that_is_no_s3_address_is_refused(hosting: Hosting, fields: dict[str, Any]) -> None:
    hosting.machine.objects = SimpleNamespace(bucket_exists=lambda name: True)  # type: ignore[assignment]
    hosting._resources["Model"]["dogs"] = Resource("Model", "arn:dogs", MODEL)
    with pytest.raises(SagemakerClientError, match=r"S3 URI https://.* is not valid"):
        hosting.create_endpoint_config(CONFIG | fields)


@pytest.mark.parametrize(
    "desired",
    [
        {"a": {"DesiredInstanceCount": 4}, "b": {"DesiredInstanceCount": 4}},  # each alone fits
        {"a": {"DesiredInstanceCount": 5}},
    ],
)
def test_the_instances_of_all_variants_together_are_within_the_quota(
    hosting: Hosting, desired: dict[str, dict[str, float]]
) -> None:
    with pytest.raises(SagemakerClientError, match="current utilization of 4 Instances"):
        rescale(hosting, **desired)
    assert hosting.endpoints["both"].status == "InService"


def test_what_one_variant_gives_up_another_may_have(hosting: Hosting) -> None:
    rescale(hosting, a={"DesiredInstanceCount": 5}, b={"DesiredInstanceCount": 1})
    fleet = hosting.endpoints["both"].blue
    assert fleet is not None and [variant.instances for variant in fleet.variants] == [5, 1]


def test_the_weights_of_all_variants_together_are_above_zero(hosting: Hosting) -> None:
    with pytest.raises(SagemakerClientError, match="must have a weight above 0"):
        rescale(hosting, a={"DesiredWeight": 0.0})  # the other one's is 0
    rescale(hosting, a={"DesiredWeight": 0.0}, b={"DesiredWeight": 1.0})
    assert hosting.endpoints["both"].status == "Updating"
