"""A training job as the cells of a notebook have it: estimator, logs, metrics, artifacts, attach."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
from pathlib import Path

import sagemaker
from botocore.exceptions import ClientError
from sagemaker.analytics import TrainingJobAnalytics
from sagemaker.estimator import Estimator
from sagemaker.exceptions import UnexpectedStatusException
from sagemaker.inputs import TrainingInput
from sagemaker.pytorch import PyTorch

from tests.clients.recording import error_of, works

ROLE, BUCKET, SOURCE = os.environ["ROLE"], os.environ["BUCKET"], str(Path(__file__).with_name("source"))
METRICS = [{"Name": "Testing Loss", "Regex": "Testing Loss: ([0-9\\.]+)"}]
session = sagemaker.Session(default_bucket=BUCKET)
data = session.upload_data(os.environ["PHOTOS"] + "/train", bucket=BUCKET, key_prefix="sdk-v2-training")
common = {
    "role": ROLE,
    "framework_version": "1.13",
    "py_version": "py39",
    "instance_count": 1,
    "instance_type": "ml.m5.xlarge",
    "sagemaker_session": session,
}
plain = {"debugger_hook_config": False, "disable_profiler": True}

with works("PyTorch.fit(wait=True, logs='All')"):
    estimator = PyTorch(
        entry_point="train_model.py",
        source_dir=SOURCE,
        base_job_name="dog-training",
        hyperparameters={"epochs": 3, "batch-size": 32, "lr": 0.1},
        metric_definitions=METRICS,
        tags=[{"Key": "project", "Value": "dogs"}],
        max_run=600,
        **common,
        **plain,
    )
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        estimator.fit({"training": TrainingInput(data, distribution="FullyReplicated")}, wait=True)
    job = estimator.latest_training_job.name
    for text in ("Epoch 2: Testing Loss: ", "Training seconds: ", "Billable seconds: "):
        assert text in printed.getvalue(), (text, printed.getvalue())

with works("Estimator.model_data, output.tar.gz"):
    assert estimator.model_data == f"s3://{BUCKET}/{job}/output/model.tar.gz"
    session.download_data("model", BUCKET, f"{job}/output/")
    with tarfile.open("model/model.tar.gz") as archive:
        assert archive.getnames() == ["model.pth"]
    with tarfile.open("model/output.tar.gz") as archive:
        written = archive.extractfile("arguments.json")
        assert written is not None
        assert json.load(written)["batch_size"] == 32

with works("Session.describe_training_job"):
    described = session.describe_training_job(job)
    assert described["TrainingJobStatus"] == "Completed"
    assert described["HyperParameters"]["sagemaker_program"] == '"train_model.py"'
    assert [one["Status"] for one in described["SecondaryStatusTransitions"]] == [
        *("Starting", "Downloading", "Training", "Uploading", "Completed"),
    ]
    assert described["FinalMetricDataList"][0]["MetricName"] == "Testing Loss"

with works("Session.logs_for_job, TrainingJob.wait"):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        session.logs_for_job(job, wait=True)
        estimator.latest_training_job.wait(logs="All")
    assert printed.getvalue().count("Epoch 2: Testing Loss: ") == 2

with works("TrainingJobAnalytics.dataframe"):
    frame = TrainingJobAnalytics(job, sagemaker_session=session).dataframe()
    assert list(frame.columns) == ["timestamp", "metric_name", "value"]
    assert set(frame.metric_name) == {"Testing Loss"}
    assert frame.value.between(0.1, 2).all()
    assert not estimator.training_job_analytics.dataframe().empty

with works("PyTorch.attach"):
    attached = PyTorch.attach(job, sagemaker_session=session)
    assert attached.hyperparameters()["lr"] == "0.1"
    assert (attached.entry_point, attached.model_data) == ("train_model.py", estimator.model_data)
    assert attached.framework_version == "1.13"

with works("Estimator.attach"):
    attached = Estimator.attach(job, sagemaker_session=session)
    assert attached.latest_training_job.describe()["TrainingJobName"] == job
    assert attached.output_kms_key == ""

with works("Estimator.fit(wait=False), Session.stop_training_job, wait_for_job"):
    estimator.set_hyperparameters(epochs=100_000_000)
    estimator.fit({"training": data}, wait=False)
    stopped = estimator.latest_training_job.name
    session.stop_training_job(stopped)
    assert session.wait_for_job(stopped, poll=1)["TrainingJobStatus"] == "Stopped"

with works("PyTorch.fit of use_spot_instances, checkpoint_s3_uri, environment"):
    # With this SDK's defaults: Debugger's hook, the profiler and its report are asked for.
    spot = PyTorch(
        entry_point="train_model.py",
        source_dir=SOURCE,
        use_spot_instances=True,
        max_run=600,
        max_wait=900,
        checkpoint_s3_uri=f"s3://{BUCKET}/sdk-v2-checkpoints",
        environment={"CHECKPOINT": "/opt/ml/checkpoints/last.pth"},
        **common,
    )
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        spot.fit({"training": data}, wait=True)
    assert "Managed Spot Training savings: " in printed.getvalue()
    # SageMaker's uploader leaves a mark beside a file, which reaches S3, too.
    kept = {name.removesuffix(".sagemaker-uploaded") for name in session.list_s3_files(BUCKET, "sdk-v2-checkpoints")}
    assert kept == {"sdk-v2-checkpoints/last.pth"}
    assert "DebugHookConfig" in spot.latest_training_job.describe()

with works("PyTorch.fit of a script that raises"):
    failing = PyTorch(
        entry_point="train_model.py",
        source_dir=SOURCE,
        hyperparameters={"fail": "no dogs here"},
        **common,
        **plain,
    )
    error = error_of(UnexpectedStatusException, lambda: failing.fit({"training": data}, wait=True, logs="None"))
    assert error.actual_status == "Failed"
    for text in ("AlgorithmError: ", "no dogs here", "exit code: 1"):
        assert text in str(error), (text, str(error))
    described = failing.latest_training_job.describe()
    assert [one["Status"] for one in described["SecondaryStatusTransitions"]][-3:] == [
        *("Training", "Uploading", "Failed"),
    ]

with works("PyTorch.fit on data that does not exist"):
    nothing = f"s3://{BUCKET}/nothing-here"
    error = error_of(UnexpectedStatusException, lambda: failing.fit(nothing, wait=True, logs="None"))
    assert "ClientError: Data download failed" in str(error), str(error)

with works("Session.describe_training_job of an unknown job"):
    error = error_of(ClientError, lambda: session.describe_training_job("unknown"))
    assert error.response["Error"]["Code"] == "ValidationException"
    assert "Requested resource not found" in str(error)
