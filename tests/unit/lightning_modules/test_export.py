"""The export folder: whole, checked, and read by a file that stands alone."""

from __future__ import annotations

import ast
import asyncio
import base64
import hashlib
import json
import math
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from lightning_modules import inference
from lightning_modules.errors import UserError
from lightning_modules.export import PACKAGES, check_golden, write_export
from lightning_modules.inference import (
    MANIFEST_FILE,
    MAX_BODY,
    MAX_IMAGES,
    BadExportError,
    BadImageError,
    Model,
    Prediction,
    Preprocessing,
    build_network,
    decode_image,
    input_fn,
    load_export,
    model_fn,
    output_fn,
    predict_fn,
    read_safetensors,
)
from tests.pictures import encoded, jpeg_bytes, smooth_picture

BACKBONE = "shufflenet_v2_x0_5"
CLASS_NAMES = ("Affenpinscher", "Briard", "Collie")
PREPROCESSING = Preprocessing(image_size=32, resize_size=36, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def tiny_network() -> nn.Module:
    """A network with random weights whose scores depend on the picture."""
    torch.manual_seed(0)
    network = build_network(BACKBONE, len(CLASS_NAMES))
    # Without statistics of its own activations an untrained network scores every picture alike.
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
    with torch.no_grad():
        network(torch.randn(16, 3, 32, 32))
    return network.eval()


def export(network: nn.Module, folder: Path, **options: object) -> Path:
    photo = folder.parent / "photo.png"
    photo.write_bytes(encoded(smooth_picture(60, 44), "PNG"))
    given: dict[str, object] = {
        "backbone": BACKBONE,
        "class_names": CLASS_NAMES,
        "preprocessing": PREPROCESSING,
        "metrics": {"val_loss": 0.5},
        "data": {"fingerprint": "f00d"},
        "config": {"seed": 3},
        "golden_photos": [photo],
    }
    return write_export(network, folder, **{**given, **options})


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return tiny_network()


@pytest.fixture(scope="module")
def written(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One export for all tests that only read."""
    return export(network, tmp_path_factory.mktemp("export") / "model")


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(written, tmp_path / "model"))


@pytest.fixture(scope="module")
def model(written: Path) -> Model:
    return load_export(written)


def change_manifest(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    manifest = json.loads((folder / "model.json").read_text())
    change(manifest)
    (folder / "model.json").write_text(json.dumps(manifest))


# Writing


def test_export_holds_what_design_promises_and_nothing_else(written: Path) -> None:
    assert {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()} == {
        "model.safetensors",
        "model.json",
        "golden/image.jpg",
        "golden/scores.json",
        "code/inference.py",
        "code/requirements.txt",
        "config.yaml",
    }
    assert not [path for path in written.parent.iterdir() if path.name.startswith(".")]


def test_manifest_is_complete(written: Path) -> None:
    manifest = json.loads((written / "model.json").read_text())
    assert manifest["backbone"] == BACKBONE
    assert tuple(manifest["class_names"]) == CLASS_NAMES
    assert Preprocessing.from_dict(manifest["preprocessing"]) == PREPROCESSING
    assert manifest["metrics"] == {"val_loss": 0.5}
    assert manifest["config"] == {"seed": 3}
    assert set(manifest["packages"]) == set(PACKAGES)
    assert manifest["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert manifest["sha256"] == hashlib.sha256((written / "model.safetensors").read_bytes()).hexdigest()


def test_exported_files_are_readable_by_other_users(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a checkout made under umask 077 has it.
    code = Path(shutil.copyfile(inference.__file__, tmp_path / "inference.py"))
    code.chmod(0o600)
    monkeypatch.setattr(inference, "__file__", str(code))
    for path in export(network, tmp_path / "model").rglob("*"):
        assert path.stat().st_mode & 0o044 == 0o044, path


def test_export_replaces_an_older_one_and_its_leftovers(network: nn.Module, tmp_path: Path) -> None:
    for leftover in (tmp_path / "model" / "stale.txt", tmp_path / ".model.part.sagemaker-ignore" / "stale.txt"):
        leftover.parent.mkdir()
        leftover.write_text("from an older export")
    assert export(network, tmp_path / "model") == tmp_path / "model"
    assert not list(tmp_path.rglob("stale.txt"))
    load_export(tmp_path / "model")


def test_failed_export_leaves_the_older_one_alone(network: nn.Module, folder: Path) -> None:
    with pytest.raises(BadExportError):
        export(network, folder, backbone="squeezenet1_1")
    load_export(folder)


def test_the_golden_photo_is_what_the_decoder_makes_of_it(network: nn.Module, tmp_path: Path) -> None:
    levels = np.tile(np.linspace(0, 30_000, 64), (48, 1)).astype("uint16")  # Pillow's own conversion shows white
    (tmp_path / "deep.png").write_bytes(encoded(Image.fromarray(levels), "PNG"))
    folder = export(network, tmp_path / "model", golden_photos=[tmp_path / "deep.png"])
    golden = decode_image((folder / "golden" / "image.jpg").read_bytes()).float()
    assert (golden - decode_image((tmp_path / "deep.png").read_bytes())).abs().mean() < 2


def test_a_golden_photo_that_is_gone_is_replaced_by_the_next(network: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "damaged.jpg").write_bytes(b"")
    (tmp_path / "whole.png").write_bytes(encoded(smooth_picture(60, 44), "PNG"))
    lost = [tmp_path / "gone.jpg", tmp_path / "damaged.jpg"]
    load_export(export(network, tmp_path / "model", golden_photos=[*lost, tmp_path / "whole.png"]))
    with pytest.raises(UserError, match=r"data\.root must keep a validation photo .*damaged\.jpg"):
        export(network, tmp_path / "other", golden_photos=lost)


def test_network_that_scores_no_numbers_is_not_exported(tmp_path: Path) -> None:
    network = tiny_network()
    nn.init.constant_(network.get_parameter("fc.weight"), math.nan)
    with pytest.raises(BadExportError):
        export(network, tmp_path / "model")


def test_exported_weights_are_plain_torchvision_weights(network: nn.Module, written: Path) -> None:
    state = load_file(written / "model.safetensors")
    assert state.keys() == network.state_dict().keys()
    build_network(BACKBONE, 3).load_state_dict(state)


# Loading


def test_loaded_network_scores_like_the_exported_one(network: nn.Module, model: Model) -> None:
    picture = decode_image(jpeg_bytes(size=50))
    wanted = network(PREPROCESSING.normalise(PREPROCESSING.crop(picture)[None]))
    torch.testing.assert_close(model.score([picture]), wanted.detach(), atol=1e-5, rtol=1e-5)
    assert model.class_names == CLASS_NAMES
    assert model.preprocessing == PREPROCESSING
    assert not model.network.training


def test_golden_scores_are_those_of_the_trained_network(network: nn.Module, written: Path) -> None:
    golden = json.loads((written / "golden" / "scores.json").read_text())
    picture = decode_image((written / "golden" / "image.jpg").read_bytes())
    scores = network(PREPROCESSING.normalise(PREPROCESSING.crop(picture)[None]))[0]
    assert golden["logits"] == pytest.approx(scores.tolist(), abs=1e-5)
    assert golden["class_name"] == CLASS_NAMES[int(scores.argmax())]


@pytest.mark.parametrize("place", [0, 8, 200, -1])
def test_one_changed_byte_of_the_weights_is_refused(folder: Path, place: int) -> None:
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[place] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(BadExportError, match=r"model\.safetensors has SHA-256 .* but model\.json says"):
        load_export(folder)


@pytest.mark.parametrize("length", [0, 5, 8, 1_000, -1])
def test_truncated_weights_are_refused_even_with_a_hash_that_fits(folder: Path, length: int) -> None:
    cut = (folder / "model.safetensors").read_bytes()[:length]
    (folder / "model.safetensors").write_bytes(cut)
    with pytest.raises(BadExportError, match="SHA-256"):
        load_export(folder)
    change_manifest(folder, lambda manifest: manifest.update(sha256=hashlib.sha256(cut).hexdigest()))
    with pytest.raises(BadExportError, match="not a whole safetensors file"):
        load_export(folder)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_missing_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BadExportError, match=name):
        load_export(folder)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadExportError, match="absent"):
        load_export(tmp_path / "absent")


@pytest.mark.parametrize("key", ["backbone", "class_names", "preprocessing", "sha256"])
def test_missing_manifest_key_is_refused_by_name(folder: Path, key: str) -> None:
    change_manifest(folder, lambda manifest: manifest.pop(key))
    with pytest.raises(BadExportError, match=key):
        load_export(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"class_names": None},
        {"class_names": ["one", "two"]},
        {"preprocessing": {"image_size": 32}},
        {"preprocessing": None},
        {"backbone": "squeezenet1_1"},
        {"backbone": "no_such_network"},
        {"backbone": None},
    ],
    ids=str,
)
def test_manifest_that_does_not_fit_is_refused(folder: Path, change: dict[str, object]) -> None:
    change_manifest(folder, lambda manifest: manifest.update(change))
    with pytest.raises(BadExportError, match="model"):
        load_export(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00"])
def test_torn_manifest_is_refused(folder: Path, text: str) -> None:
    (folder / "model.json").write_text(text)
    with pytest.raises(BadExportError):
        load_export(folder)


def test_loading_never_unpickles_and_never_downloads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("torch.load", "pickle.load", "pickle.loads", "socket.socket.connect", "urllib.request.urlopen"):
        monkeypatch.setattr(place, lambda *args, **kwargs: pytest.fail("unpickled or downloaded"))
    load_export(folder)


# The golden photo


def test_golden_photo_scores_as_before(written: Path) -> None:
    check_golden(written)


@pytest.mark.parametrize("change", [{"logits": [0.0, 0.0, 9.0]}, {"class_name": "Poodle"}], ids=["logits", "class"])
def test_other_golden_scores_are_refused(folder: Path, change: dict[str, object]) -> None:
    path = folder / "golden" / "scores.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BadExportError, match="golden photo scores"):
        check_golden(folder)


def test_other_preprocessing_is_noticed(folder: Path) -> None:
    other = {**PREPROCESSING.to_dict(), "mean": [0.9, 0.9, 0.9]}
    change_manifest(folder, lambda manifest: manifest.update(preprocessing=other))
    with pytest.raises(BadExportError, match="golden photo scores"):
        check_golden(folder)


@pytest.mark.parametrize("text", [None, "{", "{}", '{"class_name": "Collie", "logits": [1, 2]}'])
def test_damaged_golden_scores_are_refused(folder: Path, text: str | None) -> None:
    (folder / "golden" / "scores.json").unlink()
    if text is not None:
        (folder / "golden" / "scores.json").write_text(text)
    with pytest.raises(BadExportError):
        check_golden(folder)


# code/inference.py on its own

SCORE_GOLDEN_PHOTO = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"lightning_modules", "experiments", "sagemaker_launch", "pytorch_lightning",
                                  "torchmetrics", "safetensors", "mlflow", "optuna", "boto3"}:
            raise ImportError(f"{name} is not there when a model is served")

sys.meta_path.insert(0, Refuse())
sys.path.insert(0, "code")
import inference

model = inference.model_fn(".")
images = inference.input_fn(open("golden/image.jpg", "rb").read(), "image/jpeg")
print(inference.output_fn(inference.predict_fn(images, model), "application/json")[0])
"""


def test_inference_file_alone_gives_the_golden_scores(folder: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-I", "-c", SCORE_GOLDEN_PHOTO], cwd=folder, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    golden = json.loads((folder / "golden" / "scores.json").read_text())
    assert json.loads(run.stdout)[0] == pytest.approx(golden["logits"], abs=1e-4)


def test_inference_file_imports_only_what_a_server_has(written: Path) -> None:
    source = (written / "code" / "inference.py").read_text()
    assert source == Path(inference.__file__).read_text()
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(str(node.module))
    allowed = {"torch", "torchvision", "PIL", *sys.stdlib_module_names}
    assert {name.split(".")[0] for name in names} - allowed == {"ray", "starlette"}  # see the next test
    assert "pickle" not in names


class FakeRequest:
    """What Starlette gives a replica of Ray Serve."""

    def __init__(self, body: bytes, **headers: str) -> None:
        self._body, self.headers = body, {name.replace("_", "-"): value for name, value in headers.items()}

    async def body(self) -> bytes:
        return self._body


def test_ray_serve_finds_its_application_and_a_replica_answers_by_the_same_contract(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (application,) = yaml.safe_load((written / "config.yaml").read_text())["applications"]
    module, _, function = application["import_path"].partition(":")
    assert callable(getattr(inference, function)) and (written / "code" / f"{module}.py").is_file()
    monkeypatch.setattr(inference, "_EXPORT", written)
    replica = inference.RayReplica()
    photo = (written / "golden" / "image.jpg").read_bytes()
    answer = asyncio.run(replica(FakeRequest(photo, content_type="image/jpeg")))
    golden = json.loads((written / "golden" / "scores.json").read_text())
    assert (answer.status_code, answer.media_type) == (200, "application/json")
    assert json.loads(answer.body)[0] == pytest.approx(golden["logits"], abs=1e-4)
    named = {"content_type": "image/jpeg", inference.ATTRIBUTES_HEADER: "top_k=1"}
    (best,) = json.loads(asyncio.run(replica(FakeRequest(photo, **named))).body)["predictions"]
    assert best["classes"][0]["name"] == golden["class_name"]
    refused = asyncio.run(replica(FakeRequest(b"", content_type="text/csv")))
    assert refused.status_code == 415 and "is not one of" in json.loads(refused.body)["error"]


@pytest.mark.parametrize(
    ("resources", "replicas", "cpus", "gpus"),
    [({"CPU": 4.0}, 1, 4, 0), ({"CPU": 48.0, "GPU": 4.0}, 4, 12, 1), ({"CPU": 1.0, "GPU": 2.0}, 2, 1, 1)],
)
def test_ray_serve_has_a_replica_per_gpu_or_one_for_all_processors(
    written: Path,
    monkeypatch: pytest.MonkeyPatch,
    resources: dict[str, float],
    replicas: int,
    cpus: int,
    gpus: int,
) -> None:
    asked: dict[str, object] = {}
    bound = SimpleNamespace(bind=lambda: "application")
    serve = SimpleNamespace(deployment=lambda cls, **options: asked.update(options) or bound)
    ray = SimpleNamespace(serve=serve, cluster_resources=lambda: resources)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(inference, "_EXPORT", written)
    assert inference.ray_application({}) == "application"
    assert asked["num_replicas"] == replicas and asked["max_ongoing_requests"] == cpus
    assert asked["ray_actor_options"] == {"num_cpus": cpus, "num_gpus": gpus}
    monkeypatch.setenv("SERVING_DEVICE", "cuda")
    if not gpus:
        with pytest.raises(BadExportError, match="this instance has a GPU"):
            inference.ray_application({})


def test_ray_serve_has_no_route_for_a_model_that_scores_otherwise(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = SimpleNamespace(serve=None, cluster_resources=lambda: {"CPU": 2.0})
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(inference, "_EXPORT", folder)
    scores = json.loads((folder / "golden" / "scores.json").read_text())
    (folder / "golden" / "scores.json").write_text(json.dumps({**scores, "logits": [0.0, 1.0, 2.0]}))
    with pytest.raises(BadExportError, match="the golden photo scores"):
        inference.ray_application({})


# Reading weights without the package


@pytest.mark.parametrize("dtype", inference._DTYPES.values(), ids=inference._DTYPES)
def test_weights_are_read_as_the_package_reads_them(dtype: torch.dtype, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-9 if dtype.is_signed else 0, 9, (3, 4, 5), generator=generator)
    state = {
        "odd.number.of.bytes": values[0, 0, :3].to(dtype).clone(),
        "many": values.to(dtype),
        "one": values[0, 0, 0].to(dtype).clone(),
        "single": values[0, 0, :1].to(dtype).clone(),
    }
    save_file(state, tmp_path / "weights.safetensors", metadata={"format": "pt"})
    own, wanted = read_safetensors(tmp_path / "weights.safetensors"), load_file(tmp_path / "weights.safetensors")
    assert own.keys() == wanted.keys()
    for name, value in own.items():
        assert value.dtype == dtype
        assert value.shape == wanted[name].shape
        assert torch.equal(value, wanted[name])


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0, 4)])
def test_empty_tensors_are_read_as_the_package_reads_them(shape: tuple[int, ...], tmp_path: Path) -> None:
    save_file({"empty": torch.zeros(shape), "more": torch.ones(2)}, tmp_path / "weights.safetensors")
    own = read_safetensors(tmp_path / "weights.safetensors")
    assert own["empty"].shape == shape
    assert own["more"].tolist() == [1, 1]


def test_read_weights_can_be_changed_without_changing_each_other(tmp_path: Path) -> None:
    save_file({"one": torch.zeros(2), "two": torch.zeros(2)}, tmp_path / "weights.safetensors")
    state = read_safetensors(tmp_path / "weights.safetensors")
    state["one"] += 1
    assert state["two"].tolist() == [0, 0]


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"not json",
        b"[]",
        b"null",
        b'{"one": 3}',
        b'{"one": {"dtype": "F32", "shape": [1]}}',
        b'{"one": {"dtype": "F77", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"one": {"dtype": "F32", "shape": [3], "data_offsets": [0, 4]}}',
        b'{"one": {"dtype": "F32", "shape": [1], "data_offsets": [0, 3]}}',
        b'{"one": {"dtype": "F32", "shape": [1], "data_offsets": []}}',
        b'{"one": {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]}}',
    ],
)
def test_nonsense_in_place_of_weights_is_refused(header: bytes, tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(BadExportError, match="not a whole safetensors file"):
        read_safetensors(tmp_path / "weights.safetensors")


# Requests


def json_request(*images: bytes) -> bytes:
    return json.dumps({"images": [base64.b64encode(image).decode() for image in images]}).encode()


def decoded(body: bytes | str, content_type: str) -> list[torch.Tensor]:
    images = input_fn(body, content_type)
    assert all(isinstance(image, torch.Tensor) for image in images)
    return images  # type: ignore[return-value]


def refused(body: bytes, content_type: str = "application/json", status: int = 400) -> str:
    (error,) = input_fn(body, content_type)
    assert isinstance(error, BadImageError)
    assert error.status == status
    return str(error)


@pytest.mark.parametrize("content_type", ["image/jpeg", "IMAGE/JPEG", " image/jpeg ; charset=binary", "image/png"])
def test_image_request_is_decoded(content_type: str) -> None:
    (image,) = decoded(jpeg_bytes(), content_type)
    assert torch.equal(image, decode_image(jpeg_bytes()))


def test_image_request_may_come_as_a_bytearray() -> None:
    (image,) = decoded(bytearray(jpeg_bytes()), "image/jpeg")  # as some servers pass it
    assert torch.equal(image, decode_image(jpeg_bytes()))


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8"])
def test_json_request_holds_several_images(content_type: str) -> None:
    first, second = jpeg_bytes(size=20), encoded(smooth_picture(), "PNG")
    images = decoded(json_request(first, second), content_type)
    assert [image.shape for image in images] == [(3, 20, 20), (3, 16, 24)]
    assert torch.equal(images[0], decode_image(first))


def test_request_may_hold_the_most_images_but_no_more() -> None:
    tiny = jpeg_bytes(size=2)
    assert len(input_fn(json_request(*[tiny] * MAX_IMAGES), "application/json")) == MAX_IMAGES
    assert f"{MAX_IMAGES + 1} images; 1 to {MAX_IMAGES}" in refused(json_request(*[tiny] * (MAX_IMAGES + 1)))
    assert "0 images" in refused(json_request())


@pytest.mark.parametrize("content_type", ["application/x-npy", "text/plain", "image/gif", "", "json"])
def test_other_content_types_are_refused_with_the_known_ones(content_type: str) -> None:
    message = refused(jpeg_bytes(), content_type, status=415)
    assert "is not one of image/jpeg, image/png, image/webp, application/json" in message


def test_a_form_or_a_request_without_a_content_type_is_refused_as_any_other() -> None:
    # AWS's toolkit passes None for the body of the one and for the type of the other.
    for body, content_type in ((None, "multipart/form-data; boundary=x"), (b"", None)):
        (error,) = input_fn(body, content_type)
        assert isinstance(error, BadImageError) and error.status == 415


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b"{}",
        b'{"image": []}',
        b'{"images": 5}',
        b'{"images": null}',
        b'{"images": [5]}',
        b'{"images": [null]}',
        b'{"images": "aGVsbG8="}',
        b'{"images": ["not base64!"]}',
        b'{"images": ["aGVsbG8"]}',
        '{"images": ["é"]}'.encode(),
        pytest.param(b"[" * 100_000, id="deep"),
    ],
)
def test_malformed_json_is_refused_with_what_is_wanted(body: bytes) -> None:
    assert 'must be {"images": [base64, ...]}' in refused(body)


