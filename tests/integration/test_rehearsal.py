"""The stand-in for SageMaker: real jobs through AWS's container toolkit, asked about with boto3."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import textwrap
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
import requests
from botocore.config import Config
from botocore.exceptions import ClientError, HTTPClientError

from sagemaker_launch.aws.readback import differences
from tests.conftest import IMAGE_OPTIONS
from tests.integration.test_readme import INTERRUPT
from tests.signing import control

pytestmark = pytest.mark.usefixtures("job_images")
ROLE = "arn:aws:iam::123456789012:role/SageMaker"
LOG_GROUP = "/aws/sagemaker/TrainingJobs"
PLANTED = "planted-secret-of-the-launcher"


@dataclass
class Rehearsal:
    """A running server, and clients of it."""

    environment: Mapping[str, str]
    process: subprocess.Popen[str]

    @property
    def url(self) -> str:
        return self.environment["AWS_ENDPOINT_URL"]

    def client(self, service: str, retries: int = 3) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            config=Config(retries={"total_max_attempts": retries}, read_timeout=10),
        )

    def post(self, path: str) -> dict[str, Any]:
        return control(self.environment, "POST", path)


def command(root: Path, *options: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "sagemaker_launch.rehearsal",
        "--root",
        str(root),
        *IMAGE_OPTIONS,
        *options,
    ]


@contextlib.contextmanager
def rehearsal(root: Path, *options: str) -> Iterator[Rehearsal]:
    environment = {**os.environ, "PLANTED": PLANTED}
    process = subprocess.Popen(command(root, *options), stdout=subprocess.PIPE, text=True, env=environment)
    try:
        exports = printed_variables(process)
        assert json.loads((root / "server.json").read_text()) == {
            "url": exports["AWS_ENDPOINT_URL"],
            "pid": process.pid,
        }
        server = Rehearsal(exports, process)
        make_bucket_and_role(server)
        yield server
    finally:
        process.terminate()
        code = process.wait(30)
        assert process.stdout is not None
        process.stdout.close()
    assert code == 0
    assert "Traceback" not in (root / "server.log").read_text()
    assert not list(root.glob("jobs/*/*/*/*"))
    assert processes_of(root) == []


def make_bucket_and_role(server: Rehearsal) -> None:
    """What `rehearse` makes of its settings."""
    server.client("s3").create_bucket(Bucket="bucket")
    trust = {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    server.client("iam").create_role(RoleName=ROLE.rpartition("/")[2], AssumeRolePolicyDocument=policy)


def printed_variables(process: subprocess.Popen[str]) -> dict[str, str]:
    """What a server prints when it is ready."""
    assert process.stdout is not None
    return dict(process.stdout.readline().removeprefix("export ").strip().split("=", 1) for _ in range(5))


def processes_of(root: Path | str) -> list[str]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            # Without namespaces, arguments name the root by a link.
            if any(str(root) in argument for argument in (*process.cmdline(), process.cwd())):
                found.append(" ".join(process.cmdline()))
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    # A script that gets SIGTERM as PID 1 does nothing about it, so each stop takes the whole grace.
    with rehearsal(tmp_path_factory.mktemp("rehearsal"), "--grace", "1", "--checkpoint-interval", "0.2") as running:
        yield running


def bundle(files: dict[str, str | bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else textwrap.dedent(content).encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def channel(name: str, uri: str, kind: str = "S3Prefix") -> dict[str, Any]:
    return {"ChannelName": name, "DataSource": {"S3DataSource": {"S3DataType": kind, "S3Uri": uri}}}


OWN_SCRIPT = "rehearsal.local/script"
AWS_IMAGE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:2.14.1-cpu-py311"
ALGORITHM = {
    "TrainingInputMode": "File",
    "MetricDefinitions": [{"Name": "val_loss", "Regex": r"val_loss=([0-9.e+-]+)"}],
}
TOOLKIT = {
    "sagemaker_program": "entry.py",
    "sagemaker_submit_directory": "/opt/ml/input/data/code/sourcedir.tar.gz",
}


def definition(
    server: Rehearsal, name: str, script: str, image: str = OWN_SCRIPT, **files: str | bytes
) -> dict[str, Any]:
    """What training and tuning jobs share, with the script uploaded.

    Args:
        image: by default nothing runs but the script: a job's states need no toolkit, which imports for a second.
    """
    code = bundle({"entry.py": script, **{key.replace("__", "."): value for key, value in files.items()}})
    upload = server.client("s3").put_object
    upload(Bucket="bucket", Key=f"code/{name}/sourcedir.tar.gz", Body=code)
    upload(Bucket="bucket", Key=f"code/{name}/train.py", Body=textwrap.dedent(script).encode())
    return {
        "RoleArn": ROLE,
        "AlgorithmSpecification": {**ALGORITHM, "TrainingImage": image},
        "InputDataConfig": [channel("code", f"s3://bucket/code/{name}/")],
        "OutputDataConfig": {"S3OutputPath": "s3://bucket/out"},
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 10},
        "StoppingCondition": {"MaxRuntimeInSeconds": 300},
    }


def train(server: Rehearsal, name: str, script: str, image: str = OWN_SCRIPT, **fields: Any) -> None:
    request = {**definition(server, name, script, image), "TrainingJobName": name, "HyperParameters": TOOLKIT, **fields}
    server.client("sagemaker").create_training_job(**request)


def wait(server: Rehearsal, name: str) -> dict[str, Any]:
    return until(server, name, lambda job: job["TrainingJobStatus"] not in ("InProgress", "Stopping"))


def until(server: Rehearsal, name: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    client = server.client("sagemaker")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        job: dict[str, Any] = client.describe_training_job(TrainingJobName=name)
        if condition(job):
            return job
        time.sleep(0.1)
    raise TimeoutError(f"{name} is {job['TrainingJobStatus']}, {job['SecondaryStatus']}")


def until_printed(server: Rehearsal, name: str, text: str) -> None:
    deadline = time.monotonic() + 60
    while text not in "\n".join(lines(server, name)):
        assert time.monotonic() < deadline, f"{name} never printed {text}"
        time.sleep(0.1)


def streams(server: Rehearsal, name: str) -> list[str]:
    client = server.client("logs")
    with contextlib.suppress(client.exceptions.ResourceNotFoundException):
        found = client.describe_log_streams(logGroupName=LOG_GROUP, logStreamNamePrefix=f"{name}/")
        return sorted(stream["logStreamName"] for stream in found["logStreams"])
    return []


def lines(server: Rehearsal, name: str) -> list[str]:
    client = server.client("logs")
    return [
        event["message"]
        for stream in streams(server, name)
        for event in client.get_log_events(logGroupName=LOG_GROUP, logStreamName=stream, startFromHead=True)["events"]
    ]


def printed(server: Rehearsal, name: str) -> Any:
    """What the script printed as `REPORT {json}`."""
    return next(json.loads(line.removeprefix("REPORT ")) for line in lines(server, name) if line.startswith("REPORT "))


def read(server: Rehearsal, key: str) -> bytes:
    content: bytes = server.client("s3").get_object(Bucket="bucket", Key=key)["Body"].read()
    return content


def keys(server: Rehearsal, prefix: str) -> list[str]:
    return [
        entry["Key"]
        for entry in server.client("s3").list_objects_v2(Bucket="bucket", Prefix=prefix).get("Contents", [])
    ]


def failure(call: Callable[..., Any], **arguments: Any) -> tuple[str, str]:
    with pytest.raises(ClientError) as error:
        call(**arguments)
    return error.value.response["Error"]["Code"], error.value.response["Error"]["Message"]


def test_what_debugger_keeps_is_uploaded_before_its_rules_are_done(server: Rehearsal) -> None:
    script = """
        import json
        from pathlib import Path
        config = json.loads(Path("/opt/ml/input/config/debughookconfig.json").read_text())
        folder = Path(config["LocalPath"])
        folder.mkdir()
        (folder / "events").write_text("tensors")
        (folder / "half.tmp").write_text("not finished")
        print("REPORT " + json.dumps(config))
    """
    hook = {
        "S3OutputPath": "s3://bucket/debug",
        "LocalPath": "/opt/ml/output/tensors",
        "HookParameters": {"reductions": "abs_mean"},
        "CollectionConfigurations": [{"CollectionName": "losses", "CollectionParameters": {"save_interval": "1"}}],
    }
    # AWS's own rules are judged in tests/e2e/test_debugger.py, where smdebug has saved something.
    rule = {"RuleConfigurationName": "Mine", "RuleEvaluatorImage": "my/rules:1"}
    train(server, "debug", script, DebugHookConfig=hook, DebugRuleConfigurations=[rule])

    def judged(job: dict[str, Any]) -> str:
        return str(job["DebugRuleEvaluationStatuses"][0]["RuleEvaluationStatus"])

    job = until(server, "debug", lambda job: judged(job) != "InProgress")
    assert (job["TrainingJobStatus"], judged(job)) == ("Completed", "Stopped")
    assert job["DebugHookConfig"] == printed(server, "debug") == hook
    uploaded = keys(server, "debug/debug/")
    assert [key.removeprefix("debug/debug/debug-output/") for key in uploaded] == ["events", "training_job_end.ts"]
    assert read(server, uploaded[0]) == b"tensors"


REPORT = """
    import json, os, socket, sys
    def report(**what): print("REPORT " + json.dumps(what))
