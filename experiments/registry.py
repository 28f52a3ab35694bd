"""The MLflow model registry: a trained model as a plain pyfunc that takes photos."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types.schema import AnyType, ColSpec, DataType, Schema

from experiments.errors import UserError
from experiments.tracking import RunStore
from lightning_modules import metrics
from lightning_modules.inference import MANIFEST_FILE

CHAMPION = "champion"


def register(store: RunStore, run_id: str, export: Path, *, name: str) -> tuple[str, bool]:
    """Log an export as the run's model, register it, and make it champion if its val_loss beats the champion's.

    Returns:
        The version's URI (models:/NAME/VERSION), and whether it is the champion now.
    """
    mlflow.set_tracking_uri(store.uri)
    mlflow.set_registry_uri(store.uri)
    golden = (export / "golden" / "image.jpg").read_bytes()
    signature = ModelSignature(
        Schema([ColSpec(AnyType(), "image")]),
        Schema(
            [
                ColSpec(DataType.string, "label"),
                ColSpec(DataType.double, "score"),
                ColSpec(AnyType(), "scores"),
            ]
        ),
    )
    with mlflow.start_run(run_id=run_id):
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={"export": str(export)},
            signature=signature,
            input_example=pd.DataFrame({"image": [golden]}),
            pip_requirements=[
                f"{one}=={metadata.version(one)}" for one in ("torch", "torchvision", "pillow", "pandas")
            ],
        )
    version = mlflow.register_model(logged.model_uri, name)
    own = json.loads((export / MANIFEST_FILE).read_text())["metrics"][metrics.VAL_LOSS]
    client = store.client
    client.set_model_version_tag(name, version.version, metrics.VAL_LOSS, str(own))
    try:
        champion = client.get_model_version_by_alias(name, CHAMPION)
        beaten = own < float(champion.tags[metrics.VAL_LOSS])
    except MlflowException:  # there is no champion yet
        beaten = True
    if beaten:
        client.set_registered_model_alias(name, CHAMPION, version.version)
    return f"models:/{name}/{version.version}", beaten


def tag_version(uri: str, store: RunStore, tags: Mapping[str, str]) -> None:
    """Tag the version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` names."""
    name, _, alias = uri.removeprefix("models:/").partition("@")
    if alias:
        version = store.client.get_model_version_by_alias(name, alias).version
    else:
        name, _, version = name.partition("/")
    for key, value in tags.items():
        store.client.set_model_version_tag(name, version, key, value)


def download_export(uri: str, store: RunStore) -> Path:
    """The export folder inside a registered model.

    Raises:
        UserError: if there is no such model.
    """
    # Not by arguments: what MLflow asks in between would go to a database that it makes in the working directory.
    mlflow.set_tracking_uri(store.uri)
    mlflow.set_registry_uri(store.uri)
    try:
        return Path(mlflow.artifacts.download_artifacts(f"{uri}/artifacts/export"))
    except (MlflowException, OSError) as error:
        raise UserError(f"--model must be an export folder or a registered model, got {uri!r}: {error}") from error