def test_a_request_with_too_many_bytes_is_refused_before_it_is_read() -> None:
    assert "at most 6291456" in refused(b"{" * (MAX_BODY + 1), status=413)


def test_images_of_one_request_share_the_limit_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "MAX_PIXELS", 500)
    first, second, third = input_fn(json_request(*[jpeg_bytes(size=20)] * 2, jpeg_bytes(size=8)), "application/json")
    assert isinstance(first, torch.Tensor) and isinstance(third, torch.Tensor)
    assert isinstance(second, BadImageError)
    assert "at most 16384 a side and 100 in all" in str(second)


def test_damaged_images_count_and_keep_no_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "MAX_PIXELS", 3 * 24 * 24)
    damaged = encoded(smooth_picture(24, 24), "PNG")[:-40]
    errors = list(inference.decode_request([damaged] * 4))
    assert ["damaged" in str(error) for error in errors] == [True, True, True, False]
    assert "at most" in str(errors[3])
    # Frames of a traceback would hold what was decoded.
    assert all(error.__traceback__ is error.__cause__ is error.__context__ is None for error in errors)


def test_an_endpoint_decodes_no_other_formats() -> None:
    assert "not a JPEG, PNG or WEBP image" in refused(encoded(smooth_picture(), "TIFF"), "image/jpeg")


