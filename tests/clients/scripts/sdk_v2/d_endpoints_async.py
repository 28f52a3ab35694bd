"""An endpoint with a queue, and one without instances: the same model and handlers as in d_endpoints.py."""

from __future__ import annotations

import os
from pathlib import Path

import sagemaker
from sagemaker.async_inference import AsyncInferenceConfig, WaiterConfig
from sagemaker.deserializers import JSONDeserializer
from sagemaker.predictor import Predictor
from sagemaker.pytorch import PyTorch, PyTorchModel
from sagemaker.serializers import IdentitySerializer
from sagemaker.serverless import ServerlessInferenceConfig

from tests.clients.recording import works

ROLE, BUCKET, SOURCE = os.environ["ROLE"], os.environ["BUCKET"], str(Path(__file__).with_name("source"))
session = sagemaker.Session(default_bucket=BUCKET)
photos = Path(os.environ["PHOTOS"])
photo = sorted((photos / "test").glob("*/*.jpg"))[0].read_bytes()
estimator = PyTorch(
    entry_point="train_model.py",
    source_dir=SOURCE,
    role=ROLE,
    framework_version="1.13",
    py_version="py39",
    instance_count=1,
    instance_type="ml.m5.xlarge",
    sagemaker_session=session,
)
data = session.upload_data(str(photos / "train"), bucket=BUCKET, key_prefix="sdk-v2-async")
estimator.fit({"training": data}, wait=True, logs="None")


class ImagePredictor(Predictor):  # type: ignore[misc]
    """Sends photos, and reads lists of scores."""

    def __init__(self, endpoint_name: str, sagemaker_session: sagemaker.Session, **_: object) -> None:
        super().__init__(endpoint_name, sagemaker_session, IdentitySerializer("image/jpeg"), JSONDeserializer())


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

with works("PyTorchModel.deploy of AsyncInferenceConfig, AsyncPredictor.predict, predict_async"):
    queued = model.deploy(
        initial_instance_count=1,
        instance_type="ml.m5.large",
        async_inference_config=AsyncInferenceConfig(output_path=f"s3://{BUCKET}/sdk-v2-answers"),
    )
    patience = WaiterConfig(max_attempts=60, delay=1)
    [scores] = queued.predict(photo, waiter_config=patience)
    assert len(scores) == 3
    assert queued.predict_async(photo).get_result(patience) == [scores]
    queued.delete_endpoint()

with works("PyTorchModel.deploy of ServerlessInferenceConfig"):
    serverless = model.deploy(serverless_inference_config=ServerlessInferenceConfig(2048, max_concurrency=1))
    assert serverless.predict(photo) == [scores]
    serverless.delete_endpoint()
