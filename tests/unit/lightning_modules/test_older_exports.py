"""An export that was written before `model.json` named an interpolation scores its golden photo as it did."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_modules.inference import (
    BadExportError,
    Interpolation,
    Model,
    build_network,
    check_golden,
    decode_image,
    load_export,
)
from tests.conftest import REPOSITORY

OLDER = REPOSITORY / "tests" / "exports" / "without_interpolation"
"""What `write_export` made of such a network on 2026-11-29, but for the weights, which `counted` makes again."""


def counted(network: nn.Module) -> dict[str, Tensor]:
    """Weights by integer arithmetic alone, so the same bytes on every machine and with every version of PyTorch."""
    state = network.state_dict()
    for name, value in state.items():
        if value.ndim < 2:
            value.fill_(float(name.endswith(("weight", "running_var"))))
            continue
        numbers = torch.arange(1, value.numel() + 1) ** 3 % 1_000_003 * 2_654_435_761 % 2**32
        values = (numbers.double() / 2**32 - 0.5) * 2 * (4 / value[0].numel()) ** 0.5
        value.copy_(values.float().reshape(value.shape))
    return state


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(OLDER, tmp_path_factory.mktemp("older") / "model"))
    manifest = json.loads((folder / "model.json").read_text())
    save_file(counted(build_network(manifest["backbone"], len(manifest["class_names"]))), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def model(older: Path) -> Model:
    return load_export(older)


def test_an_export_without_an_interpolation_keeps_its_golden_scores(older: Path, model: Model) -> None:
    assert "interpolation" not in json.loads((older / "model.json").read_text())["preprocessing"]
    assert model.preprocessing.interpolation == Interpolation.BILINEAR_UINT8
    assert check_golden(older, model, tolerance=1e-5) <= 1e-5


@pytest.mark.parametrize("other", [Interpolation.BILINEAR, Interpolation.BICUBIC])
def test_with_another_interpolation_its_golden_scores_would_be_others(
    older: Path, model: Model, other: Interpolation
) -> None:
    changed = replace(model, preprocessing=replace(model.preprocessing, interpolation=other))
    with pytest.raises(BadExportError, match="the golden photo scores"):
        check_golden(older, changed)


def test_an_unknown_interpolation_is_refused(older: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(older, tmp_path / "model"))
    manifest = json.loads((folder / "model.json").read_text())
    manifest["preprocessing"]["interpolation"] = "lanczos"
    (folder / "model.json").write_text(json.dumps(manifest))
    with pytest.raises(BadExportError, match="lanczos"):
        load_export(folder)


def test_the_arithmetic_of_bytes_stays_within_one_step_of_floats(older: Path, model: Model) -> None:
    image = decode_image((older / "golden" / "image.jpg").read_bytes())
    floats = replace(model.preprocessing, interpolation=Interpolation.BILINEAR).crop(image)
    apart = (model.preprocessing.crop(image).int() - floats.int()).abs()
    assert int(apart.max()) == 1
