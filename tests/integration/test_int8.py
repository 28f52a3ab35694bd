"""A finished model in int8: where its photos come from, when it is accepted, and what is said."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments import int8
from experiments.config import RunConfig, load_config
from experiments.data.inputs import open_data_once
from experiments.errors import CommandError, UserError
from experiments.int8 import Int8, quantize_export
from experiments.task import task_of
from experiments.train import exported_data
from lightning_modules.data import ClassFolderData
from lightning_modules.inference import MANIFEST_FILE, BadExportError, BadImageError, load_export, read_json
from lightning_modules.openvino_cpu import FILES, INT8_FOLDER, INT8_GOLDEN, file_hashes
from sagemaker_launch.endpoints import models
from sagemaker_launch.settings.cloud import load_cloud
from sagemaker_launch.shipping.archive import pack_model, unpack_model
from tests.conftest import tiny
from tests.unit.lightning_modules.test_export import export, tiny_network
from tests.unit.sagemaker_launch.jobs.test_requests import BASIC

FACTS: dict[str, Any] = {
    "float32_val_accuracy": 0.75,
    "int8_val_accuracy": 0.75,
    "valid_images": 12,
    "changed_images": 0,
    "golden_class_is_equal": True,
    "golden_difference": 0.1,
    "tolerance": 0.5,
    "refused": "",
}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantise in this process, where names can be replaced and which starts at once."""
    monkeypatch.setattr(int8, "_in_own_process", int8._quantize)


@pytest.fixture
def config(photos: Path, tmp_path: Path) -> RunConfig:
    return load_config(None, tiny(photos, tmp_path))


@pytest.fixture
def model(config: RunConfig, photos: Path, tmp_path: Path) -> Path:
    """An export that says that it was trained on the photos."""
    folders = open_data_once(config)
    flat = {"data.name": "folder", "data.root": str(photos), "data.max_bad_fraction": 0.01}
    return export(
        tiny_network(),
        tmp_path / "export",
        class_names=folders.class_names,
        data=exported_data(task_of(config)),
        config=flat,
        golden_photos=folders.valid.paths,
    )


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_a_model_is_quantised_once_and_its_archive_has_all_of_it(
    model: Path, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "_why_refused", lambda _: "")  # int8 changes what random weights see
    found = quantize_export(model, config)
    assert found.is_accepted, found.summary
    assert found.facts["valid_images"] == 12 and 0 < found.facts["golden_difference"] < 10
    monkeypatch.setattr(int8, "_quantize", lambda *_: pytest.fail("quantised again"))
    assert quantize_export(model, config) == found
    unpacked = unpack_model(pack_model(found.export, tmp_path / "model.tar.gz"), tmp_path / "unpacked")
    again = quantize_export(unpacked, config)
    assert again.is_accepted and again.export == unpacked
    assert load_export(unpacked).version == load_export(model).version


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_a_model_that_loses_photos_stays_in_float32(
    model: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "quantize_classifier", lambda converted, *_, **__: converted)
    monkeypatch.setattr(int8, "MAX_DROP", -1.0)
    found = quantize_export(model, config)
    assert not found.is_accepted and found.export == model
    assert "float32 is served: int8 loses " in found.summary
    assert list(config.output_dir.glob("int8/*/int8")) == [], "only the verdict is kept"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({}, ""),
        ({"int8_val_accuracy": 0.8}, ""),
        ({"int8_val_accuracy": 8 / 12}, "int8 loses 1 of 12 validation photos, more than 0.2%"),
        ({"valid_images": 1000, "int8_val_accuracy": 0.748}, ""),
        ({"valid_images": 1000, "int8_val_accuracy": 0.747}, "int8 loses 3 of 1000 validation photos"),
        ({"golden_class_is_equal": False}, "the golden photo gets another class"),
        ({"golden_difference": 0.6}, "the logits of the golden photo are beyond their bound"),
        ({"golden_difference": float("nan")}, "the logits of the golden photo are beyond their bound"),
    ],
)
def test_int8_is_refused_for_what_it_loses(changed: dict[str, Any], says: str) -> None:
    why = int8._why_refused(FACTS | changed)
    assert why.startswith(says) and bool(why) == bool(says)


def write_as_quantised(export: Path, _: RunConfig, folder: Path, __: object) -> None:
    """What `_quantize` writes, with files that no OpenVINO reads."""
    shutil.copytree(export, folder)
    (folder / INT8_FOLDER).mkdir()
    for name in FILES:
        (folder / INT8_FOLDER / name).write_text(name)
    (folder / INT8_GOLDEN).write_text(json.dumps(FACTS | {"sha256": file_hashes(folder / INT8_FOLDER)}))


@pytest.fixture
def quantised(model: Path, tmp_path: Path) -> Path:
    """An export in int8, as the archives of `deploy` have it."""
    write_as_quantised(model, RunConfig(), tmp_path / "quantised", None)
    return tmp_path / "quantised"


