"""What this SDK offers and the rehearsal does not have: each call is refused at once, in words that say so."""

from __future__ import annotations

import os
from pathlib import Path

import sagemaker
from sagemaker import container_def
from sagemaker.debugger import TensorBoardOutputConfig
from sagemaker.estimator import Estimator
from sagemaker.experiments.run import Run
from sagemaker.inputs import FileSystemInput, ShuffleConfig, TrainingInput
from sagemaker.model import Model
from sagemaker.model_monitor import DefaultModelMonitor
from sagemaker.multidatamodel import MultiDataModel
from sagemaker.pipeline import PipelineModel
from sagemaker.predictor import Predictor
from sagemaker.processing import ScriptProcessor
from sagemaker.transformer import Transformer
from sagemaker.workflow.pipeline import Pipeline

from tests.clients.recording import not_rehearsed

ROLE, BUCKET, SOURCE = os.environ["ROLE"], os.environ["BUCKET"], str(Path(__file__).with_name("source"))
DATA, REGISTRY = f"s3://{BUCKET}/data", "763104351884.dkr.ecr.us-east-1.amazonaws.com"
IMAGE, SERVING = f"{REGISTRY}/pytorch-training:1.13-cpu-py39", f"{REGISTRY}/pytorch-inference:1.13-cpu-py39"
session = sagemaker.Session(default_bucket=BUCKET)


def estimator(**more: object) -> Estimator:
    """A training job that has one thing too many."""
    options = {"image_uri": IMAGE, "role": ROLE, "instance_count": 1, "instance_type": "ml.m5.large", **more}
    return Estimator(sagemaker_session=session, **options)


with not_rehearsed("ScriptProcessor.run"):
    ScriptProcessor(
        role=ROLE,
        image_uri=IMAGE,
        command=["python3"],
        instance_count=1,
        instance_type="ml.m5.large",
        sagemaker_session=session,
    ).run(code=f"{SOURCE}/train_model.py", wait=False)

session.create_model("sdk-v2-model", ROLE, container_def(SERVING))

with not_rehearsed("Transformer.transform"):
    Transformer("sdk-v2-model", 1, "ml.m5.large", sagemaker_session=session).transform(DATA, wait=False)

with not_rehearsed("Pipeline.create"):
    Pipeline("pipeline", sagemaker_session=session).create(ROLE)

with not_rehearsed("Run"), Run(experiment_name="dogs", run_name="one", sagemaker_session=session):
    pass

with not_rehearsed("Model.register"):
    Model(SERVING, f"{DATA}/model.tar.gz", ROLE, sagemaker_session=session).register(
        ["image/jpeg"], ["application/json"], ["ml.m5.large"], ["ml.m5.large"], model_package_group_name="dogs"
    )

with not_rehearsed("PipelineModel.deploy"):
    PipelineModel(
        [Model(SERVING, None, ROLE, sagemaker_session=session) for _ in range(2)], ROLE, sagemaker_session=session
    ).deploy(1, "ml.m5.large")

with not_rehearsed("MultiDataModel.deploy"):
    MultiDataModel("many", f"{DATA}/", image_uri=SERVING, role=ROLE, sagemaker_session=session).deploy(1, "ml.m5.large")

with not_rehearsed("DefaultModelMonitor.suggest_baseline"):
    DefaultModelMonitor(ROLE, sagemaker_session=session).suggest_baseline(
        f"{DATA}/train.csv", {"csv": {"header": True}}, output_s3_uri=DATA, wait=False, logs=False
    )

with not_rehearsed("Predictor.list_monitors"):
    Predictor("endpoint", session).list_monitors()

with not_rehearsed("Estimator.fit of input mode Pipe"):
    estimator(input_mode="Pipe").fit(DATA, wait=False)

with not_rehearsed("Estimator.fit of ShuffleConfig"):
    estimator().fit(TrainingInput(DATA, shuffle_config=ShuffleConfig(1)), wait=False)

with not_rehearsed("Estimator.fit of FileSystemInput"):
    estimator(subnets=["subnet-1"], security_group_ids=["sg-1"]).fit(
        FileSystemInput("fs-0123456789abcdef0", "EFS", "/data"), wait=False
    )

with not_rehearsed("Estimator.fit of TensorBoardOutputConfig"):
    estimator(tensorboard_output_config=TensorBoardOutputConfig(DATA)).fit(DATA, wait=False)

with not_rehearsed("Estimator.fit of experiment_config"):
    estimator().fit(DATA, wait=False, experiment_config={"ExperimentName": "dogs"})

with not_rehearsed("Estimator.fit of enable_remote_debug"):
    estimator(enable_remote_debug=True).fit(DATA, wait=False)

with not_rehearsed("Estimator.fit of disable_output_compression"):
    estimator(disable_output_compression=True).fit(DATA, wait=False)

with not_rehearsed("Model.deploy of accelerator_type"):
    Model(SERVING, None, ROLE, sagemaker_session=session).deploy(
        1, "ml.m5.large", accelerator_type="ml.eia2.medium", wait=False
    )

with not_rehearsed("Session.update_training_job"):
    session.update_training_job("job", resource_config={"KeepAlivePeriodInSeconds": 0})
