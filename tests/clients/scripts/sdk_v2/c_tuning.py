"""A hyperparameter search as the cells of a notebook have it: tuner, best job, analytics, attach, warm start."""

from __future__ import annotations

import os
from pathlib import Path

import sagemaker
from sagemaker.analytics import HyperparameterTuningJobAnalytics, TrainingJobAnalytics
from sagemaker.pytorch import PyTorch
from sagemaker.tuner import (
    CategoricalParameter,
    ContinuousParameter,
    HyperparameterTuner,
    IntegerParameter,
    WarmStartConfig,
    WarmStartTypes,
)

from tests.clients.recording import not_rehearsed, works

BUCKET, SOURCE = os.environ["BUCKET"], str(Path(__file__).with_name("source"))
session = sagemaker.Session(default_bucket=BUCKET)
data = session.upload_data(os.environ["PHOTOS"] + "/train", bucket=BUCKET, key_prefix="sdk-v2-tuning")
RANGES = {"lr": ContinuousParameter(0.001, 0.1), "batch-size": CategoricalParameter([32, 64, 128])}


def make_estimator() -> PyTorch:
    """The estimator of each search."""
    return PyTorch(
        entry_point="train_model.py",
        source_dir=SOURCE,
        base_job_name="dog-search",
        role=os.environ["ROLE"],
        framework_version="1.13",
        py_version="py39",
        instance_count=1,
        instance_type="ml.m5.xlarge",
        sagemaker_session=session,
    )


def make_tuner(**changed: object) -> HyperparameterTuner:
    """A search of two jobs."""
    options = {
        "estimator": make_estimator(),
        "objective_metric_name": "Test Loss",
        "hyperparameter_ranges": RANGES,
        "metric_definitions": [{"Name": "Test Loss", "Regex": "Testing Loss: ([0-9\\.]+)"}],
        "max_jobs": 2,
        "max_parallel_jobs": 2,
        "objective_type": "Minimize",
        **changed,
    }
    return HyperparameterTuner(**options)


with works("HyperparameterTuner.fit(wait=True)"):
    tuner = make_tuner()
    tuner.fit({"training": data}, wait=True)
    name = tuner.latest_tuning_job.name
    assert tuner.describe()["HyperParameterTuningJobStatus"] == "Completed"

with works("HyperparameterTuner.best_training_job"):
    best = tuner.best_training_job()
    assert best.startswith("pytorch-training-"), best

with works("HyperparameterTuner.analytics"):
    frame = tuner.analytics().dataframe()
    assert len(frame) == 2
    assert set(frame.TrainingJobStatus) == {"Completed"}
    assert frame.FinalObjectiveValue.between(0.1, 3).all()
    assert frame.sort_values("FinalObjectiveValue").TrainingJobName.iloc[0] == best
    assert {"lr", "batch-size", "TrainingElapsedTimeSeconds"} <= set(frame.columns)

with works("HyperparameterTuningJobAnalytics.tuning_ranges"):
    ranges = HyperparameterTuningJobAnalytics(name, sagemaker_session=session).tuning_ranges
    assert ranges["lr"]["MinValue"] == "0.001"
    assert ranges["batch-size"]["Values"] == ['"32"', '"64"', '"128"']

with works("HyperparameterTuner.best_estimator"):
    estimator = tuner.best_estimator()
    assert estimator.hyperparameters()["lr"].strip('"').startswith("0.0")
    assert estimator.model_data == f"s3://{BUCKET}/{best}/output/model.tar.gz"

with works("TrainingJobAnalytics.dataframe of a search's job"):
    frame = TrainingJobAnalytics(best, sagemaker_session=session).dataframe()
    assert set(frame.metric_name) >= {"Test Loss"}

with works("HyperparameterTuner.attach"):
    attached = HyperparameterTuner.attach(name, sagemaker_session=session)
    assert attached.best_training_job() == best
    assert attached.objective_metric_name == "Test Loss"
    assert attached.hyperparameter_ranges().keys() == tuner.hyperparameter_ranges().keys()

with works("HyperparameterTuner.fit with warm_start_config"):
    warm = make_tuner(
        base_tuning_job_name="dog-search-warm",
        warm_start_config=WarmStartConfig(WarmStartTypes.IDENTICAL_DATA_AND_ALGORITHM, parents={name}),
        max_jobs=1,
        max_parallel_jobs=1,
        strategy="Random",
    )
    warm.fit({"training": data}, wait=True)
    assert warm.describe()["OverallBestTrainingJob"]["TrainingJobName"]

with works("HyperparameterTuner.fit(wait=False), stop_tuning_job, wait"):
    tuner = make_tuner(
        base_tuning_job_name="dog-search-long",
        hyperparameter_ranges={"epochs": IntegerParameter(100_000_000, 200_000_000)},
    )
    tuner.fit({"training": data}, wait=False)
    tuner.stop_tuning_job()
    tuner.wait()
    assert tuner.describe()["HyperParameterTuningJobStatus"] == "Stopped"

with not_rehearsed("HyperparameterTuner.create, of several estimators"):
    several = HyperparameterTuner.create(
        estimator_dict={"one": make_estimator(), "two": make_estimator()},
        objective_metric_name_dict={"one": "Test Loss", "two": "Test Loss"},
        hyperparameter_ranges_dict={"one": RANGES, "two": RANGES},
        metric_definitions_dict={
            each: [{"Name": "Test Loss", "Regex": "Testing Loss: ([0-9\\.]+)"}] for each in ("one", "two")
        },
        base_tuning_job_name="dog-search-several",
        max_jobs=2,
    )
    several.fit(
        {"one": {"training": data}, "two": {"training": data}},
        include_cls_metadata={"one": False, "two": False},
        wait=False,
    )