def test_equal_weights_with_other_class_names_are_another_model(
    model: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a class folder's name was corrected: the seed gives the same weights again."""
    monkeypatch.setattr(int8, "_in_own_process", write_as_quantised)
    first = quantize_export(model, config)
    manifest = read_json(model / MANIFEST_FILE)
    corrected = [f"{name} (corrected)" for name in manifest["class_names"]]
    (model / MANIFEST_FILE).write_text(json.dumps(manifest | {"class_names": corrected}))
    second = quantize_export(model, config)
    assert second.export != first.export
    assert list(load_export(second.export).class_names) == corrected
    assert quantize_export(model, config) == second


def test_what_an_archive_states_is_looked_at(quantised: Path, config: RunConfig) -> None:
    assert quantize_export(quantised, config).summary.startswith("int8: val_accuracy 0.7500, float32 0.7500, of 12 ")
    facts = read_json(quantised / INT8_GOLDEN)
    (quantised / INT8_GOLDEN).write_text(json.dumps(facts | {"int8_val_accuracy": "high", "valid_images": None}))
    with pytest.raises(BadExportError, match=r"int8\.json must state int8_val_accuracy, valid_images as numbers"):
        quantize_export(quantised, config)
    (quantised / INT8_GOLDEN).write_text(json.dumps(facts))
    (quantised / INT8_FOLDER / FILES[1]).write_text("damaged")
    with pytest.raises(BadExportError, match=r"has other files than golden/int8\.json says"):
        quantize_export(quantised, config)


@pytest.mark.usefixtures("here")
def test_a_photo_that_was_damaged_meanwhile_is_no_fault_of_openvino(
    model: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*_: object) -> None:
        raise BadImageError("train/001.Class1/1.jpg: the image is damaged")

    monkeypatch.setattr(ClassFolderData, "split_inputs", damaged)
    with pytest.raises(BadImageError, match=r"1\.jpg: the image is damaged"):
        quantize_export(model, config)


@pytest.mark.usefixtures("here")
def test_an_export_without_a_whole_golden_photo_is_refused_before_it_is_quantised(
    model: Path, config: RunConfig
) -> None:
    golden = read_json(model / "golden" / "scores.json")
    del golden["logits"]
    (model / "golden" / "scores.json").write_text(json.dumps(golden))
    with pytest.raises(BadExportError, match="has no whole golden photo and scores: KeyError 'logits'"):
        quantize_export(model, config)


@pytest.mark.usefixtures("here")
def test_photos_that_are_not_here_are_refused_with_the_option_that_names_them(model: Path, config: RunConfig) -> None:
    moved = _changed(model, "config", {"data.root": "/gone"})
    here = replace(config, data=replace(config.data, root=None))
    with pytest.raises(UserError, match=r"data.root must have the photos .*got '/gone', which is not here: add --data"):
        quantize_export(moved, here)


@pytest.mark.usefixtures("here")
def test_other_photos_are_refused(model: Path, config: RunConfig) -> None:
    other = _changed(model, "data", {"fingerprint": "f00d"})
    with pytest.raises(UserError, match=r"data.root must have the photos .*which has others: add --data.root FOLDER"):
        quantize_export(other, config)


@pytest.mark.usefixtures("here")
def test_an_export_that_does_not_say_what_it_was_trained_on_is_refused(model: Path, config: RunConfig) -> None:
    manifest = read_json(model / MANIFEST_FILE)
    del manifest["data"]
    (model / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(BadExportError, match=r"must say what the model was trained on, for --cloud.endpoint.precision"):
        quantize_export(model, config)


@pytest.mark.slow
def test_it_is_quantised_in_a_process_of_its_own_which_says_what_is_wrong(model: Path, config: RunConfig) -> None:
    threads = threading.active_count()
    found = quantize_export(model, config)  # accepted or not: the weights are random
    assert found.facts["valid_images"] == 12
    other = _changed(Path(shutil.copytree(model, model.parent / "other")), "data", {"fingerprint": "f00d"})
    shutil.rmtree(config.output_dir / "int8")
    with pytest.raises(UserError, match=r"data.root must have the photos .*which has others: add --data.root FOLDER"):
        quantize_export(other, config)
    assert threading.active_count() == threads, "`serve` forks after it"


def test_a_process_that_dies_is_an_error(model: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "start_process", _dies)
    with pytest.raises(CommandError, match="the process that quantises ended with exit code 9"):
        quantize_export(model, config)
    assert not list(config.output_dir.glob("int8/*/golden"))


def _dies(target: object, arguments: tuple[Any, ...], **_: object) -> SimpleNamespace:
    arguments[0].close()
    return SimpleNamespace(join=lambda: None, exitcode=9)


@pytest.mark.parametrize("is_accepted", [True, False])
def test_deploy_serves_float32_where_int8_is_refused_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_accepted: bool
) -> None:
    refused = "" if is_accepted else "int8 loses 3 of 12 validation photos, more than 0.2%"
    found = Int8(tmp_path / "int8", is_accepted, FACTS | {"refused": refused})
    monkeypatch.setattr(int8, "quantize_export", lambda *_: found)
    settings = load_cloud(None, BASIC | {"endpoint.precision": "int8"})
    settings, located = models.in_int8(settings, RunConfig(), models.LocatedModel(tmp_path, "a run"))
    assert settings.endpoint.precision == ("int8" if is_accepted else "float32")
    assert located.int8 == found and located.export == tmp_path / "int8"
    said = capsys.readouterr().err
    assert "int8: val_accuracy 0.7500, float32 0.7500, of 12 photos" in said
    assert (f"float32 is served: {refused}" in said) is not is_accepted


def _changed(model: Path, section: str, values: dict[str, Any]) -> Path:
    manifest = read_json(model / MANIFEST_FILE)
    manifest[section] |= values
    (model / MANIFEST_FILE).write_text(json.dumps(manifest))
    return model
