"""Answers have the form of AWS's."""

from __future__ import annotations

from sagemaker_launch.rehearsal.api import in_aws_order
from sagemaker_launch.rehearsal.jobs.training import TrainingJob
from tests.unit.sagemaker_launch.rehearsal.test_rules import TRAINING


def test_a_description_is_in_the_order_of_aws_and_has_its_defaults() -> None:
    """The same order however a client ordered its request."""
    requests = (TRAINING, dict(reversed(TRAINING.items())))
    first, second = (
        in_aws_order("DescribeTrainingJob", TrainingJob("arn", request).describe()) for request in requests
    )
    assert [*first] == [*second]
    assert [*first][:3] == ["TrainingJobName", "TrainingJobArn", "TrainingJobStatus"]
    assert [*first["StoppingCondition"], *first["ResourceConfig"]] == [
        *("MaxRuntimeInSeconds", "InstanceType", "InstanceCount", "VolumeSizeInGB"),
    ]
    (channel,) = first["InputDataConfig"]
    assert (channel["CompressionType"], channel["RecordWrapperType"]) == ("None", "None")
    assert first["OutputDataConfig"] == {
        "KmsKeyId": "",
        "S3OutputPath": TRAINING["OutputDataConfig"]["S3OutputPath"],
        "CompressionType": "GZIP",
    }


def test_what_the_model_does_not_know_is_kept() -> None:
    assert in_aws_order("DescribeModel", {"New": 1, "ModelName": "m"}) == {"ModelName": "m", "New": 1}
    assert in_aws_order("StopTrainingJob", {}) == {}
