"""Mistakes that people make: each is refused in one line, before a photo is opened or a study created.

After public reports by people who fine-tune classifiers (`slash`, `scheme`, `schema`, `vit`, `inception`, `gpu` and
others), and further instances of the same classes.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from experiments.cli import main
from experiments.errors import EXIT_USAGE, UserError
from lightning_modules.inference import build_network, classifier_names
from lightning_modules.network import check_network
from tests.conftest import own_flags, tiny

Setup = Callable[[Path, Path], dict[str, object]]
"""Takes the output folder and the photos, makes the mistake, and returns the fields that belong to it."""


@pytest.fixture(autouse=True)
def no_photo_is_opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    opened: list[object] = []
    monkeypatch.setattr(Image, "open", lambda *given, **_: opened.append(given))
    yield
    assert opened == []


def run(capsys: pytest.CaptureFixture[str], command: str, values: dict[str, object]) -> str:
    """Run a command that must be refused in one line, and return the line."""
    code = main([command, *own_flags(command, (f"--{name}={value}" for name, value in values.items()))])
    captured = capsys.readouterr()
    assert (code, captured.out) == (EXIT_USAGE, ""), captured.err
    lines = [line for line in captured.err.splitlines() if not line.startswith(" ")]
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


def file_in_place_of(name: str) -> Setup:
    def setup(home: Path, photos: Path) -> dict[str, object]:
        (home.parent / "file").write_text("")
        return {name: home.parent / "file" / "runs"}

    return setup


def search(text: str) -> Setup:
    def setup(home: Path, photos: Path) -> dict[str, object]:
        (home.parent / "search.yaml").write_text(text)
        return {"search": home.parent / "search.yaml"}

    return setup


def deleted_experiment(home: Path, photos: Path) -> dict[str, object]:
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    client.delete_experiment(client.create_experiment("dogs", (home / "mlartifacts").as_uri()))
    return {"tracking.experiment": "dogs"}


def other_mlflow(home: Path, photos: Path) -> dict[str, object]:
    with sqlite3.connect(home / "mlflow.db") as database:
        database.execute("update alembic_version set version_num = 'acf3f17fdcc7'")
    database.close()
    return {}


def other_optuna(home: Path, photos: Path) -> dict[str, object]:
    url = f"sqlite:///{home}/study.db"
    optuna.storages.RDBStorage(url).remove_session()
    with sqlite3.connect(home / "study.db") as database:
        database.execute("update alembic_version set version_num = 'v0.9.0.a'")
    database.close()
    return {"sweep.storage": url}


def weights_of_another_network(home: Path, photos: Path) -> dict[str, object]:
    torch.save(build_network("squeezenet1_1", 2).state_dict(), home / "weights.pth")
    return {"model.weights": home / "weights.pth"}


def one_class(home: Path, photos: Path) -> dict[str, object]:
    shutil.copytree(photos / "train" / "001.Class1", home / "photos" / "train" / "001.Class1")
    return {"data.root": home / "photos"}


def one_name_twice(home: Path, photos: Path) -> dict[str, object]:
    for name in ("001.Beagle", "2.Beagle"):
        shutil.copytree(photos / "train" / "001.Class1", home / "photos" / "train" / name)
    return {"data.root": home / "photos"}


def small_images_for_alexnet(home: Path, photos: Path) -> dict[str, object]:
    drawn = search("data.image_size: {type: int, low: 32, high: 64}")(home, photos)
    return drawn | {"model.backbone": "alexnet", "data.image_size": 64}


def fields(**values: object) -> Setup:
    return lambda home, photos: {name.replace("__", "."): value for name, value in values.items()}


BOTH: list[tuple[Setup, str]] = [
    (fields(tracking__uri="localhost:5000"), r"tracking\.uri must start with http.*did you mean http://localhost:5000"),
    (fields(tracking__uri="http://127.0.0.1:1"), r"tracking\.uri must be an MLflow server or database that answers"),
    (
        fields(tracking__experiment="team/dogs"),
        r"tracking\.experiment must have .* none of them / or :, got 'team/dogs'",
    ),
    (deleted_experiment, r"tracking\.experiment must not be deleted.*restore"),
    (other_mlflow, r"tracking\.uri must be a database of MLflow.*mlflow db upgrade"),
    (
        file_in_place_of("output_dir"),
        r"output_dir must be a folder that can be written.*file: Not a directory",
    ),
    (
        fields(model__backbone="resnet5O"),
        r"model\.backbone must be a torchvision classifier, got 'resnet5O'; did you mean",
    ),
    (fields(model__backbone="vit_b_32", data__image_size=60), r"data\.image_size must be .* vit_b_32 .* 64, got 60"),
    (
        fields(model__backbone="inception_v3", data__image_size=64),
        r"data\.image_size must be .* inception_v3 .* got 64",
    ),
    (fields(model__backbone="maxvit_t", data__image_size=256), r"data\.image_size must be .* maxvit_t .* 224, got 256"),
    (fields(model__weights="nowhere.pth"), r"model\.weights must be imagenet, none or an existing file, got 'nowhere"),
    (weights_of_another_network, r"model\.weights .*weights\.pth is of another network; "),
    (
        fields(model__backbone="squeezenet1_1", model__dropout=0.5, data__image_size=64),
        r"model\.dropout must be 0 for squeezenet1_1, whose head is not linear, got 0\.5",
    ),
    (
        fields(model__backbone="squeezenet1_1", data__cache="features", data__image_size=64),
        r"data\.cache features needs a linear head, which squeezenet1_1 lacks",
    ),
    (fields(trainer__precision="16-mixed"), r"trainer\.precision must be auto, 32-true or bf16-mixed without a GPU"),
    (fields(data__root="s3://bucket/photos"), r"data\.root must be a folder on this machine, got 's3://bucket/photos'"),
    (fields(data__root="nowhere"), r"data\.root must be a folder that holds train/CLASS/PHOTO, got 'nowhere'"),
    (one_class, r"data\.root .* train must have 2 or more classes with photos"),
    (one_name_twice, r"data\.root .* two folders in train map to the same class name: Beagle"),
    (
        fields(optimizer__lr=1),
        r"optimizer\.lr must be the name of a field, got 'optimizer\.lr'; did you mean optimizer\.learning_rate\?",
    ),
    (fields(optimizer__learning_rate=-1), r"optimizer\.learning_rate must be > 0, got -1"),
    (fields(seed="one"), r"seed"),
]
SWEEP: list[tuple[Setup, str]] = [
    (other_optuna, r"sweep\.storage must be a database of Optuna .*, got .*study\.db: .*optuna storage upgrade"),
    (fields(search="nowhere.yaml"), r"--search must name a YAML file, got 'nowhere\.yaml': No such file or directory"),
    (fields(search="."), r"--search must name a YAML file, got '\.': Is a directory"),
    (search("a: ["), r"--search .*search\.yaml is not YAML"),
    (
        search("model.backbone: {type: choice, values: [resnet18, resnet180]}"),
        r"model\.backbone must .* got 'resnet180'",
    ),
    (small_images_for_alexnet, r"data\.image_size must be a size that alexnet takes.* got 32"),
    (search("data.batch_size: {type: int, low: 0, high: 64}"), r"search space: data\.batch_size can't take 0"),
    (
        search("data.batch_size: {type: choice, values: [8, 1]}\nmodel.trainable: {type: choice, values: [head, all]}"),
        r"data\.batch_size must be 2 or more for resnet18 with model\.trainable all at data\.image_size 32: .*, got 1",
    ),
    (fields(trainer__devices=2), r"trainer\.devices must be 1 in a sweep"),
    (fields(trainer__num_nodes=2), r"trainer\.num_nodes must be 1 in a sweep"),
]


def ids(cases: list[tuple[Setup, str]]) -> list[str]:
    return [rule.replace("\\", "")[:40] for _, rule in cases]


@pytest.mark.parametrize(("setup", "rule"), BOTH + SWEEP, ids=ids(BOTH + SWEEP))
def test_a_sweep_is_refused(
    setup: Setup, rule: str, photos: Path, tmp_path: Path, mlflow_database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(capsys, "sweep", setup, rule, photos, tmp_path / "runs", mlflow_database)
    assert not (tmp_path / "runs" / "studies").exists(), "no study was created, so the corrected command starts one"


@pytest.mark.parametrize(("setup", "rule"), BOTH, ids=ids(BOTH))
def test_a_training_is_refused(
    setup: Setup, rule: str, photos: Path, tmp_path: Path, mlflow_database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(capsys, "train", setup, rule, photos, tmp_path / "runs", mlflow_database)
    assert not (tmp_path / "runs" / "train").exists()


def check(
    capsys: pytest.CaptureFixture[str],
    command: str,
    setup: Setup,
    rule: str,
    photos: Path,
    home: Path,
    mlflow_database: Path,
) -> None:
    home.mkdir()
    shutil.copy(mlflow_database, home)
    values = {**tiny(photos, home), "model.backbone": "resnet18"}
    values |= setup(home, photos)
    line = run(capsys, command, values)
    assert re.search(rule, line), line
    assert "Errno" not in line


def test_a_gpu_that_is_not_there_is_refused(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    values = {**tiny(photos, tmp_path / "runs"), "trainer.accelerator": "gpu"}
    assert "trainer.accelerator must be auto or cpu on this machine" in run(capsys, "train", values)


def test_more_gpus_than_there_are_are_refused(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    values = {**tiny(photos, tmp_path / "runs"), "trainer.accelerator": "gpu", "trainer.devices": 3}
    assert "trainer.devices must be at most 2, the GPUs of this machine, got 3" in run(capsys, "train", values)


@pytest.mark.parametrize(
    ("values", "arguments", "rule"),
    [
        ({"data.root": "s3://bucket/photos"}, [], r"data\.root must be a folder on this machine"),
        ({"data.root": "nowhere"}, [], r"data\.root must be a folder that holds"),
        ({}, ["--model", "nowhere"], r"--model must be an export folder, which holds model\.json, got 'nowhere'"),
        ({}, ["--config", "nowhere.yaml"], r"--config must name a YAML file, got 'nowhere\.yaml'"),
    ],
)
def test_an_evaluation_is_refused(
    values: dict[str, object],
    arguments: list[str],
    rule: str,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "model.json").write_text("{}")
    given = [f"--{name}={value}" for name, value in (tiny(photos, tmp_path) | values).items()]
    model = [] if "--model" in arguments else ["--model", str(tmp_path / "export")]
    assert main(["evaluate", *model, *arguments, *own_flags("evaluate", given)]) == EXIT_USAGE
    printed = capsys.readouterr().err
    assert re.search(rule, printed), printed
    assert printed.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 224])
def test_all_classifiers_build_on_the_meta_device_and_most_take_small_images(size: int) -> None:
    refused = []
    for backbone in classifier_names():
        try:
            check_network(backbone, weights="none", dropout=0.0, image_size=size)
        except UserError:
            refused.append(backbone)
    if size == 224:
        assert refused == []
    else:
        assert refused == ["alexnet", "inception_v3", "maxvit_t", "vit_h_14"]
