"""The network as it is served scores as the trainer's, whatever makes it fast."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_modules.inference import BadExportError, Preprocessing, build_network, decode_image, load_export
from lightning_modules.openvino_cpu import (
    INT8_FOLDER,
    INT8_GOLDEN,
    convert,
    file_hashes,
    read_converted,
    write_converted,
)
from sagemaker_launch.serving import engine
from sagemaker_launch.serving.engine import Bfloat16, OpenVino, load_engine
from tests.pictures import jpeg_bytes
from tests.unit.lightning_modules.test_export import CLASS_NAMES, export, tiny_network

pytestmark = pytest.mark.usefixtures("own_threads")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tiny_network(), tmp_path_factory.mktemp("export") / "model")


def trained(backbone: str, side: int) -> nn.Module:
    """A network whose random weights came to scores that depend on the picture."""
    torch.manual_seed(0)
    network = build_network(backbone, len(CLASS_NAMES)).eval()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.train().momentum = 1.0
    *_, head = (part for part in network.modules() if isinstance(part, nn.Linear))
    with torch.no_grad():
        network(torch.randn(8, 3, side, side))
        # A transformer's head begins with zeros, and other random heads give hundreds, where 1e-4 is little.
        nn.init.normal_(head.weight)
        head.weight *= 0.1 / network.eval()(torch.randn(2, 3, side, side)).abs().max()
    return network


@pytest.mark.parametrize(
    ("backbone", "side"),
    [
        ("resnet18", 64),
        ("shufflenet_v2_x0_5", 32),
        pytest.param("mobilenet_v3_small", 64, marks=pytest.mark.slow),
        pytest.param("convnext_tiny", 64, marks=pytest.mark.slow),
        pytest.param("swin_t", 64, marks=pytest.mark.slow),
        pytest.param("vit_b_16", 224, marks=pytest.mark.slow),
        pytest.param("inception_v3", 96, marks=pytest.mark.slow),
    ],
)
def test_openvino_scores_batches_of_any_size_as_pytorch_does(
    backbone: str, side: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("openvino", reason="needs openvino, of the extra 'serving'")
    preprocessing = Preprocessing(image_size=side, resize_size=side + 4)
    network = trained(backbone, side)
    folder = export(network, tmp_path / "model", backbone=backbone, preprocessing=preprocessing)
    caplog.set_level(logging.INFO, "serving")
    model = load_engine(folder)
    assert isinstance(model.network, OpenVino), caplog.text
    assert "engine OpenVINO in float32 on " in caplog.text
    photos = [decode_image(jpeg_bytes((60 * index, 128, 255 - 60 * index), size=80)) for index in range(4)]
    wanted = load_export(folder).score(photos)
    assert float((wanted[0] - wanted[3]).abs().max()) > 1e-3, "the scores tell these photos apart"
    for count in (1, 4, 3):
        torch.testing.assert_close(model.score(photos[:count]), wanted[:count], rtol=0, atol=1e-4)


def test_openvino_reports_to_nobody(tiny: Path) -> None:
    pytest.importorskip("openvino", reason="needs openvino, of the extra 'serving'")
    assert isinstance(load_engine(tiny).network, OpenVino)
    assert [name for name in sys.modules if name.startswith("openvino_telemetry.")] == []


def test_without_openvino_pytorch_serves_and_the_log_says_so(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    caplog.set_level(logging.INFO, "serving")
    model = load_engine(tiny)
    assert not isinstance(model.network, OpenVino)
    assert "engine PyTorch on " in caplog.text and "install openvino" in caplog.text


def test_a_network_that_openvino_cannot_run_is_served_by_pytorch_with_a_warning(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("openvino", reason="needs openvino, of the extra 'serving'")

    class Wrong(nn.Module):
        def __init__(self, *_: object) -> None:
            super().__init__()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(images), len(CLASS_NAMES))

    monkeypatch.setattr(engine, "OpenVino", Wrong)
    model = load_engine(tiny)
    assert not isinstance(model.network, Wrong)
    (record,) = [one for one in caplog.records if one.levelno == logging.WARNING]
    assert "OpenVINO can't run this network" in record.message and "golden photo scores" in record.message


def test_a_folder_that_is_no_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadExportError, match="is not an export folder"):
        load_engine(tmp_path)


def test_bfloat16_is_close_but_not_the_same() -> None:
    # The wrapper itself runs anywhere; what a GPU makes of it is the next test.
    network = trained("resnet18", 32)  # untrained weights of another kind are off by half a logit, by chance
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        exact, rough = network(images), Bfloat16(network)(images).float()
    assert 0 < float((exact - rough).abs().max()) < 0.05 < engine.BF16_TOLERANCE


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_serves_in_bfloat16_if_asked(tiny: Path) -> None:
    assert isinstance(load_engine(tiny, "bf16").network, Bfloat16)
    assert not isinstance(load_engine(tiny).network, Bfloat16)


@pytest.fixture(scope="module")
def in_int8(tiny: Path) -> Path:
    """An export that says that its second network is in int8; it has float32, as quantising takes seconds."""
    pytest.importorskip("openvino", reason="needs openvino, of the extra 'serving'")
    folder = tiny.parent / "int8"
    shutil.copytree(tiny, folder)
    (folder / INT8_FOLDER).mkdir()
    write_converted(convert(load_export(tiny).network, 32), folder / INT8_FOLDER)
    state(folder, 0.5)
    return folder


def state(folder: Path, tolerance: object) -> None:
    """Write what is known about the network in int8."""
    facts = {"tolerance": tolerance, "sha256": file_hashes(folder / INT8_FOLDER)}
    (folder / INT8_GOLDEN).write_text(json.dumps(facts))


def test_int8_is_served_from_its_own_file(
    in_int8: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine, "has_int8", lambda: True)
    monkeypatch.setattr(engine, "convert", lambda *_: pytest.fail("converted float32"))
    caplog.set_level(logging.INFO, "serving")
    assert isinstance(load_engine(in_int8, "int8").network, OpenVino)
    assert "engine OpenVINO in int8 on " in caplog.text


@pytest.mark.parametrize("reason", ["no VNNI", "Unable to read", "scores", "openvino is missing"])
def test_float32_is_served_where_int8_cannot_be_and_the_log_says_so(
    in_int8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, reason: str
) -> None:
    monkeypatch.setattr(engine, "has_int8", lambda: reason != "no VNNI")
    monkeypatch.setattr(engine, "convert", lambda *_: read_converted(in_int8 / INT8_FOLDER))
    folder = Path(shutil.copytree(in_int8, tmp_path / "model"))
    if reason == "Unable to read":
        (folder / INT8_FOLDER / "model.xml").write_text("of a newer version")
        state(folder, 0.5)
    elif reason == "scores":  # of another model
        state(folder, 1e-12)
    elif reason == "openvino is missing":
        monkeypatch.setitem(sys.modules, "openvino", None)
    caplog.set_level(logging.INFO, "serving")
    load_engine(folder, "int8")
    (warning,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith("int8 is not used: ") and (reason == "scores" or reason in warning)
    served = "PyTorch on " if reason == "openvino is missing" else "OpenVINO in float32 on "
    assert f"engine {served}" in caplog.text


def test_int8_without_its_network_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(BadExportError, match=r"int8\.json"):
        load_engine(tiny, "int8")
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    (folder / INT8_GOLDEN).write_text(json.dumps({"tolerance": 0.5}))
    with pytest.raises(BadExportError, match=r"is not an export folder: .*model\.xml"):
        load_engine(folder, "int8")


def test_int8_without_a_bound_is_refused(in_int8: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(in_int8, tmp_path / "model"))
    state(folder, "much")
    with pytest.raises(BadExportError, match="must state a tolerance above 0, got much"):
        load_engine(folder, "int8")


def test_a_damaged_network_in_int8_is_refused_as_damaged_weights_are(in_int8: Path, tmp_path: Path) -> None:
    """A few wrong numbers change the class of some photos, and the golden one hardly."""
    folder = Path(shutil.copytree(in_int8, tmp_path / "model"))
    numbers = bytearray((folder / INT8_FOLDER / "model.bin").read_bytes())
    numbers[100] ^= 1
    (folder / INT8_FOLDER / "model.bin").write_bytes(numbers)
    with pytest.raises(BadExportError, match=r"has other files than golden/int8\.json says, by their SHA-256"):
        load_engine(folder, "int8")