def test_an_image_that_is_none_leaves_its_neighbours_alone(model: Model) -> None:
    images = input_fn(json_request(jpeg_bytes(size=20), b"hello", jpeg_bytes(size=50)), "application/json")
    prediction = predict_fn(images, model)
    status, text = prediction.answer("application/json")
    first, second, third = json.loads(text)
    assert status == 200 and second is None
    assert first == pytest.approx(model.score([images[0]])[0].tolist(), abs=1e-4)  # type: ignore[list-item]
    assert third == pytest.approx(model.score([images[2]])[0].tolist(), abs=1e-4)  # type: ignore[list-item]
    status, text = prediction.answer("*/*", "trace=7;top_k=1")
    named = json.loads(text)["predictions"]
    assert status == 200 and "error" in named[1]
    assert named[0]["classes"][0]["name"] == CLASS_NAMES[max(range(3), key=first.__getitem__)]


def test_the_best_classes_come_with_scores_and_the_version(model: Model) -> None:
    prediction = predict_fn(input_fn(jpeg_bytes(), "image/jpeg"), model)
    status, text = prediction.answer("application/json", "top_k=2")
    answer = json.loads(text)
    assert status == 200 and answer["model_version"] == model.version
    (classes,) = [one["classes"] for one in answer["predictions"]]
    wanted = model.score([decode_image(jpeg_bytes())])[0].softmax(0)
    assert [one["score"] for one in classes] == pytest.approx(sorted(wanted.tolist(), reverse=True)[:2], abs=1e-6)
    everything = json.loads(prediction.answer("", "top_k=99")[1])
    assert len(everything["predictions"][0]["classes"]) == len(CLASS_NAMES)


