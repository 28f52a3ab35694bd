"""The printed policies, enforced: what they allow works, and what they lack is one line that names it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import pytest

from experiments.config import load_config
from sagemaker_launch.account.policy import policies
from sagemaker_launch.cli import main
from sagemaker_launch.rehearse import Service, run_rehearsal
from sagemaker_launch.settings.cloud import load_cloud
from tests.cloud import CLOUD
from tests.conftest import IMAGE_OPTIONS, own_flags, tiny
from tests.e2e.test_endpoints import tiny_export

pytestmark = pytest.mark.slow
KEY = "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
ENCRYPTED = {"prefix": "sse", "output_kms_key": KEY}
SETTINGS = load_cloud(CLOUD, ENCRYPTED)
OPTIONS = [f"--cloud={CLOUD}", *(f"--cloud.{name}={value}" for name, value in ENCRYPTED.items())]
REQUIRE_KEY = {
    "Effect": "Deny",
    "Action": "s3:PutObject",
    "Resource": "*",
    "Condition": {"StringNotEquals": {"s3:x-amz-server-side-encryption": "aws:kms"}},
}
"""What a bucket's policy says where it requires SSE-KMS (AWS's S3 user guide, "Using server-side encryption")."""


@pytest.fixture(scope="module")
def service(job_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("permissions") / "rehearsal"
    with run_rehearsal(SETTINGS, root, [*IMAGE_OPTIONS, "--grace", "1"]) as running:
        yield running


@pytest.fixture
def launcher(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process calls with the launcher's key."""
    for name, value in service.environment.items():
        monkeypatch.setenv(name, value)


def administrator(running: Service, name: str) -> Any:
    return client_of(running.administrator, name)


def client_of(environment: Mapping[str, str], name: str) -> Any:
    return boto3.client(
        name,
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        region_name="us-east-1",
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
    )


def attach(running: Service, name: str, *statements: Mapping[str, Any]) -> None:
    """Give the launcher one more policy."""
    document = json.dumps({"Version": "2012-10-17", "Statement": statements})
    administrator(running, "iam").put_user_policy(UserName="launcher", PolicyName=name, PolicyDocument=document)


def detach(running: Service, name: str) -> None:
    administrator(running, "iam").delete_user_policy(UserName="launcher", PolicyName=name)


@pytest.mark.usefixtures("launcher")
def test_uploads_pass_where_the_bucket_requires_its_key(
    service: Service, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = own_flags("cloud train", [f"--{name}={value}" for name, value in tiny(photos, tmp_path).items()])
    attach(service, "require-key", REQUIRE_KEY)
    without = ["train", "--no-wait", f"--cloud={CLOUD}", "--cloud.prefix=sse", *flags]
    assert main(without) == 1
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    assert re.search("error: .*s3:PutObject on resource: .* with an explicit deny", printed.splitlines()[-1])
    assert main(["train", "--no-wait", *OPTIONS, *flags]) == 0
    detach(service, "require-key")
    s3 = administrator(service, "s3")
    stored = s3.list_objects_v2(Bucket=SETTINGS.bucket, Prefix="sse/")["Contents"]
    assert len(stored) > 3
    for entry in stored:
        head = s3.head_object(Bucket=SETTINGS.bucket, Key=entry["Key"])
        if not entry["Key"].startswith("sse/checkpoints/"):
            assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", KEY), entry["Key"]


@pytest.mark.usefixtures("launcher")
def test_what_the_launcher_may_not_do_is_one_line(
    service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = tiny_export(tmp_path / "export", seed=1)
    deploy = ["deploy", "acc", "--model", str(export), f"--output_dir={tmp_path}", f"--tracking.uri={tmp_path}/m.db"]
    attach(service, "no-uploads", {"Effect": "Deny", "Action": "s3:PutObject", "Resource": "*"})
    assert main([*deploy, *OPTIONS]) == 1
    detach(service, "no-uploads")
    printed = capsys.readouterr().err.splitlines()
    assert "Traceback" not in "\n".join(printed)
    assert re.search(r"error: An error occurred \(AccessDenied\) .* s3:PutObject on resource", printed[-1])
    assert main([*deploy, f"--cloud={CLOUD}", "--cloud.prefix=other"]) == 1
    printed = capsys.readouterr().err.splitlines()
    assert re.search("error: .*AccessDenied.*s3:ListBucket on resource", printed[-1])


def test_a_job_reads_photos_of_another_bucket_if_its_role_may(service: Service) -> None:
    s3, iam, sagemaker = (administrator(service, name) for name in ("s3", "iam", "sagemaker"))
    s3.create_bucket(Bucket="other-team")
    s3.put_object(Bucket="other-team", Key="photos/train/a/1.jpg", Body=b"photo")
    s3.put_object(Bucket=SETTINGS.bucket, Key="sse/code/x/train.py", Body=b"print('trained')")

    def status(name: str) -> dict[str, Any]:
        sources = {"code": f"{SETTINGS.uri}/code/x/", "photos": "s3://other-team/photos/"}
        sagemaker.create_training_job(
            TrainingJobName=name,
            RoleArn=SETTINGS.role_arn,
            AlgorithmSpecification={"TrainingImage": "rehearsal.local/script", "TrainingInputMode": "File"},
            InputDataConfig=[
                {
                    "ChannelName": channel,
                    "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": uri}},
                }
                for channel, uri in sources.items()
            ],
            OutputDataConfig={"S3OutputPath": f"{SETTINGS.uri}/jobs"},
            ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 10},
            StoppingCondition={"MaxRuntimeInSeconds": 300},
        )
        until = time.monotonic() + 120
        while time.monotonic() < until:
            found: dict[str, Any] = sagemaker.describe_training_job(TrainingJobName=name)
            if found["TrainingJobStatus"] in ("Failed", "Completed"):
                return found
            time.sleep(0.2)
        raise AssertionError("the job did not end")

    failed = status("without")
    assert failed["TrainingJobStatus"] == "Failed"
    assert 's3:ListBucket on resource: "arn:aws:s3:::other-team"' in failed["FailureReason"]
    config = load_config(None, {"data.name": "folder", "data.root": "s3://other-team/photos"})
    iam.put_role_policy(
        RoleName="rehearsal",
        PolicyName="role",
        PolicyDocument=json.dumps(policies(SETTINGS, "us-east-1", config)["role"]),
    )
    done = status("with")
    assert done["TrainingJobStatus"] == "Completed", done.get("FailureReason")


def test_an_sdk_asks_what_a_role_may_do(service: Service) -> None:
    iam, role = administrator(service, "iam"), SETTINGS.role_arn
    asked = {"PolicySourceArn": role, "ActionNames": ["s3:GetObject", "s3:DeleteBucket"]}
    own = f"arn:aws:s3:::{SETTINGS.bucket}/sse/x"
    results = iam.simulate_principal_policy(**asked, ResourceArns=[own])["EvaluationResults"]
    assert [one["EvalDecision"] for one in results] == ["allowed", "implicitDeny"]
    with pytest.raises(iam.exceptions.ClientError, match="is not authorized to perform: iam:SimulatePrincipalPolicy"):
        client_of(service.environment, "iam").simulate_principal_policy(**asked)
