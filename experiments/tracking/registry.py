"""The MLflow model registry: a trained model as a plain pyfunc that takes photos."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types.schema import AnyType, ColSpec, DataType, Schema

from experiments.console import say
from experiments.errors import UserError
from experiments.runs.folder import FINGERPRINT, RunFolder
from experiments.tracking.mlflow_settings import client_settings, default_store
from experiments.tracking.store import STATUS, RunStore
from lightning_modules.inference import MANIFEST_FILE
from lightning_modules.metrics import BEST, DIRECTIONS, OBJECTIVES, to_minimize

CHAMPION = "champion"
MAX_TAG = 5000
"""Characters of a tag, which older databases of MLflow take; 3.17.2 takes 100,000."""
CLASS_NAMES = "class_names"
"""Tags of a version: the data set that its model was trained on."""


@client_settings()
def register(store: RunStore, folder: RunFolder, *, name: str) -> None:
    """Log the export of a run as its model, register it, and note the version in the run folder.

    The version becomes the champion if there is none, or if it is better than a champion that was trained on the same
    data set, by the run's `sweep.metric`. Each step may be repeated: an earlier result is found and kept.

    Raises:
        MlflowException, OSError: if the server does not take it.
    """
    published = folder.published
    assert published.run_id is not None, "published first"
    manifest = json.loads((folder.export / MANIFEST_FILE).read_text())
    record = folder.read()
    outcome, params = record.outcome, record.params
    assert outcome is not None, "published first"
    tags = {
        **{metric: str(manifest["metrics"][metric]) for metric in OBJECTIVES},
        FINGERPRINT: params[FINGERPRINT],
        CLASS_NAMES: _listed(manifest["class_names"]),
    }
    store.before_call()
    version = _find_version(store.client, name, published.run_id)
    if version is None:
        with default_store(store.uri):
            version = mlflow.register_model(_log_model(published.run_id, folder.export), name)
    store.before_call()
    for key, value in tags.items():
        store.client.set_model_version_tag(name, version.version, key, value)
    store.client.set_terminated(published.run_id, STATUS[outcome.state], record.ended_ms)  # MLflow has opened it again
    is_champion = _make_champion(store, name, version.version, tags, params["sweep.metric"])
    folder.note_published(replace(published, model_uri=f"models:/{name}/{version.version}", is_champion=is_champion))


def _listed(names: Sequence[str]) -> str:
    """As many class names as fit into a tag, as JSON, and how many are left out."""
    text, shown = json.dumps(names), len(names)
    while len(text) > MAX_TAG:
        shown //= 2
        text = json.dumps([*names[:shown], f"… and {len(names) - shown:,} more"])
    return text


def _find_version(client: MlflowClient, name: str, run_id: str) -> ModelVersion | None:
    found = client.search_model_versions(f"name = '{_quoted(name)}' and run_id = '{run_id}'")
    return found[0] if found else None


def _quoted(name: str) -> str:
    return name.replace("'", "''")


def _log_model(run_id: str, export: Path) -> str:
    """Log an export as the model of a run in the default store.

    Returns:
        The URI of the logged model.
    """
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
            artifacts={"export": export.resolve().as_uri()},  # MLflow takes a path for a URI where it has `?` or `#`
            signature=signature,
            input_example=pd.DataFrame({"image": [golden]}),
            pip_requirements=[
                f"{package}=={metadata.version(package)}" for package in ("torch", "torchvision", "pillow", "pandas")
            ],
        )
    return str(logged.model_uri)


def _make_champion(store: RunStore, name: str, version: str, tags: Mapping[str, str], metric: str) -> bool:
    """Give a version the champion's alias if it is better, and print a line if the two can't be compared.

    Args:
        metric: the objective of the version's run, by which the two are compared.

    Returns:
        Whether it is the champion now.
    """
    champion = _find_champion(store.client, name)
    noted = {} if champion is None else _noted(store, champion)
    if champion is None or champion.version == version:
        better = True
    elif reason := _unlike(noted, tags, metric):
        better = False
        code = f"from mlflow import MlflowClient; MlflowClient({store.uri!r})"
        code += f".set_registered_model_alias({name!r}, {CHAMPION!r}, {str(version)!r})"
        say(
            f"{name} version {champion.version} stays the champion: it {reason}, so it can't be compared with version "
            f"{version}. To make version {version} the champion: {shlex.join(['python', '-c', code])}"
        )
    else:
        new, old = (to_minimize(float(found[metric]), DIRECTIONS[metric]) for found in (tags, noted))
        better = new < old
    if better:
        store.client.set_registered_model_alias(name, CHAMPION, version)
    return better


def _unlike(champion: Mapping[str, str], tags: Mapping[str, str], metric: str) -> str:
    """Why a version can't be compared with the champion; empty if it can."""
    if champion.get(FINGERPRINT) != tags[FINGERPRINT]:
        return f"was trained on another data set ({champion.get(CLASS_NAMES, 'unknown classes')})"
    return "" if metric in champion else f"has no {metric}, the objective of the other one"


def _noted(store: RunStore, version: ModelVersion) -> Mapping[str, str]:
    """The tags of a version; those that older versions lack are taken from their run, as far as it has them."""
    run = store.find_run(version.run_id) if version.run_id else None
    if run is None:
        return version.tags
    scores = {name.removeprefix(BEST): str(value) for name, value in run.data.metrics.items() if name.startswith(BEST)}
    return {**run.data.params, **scores, **version.tags}


def _find_champion(client: MlflowClient, name: str) -> ModelVersion | None:
    aliases = client.get_registered_model(name).aliases
    return client.get_model_version(name, aliases[CHAMPION]) if CHAMPION in aliases else None


@client_settings()
def tag_version(uri: str, store: RunStore, tags: Mapping[str, str]) -> None:
    """Tag the version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` names."""
    name, version = _parse(uri, store)
    for key, value in tags.items():
        store.client.set_model_version_tag(name, version, key, value)


def _parse(uri: str, store: RunStore) -> tuple[str, str]:
    """Name and version of a model. MLflow's own parser ends a name at `?` or `#`, which a folder's name may have."""
    name, _, alias = uri.removeprefix("models:/").rpartition("@")
    if name:
        return name, str(store.client.get_model_version_by_alias(name, alias).version)
    name, _, version = uri.removeprefix("models:/").rpartition("/")
    return name, version


@client_settings()
def download_export(uri: str, store: RunStore) -> Path:
    """The export folder inside a registered model.

    Raises:
        UserError: if there is no such model.
    """
    source = uri
    try:
        name, version = _parse(uri, store) if uri.startswith("models:/") else ("", "")
        if version.isdecimal():
            source = store.client.get_model_version_download_uri(name, version)
        # Not by arguments: MLflow would make its inner calls to a database that it creates in the working directory.
        with default_store(store.uri):
            return Path(mlflow.artifacts.download_artifacts(f"{source}/artifacts/export"))
    except (MlflowException, OSError) as error:
        raise UserError(
            f"--model must be an export folder or a registered model, got {uri!r}: {error}"
        ) from None  # MLflow's own text repeats the password
