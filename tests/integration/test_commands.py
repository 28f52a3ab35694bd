"""The commands a person types, one after the other, in processes of their own."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient

from experiments.config import load_config, override, tracking_uri
from experiments.tracking.mlflow_settings import default_store
from tests.conftest import REPOSITORY, own_flags, tiny
from tests.warm import run_warm


def command(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, which has PyTorch already."""
    done = run_warm("experiments", arguments)
    assert done.returncode == code, done.stderr
    return done


def typed(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a person does."""
    return subprocess.run(
        [sys.executable, "-m", "experiments", *arguments], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )


@pytest.fixture(scope="module")
def flags(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    values = tiny(photos, tmp_path_factory.mktemp("commands") / "runs")
    return [f"--{name}={value}" for name, value in values.items()]


def value_of(flags: list[str], name: str) -> str:
    return next(flag.partition("=")[2] for flag in flags if flag.startswith(f"--{name}="))


def test_sweep_train_register_evaluate_predict_report(flags: list[str], photos: Path) -> None:
    swept = typed("sweep", *flags)
    assert "best trial" in swept.stdout
    assert "sweep: 3/3 trials" in swept.stderr
    first = next(line for line in swept.stderr.splitlines() if "classes" in line)
    assert first == f"{photos}: 3 classes, 24/12/12 photos (train/valid/test)"
    assert len(re.findall(r"^trial \d complete, val_loss [\d.]+: optimizer.learning_rate ", swept.stderr, re.M)) == 3
    look = swept.stdout.partition("look:")[2].splitlines()[0]
    assert look.split()[1:4] == ["-m", "experiments", "ui"]

    output = ["--output_dir", value_of(flags, "output_dir")]
    trained = command("train", "--from-best", "tiny", *output)
    assert "test_accuracy" in trained.stdout
    printed = {line.partition(":")[0] for line in trained.stdout.splitlines()}
    assert printed.isdisjoint({"learning_rate", "epoch_seconds", "images_per_second"}), "results only"
    page = next(line.split()[1] for line in trained.stdout.splitlines() if line.startswith("report:"))
    assert "(train --from-best)" in Path(page).read_text()
    name = photos.name  # experiment and model are named after the data folder
    assert f"models:/{name}/1 (champion)" in trained.stdout
    again = command("train", "--from-best", "tiny", *output)
    assert f"models:/{name}/2\n" in again.stdout, "an equal model does not beat the champion"
    export = next(line.split()[1] for line in trained.stdout.splitlines() if line.startswith("model:"))

    client = MlflowClient(tracking_uri(override(load_config(), {"output_dir": value_of(flags, "output_dir")})))
    runs = client.search_runs(["1"], "tags.study = 'tiny' and attributes.run_name = 'train tiny'")
    assert len(runs) == 2
    assert {"test_loss", "test_accuracy", "val_loss"} <= runs[0].data.metrics.keys()

    photo = next((photos / "test" / "002.Class2").iterdir())
    named = command("predict", str(photo), "--model", export, "--json")
    prediction = json.loads(named.stdout)[0]
    assert sum(score for _, score in prediction["classes"]) == pytest.approx(1)
    registered = command("predict", str(photo), "--model", f"models:/{name}@champion", "--json", *output)
    assert json.loads(registered.stdout) == json.loads(named.stdout)
    table = command("predict", str(photo), str(photos / "absent.jpg"), "--model", export, code=1)
    assert "%  Class" in table.stdout
    assert "1 of 2 photos can't be read" in table.stderr

    evaluated = command("evaluate", "--model", export, "--json", *own_flags("evaluate", flags))
    metrics = json.loads(evaluated.stdout)
    written = {path.name for path in Path(metrics["folder"]).iterdir()}
    names = ("confusion_matrix", "per_class_accuracy", "worst_errors")
    assert written == {f"{name}.{end}" for name in names for end in ("csv", "png")}
    preset = Path(metrics["folder"]).parent / "preset.yaml"
    preset.write_text("data: {image_size: 224, crop_fraction: 0.5}\nmodel: {backbone: resnet152}\n")
    other = command("evaluate", "--model", export, "--json", "--config", str(preset), *own_flags("evaluate", flags))
    assert json.loads(other.stdout) == metrics, "size and preprocessing are the model's"
    assert metrics["test_accuracy"] == pytest.approx(runs[0].data.metrics["test_accuracy"])

    report = Path(command("report", "tiny", *output).stdout.strip())
    assert "optimizer.learning_rate" in report.read_text()
    unknown = command("report", "absent", *output, code=2)
    assert "there are tiny" in unknown.stderr

    loaded = plain_pyfunc(client, f"models:/{name}@champion")
    by_base64 = loaded.predict(pd.DataFrame({"image": [base64.b64encode(photo.read_bytes()).decode()]}))
    by_bytes = loaded.predict(pd.DataFrame({"image": [photo.read_bytes()]}))
    assert by_base64.to_dict() == by_bytes.to_dict()
    assert by_bytes["label"][0] == prediction["classes"][0][0]
    with pytest.raises(Exception, match="a path is never read"):
        loaded.predict(pd.DataFrame({"image": [str(photo)]}))
    assert loaded.metadata.signature.inputs.input_names() == ["image"]


def plain_pyfunc(client: MlflowClient, uri: str) -> Any:
    with default_store(client.tracking_uri):
        return mlflow.pyfunc.load_model(uri)


@pytest.mark.slow
def test_two_devices_see_every_image_once(flags: list[str], tmp_path: Path) -> None:
    """DDP on two processes with almost no learning: the metrics are those of one process."""
    still = ["--optimizer.learning_rate=1e-12", "--data.batch_size=5", "--trainer.max_epochs=1"]
    values = []
    for devices in (1, 2):
        run = [f"--trainer.devices={devices}", f"--output_dir={tmp_path / str(devices)}"]
        done = command("train", *own_flags("train", flags), *still, *run)
        lines = dict(line.split(": ") for line in done.stdout.splitlines() if ": " in line)
        values.append({name: float(lines[name].split()[0]) for name in ("val_loss", "val_accuracy", "train_accuracy")})
    assert values[0] == pytest.approx(values[1], rel=1e-4)