"""


def test_a_job_runs_from_its_data_to_its_model(server: Rehearsal) -> None:
    s3, client = server.client("s3"), server.client("sagemaker")
    for key in ("data/train/a.txt", "data/train/deep/b.txt", "listed/c.txt", "listed/d.txt"):
        s3.put_object(Bucket="bucket", Key=key, Body=key.encode())
    manifest = [{"prefix": "s3://bucket/listed/"}, "d.txt"]
    s3.put_object(Bucket="bucket", Key="manifest.json", Body=json.dumps(manifest).encode())
    script = """
        from pathlib import Path
        files = {str(p.relative_to("/opt/ml/input/data")): p.read_text() for c in ("photos", "listed")
                 for p in sorted(Path("/opt/ml/input/data", c).rglob("*")) if p.is_file()}
        photo = Path("/opt/ml/input/data/photos/a.txt")
        photo.chmod(0o755)
        photo.write_text("mine")
        try:
            Path("/opt/ml/input/data/streamed/new").write_text("")
        except OSError as error:
            refused = error.strerror
        config = json.loads(Path("/opt/ml/input/config/hyperparameters.json").read_text())
        streamed = Path("/opt/ml/input/data/streamed/a.txt").read_text()
        report(files=files, refused=refused, streamed=streamed, config=config, argv=sys.argv[1:], cwd=os.getcwd(),
               host=socket.gethostname(),
               job=os.environ["TRAINING_JOB_NAME"], mine=os.environ["MINE"], opt=sorted(os.listdir("/opt/ml")))
        for epoch in range(3):
            print(f"epoch={epoch} val_loss={0.3 / (epoch + 1)}")
        Path("/opt/ml/model/code").mkdir()
        Path("/opt/ml/model/code/m.txt").write_text("model")
        Path("/opt/ml/output/data/o.txt").write_text("output")
    """
    request = {
        **definition(server, "whole", textwrap.dedent(REPORT) + textwrap.dedent(script), AWS_IMAGE),
        "TrainingJobName": "whole",
        "HyperParameters": {**TOOLKIT, "learning_rate": "0.1", "flag": "False"},
        "VpcConfig": {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1"]},
        "EnableInterContainerTrafficEncryption": True,
        "Environment": {"MINE": "yes"},
        "RetryStrategy": {"MaximumRetryAttempts": 2},
        "CheckpointConfig": {"S3Uri": "s3://bucket/checkpoints/whole"},
    }
    request["InputDataConfig"] += [
        channel("photos", "s3://bucket/data/train"),
        channel("listed", "s3://bucket/manifest.json", "ManifestFile"),
        channel("streamed", "s3://bucket/data/train") | {"InputMode": "FastFile"},
    ]
    request["OutputDataConfig"]["KmsKeyId"] = "alias/mine"
    request["ResourceConfig"]["VolumeKmsKeyId"] = "alias/volume"
    tags = [{"Key": "project", "Value": "dogs"}]
    arn = client.create_training_job(**request, Tags=tags)["TrainingJobArn"]
    assert arn == "arn:aws:sagemaker:us-east-1:123456789012:training-job/whole"

    job = wait(server, "whole")
    assert job["TrainingJobStatus"] == job["SecondaryStatus"] == "Completed"
    assert list(differences(request, job)) == []
    assert job["OutputDataConfig"]["KmsKeyId"] == "alias/mine"
    assert client.list_tags(ResourceArn=arn)["Tags"] == tags
    statuses = [each["Status"] for each in job["SecondaryStatusTransitions"]]
    assert statuses == ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    assert job["CreationTime"] <= job["TrainingStartTime"] < job["TrainingEndTime"] <= job["LastModifiedTime"]
    assert job["BillableTimeInSeconds"] == job["TrainingTimeInSeconds"] >= 1
    # The API keeps single precision.
    [metric] = job["FinalMetricDataList"]
    assert (metric["MetricName"], metric["Value"]) == ("val_loss", 0.10000000149011612)

    seen = printed(server, "whole")
    files = {
        "photos/a.txt": "data/train/a.txt",
        "photos/deep/b.txt": "data/train/deep/b.txt",
        "listed/d.txt": "listed/d.txt",
    }
    assert seen == {
        "files": files,
        "refused": "Read-only file system",
        "streamed": "data/train/a.txt",  # and not what the job wrote into its own file of that object
        "config": request["HyperParameters"],
        "argv": ["--flag", "False", "--learning_rate", "0.1"],
        "cwd": "/opt/ml/code",
        "host": "algo-1",
        "job": "whole",
        "mine": "yes",
        "opt": ["checkpoints", "code", "input", "model", "output"],
    }
    reported = [line for line in lines(server, "whole") if line.startswith("epoch=")]
    assert reported == ["epoch=0 val_loss=0.3", "epoch=1 val_loss=0.15", "epoch=2 val_loss=0.09999999999999999"]
    assert job["ModelArtifacts"]["S3ModelArtifacts"] == "s3://bucket/out/whole/output/model.tar.gz"
    with tarfile.open(fileobj=io.BytesIO(read(server, "out/whole/output/model.tar.gz"))) as archive:
        assert archive.getnames() == ["code", "code/m.txt"]
    with tarfile.open(fileobj=io.BytesIO(read(server, "out/whole/output/output.tar.gz"))) as archive:
        assert archive.getnames() == ["o.txt"]


def test_a_job_knows_nothing_of_this_machine_and_under_isolation_reaches_nothing(server: Rehearsal) -> None:
    script = f"""
        absent = []
        for name in ("experiments", "sagemaker_launch", "lightning_modules", "moto", "optuna", "pytorch_lightning"):
            try:
                __import__(name)
            except ImportError:
                absent.append(name)
        try:
            socket.create_connection(("127.0.0.1", {server.url.rsplit(":")[-1]}), 2)
        except OSError as error:
            refused = error.strerror
        listener = socket.create_server(("127.0.0.1", 0))
        socket.create_connection(listener.getsockname())
        home = os.listdir(os.environ["HOME"])
        first = open("/proc/1/cmdline").read().split("\\0")[1]
        import mine, mlflow, numpy, signal, sklearn  # which AWS's image has
        report(absent=absent, refused=refused, mine=mine.VALUE, planted={PLANTED!r} in os.environ.values(),
               first=first,
               blocked=len(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
               home=home, interfaces=[i for _, i in socket.if_nameindex()])
    """
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("mine.py", "VALUE = 1\n")
        archive.writestr("mine-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
        archive.writestr("mine-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("mine-1.dist-info/RECORD", "")
    requirements = "--no-index\n--find-links wheels\nmine\nnumpy\n"
    files = {"requirements__txt": requirements, "wheels/mine-1-py3-none-any__whl": wheel.getvalue()}
    request = definition(server, "isolated", textwrap.dedent(REPORT) + textwrap.dedent(script), AWS_IMAGE, **files)
    client = server.client("sagemaker")
    client.create_training_job(
        **request, TrainingJobName="isolated", HyperParameters=TOOLKIT, EnableNetworkIsolation=True
    )
    job = wait(server, "isolated")
    assert job["TrainingJobStatus"] == "Completed", job.get("FailureReason")
    seen = printed(server, "isolated")
    assert seen.pop("absent") == [
        *("experiments", "sagemaker_launch", "lightning_modules", "moto", "optuna", "pytorch_lightning")
    ]
    assert seen == {
        "refused": "Connection refused",
        "mine": 1,
        "planted": False,
        "first": "/opt/container-venv/bin/train",
        "blocked": 0,
        "home": [],
        "interfaces": ["lo"],
    }


def test_two_hosts_reach_each_other_by_name_and_share_the_data(server: Rehearsal) -> None:
    for number in range(4):
        server.client("s3").put_object(Bucket="bucket", Key=f"shards/{number}", Body=b"")
    script = """
        import time
        hosts, me = json.loads(os.environ["SM_HOSTS"]), os.environ["SM_CURRENT_HOST"]
        mine = sorted(os.listdir("/opt/ml/input/data/shards"))
        if me == hosts[0]:
            connection, _ = socket.create_server((os.environ["MASTER_ADDR"], 7777)).accept()
            report(hosts=hosts, name=socket.gethostname(), mine=mine, theirs=json.loads(connection.recv(100)))
        else:
            for _ in range(100):
                try:
                    socket.create_connection((hosts[0], 7777)).send(json.dumps([socket.gethostname(), mine]).encode())
                    break
                except OSError:
                    time.sleep(0.1)
    """
    request = definition(server, "hosts", textwrap.dedent(REPORT) + textwrap.dedent(script), AWS_IMAGE)
    request["ResourceConfig"]["InstanceCount"] = 2
    shards = channel("shards", "s3://bucket/shards/")
    shards["DataSource"]["S3DataSource"]["S3DataDistributionType"] = "ShardedByS3Key"
    request["InputDataConfig"].append(shards)
    client = server.client("sagemaker")
    client.create_training_job(**request, TrainingJobName="hosts", HyperParameters=TOOLKIT, EnableNetworkIsolation=True)
    job = wait(server, "hosts")
    assert job["TrainingJobStatus"] == "Completed", job.get("FailureReason")
    assert printed(server, "hosts") == {
        "hosts": ["algo-2", "algo-1"],
        "name": "algo-2",
        "mine": ["0", "2"],
        "theirs": ["algo-1", ["1", "3"]],
    }
    assert [stream.rsplit("-", 1)[0] for stream in streams(server, "hosts")] == ["hosts/algo-1", "hosts/algo-2"]


def test_a_script_that_raises_fails_the_job_with_its_last_words(server: Rehearsal) -> None:
    # The code comes from S3 here, which the toolkit fetches itself.
    hyperparameters = {**TOOLKIT, "sagemaker_submit_directory": "s3://bucket/code/raises/sourcedir.tar.gz"}
    train(server, "raises", "raise ValueError('no such dog')", AWS_IMAGE, HyperParameters=hyperparameters)
    job = wait(server, "raises")
    assert job["TrainingJobStatus"] == "Failed"
    assert job["FailureReason"].startswith("AlgorithmError: ExecuteUserScriptError:")
    assert "no such dog" in job["FailureReason"]
    assert job["FailureReason"].endswith(", exit code: 1")
    assert "ModelArtifacts" not in job


def test_a_dot_in_a_name_passes_the_api_and_breaks_the_start(server: Rehearsal) -> None:
    train(server, "dotted", "print('never')", HyperParameters={**TOOLKIT, "optimizer.learning_rate": "0.1"})
    job = wait(server, "dotted")
    assert job["TrainingJobStatus"] == "Failed"
    assert "SM_HP_OPTIMIZER.LEARNING_RATE" in job["FailureReason"]


def test_data_that_is_missing_fails_the_job(server: Rehearsal) -> None:
    train(server, "nodata", "", InputDataConfig=[channel("photos", "s3://bucket/nothing/")])
    job = wait(server, "nodata")
    assert job["TrainingJobStatus"] == "Failed"
    assert job["FailureReason"].startswith(
        'ClientError: Data download failed:No S3 objects found under S3 URL "s3://bucket/nothing/" given in input data'
    )


def test_the_service_refuses_what_aws_refuses(server: Rehearsal) -> None:
    client = server.client("sagemaker")
    request = definition(server, "refused", "")
    request["InputDataConfig"] = [channel("photos", "s3://bucket/nothing/")]
    client.create_training_job(TrainingJobName="refused", **request)
    code, message = failure(client.create_training_job, TrainingJobName="refused", **request)
    assert code == "ResourceInUse"
    assert "already exists (arn:aws:sagemaker:us-east-1:123456789012:training-job/refused)" in message
    wait(server, "refused")
    assert failure(client.stop_training_job, TrainingJobName="refused") == (
        "ValidationException",
        "The request was rejected because the training job is in status Failed.",
    )
    assert failure(client.describe_training_job, TrainingJobName="unknown") == (
        "ValidationException",
        "Requested resource not found.",
    )
    assert failure(client.create_training_job, TrainingJobName="under_score", **request)[0] == "ValidationException"
    request["OutputDataConfig"] = {"S3OutputPath": "s3://no-such-bucket/out"}
    code, message = failure(client.create_training_job, TrainingJobName="nowhere", **request)
    assert (code, "no-such-bucket" in message) == ("ValidationException", True)
    tuning = {"HyperParameterTuningJobName": "unknown"}
    assert failure(client.describe_hyper_parameter_tuning_job, **tuning)[0] == "ResourceNotFound"


def test_a_stopped_job_keeps_the_model_it_had(server: Rehearsal) -> None:
    train(
        server,
        "stopped",
        "import time; open('/opt/ml/model/m', 'w').write('x'); print('working', flush=True); time.sleep(60)",
    )
    until_printed(server, "stopped", "working")
    server.client("sagemaker").stop_training_job(TrainingJobName="stopped")
    job = wait(server, "stopped")
    assert job["TrainingJobStatus"] == job["SecondaryStatus"] == "Stopped"
    assert keys(server, "out/stopped/") == ["out/stopped/output/model.tar.gz"]
    listed = server.client("sagemaker").list_training_jobs(StatusEquals="Stopped", NameContains="STOPP")
    assert [each["TrainingJobName"] for each in listed["TrainingJobSummaries"]] == ["stopped"]


@pytest.mark.parametrize("spot", [False, True])
def test_a_job_ends_at_its_longest_runtime_or_wait(server: Rehearsal, spot: bool) -> None:
    # A job's wait begins before its training does.
    wait_time = {"MaxWaitTimeInSeconds": 1} if spot else {}
    train(
        server,
        f"endless-{spot}",
        "import time; time.sleep(60)",
        StoppingCondition={"MaxRuntimeInSeconds": 1, **wait_time},
        EnableManagedSpotTraining=spot,
    )
    job = wait(server, f"endless-{spot}")
    assert job["TrainingJobStatus"] == "Stopped"
    assert job["SecondaryStatus"] == ("MaxWaitTimeExceeded" if spot else "MaxRuntimeExceeded")


@pytest.mark.parametrize("kind", ["SIGTERM", "SIGKILL"])
def test_a_spot_job_goes_on_from_its_checkpoints(server: Rehearsal, kind: str) -> None:
    script = """
        import os, pathlib, time
        folder = pathlib.Path("/opt/ml/checkpoints")
        done = max([int(path.name) for path in folder.iterdir() if path.name.isdigit()], default=0)
        print(f"begins after {done}", flush=True)
        for step in range(done + 1, 41):
            time.sleep(0.05)
            (folder / "part").write_text(str(step))
            os.replace(folder / "part", folder / str(step))
            print(f"step={step} val_loss={100 - step}", flush=True)
    """
    name = f"spot-{kind}"
    train(
        server,
        name,
        script,
        EnableManagedSpotTraining=True,
        StoppingCondition={"MaxRuntimeInSeconds": 100, "MaxWaitTimeInSeconds": 200},
        CheckpointConfig={"S3Uri": f"s3://bucket/checkpoints/{name}/"},
    )
    until_printed(server, name, "step=5")
    server.post(f"interrupt/{name}?signal={kind}")
    job = wait(server, name)
    assert job["TrainingJobStatus"] == "Completed", job.get("FailureReason")
    assert [each["Status"] for each in job["SecondaryStatusTransitions"]] == [
        *("Starting", "Downloading", "Training", "Interrupted"),
        *("Starting", "Downloading", "Training", "Uploading", "Completed"),
    ]
    assert len(streams(server, name)) == 2
    first, second = [int(line.split()[-1]) for line in lines(server, name) if line.startswith("begins after")]
    assert first == 0
    assert second >= 1
    assert job["FinalMetricDataList"][0]["Value"] == 60
    assert f"checkpoints/{name}/40" in keys(server, "checkpoints/")
    assert job["BillableTimeInSeconds"] < job["TrainingTimeInSeconds"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_documented_command_may_interrupt_a_job_with_the_right_key_only(server: Rehearsal) -> None:
    def say(command: str) -> str:
        environment = {**os.environ, **server.environment}
        return subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=environment).stdout

    assert "no training job JOB is in progress" in say(INTERRUPT)
    guessed = say(INTERRUPT.replace("$AWS_SECRET_ACCESS_KEY", "guessed"))
    assert "no training job JOB is in progress" not in guessed
    assert "signature we calculated does not match" in guessed


def test_only_running_spot_jobs_are_interrupted(server: Rehearsal) -> None:
    with pytest.raises(requests.HTTPError) as error:
        server.post("interrupt/unknown")
    assert error.value.response.json()["error"] == "no training job unknown is in progress"


TUNED = """
    import json
    values = json.load(open("/opt/ml/input/config/hyperparameters.json"))
    for epoch in range(1, 4):
        print(f"val_loss={float(values['learning_rate']) / epoch}")
"""


def tune(server: Rehearsal, name: str, script: str, strategy: str, ranges: dict[str, Any], **limits: int) -> Any:
    client = server.client("sagemaker")
    request = definition(server, name, script)
    config = {
        "Strategy": strategy,
        "HyperParameterTuningJobObjective": {"Type": "Minimize", "MetricName": "val_loss"},
        "ResourceLimits": {"MaxParallelTrainingJobs": 2, **limits},
        "ParameterRanges": ranges,
        "RandomSeed": 0,
    }
    client.create_hyper_parameter_tuning_job(
        HyperParameterTuningJobName=name,
        HyperParameterTuningJobConfig=config,
        TrainingJobDefinition={**request, "StaticHyperParameters": TOOLKIT},
        Tags=[{"Key": "project", "Value": "dogs"}],
    )
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        job = client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
        if job["HyperParameterTuningJobStatus"] not in ("InProgress", "Stopping"):
            assert list(differences(config, job["HyperParameterTuningJobConfig"])) == []
            return job
        time.sleep(0.2)
    raise TimeoutError(f"{name}: {job['TrainingJobStatusCounters']}")


CONTINUOUS = {"Name": "learning_rate", "MinValue": "0.001", "MaxValue": "1", "ScalingType": "Logarithmic"}


@pytest.mark.parametrize("strategy", ["Random", "Bayesian", "Hyperband"])
def test_a_tuning_job_finds_its_best_training_job(server: Rehearsal, strategy: str) -> None:
    client, name = server.client("sagemaker"), f"tune-{strategy}"
    ranges = {"ContinuousParameterRanges": [CONTINUOUS]}
    job = tune(server, name, TUNED, strategy, ranges, MaxNumberOfTrainingJobs=3)
    assert job["HyperParameterTuningJobStatus"] == "Completed", job.get("FailureReason")
    counters = job["TrainingJobStatusCounters"]
    assert counters["Completed"] + counters["Stopped"] == 3
    assert job["ObjectiveStatusCounters"] == {"Succeeded": 3, "Pending": 0, "Failed": 0}

    by_objective = client.list_training_jobs_for_hyper_parameter_tuning_job(
        HyperParameterTuningJobName=name, SortBy="FinalObjectiveMetricValue"
    )["TrainingJobSummaries"]
    values = [each["FinalHyperParameterTuningJobObjectiveMetric"]["Value"] for each in by_objective]
    drawn = [float(each["TunedHyperParameters"]["learning_rate"]) for each in by_objective]
    assert values == sorted(values)
    assert drawn == sorted(drawn)
    assert all(0.001 <= value <= 1 for value in drawn)
    assert job["BestTrainingJob"] == by_objective[0]

    child = client.describe_training_job(TrainingJobName=by_objective[0]["TrainingJobName"])
    assert child["TuningJobArn"] == job["HyperParameterTuningJobArn"]
    assert child["HyperParameters"] == {
        **TOOLKIT,
        "_tuning_objective_metric": '"val_loss"',
        **by_objective[0]["TunedHyperParameters"],
    }
    assert client.list_tags(ResourceArn=child["TrainingJobArn"])["Tags"] == [{"Key": "project", "Value": "dogs"}]


def test_grid_tries_every_combination_once(server: Rehearsal) -> None:
    client = server.client("sagemaker")
    choices = [{"Name": "learning_rate", "Values": ["0.5", "0.25"]}, {"Name": "name", "Values": ["sgd", "adamw"]}]
    job = tune(server, "grid", TUNED, "Grid", {"CategoricalParameterRanges": choices})
    assert job["TrainingJobStatusCounters"]["Completed"] == 4
    arguments = {"HyperParameterTuningJobName": "grid", "MaxResults": 3}
    pages = list(
        client.get_paginator("list_training_jobs_for_hyper_parameter_tuning_job").paginate(
            HyperParameterTuningJobName="grid", PaginationConfig={"PageSize": 3}
        )
    )
    assert [len(page["TrainingJobSummaries"]) for page in pages] == [3, 1]
    assert "NextToken" in client.list_training_jobs_for_hyper_parameter_tuning_job(**arguments)
    tried = [tuple(job["TunedHyperParameters"].values()) for page in pages for job in page["TrainingJobSummaries"]]
    assert sorted(tried) == [("0.25", "adamw"), ("0.25", "sgd"), ("0.5", "adamw"), ("0.5", "sgd")]
    assert job["BestTrainingJob"]["TunedHyperParameters"]["learning_rate"] == "0.25"


def test_a_tuning_job_whose_objective_is_never_found_fails(server: Rehearsal) -> None:
    ranges = {"ContinuousParameterRanges": [CONTINUOUS]}
    job = tune(server, "silent", "print('val_lost=1')", "Random", ranges, MaxNumberOfTrainingJobs=2)
    assert job["HyperParameterTuningJobStatus"] == "Failed"
    assert job["FailureReason"].startswith("No objective metrics found after running 2 training jobs.")
    assert job["ObjectiveStatusCounters"] == {"Succeeded": 0, "Pending": 0, "Failed": 2}
    assert "BestTrainingJob" not in job


def test_lost_answers_and_errors_leave_no_job_unaccounted_for(server: Rehearsal) -> None:
    # One attempt a call, so that each fault reaches the caller. Jobs without data end at once.
    client = server.client("sagemaker", retries=1)
    request = definition(server, "faulty", "")
    request["InputDataConfig"] = [channel("photos", "s3://bucket/nothing/")]
    server.post("faults?rate=0.5&seed=0&slow_seconds=0")
    outcomes: dict[str, str] = {}
    try:
        for number in range(20):
            name = f"faulty-{number}"
            try:
                client.create_training_job(TrainingJobName=name, **request)
                outcomes[name] = "answered"
            except ClientError as error:
                outcomes[name] = error.response["Error"]["Code"]
            except HTTPClientError:
                outcomes[name] = "lost"
    finally:
        counts = server.post("faults?rate=0")["counts"]
    assert counts == {}
    assert set(outcomes.values()) == {"answered", "ThrottlingException", "InternalFailure", "lost"}
    pages = server.client("sagemaker").get_paginator("list_training_jobs").paginate(NameContains="faulty-")
    exist = {job["TrainingJobName"] for page in pages for job in page["TrainingJobSummaries"]}
    assert exist == {name for name, outcome in outcomes.items() if outcome in ("answered", "lost")}


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--no-namespaces",)], ids=["namespaces", "relocated"])
def test_the_root_may_have_any_path(tmp_path: Path, options: tuple[str, ...]) -> None:
    script = """
        import multiprocessing
        if __name__ == "__main__":
            with multiprocessing.Manager() as manager:  # its socket is in TMPDIR
                print("REPORT " + str(len(manager.list([1, 2]))))
    """
    with rehearsal(tmp_path / "it's my dir, ü" / ("long" * 30), *options) as server:
        train(server, "anywhere", script, AWS_IMAGE)
        request = definition(server, "packed", script, AWS_IMAGE, requirements__txt="# none\n")
        server.client("sagemaker").create_training_job(TrainingJobName="packed", HyperParameters=TOOLKIT, **request)
        for name in ("anywhere", "packed"):
            job = wait(server, name)
            assert job["TrainingJobStatus"] == "Completed", job
            assert printed(server, name) == 2
        assert "Installing dependencies from requirements.txt" in "\n".join(lines(server, "packed"))


@pytest.mark.slow
def test_a_second_server_a_full_account_and_no_namespaces(tmp_path: Path) -> None:
    with rehearsal(tmp_path, "--max-parallel-jobs", "1", "--no-namespaces") as server:
        second = subprocess.run(command(tmp_path), capture_output=True, text=True, check=False, timeout=60)
        assert second.returncode == 1
        assert f"another rehearsal runs on --root {tmp_path}" in second.stderr

        # One write a line: the toolkit takes two for two lines.
        script = "import os, time; print('at ' + os.environ['SM_MODEL_DIR'], flush=True); time.sleep(60)"
        train(server, "relocated", script, AWS_IMAGE)
        code, message = failure(train, server=server, name="toomany", script="")
        assert code == "ResourceLimitExceeded"
        assert "is 1 Instances, with current utilization of 1 Instances and a request delta of 1" in message
        until_printed(server, "relocated", "at /tmp/rehearsal-")
    # Leaving stops the server in the middle of a job; `rehearsal` checks that nothing is left.
