"""SDK v3 on jobs and an endpoint that this project's launcher made."""

from __future__ import annotations

import json
import os
from pathlib import Path

from sagemaker.core.resources import Endpoint, HyperParameterTuningJob, Tag, TrainingJob

from tests.clients.recording import works

with works("launched: TrainingJob.get, wait with logs"):
    job = TrainingJob.get(os.environ["TRAINING_JOB"])
    job.wait(poll=1, timeout=100, logs=True)
    assert job.training_job_status == "Completed"
    assert job.final_metric_data_list and job.model_artifacts.s3_model_artifacts.endswith("model.tar.gz")

with works("launched: TrainingJob.get_all, Tag.get_all"):
    assert job.training_job_name in [one.training_job_name for one in TrainingJob.get_all(status_equals="Completed")]
    assert "project" in {tag.key for tag in Tag.get_all(job.training_job_arn)}

with works("launched: HyperParameterTuningJob.get, get_all_training_jobs"):
    tuning = HyperParameterTuningJob.get(os.environ["TUNING_JOB"])
    assert tuning.hyper_parameter_tuning_job_status == "Completed"
    names = [one.training_job_name for one in tuning.get_all_training_jobs()]
    assert tuning.best_training_job.training_job_name in names and len(names) == 2

with works("launched: Endpoint.get, invoke with a photo"):
    endpoint = Endpoint.get(os.environ["ENDPOINT"])
    assert endpoint.endpoint_status == "InService"
    photos = Path(os.environ["PHOTOS"])
    photo = next(path for path in sorted(photos.rglob("*")) if path.suffix in (".jpg", ".jpeg", ".png"))
    kind = "image/png" if photo.suffix == ".png" else "image/jpeg"
    reply = endpoint.invoke(body=photo.read_bytes(), content_type=kind, accept="application/json")
    assert json.loads(reply.body.read())
