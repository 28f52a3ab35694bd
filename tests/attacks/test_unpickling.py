"""Files of other people: whatever they contain, none of it is run, and nothing is downloaded to read them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchvision import models

from experiments.callbacks.checkpoints import BEST_CHECKPOINT, CHECKPOINT_FOLDER, LAST_CHECKPOINT
from experiments.config import RunConfig, load_config
from experiments.errors import UserError
from experiments.runs.scoring import Scores
from experiments.train import train
from lightning_modules.caches.array_cache import ARRAY_FILE, MANIFEST_FILE, open_array
from lightning_modules.inference import BadExportError, classifier_names, load_export
from tests.audit import watched
from tests.conftest import tiny
from tests.harmful import TouchesAFile
from tests.integration.test_train import MemoryLogger
from tests.unit.lightning_modules.test_export import BACKBONE, export, tiny_network

pytestmark = pytest.mark.slow

ARCHITECTURES = models.list_models()
"""Classifiers, and networks for detection, segmentation, video and optical flow."""


@pytest.fixture
def poisoned_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of PyTorch in which every file that torchvision publishes is a pickle that runs code."""
    monkeypatch.setattr("torch.hub._hub_dir", str(tmp_path / "hub"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(TouchesAFile(tmp_path / "mark"), tmp_path / "draft")
    for name in ARCHITECTURES:
        for weights in models.get_model_weights(name):
            shutil.copy(tmp_path / "draft", tmp_path / "hub" / "checkpoints" / Path(weights.url).name)
    return tmp_path / "mark"


def backbones() -> st.SearchStrategy[str]:
    """Names that an attacker tries: torchvision's own, parts of them, other cases, paths and any text."""
    known = st.sampled_from(ARCHITECTURES)
    return st.one_of(
        known,
        known.map(str.upper),
        known.map(lambda name: f"torchvision.models.{name}"),
        known.map(lambda name: f"{name}\x00"),
        known.map(lambda name: f" {name}"),
        st.tuples(known, known).map("".join),
        st.sampled_from(["../../etc/passwd", "os.system", "https://example.com/model.pth", "torchvision/resnet18", ""]),
        st.text(max_size=40),
    )


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(backbone=backbones())
def test_an_export_that_names_any_architecture_loads_or_is_refused(
    backbone: str, poisoned_hub: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    if not folder.exists():
        export(tiny_network(), folder)
    manifest = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**manifest, "backbone": backbone}))
    with watched() as seen:
        if backbone == BACKBONE:
            load_export(folder)
        else:
            with pytest.raises(BadExportError):
                load_export(folder)
    assert seen == [], "nothing is unpickled, and no network is asked"
    assert not poisoned_hub.exists()


def test_no_network_beyond_the_classifiers_is_built(poisoned_hub: Path, tmp_path: Path) -> None:
    folder = export(tiny_network(), tmp_path / "model")
    manifest = json.loads((folder / "model.json").read_text())
    others = [name for name in ARCHITECTURES if name not in classifier_names()]
    assert len(others) > 30
    with watched() as seen:
        for backbone in others:
            (folder / "model.json").write_text(json.dumps({**manifest, "backbone": backbone}))
            with pytest.raises(BadExportError, match="must be a torchvision classifier"):
                load_export(folder)
    assert seen == []
    assert not poisoned_hub.exists()


@pytest.mark.parametrize("variable", ["", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
@pytest.mark.parametrize("name", [LAST_CHECKPOINT, BEST_CHECKPOINT])
def test_the_checkpoint_of_a_run_folder_that_somebody_sent_runs_no_code(
    name: str, variable: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable:
        monkeypatch.setenv(variable, "1")  # what PyTorch's own message proposes to those whose files are refused
    config: RunConfig = load_config(None, tiny(photos, tmp_path))
    folder = tmp_path / "run" / CHECKPOINT_FOLDER
    train(config, output_dir=tmp_path / "run", logger=MemoryLogger())
    content = torch.load(folder / name, weights_only=True)
    torch.save({**content, "extra": TouchesAFile(tmp_path / "mark")}, folder / name)
    with pytest.raises(
        UserError, match=rf"{name} must contain tensors and plain values only; it contains Python objects"
    ):
        train(config, output_dir=tmp_path / "run", logger=MemoryLogger())
    assert not (tmp_path / "mark").exists()


def harmful_array(mark: Path) -> np.ndarray:
    return np.array([TouchesAFile(mark)], dtype=object)


@pytest.mark.parametrize("is_hash_right", [False, True])
def test_a_cached_array_runs_no_code(is_hash_right: bool, tmp_path: Path) -> None:
    """Files of numpy may contain pickles under any name."""

    def array() -> list[int]:
        return open_array(
            tmp_path, {"a": 1}, shape=(1,), dtype="uint8", fill=lambda values: values.fill(7), max_gb=1.0
        ).tolist()

    assert array() == [7]
    (file,) = tmp_path.rglob(ARRAY_FILE)
    np.save(file, harmful_array(tmp_path / "mark"), allow_pickle=True)
    if is_hash_right:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        file.with_name(MANIFEST_FILE).write_text(json.dumps({"sha256": digest, "key": {"a": 1}}))
    with watched() as seen:
        if is_hash_right:
            with pytest.raises(ValueError, match="Python objects"):
                array()
        else:
            assert array() == [7], "it is made again"
    assert seen == []
    assert not (tmp_path / "mark").exists()


def test_the_scores_of_a_run_folder_that_somebody_sent_run_no_code(tmp_path: Path) -> None:
    fields = ("root", "paths", "labels", "log_probabilities", "class_names")
    np.savez(tmp_path / "scores.npz", **dict.fromkeys(fields, harmful_array(tmp_path / "mark")))
    with watched() as seen, pytest.raises(ValueError, match="allow_pickle=False"):
        Scores.load(tmp_path / "scores.npz")
    assert seen == []
    assert not (tmp_path / "mark").exists()
