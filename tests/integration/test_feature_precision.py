"""Features in lower precision: their values, and where they are refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from experiments.config import RunConfig, load_config, override
from experiments.data.inputs import forget_opened, open_features_once
from experiments.errors import UserError
from experiments.preflight import check_model
from lightning_modules.caches import features
from lightning_modules.caches.features import FeatureSet
from lightning_modules.data import ClassFolderData
from lightning_modules.inference import BadImageError
from tests.conftest import tiny

KEY = "data.feature_precision"


def features_in(config: RunConfig, precision: str) -> FeatureSet:
    forget_opened()
    return open_features_once(override(config, {KEY: precision, "data.image_size": 32, "data.crop_fraction": 1.0}))


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "error"), [("bf16", 0.02), ("int8", 0.2)])
def test_training_views_are_close_and_validation_is_exact(
    photos: Path, tmp_path: Path, precision: str, error: float
) -> None:
    config = load_config(None, tiny(photos, tmp_path) | {"data.augment": "light", "data.cache_views": 2})
    exact = features_in(config, "float32")
    rough = features_in(config, precision)
    assert torch.equal(rough.valid, exact.valid)
    off = (rough.train - exact.train).norm() / exact.train.norm()
    assert 0 < float(off) < error
    assert len({tuple(view.flatten().tolist()) for view in rough.train}) == 2, "each view has its own features"
    assert torch.equal(features_in(config, "auto").train, exact.train), "they are kept apart on disk"
    arrays = len(list((config.data.cache_dir / "arrays").iterdir()))
    assert torch.equal(features_in(config, precision).train, rough.train)
    assert len(list((config.data.cache_dir / "arrays").iterdir())) == arrays, "they were read"


def test_features_are_read_only_where_the_same_would_be_computed(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(None, tiny(photos, tmp_path))
    compiled: list[str] = []
    monkeypatch.setattr(features, "_compiled", lambda network, _, precision: compiled.append(precision) or network)
    versions = {"openvino": "1", "nncf": "1"}
    monkeypatch.setattr(features.metadata, "version", lambda name: versions.get(name, "0"))
    monkeypatch.setattr(features, "has_int8", lambda: True)

    def computed() -> list[str]:
        """What is not on disk."""
        compiled.clear()
        for precision in ("bf16", "int8"):
            features_in(config, precision)
        return compiled

    assert computed() == ["bf16", "int8"]
    assert computed() == []
    versions["nncf"] = "2"
    assert computed() == ["int8"]
    versions["openvino"] = "2"
    assert computed() == ["bf16", "int8"]
    monkeypatch.setattr(features, "has_int8", lambda: False)
    assert computed() == ["int8"]
    monkeypatch.setattr(features, "CALIBRATION_PHOTOS", features.CALIBRATION_PHOTOS + 1)
    assert computed() == ["int8"]


def test_a_photo_that_was_damaged_meanwhile_is_no_fault_of_openvino(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*_: object) -> None:
        raise BadImageError("train/001.Class1/1.jpg: the image is damaged")

    monkeypatch.setattr(ClassFolderData, "split_inputs", damaged)
    with pytest.raises(BadImageError, match=r"1\.jpg: the image is damaged"):
        features_in(load_config(None, tiny(photos, tmp_path)), "int8")


def test_without_its_packages_it_is_refused_before_anything_runs(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    config = load_config(None, tiny(photos, tmp_path) | {KEY: "int8"})
    with pytest.raises(UserError, match=rf"{KEY} must be auto or float32 without nncf \(pip install .*, got 'int8'"):
        check_model(config)


def test_it_is_refused_where_no_features_are_kept(photos: Path, tmp_path: Path) -> None:
    config = load_config(None, tiny(photos, tmp_path) | {KEY: "bf16", "model.trainable": "last_block"})
    with pytest.raises(UserError, match=rf"{KEY} must be auto where no features are cached .*, got 'bf16'"):
        check_model(config)


def test_int8_is_refused_on_a_gpu(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(None, tiny(photos, tmp_path) | {KEY: "int8"})
    monkeypatch.setattr("experiments.preflight.on_gpu", lambda _: True)
    with pytest.raises(UserError, match=rf"{KEY} must be auto, float32 or bf16 on a GPU .*, got 'int8'"):
        check_model(config)


@pytest.mark.parametrize(("precision", "warnings"), [("int8", 1), ("bf16", 0)])
def test_int8_where_it_is_not_faster_is_a_warning(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    precision: str,
    warnings: int,
) -> None:
    monkeypatch.setattr(features, "_of_openvino", lambda precision: precision)
    monkeypatch.setattr(features, "has_int8", lambda: False)
    monkeypatch.setattr(features, "convert", lambda network, _: network)
    monkeypatch.setattr(features, "quantize", lambda network, _: network)
    monkeypatch.setattr(features, "OpenVino", lambda network, *_: network)
    features_in(load_config(None, tiny(photos, tmp_path)), precision)
    assert caplog.text.count("this processor has no VNNI") == warnings
