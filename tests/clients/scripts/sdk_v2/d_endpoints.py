"""An endpoint as the cells of a notebook have it: a model with handlers of one's own, JPEG in, JSON out, delete."""

from __future__ import annotations

import os
from pathlib import Path

import sagemaker
from botocore.exceptions import ClientError
from sagemaker.deserializers import JSONDeserializer
from sagemaker.predictor import Predictor
from sagemaker.pytorch import PyTorch, PyTorchModel
from sagemaker.serializers import IdentitySerializer

from tests.clients.recording import error_of, works

ROLE, BUCKET, SOURCE = os.environ["ROLE"], os.environ["BUCKET"], str(Path(__file__).with_name("source"))
session = sagemaker.Session(default_bucket=BUCKET)
photos = Path(os.environ["PHOTOS"])
data = session.upload_data(str(photos / "train"), bucket=BUCKET, key_prefix="sdk-v2-endpoints")
jpeg_serializer, json_deserializer = IdentitySerializer("image/jpeg"), JSONDeserializer()


class ImagePredictor(Predictor):  # type: ignore[misc]
    """Sends photos, and reads lists of scores."""

    def __init__(self, endpoint_name: str, sagemaker_session: sagemaker.Session, **_: object) -> None:
        super().__init__(
            endpoint_name,
            sagemaker_session=sagemaker_session,
            serializer=jpeg_serializer,
            deserializer=json_deserializer,
        )


estimator = PyTorch(
    entry_point="train_model.py",
    source_dir=SOURCE,
    role=ROLE,
    framework_version="1.13",
    py_version="py39",
    instance_count=1,
    instance_type="ml.m5.xlarge",
    sagemaker_session=session,
    debugger_hook_config=False,
    disable_profiler=True,
)
estimator.fit({"training": data}, wait=True, logs="None")

with works("PyTorchModel.deploy"):
    model = PyTorchModel(
        model_data=estimator.model_data,
        role=ROLE,
        entry_point="inference.py",
        source_dir=SOURCE,
        py_version="py39",
        framework_version="1.13",
        predictor_cls=ImagePredictor,
        sagemaker_session=session,
    )
    predictor = model.deploy(initial_instance_count=1, instance_type="ml.t2.medium")
    name = predictor.endpoint_name
    assert session.describe_endpoint(name)["EndpointStatus"] == "InService"

photo = sorted((photos / "test").glob("*/*.jpg"))[0].read_bytes()

with works("Predictor.predict(jpeg, initial_args={'ContentType': 'image/jpeg'})"):
    [scores] = predictor.predict(photo, initial_args={"ContentType": "image/jpeg"})
    assert len(scores) == 3 and all(isinstance(score, float) for score in scores)

with works("Predictor(endpoint_name).predict"):
    later = Predictor(name, session, serializer=jpeg_serializer, deserializer=json_deserializer)
    assert later.predict(photo) == [scores]

with works("Predictor.predict of what the handlers refuse"):
    error = error_of(ClientError, lambda: later.predict(b"{}", initial_args={"ContentType": "application/json"}))
    assert error.response["Error"]["Code"] == "ModelError"
    assert "Received server error (500)" in str(error)

with works("Predictor.update_endpoint"):
    later.update_endpoint(initial_instance_count=2, instance_type="ml.t2.medium")
    [variant] = session.describe_endpoint(name)["ProductionVariants"]
    assert variant["CurrentInstanceCount"] == 2
    assert later.predict(photo) == [scores]

with works("Predictor.delete_model, delete_endpoint"):
    models = session.sagemaker_client.list_models(NameContains="pytorch-inference")["Models"]
    predictor.delete_model()
    assert len(session.sagemaker_client.list_models(NameContains="pytorch-inference")["Models"]) == len(models) - 1
    predictor.delete_endpoint()
    session.sagemaker_client.get_waiter("endpoint_deleted").wait(EndpointName=name, WaiterConfig={"Delay": 1})
    assert "Could not find endpoint" in str(error_of(ClientError, lambda: session.describe_endpoint(name)))

with works("Estimator.deploy"):
    direct = estimator.deploy(
        initial_instance_count=1, instance_type="ml.m5.large", entry_point="inference.py", source_dir=SOURCE
    )
    direct.serializer, direct.deserializer = jpeg_serializer, json_deserializer
    assert direct.predict(photo) == [scores]

with works("Session.delete_endpoint, delete_endpoint_config, delete_model"):
    config = session.describe_endpoint(direct.endpoint_name)["EndpointConfigName"]
    described = session.sagemaker_client.describe_endpoint_config(EndpointConfigName=config)
    session.delete_endpoint(direct.endpoint_name)
    session.delete_endpoint_config(config)
    session.delete_model(described["ProductionVariants"][0]["ModelName"])
