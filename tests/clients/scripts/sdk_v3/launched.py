"""Get a search, a job and an endpoint that the launcher of this project made."""

from __future__ import annotations

import json
from pathlib import Path

import boto3
from sagemaker.core.resources import (
    Endpoint,
    EndpointConfig,
    HyperParameterTuningJob,
    Model,
    Tag,
    TrainingJob,
)

from tests.clients.made import BEST, MADE, TRAINING_JOB, TUNING_JOB, close
from tests.clients.recording import works

photo = Path(MADE["photo"]).read_bytes()


with works("HyperParameterTuningJob.get, refresh, wait; the launcher's search"):
    tuning = HyperParameterTuningJob.get(TUNING_JOB)
    tuning.wait(poll=1, timeout=60)
    assert tuning.refresh().hyper_parameter_tuning_job_status == "Completed"
    assert tuning.best_training_job.training_job_name == BEST
    metric = tuning.best_training_job.final_hyper_parameter_tuning_job_objective_metric
    assert metric.metric_name == MADE["objective"] and close(metric.value, MADE["objectives"][BEST])

with works("HyperParameterTuningJob.get_all, get_all_training_jobs; the launcher's search"):
    found = HyperParameterTuningJob.get_all(name_contains=TUNING_JOB, status_equals="Completed")
    assert [one.hyper_parameter_tuning_job_name for one in found] == [TUNING_JOB]
    jobs = list(tuning.get_all_training_jobs(sort_by="FinalObjectiveMetricValue", sort_order="Ascending"))
    objectives = MADE["objectives"]
    assert [job.training_job_name for job in jobs] == sorted(objectives, key=lambda name: objectives[name])

with works("TrainingJob.get, refresh, wait, get_all; the launcher's jobs"):
    for name in (BEST, TRAINING_JOB):
        job = TrainingJob.get(name)
        job.wait(poll=1, timeout=60, logs=True)
        assert job.refresh().training_job_status == "Completed"
        assert job.model_artifacts.s3_model_artifacts == MADE["models"][name]
        values = {one.metric_name: one.value for one in job.final_metric_data_list}
        assert close(values[MADE["objective"]], min(MADE["epochs"][name]))
        learning_rate = float(job.hyper_parameters["optimizer__learning_rate"])
        assert learning_rate == float(MADE["settings"][name]["optimizer.learning_rate"])
    names = [one.training_job_name for one in TrainingJob.get_all(name_contains=TRAINING_JOB)]
    assert names == [TRAINING_JOB]

with works("Endpoint.get, refresh, wait_for_status, invoke; the launcher's endpoint"):
    endpoint = Endpoint.get(MADE["endpoint"])
    endpoint.wait_for_status("InService", poll=1, timeout=60)
    assert endpoint.refresh().endpoint_arn == MADE["endpoint_arn"]
    [scores] = json.loads(endpoint.invoke(body=photo, content_type="image/jpeg").body.read())
    assert all(map(close, scores, MADE["scores"])) and len(scores) == len(MADE["scores"])
    assert [one.endpoint_name for one in Endpoint.get_all(name_contains=MADE["endpoint"])] == [MADE["endpoint"]]

with works("EndpointConfig.get, Model.get; of the launcher's endpoint"):
    [variant] = EndpointConfig.get(endpoint.endpoint_config_name).production_variants
    model = Model.get(variant.model_name)
    address = model.primary_container.model_data_url.removeprefix("s3://").partition("/")
    assert boto3.client("s3").head_object(Bucket=address[0], Key=address[2])["ContentLength"] > 0

with works("Tag.get_all; of the launcher's search, job and endpoint"):
    for arn in (tuning.hyper_parameter_tuning_job_arn, job.training_job_arn, endpoint.endpoint_arn, model.model_arn):
        assert {tag.key: tag.value for tag in Tag.get_all(arn)}["project"] == MADE["project"]
