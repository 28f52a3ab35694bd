"""SDK v3 in one process, since its import takes ten seconds: trainer, tuner, core resources, model builder."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import boto3
from sagemaker.core import image_uris
from sagemaker.core.helper.session_helper import Session
from sagemaker.core.parameter import ContinuousParameter
from sagemaker.core.resources import (
    Endpoint,
    EndpointConfig,
    HyperParameterTuningJob,
    Model,
    ProcessingJob,
    Tag,
    TrainingJob,
    TransformJob,
)
from sagemaker.core.shapes import (
    AlgorithmSpecification,
    Channel,
    ContainerDefinition,
    DataSource,
    MetricDefinition,
    OutputDataConfig,
    ProcessingClusterConfig,
    ProcessingResources,
    ProductionVariant,
    ResourceConfig,
    S3DataSource,
    StoppingCondition,
    TransformDataSource,
    TransformInput,
    TransformOutput,
    TransformResources,
    TransformS3DataSource,
)
from sagemaker.core.shapes import AppSpecification as ProcessingAppSpecification
from sagemaker.core.shapes import Tag as TagShape
from sagemaker.core.training.configs import Compute, InputData, SourceCode
from sagemaker.serve import ModelBuilder
from sagemaker.train import ModelTrainer
from sagemaker.train.tuner import HyperparameterTuner

from tests.clients.recording import not_rehearsed, works
from tests.clients.served import SERVER

BUCKET, ROLE = os.environ["BUCKET"], os.environ["ROLE"]
SOURCE = Path(__file__).parent / "source"
SCRIPT = """
import time
from pathlib import Path
print("epoch=0 val_loss=0.25", flush=True)
time.sleep(60 if Path("/opt/ml/input/data/code/slow.txt").exists() else 0)
"""
METRICS = [MetricDefinition(name="val_loss", regex="val_loss=([0-9.]+)")]
COMPUTE = Compute(instance_type="ml.m5.large", instance_count=1, volume_size_in_gb=10)
STOP = StoppingCondition(max_runtime_in_seconds=300)
S3 = boto3.client("s3")
PHOTO = b"\xff\xd8\xff\xe0" + bytes(1000)

session = Session(default_bucket=BUCKET)
S3.put_object(Bucket=BUCKET, Key="v3/photos/a.txt", Body=b"a photo")
S3.put_object(Bucket=BUCKET, Key="v3/code/train.py", Body=SCRIPT.encode())

with works("image_uris.retrieve"):
    wanted = {"framework": "pytorch", "region": "us-east-1", "version": "2.6", "py_version": "py312"}
    image = image_uris.retrieve(**wanted, instance_type="ml.m5.large", image_scope="training")
    assert "/pytorch-training:2.6" in image


def trainer() -> ModelTrainer:
    made = ModelTrainer(
        training_image=image,
        role=ROLE,
        source_code=SourceCode(source_dir=str(SOURCE), entry_script="train.py"),
        compute=COMPUTE,
        stopping_condition=STOP,
        hyperparameters={"rate": 0.25},
        output_data_config=OutputDataConfig(s3_output_path=f"s3://{BUCKET}/v3/output"),
        base_job_name="v3-trained",
        sagemaker_session=session,
    )
    return made.with_metric_definitions(METRICS)


with works("ModelTrainer.train, with local data, wait and logs"):
    Path("photos").mkdir()
    Path("photos/a.txt").write_text("a photo")
    trained = trainer()
    trained.train(input_data_config=[InputData(channel_name="photos", data_source="photos")], wait=True, logs=True)

with works("TrainingJob.get, refresh, get_all"):
    job = trained._latest_training_job
    assert job is not None
    again = TrainingJob.get(job.training_job_name)
    assert again.training_job_status == "Completed"
    assert {one.metric_name: one.value for one in again.final_metric_data_list} == {"val_loss": 0.125}
    found = TrainingJob.get_all(name_contains="v3-trained", status_equals="Completed", sort_by="Name")
    assert [one.training_job_name for one in found] == [job.training_job_name]
    assert again.refresh().model_artifacts.s3_model_artifacts.startswith(f"s3://{BUCKET}/v3/output/")


def raw_job(name: str) -> TrainingJob:
    code = DataSource(s3_data_source=S3DataSource(s3_data_type="S3Prefix", s3_uri=f"s3://{BUCKET}/v3/code"))
    return TrainingJob.create(
        training_job_name=name,
        role_arn=ROLE,
        algorithm_specification=AlgorithmSpecification(
            training_image="rehearsal.local/script", training_input_mode="File", metric_definitions=METRICS
        ),
        input_data_config=[Channel(channel_name="code", data_source=code)],
        output_data_config=OutputDataConfig(s3_output_path=f"s3://{BUCKET}/v3/output"),
        resource_config=ResourceConfig(instance_type="ml.m5.large", instance_count=1, volume_size_in_gb=10),
        stopping_condition=STOP,
    )


with works("TrainingJob.create, wait"):
    raw_job("v3-raw").wait(poll=1, timeout=200)
    assert TrainingJob.get("v3-raw").secondary_status == "Completed"

with works("TrainingJob.stop"):
    S3.put_object(Bucket=BUCKET, Key="v3/code/slow.txt", Body=b"")
    slow = raw_job("v3-slow")
    slow.stop()
    slow.wait(poll=1, timeout=200)
    assert slow.training_job_status == "Stopped"

with works("Tag.get_all, add_tags, delete_tags"):
    Tag.add_tags(resource_arn=slow.training_job_arn, tags=[TagShape(key="owner", value="me")])
    assert [(tag.key, tag.value) for tag in Tag.get_all(slow.training_job_arn)] == [("owner", "me")]
    Tag.delete_tags(resource_arn=slow.training_job_arn, tag_keys=["owner"])
    assert list(Tag.get_all(slow.training_job_arn)) == []

with works("HyperparameterTuner.tune, best_training_job"):
    tuner = HyperparameterTuner(
        model_trainer=trainer(),
        objective_metric_name="val_loss",
        hyperparameter_ranges={"rate": ContinuousParameter(0.1, 0.9)},
        metric_definitions=[{"Name": "val_loss", "Regex": "val_loss=([0-9.]+)"}],
        strategy="Random",
        objective_type="Minimize",
        max_jobs=2,
        max_parallel_jobs=2,
        base_tuning_job_name="v3-tuned",
    )
    tuner.tune([InputData(channel_name="photos", data_source=f"s3://{BUCKET}/v3/photos")], wait=True)
    best = tuner.best_training_job()

with works("HyperParameterTuningJob.get, get_all, get_all_training_jobs"):
    tuning = HyperParameterTuningJob.get(tuner.latest_tuning_job.hyper_parameter_tuning_job_name)
    assert tuning.hyper_parameter_tuning_job_status == "Completed"
    assert tuning.best_training_job.training_job_name == best
    jobs = tuning.get_all_training_jobs(sort_by="FinalObjectiveMetricValue", sort_order="Ascending")
    assert next(iter(jobs)).training_job_name == best
    names = [one.hyper_parameter_tuning_job_name for one in HyperParameterTuningJob.get_all(name_contains="v3-tuned")]
    assert names == [tuning.hyper_parameter_tuning_job_name]

archive = io.BytesIO()
with tarfile.open(fileobj=archive, mode="w:gz") as packed:
    member = tarfile.TarInfo("code/serve.py")
    member.size = len(SERVER)
    packed.addfile(member, io.BytesIO(SERVER.encode()))
S3.put_object(Bucket=BUCKET, Key="v3/model.tar.gz", Body=archive.getvalue())

with works("ModelBuilder.build, deploy with an image of one's own"):
    builder = ModelBuilder(
        image_uri="rehearsal.local/script",
        s3_model_data_url=f"s3://{BUCKET}/v3/model.tar.gz",
        role_arn=ROLE,
        instance_type="ml.c5.large",
        sagemaker_session=session,
    )
    builder.build(model_name="v3-built")
    built = builder.deploy(endpoint_name="v3-built", instance_type="ml.c5.large", initial_instance_count=1)
    assert Endpoint.get("v3-built").endpoint_status == "InService"

with works("Endpoint.invoke with a photo"):
    reply = Endpoint.get("v3-built").invoke(body=PHOTO, content_type="image/jpeg")
    assert reply.body.read() == b"image/jpeg of 1004 bytes"

with works("Model.create, EndpointConfig.create, Endpoint.create, wait_for_status"):
    container = ContainerDefinition(image="rehearsal.local/script", model_data_url=f"s3://{BUCKET}/v3/model.tar.gz")
    Model.create(model_name="v3-core", primary_container=container, execution_role_arn=ROLE)
    variant = ProductionVariant(
        variant_name="main", model_name="v3-core", instance_type="ml.c5.large", initial_instance_count=1
    )
    EndpointConfig.create(endpoint_config_name="v3-core", production_variants=[variant])
    endpoint = Endpoint.create(endpoint_name="v3-core", endpoint_config_name="v3-core")
    endpoint.wait_for_status("InService", poll=1, timeout=200)

with works("Endpoint.get_all, Model.get_all, EndpointConfig.get_all"):
    assert sorted(one.endpoint_name for one in Endpoint.get_all(name_contains="v3-")) == ["v3-built", "v3-core"]
    assert [one.model_name for one in Model.get_all(name_contains="v3-core")] == ["v3-core"]
    assert [one.endpoint_config_name for one in EndpointConfig.get_all(name_contains="v3-core")] == ["v3-core"]

with works("Endpoint.delete, wait_for_delete"):
    for name in ("v3-built", "v3-core"):
        gone = Endpoint.get(name)
        gone.delete()
        gone.wait_for_delete(poll=1, timeout=200)
    EndpointConfig.get("v3-core").delete()
    Model.get("v3-core").delete()

with not_rehearsed("Endpoint.invoke_with_response_stream"):
    Endpoint(endpoint_name="v3-core").invoke_with_response_stream(body=PHOTO, content_type="image/jpeg")

with not_rehearsed("ModelTrainer.with_remote_debug_config"):
    from sagemaker.core.training.configs import RemoteDebugConfig

    debugged = trainer().with_remote_debug_config(RemoteDebugConfig(enable_remote_debug=True))
    debugged.train(input_data_config=[InputData(channel_name="photos", data_source="photos")], wait=False)

with not_rehearsed("ProcessingJob.create"):
    cluster = ProcessingClusterConfig(instance_count=1, instance_type="ml.m5.large", volume_size_in_gb=10)
    ProcessingJob.create(
        processing_job_name="v3-processing",
        role_arn=ROLE,
        app_specification=ProcessingAppSpecification(image_uri=image),
        processing_resources=ProcessingResources(cluster_config=cluster),
    )

with not_rehearsed("TransformJob.create"):
    source = TransformS3DataSource(s3_data_type="S3Prefix", s3_uri=f"s3://{BUCKET}/v3/photos")
    TransformJob.create(
        transform_job_name="v3-transform",
        model_name="v3-built",
        transform_input=TransformInput(data_source=TransformDataSource(s3_data_source=source)),
        transform_output=TransformOutput(s3_output_path=f"s3://{BUCKET}/v3/transformed"),
        transform_resources=TransformResources(instance_type="ml.m5.large", instance_count=1),
    )
