"""The whole cloud path against the rehearsal, by the commands that a person types."""

from __future__ import annotations

import functools
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import boto3
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from experiments.config import RunConfig, is_own_in_job, is_sent, override, to_flat
from experiments.runs.folder import PACKAGES, RunFolder
from experiments.runs.logger import RunFolderLogger
from experiments.train import train
from lightning_modules.export import check_golden
from lightning_modules.insight.recording import Recording
from lightning_modules.metrics import TEST_LOSS
from sagemaker_launch.account.permissions import CALLS
from sagemaker_launch.aws import client as aws
from sagemaker_launch.aws.logs import job_log
from sagemaker_launch.aws.resources import TRAINING
from sagemaker_launch.container.metric_lines import parse_lines
from sagemaker_launch.jobs.launch import Launched, launch
from sagemaker_launch.jobs.requests import training_job
from sagemaker_launch.rehearsal.machine.training_image import listed
from sagemaker_launch.rehearse import run_rehearsal
from sagemaker_launch.settings.cloud import load_cloud
from sagemaker_launch.shipping.storage import Inputs
from tests.cloud import CLOUD, PASSWORD, Cloud, account, comparable
from tests.conftest import IMAGE_OPTIONS
from tests.shared_run import SharedRun
from tests.signing import control

OF_ENDPOINTS = ("Model", "Endpoint", "Scal", "Alarm", "Schedule", "ServiceLinkedRole")


@pytest.fixture(scope="module", autouse=True)
def in_reach(cloud: Cloud) -> Iterator[None]:
    """Every command here goes to the rehearsal."""
    with cloud.in_reach():
        yield


def test_cloud_runs_stand_in_the_same_tree_as_local_ones(flow: Cloud) -> None:
    tuning = flow.tuning_job
    runs = flow.runs()
    children = [run for run in runs.values() if "mlflow.parentRunId" in run.data.tags]
    assert len(runs) == 4
    assert len(children) == 2
    for run in runs.values():
        assert run.info.status == "FINISHED"
        assert run.data.tags["origin"] == "rehearsal"
    for child in children:
        assert child.data.tags["mlflow.parentRunId"] == runs[tuning].info.run_id
        assert set(flow.history(child)) == set(range(1, flow.config.trainer.epochs + 1))
        assert TEST_LOSS not in child.data.metrics
    best = min(child.data.metrics["best_val_loss"] for child in children)
    assert runs[tuning].data.metrics["best_val_loss"] == best


def test_the_trained_model_comes_home_and_is_the_best_of_the_search(flow: Cloud) -> None:
    name = flow.sent("CreateTrainingJob")["TrainingJobName"]
    run = flow.runs()[name]
    check_golden(flow.home / "cloud" / name / "export")
    assert TEST_LOSS in run.data.metrics
    drawn = {path.name for path in (flow.home / "cloud" / name / "artifacts").iterdir()}
    assert {"confusion_matrix.png", "worst_errors.csv"} <= drawn
    tuned = [run for run in flow.runs().values() if "mlflow.parentRunId" in run.data.tags]
    assert run.data.metrics["best_val_loss"] == min(run.data.metrics["best_val_loss"] for run in tuned)


def test_what_a_job_recorded_comes_home_and_is_drawn(flow: Cloud) -> None:
    client = MlflowClient(f"sqlite:///{flow.home / 'mlflow.db'}")
    trained = [run for name, run in flow.runs().items() if name != flow.tuning_job]
    assert len(trained) == 3
    for run in trained:
        artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
        assert {"recording.png", "recording"} <= artifacts
        recording = Recording.load(RunFolder(flow.home / "cloud" / str(run.info.run_name)).recording)
        assert recording.train_steps == list(range(9))  # 3 epochs of 24 photos, 8 at once
    name = flow.sent("CreateTrainingJob")["TrainingJobName"]
    assert "of the step" in flow.runs()[name].data.params["profile.verdict"]
    profile = {artifact.path for artifact in client.list_artifacts(flow.runs()[name].info.run_id, "profile")}
    assert profile == {"profile/profile.html", "profile/profile.json", "profile/trace.json.gz"}


def test_a_rehearsed_job_has_the_metrics_of_a_local_run_to_the_last_digit(flow: Cloud, tmp_path: Path) -> None:
    run = flow.runs()[flow.sent("CreateTrainingJob")["TrainingJobName"]]
    config = at_home(flow, run)
    assert flow.history(run) == train_locally(config, tmp_path)