@pytest.mark.parametrize("value", ["0", "-1", "x", "", "1.5", "²", "9" * 5_000])
def test_a_wrong_top_k_is_refused_by_name(model: Model, value: str) -> None:
    status, text = Prediction(((0.0, 1.0, 2.0),), CLASS_NAMES, "1").answer("application/json", f"top_k={value}")
    assert status == 400
    assert "top_k" in json.loads(text)["error"]


def test_an_answer_in_another_form_is_refused() -> None:
    status, text = Prediction(((0.0, 1.0, 2.0),), CLASS_NAMES, "1").answer("text/csv")
    assert status == 406
    assert "application/json" in json.loads(text)["error"]
    assert Prediction(((0.0, 1.0, 2.0),), CLASS_NAMES, "1").answer("text/csv, application/json;q=0.5")[0] == 200


class Context:
    """What AWS's toolkit hands to `output_fn`."""

    def __init__(self, headers: dict[str, str]) -> None:
        self.headers, self.status = headers, 200

    def get_all_request_header(self, index: int) -> dict[str, str]:
        return self.headers

    def set_response_status(self, code: int, phrase: str) -> None:
        self.status = code


def test_under_awss_toolkit_headers_are_read_and_the_status_is_set(model: Model) -> None:
    context = Context({"X-Amzn-SageMaker-Custom-Attributes": "top_k=1"})
    text, _ = output_fn(predict_fn(input_fn(jpeg_bytes(), "image/jpeg"), model), "application/json", context)
    assert len(json.loads(text)["predictions"][0]["classes"]) == 1
    assert context.status == 200
    text, _ = output_fn(predict_fn(input_fn(b"no", "image/jpeg"), model), "application/json", context)
    assert set(json.loads(text)) == {"error"}
    assert context.status == 400


