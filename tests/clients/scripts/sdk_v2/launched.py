"""Attach to a search, a job and an endpoint that the launcher of this project made."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path

import sagemaker
from botocore.exceptions import ClientError
from sagemaker.analytics import HyperparameterTuningJobAnalytics, TrainingJobAnalytics
from sagemaker.deserializers import JSONDeserializer
from sagemaker.estimator import Estimator
from sagemaker.inputs import TrainingInput
from sagemaker.predictor import Predictor
from sagemaker.pytorch import PyTorch
from sagemaker.tuner import HyperparameterTuner

from tests.clients.made import BEST, MADE, TRAINING_JOB, TUNING_JOB, close
from tests.clients.recording import error_of, works

session = sagemaker.Session(default_bucket=os.environ["BUCKET"])
photo = Path(MADE["photo"]).read_bytes()


with works("HyperparameterTuner.attach, best_training_job; of the launcher's search"):
    tuner = HyperparameterTuner.attach(TUNING_JOB, sagemaker_session=session)
    assert tuner.best_training_job() == BEST
    assert (tuner.objective_metric_name, tuner.objective_type) == (MADE["objective"], "Minimize")
    assert tuner.describe()["HyperParameterTuningJobStatus"] == "Completed"
    tuner.wait()

with works("HyperparameterTuner.analytics; of the launcher's search"):
    frame = tuner.analytics().dataframe().set_index("TrainingJobName")
    assert set(frame.index) == set(MADE["objectives"])
    for job, value in MADE["objectives"].items():
        assert close(frame.FinalObjectiveValue[job], value)
        settings = MADE["settings"][job]
        assert close(frame.optimizer__learning_rate[job], float(settings["optimizer.learning_rate"]))
        assert frame.optimizer__name[job].strip('"') == settings["optimizer.name"]
        assert frame.data__batch_size[job] == float(settings["data.batch_size"])
    ranges = HyperparameterTuningJobAnalytics(TUNING_JOB, sagemaker_session=session).tuning_ranges
    assert {name.strip('"') for name in ranges["optimizer__name"]["Values"]} == {"adamw", "sgd"}

with works("TrainingJobAnalytics.dataframe; of the launcher's jobs"):
    for job in (BEST, TRAINING_JOB):
        metrics = TrainingJobAnalytics(job, sagemaker_session=session).dataframe().groupby("metric_name").value
        assert close(metrics.mean()["val_loss"], sum(MADE["epochs"][job]) / len(MADE["epochs"][job]))
        assert close(metrics.min()[MADE["objective"]], min(MADE["epochs"][job]))

with works("Estimator.attach, PyTorch.attach, model_data; of the launcher's jobs"):
    for job in (BEST, TRAINING_JOB):
        for estimator_class in (Estimator, PyTorch):
            attached = estimator_class.attach(job, sagemaker_session=session)
            assert attached.latest_training_job.name == job
            assert attached.model_data == MADE["models"][job]
    # A script's estimator reads each value as JSON.
    found = PyTorch.attach(BEST, sagemaker_session=session).hyperparameters()
    assert json.loads(found["optimizer__name"]) == MADE["settings"][BEST]["optimizer.name"]
    assert float(found["optimizer__learning_rate"]) == float(MADE["settings"][BEST]["optimizer.learning_rate"])

with works("HyperparameterTuner.attach(estimator_cls='sagemaker.pytorch.PyTorch'), best_estimator; of the launcher's"):
    scripted = HyperparameterTuner.attach(
        TUNING_JOB, sagemaker_session=session, estimator_cls="sagemaker.pytorch.PyTorch"
    )
    assert scripted.best_estimator().model_data == tuner.best_estimator().model_data == MADE["models"][BEST]

with works("Session.logs_for_job, wait_for_job; of the launcher's job"):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        session.logs_for_job(TRAINING_JOB, wait=True)
    for value in MADE["epochs"][TRAINING_JOB]:
        assert f" val_loss={value!r} " in printed.getvalue()
    assert "Billable seconds: " in printed.getvalue()
    assert session.wait_for_job(TRAINING_JOB)["TrainingJobStatus"] == "Completed"

with works("Predictor(endpoint_name).predict(jpeg); of the launcher's endpoint"):
    predictor = Predictor(MADE["endpoint"], session, deserializer=JSONDeserializer())
    [scores] = predictor.predict(photo, initial_args={"ContentType": "image/jpeg"})
    assert all(close(*pair) for pair in zip(scores, MADE["scores"], strict=True))

with works("Estimator.deploy of the launcher's job, delete_endpoint"):
    own = Estimator.attach(TRAINING_JOB, sagemaker_session=session).deploy(
        initial_instance_count=1,
        instance_type="ml.m5.large",
        image_uri="rehearsal.local/serving",
        endpoint_name="sdk-v2-beside",
        deserializer=JSONDeserializer(),
    )
    [beside] = own.predict(photo, initial_args={"ContentType": "image/jpeg"})
    assert all(close(*pair) for pair in zip(beside, scores, strict=True))
    own.delete_model()
    own.delete_endpoint()
    session.sagemaker_client.get_waiter("endpoint_deleted").wait(
        EndpointName="sdk-v2-beside", WaiterConfig={"Delay": 1}
    )
    assert "Could not find endpoint" in str(error_of(ClientError, lambda: session.describe_endpoint("sdk-v2-beside")))
    assert session.describe_endpoint(MADE["endpoint"])["EndpointStatus"] == "InService"
    assert predictor.predict(photo, initial_args={"ContentType": "image/jpeg"}) == [scores]

with works("HyperparameterTuner.attach, fit: the launcher's search once more"):
    channels = session.describe_training_job(TRAINING_JOB)["InputDataConfig"]
    inputs = {
        channel["ChannelName"]: TrainingInput(
            channel["DataSource"]["S3DataSource"]["S3Uri"],
            s3_data_type=channel["DataSource"]["S3DataSource"]["S3DataType"],
        )
        for channel in channels
    }
    again = HyperparameterTuner.attach(TUNING_JOB, sagemaker_session=session)
    again.max_jobs = again.max_parallel_jobs = 1
    again.fit(inputs, job_name="sdk-v2-once-more")
    assert again.latest_tuning_job.name != TUNING_JOB
    [value] = again.analytics().dataframe().FinalObjectiveValue
    assert 0 < value < 3