def test_parity_trains_a_job_at_home_once_and_both_runs_have_the_page(
    flow: Cloud, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, before = flow.sent("CreateTrainingJob")["TrainingJobName"], len(flow.calls)
    assert flow.run("parity", name) == 0
    assert len(flow.calls) == before, "the job is here: nobody needs to sign in for what is at home"
    captured = capsys.readouterr()
    # 6 of each epoch, loss and accuracy at the best one, the highest accuracy, 3 of the test split
    verdict, packages, page = captured.out.splitlines()
    assert verdict == "equal to the last digit: 12 metrics, 3 epochs", captured
    # The job kept what its image has: AWS's versions.
    image = {**listed()["toolkit"], **listed()["jobs"]}
    at_home = {name: metadata.version(name) for name in PACKAGES if name in image}
    differing = [f"{name} {own} and {image[name]}" for name, own in at_home.items() if own != image[name]]
    differing.append(f"optuna {metadata.version('optuna')} and missing")
    assert packages == f"versions of packages: {', '.join(sorted(differing))}"
    runs, home = flow.all_runs(), f"{name} at home"
    client = MlflowClient(f"sqlite:///{flow.home / 'mlflow.db'}")
    for run in (runs[name], runs[home]):
        assert {"parity.html", "parity.json"} <= {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert runs[home].data.tags["parity_of"] == name
    assert flow.history(runs[home]) == flow.history(runs[name])
    assert not client.search_registered_models()
    found = json.loads((flow.home / "cloud" / name / "artifacts" / "parity.json").read_text())
    assert found["equal"] and found["same_experiment"]
    both_have_the_same_names(runs[home], runs[name], flow.config)

    assert flow.run("parity", name) == 0
    assert "was trained at home before" in capsys.readouterr().err
    assert flow.all_runs().keys() == runs.keys()
    assert flow.run("parity", name, "--run", runs[home].info.run_id) == 0
    assert capsys.readouterr().out == captured.out
    elsewhere = [f"--output_dir={tmp_path / 'runs'}", f"--tracking.uri=sqlite:///{flow.home / 'mlflow.db'}"]
    assert flow.run("parity", name, "--run", str(Path(page).parent.parent), *elsewhere) == 0
    assert capsys.readouterr().out.splitlines()[0] == verdict, "from a machine that has to fetch the job"
    assert flow.run("parity", name, "--run", "nothing") == 2
    assert "--run must be a run folder, or the ID of a run in MLflow" in capsys.readouterr().err

    changed = RunFolder(shutil.copytree(Path(page).parent.parent, tmp_path / "changed"))
    lines = changed.metric_lines()
    lines[1].metrics["val_loss"] = math.nextafter(lines[1].metrics["val_loss"], 0)
    (changed.path / "metrics.jsonl").write_text("".join(f"{json.dumps(asdict(line))}\n" for line in lines))
    assert flow.run("parity", name, "--run", str(changed.path)) == 0
    verdict = capsys.readouterr().out.splitlines()[0]
    assert re.fullmatch(r"differs: val_loss by up to \S+e-1\d \(epoch 2\)", verdict)


@pytest.mark.slow
def test_parity_with_a_job_of_a_search_leaves_the_test_split_alone(
    flow: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    name = next(name for name in flow.runs() if name.startswith(f"{flow.tuning_job}-"))
    assert flow.run("parity", name) == 0
    assert capsys.readouterr().out.splitlines()[0] == "equal to the last digit: 9 metrics, 3 epochs"
    assert TEST_LOSS not in flow.all_runs()[f"{name} at home"].data.metrics


def test_the_same_command_finds_the_job_that_it_started(flow: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    before = len(flow.calls)
    assert flow.run("tune", "--no-wait") == 0
    assert "was there before" in capsys.readouterr().err
    assert not any(name.startswith(("Create", "Put")) for _, name, _ in flow.calls[before:])


def test_the_table_of_permissions_has_every_call_that_was_made(flow: Cloud) -> None:
    """The rehearsal has enforced the policies that are built from it."""
    known = {(call.service, call.operation) for call in CALLS if "launcher" in call.callers}
    made = {(service, operation) for service, operation, _ in flow.calls}
    assert made <= known
    # What endpoints need is compared with their calls in test_endpoints.py.
    of_jobs = {name for name in known if not any(word in name[1] for word in OF_ENDPOINTS)}
    assert of_jobs - made <= {
        ("sagemaker", "StopTrainingJob"),
        ("sagemaker", "StopHyperParameterTuningJob"),
        ("sagemaker", "AddTags"),
        ("pricing", "GetProducts"),
        ("s3", "CreateMultipartUpload"),  # of files from 8 MB
        ("s3", "UploadPart"),
        ("s3", "CompleteMultipartUpload"),
        ("s3", "AbortMultipartUpload"),
        ("logs", "FilterLogEvents"),
    }
    for _, operation, call in flow.calls:
        if operation.startswith("Create"):
            assert {"Key": "project", "Value": flow.settings.project} in json.loads(call["body"])["Tags"]


def test_complete_jobs_leave_no_weights_for_later_ones_to_restore(flow: Cloud) -> None:
    sent = flow.sent("CreateTrainingJob")["CheckpointConfig"]["S3Uri"]
    assert sent.endswith("/"), "or dogs-1 begins as dogs-10 does"
    listed = account("s3").get_paginator("list_objects_v2")
    pages = listed.paginate(Bucket=flow.settings.bucket, Prefix=f"{flow.settings.prefix}/checkpoints/")
    kept = [entry["Key"] for page in pages for entry in page["Contents"]]
    assert sum(key.endswith("/metrics.jsonl") for key in kept) == len(flow.runs()) - 1, "all but the search itself"
    assert not [key for key in kept if key.endswith((".ckpt", ".sagemaker-ignore"))]


def test_no_credential_is_printed_logged_packed_or_stored(flow: Cloud, shared_run: SharedRun) -> None:
    s3 = account("s3")
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=flow.settings.bucket)
    stored = {
        entry["Key"]: s3.get_object(Bucket=flow.settings.bucket, Key=entry["Key"])["Body"].read()
        for page in pages
        for entry in page["Contents"]
    }
    service = shared_run.folder / "rehearsal-service" / "rehearsal"
    # In the preset, the person keeps the password.
    paths = {*flow.home.rglob("*"), *service.glob("cache/**/*"), service / "server.log"} - {flow.preset}
    kept = {str(path): path.read_bytes() for path in paths if path.is_file()}
    assert str(service / "server.log") in kept
    unpacked = {
        f"{key}:{member}": content
        for key, body in stored.items()
        if key.endswith(".tar.gz")
        for member, content in members(body).items()
    }
    assert unpacked
    for name, content in (stored | kept | unpacked | {"output": flow.said.encode()}).items():
        for secret in (flow.secret, PASSWORD):
            assert secret.encode() not in content, name
    bodies = json.dumps([call for _, _, call in flow.calls], default=str)
    assert flow.secret not in bodies
    assert PASSWORD not in bodies


def test_status_and_cost_list_what_was_made(flow: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    assert flow.run("status") == 0
    assert "0 jobs and 0 endpoints run, $0.00 an hour" in capsys.readouterr().out
    assert flow.run("cost") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[-1].startswith("2 jobs, $")


@pytest.mark.slow
def test_an_interrupted_spot_job_ends_with_the_metrics_of_an_uninterrupted_one(flow: Cloud, tmp_path: Path) -> None:
    options = ["--trainer.max_epochs=60", "--cloud.spot=true"]
    assert flow.run("train", "--no-wait", *options) == 0
    name = flow.sent("CreateTrainingJob", -1)["TrainingJobName"]
    sagemaker = boto3.client("sagemaker", region_name="us-east-1")
    logs = boto3.client("logs", region_name="us-east-1")
    wait_for(lambda: "epoch=3 " in log_of(logs, name))
    control(os.environ, "POST", f"interrupt/{name}")
    wait_for(lambda: sagemaker.describe_training_job(TrainingJobName=name)["TrainingJobStatus"] != "InProgress")
    described = sagemaker.describe_training_job(TrainingJobName=name)
    assert described["TrainingJobStatus"] == "Completed", described.get("FailureReason")
    assert "Interrupted" in [transition["Status"] for transition in described["SecondaryStatusTransitions"]]
    assert flow.run("sync", name) == 0
    run = flow.runs()[name]
    history = flow.history(run)
    assert set(history) == set(range(1, 61))
    assert history == train_locally(at_home(flow, run), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_interruptions_with_part_of_the_files_in_s3_cost_no_epoch_that_s3_has(flow: Cloud, tmp_path: Path) -> None:
    """Half of all copies to S3 are late; the uploader's markers are restored with the checkpoints."""
    options = ["--trainer.max_epochs=300", "--optimizer.schedule=constant", "--optimizer.learning_rate=0.3"]
    options += ["--trainer.record=none", "--data.cache=none", "--cloud.spot=true"]
    control(os.environ, "POST", "faults?rate=0.5&slow_seconds=0&seed=7")
    try:
        assert flow.run("train", "--no-wait", *options) == 0
        name = flow.sent("CreateTrainingJob", -1)["TrainingJobName"]
        logs = boto3.client("logs", region_name="us-east-1")
        for number in range(10):
            wait_for(functools.partial(has_reached, logs, name, epoch=12 * (number + 1), attempt=number + 1), 600)
            control(os.environ, "POST", f"interrupt/{name}?signal={('SIGKILL', 'SIGTERM')[number % 2]}")
    finally:
        control(os.environ, "POST", "faults?rate=0")
    sagemaker = boto3.client("sagemaker", region_name="us-east-1")
    wait_for(lambda: sagemaker.describe_training_job(TrainingJobName=name)["TrainingJobStatus"] != "InProgress", 600)
    described = sagemaker.describe_training_job(TrainingJobName=name)
    assert described["TrainingJobStatus"] == "Completed", described.get("FailureReason")
    interrupted = [each for each in described["SecondaryStatusTransitions"] if each["Status"] == "Interrupted"]
    assert len(interrupted) == 10
    assert flow.run("sync", name, "--models") == 0
    run = flow.runs()[name]
    history = flow.history(run)
    assert set(history) == set(range(1, 301))
    assert history == train_locally(at_home(flow, run), tmp_path)
    exported = json.loads((flow.home / "cloud" / name / "export" / "model.json").read_text())["metrics"]
    assert exported["val_loss"] == pytest.approx(run.data.metrics["best_val_loss"], abs=1e-5)
    best = min(values["val_loss"] for values in history.values())
    assert run.data.metrics["best_val_loss"] == pytest.approx(best, abs=1e-6)  # scored once more, in float64


def has_reached(logs: Any, name: str, *, epoch: int, attempt: int) -> bool:
    """Whether an attempt of a job, counted from 1, has reported an epoch."""
    group = {"logGroupName": "/aws/sagemaker/TrainingJobs", "logStreamNamePrefix": f"{name}/"}
    reported: dict[str, int] = {}
    for page in logs.get_paginator("filter_log_events").paginate(**group):
        for event in page["events"]:
            epochs = [line.epoch for line in parse_lines([event["message"]]) if line.topic == "metrics"]
            stream = event["logStreamName"]
            reported[stream] = max(reported.get(stream, 0), *epochs, 0)
    newest = [reported[stream] for stream in sorted(reported)]
    return len(newest) >= attempt and newest[attempt - 1] >= epoch


@pytest.mark.slow
def test_two_hosts_train_one_model_and_report_it_once(flow: Cloud) -> None:
    assert flow.run("train", "--cloud.instance_count=2") == 0
    name = flow.sent("CreateTrainingJob", -1)["TrainingJobName"]
    log = log_of(boto3.client("logs", region_name="us-east-1"), name)
    reported = [line.epoch for line in parse_lines(log.splitlines()) if line.topic == "metrics"]
    assert reported == [1, 2, 3]
    assert flow.run("sync", name, "--models") == 0
    run = flow.runs()[name]
    assert run.data.params["trainer.num_nodes"] == "2" and run.data.tags["host"] == "algo-2"
    check_golden(flow.home / "cloud" / name / "export")


@pytest.mark.slow
def test_a_job_without_network_finds_its_packages(flow: Cloud) -> None:
    assert flow.run("train", "--cloud.network_isolation=true") == 0
    described = boto3.client("sagemaker", region_name="us-east-1").describe_training_job(
        TrainingJobName=flow.sent("CreateTrainingJob", -1)["TrainingJobName"]
    )
    assert described["TrainingJobStatus"] == "Completed"
    assert described["EnableNetworkIsolation"] is True


def test_only_boto3_is_imported_on_the_way_to_a_job(flow: Cloud) -> None:
    code = (
        "import sys\n"
        "from sagemaker_launch.cli import main\n"
        f"assert main(['tune', '--no-wait', *{flow.fields!r}]) == 0\n"
        "heavy = ('torch', 'pytorch_lightning', 'mlflow', 'optuna', 'numpy', 'PIL', 'sagemaker', 'pandas', 'moto')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    print(f"tune --no-wait: {time.monotonic() - started:.2f} s from start to job")
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_fifty_launches_on_a_bad_day_leave_fifty_jobs(
    job_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_cloud(CLOUD)
    nothing = Inputs("s3://nowhere/photos/", "s3://nowhere/code/")  # so the jobs themselves end at once
    options = [*IMAGE_OPTIONS, "--faults", "rate=0.2,seed=3", "--max-parallel-jobs", "100"]
    with run_rehearsal(settings, tmp_path / "rehearsal", options) as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        sagemaker = aws.client("sagemaker", settings)

        def start(seed: int) -> Launched:
            config = RunConfig(seed=seed)
            return launch(
                sagemaker,
                TRAINING,
                "storm",
                lambda name, checkpoints="": training_job(settings, config, nothing, "image", name=name),
            )

        with ThreadPoolExecutor(8) as pool:
            launched = list(pool.map(start, range(50)))
        pages = sagemaker.get_paginator("list_training_jobs").paginate()
        there = [job["TrainingJobName"] for page in pages for job in page["TrainingJobSummaries"]]
        faults = control(running.environment, "GET", "faults")["counts"]
    print(faults)
    assert all(faults[fault] > 0 for fault in ("throttling", "error", "lost"))
    assert len(there) == 50
    assert sorted(there) == sorted(job.name for job in launched)


def both_have_the_same_names(home: Run, job: Run, config: RunConfig) -> None:
    """What MLflow keeps of a run at home and of a job has the same names, but for what only one of them can know."""
    not_sent = {name for name in to_flat(config) if not is_sent(name)} - {"trainer.devices", "trainer.num_nodes"}
    assert home.data.params.keys() - job.data.params.keys() == not_sent
    assert {name.partition(".")[0] for name in job.data.params.keys() - home.data.params.keys()} == {"cloud"}
    of_both = home.data.params.keys() & job.data.params.keys()
    assert {name for name in of_both if home.data.params[name] != job.data.params[name]} <= {"profile.verdict"}
    # A job has no repository, and no Optuna.
    only_home = {"parity_of", "mlflow.source.git.commit", "package.optuna"}
    assert home.data.tags.keys() - job.data.tags.keys() == only_home
    assert job.data.tags.keys() - home.data.tags.keys() == {"arn", "job"}
    hardware = {name for name in job.data.tags if name.startswith("hardware.")}
    assert hardware == {f"hardware.{name}" for name in ("processor", "cores", "memory_gb", "gpu", "threads")}
    assert job.data.tags["origin"] == "rehearsal"
    assert home.data.tags["origin"] == "local"


def at_home(cloud: Cloud, run: Run) -> RunConfig:
    """The config of a cloud run, with the places of this machine."""
    drawn = {
        name: value
        for name, value in run.data.params.items()
        if name in config_names(cloud.config) and is_sent(name) and not is_own_in_job(name)
    }
    return override(cloud.config, drawn)


def config_names(config: RunConfig) -> set[str]:
    return set(to_flat(config))


def train_locally(config: RunConfig, folder: Path) -> dict[int, dict[str, float]]:
    """The metrics of the same training on this machine, by epoch."""
    local = RunFolder(folder / "local")
    local.start("local", {}, {})
    train(config, output_dir=local.path, logger=RunFolderLogger(local))
    return {line.step: comparable(line.metrics) for line in local.metric_lines()}


def members(archive: bytes) -> dict[str, bytes]:
    """The files in a .tar.gz."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        files = [member for member in opened.getmembers() if member.isfile()]
        return {member.name: opened.extractfile(member).read() for member in files}


def log_of(logs: Any, job: str) -> str:
    return "\n".join(line.text for line in job_log(logs, job).read())


def wait_for(condition: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.3)