def test_scores_are_the_plain_list_that_clients_expect(model: Model) -> None:
    images = input_fn(json_request(jpeg_bytes(size=20), jpeg_bytes(size=50)), "application/json")
    scores = predict_fn(images, model)
    text, content_type = output_fn(scores, "application/*")
    assert content_type == "application/json"
    response = json.loads(text)
    assert len(response) == 2
    assert all(len(row) == len(CLASS_NAMES) for row in response)
    assert response[0] == pytest.approx(model.score(images[:1])[0].tolist(), abs=1e-4)


def test_endpoint_loads_the_folder_it_is_given(written: Path, model: Model) -> None:
    assert model_fn(str(written)).version == model.version


def test_endpoint_does_not_start_with_other_scores_than_the_trainers(folder: Path) -> None:
    golden = json.loads((folder / "golden" / "scores.json").read_text())
    (folder / "golden" / "scores.json").write_text(json.dumps(golden | {"logits": [9.0, 0.0, 0.0]}))
    with pytest.raises(BadExportError, match="the golden photo scores"):
        model_fn(str(folder))


def test_weights_are_read_only_as_far_as_the_file_has_them(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    part = {"dtype": "U8", "shape": [1000], "data_offsets": [0, 1000]}
    for header, says in (
        ({"a": part, "b": part}, "must begin where another ends"),
        ({"a": part | {"shape": [2**40]}}, "as long as its shape says"),
        ({"a": part | {"shape": [10.0, 100]}}, "whole numbers"),
        ({}, "must have 1000 bytes, got 0"),
        ({"__metadata__": {"a": "b" * 2_000_000}, "a": part}, "at most 1048576"),
    ):
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(1000))
        with pytest.raises(BadExportError, match=says):
            read_safetensors(path)


@pytest.mark.parametrize("name", ["vgg11", "regnet_y_128gf", "swin_b"])
def test_a_network_that_the_weights_do_not_fit_takes_no_memory(folder: Path, name: str) -> None:
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    classes = [str(index) for index in range(100_000)]
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest | {"backbone": name, "class_names": classes}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadExportError, match="weights of another network"):
        load_export(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000
