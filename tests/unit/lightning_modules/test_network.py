"""Networks of every family: their head, their last block, and the weights that they start from."""

from __future__ import annotations

import hashlib
import io
import logging
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from experiments.errors import UserError
from lightning_modules.inference import build_network, classifier_names
from lightning_modules.network import (
    Trainable,
    _fitting,
    check_network,
    create_network,
    find_head,
    network_on_meta,
    trainable_modules,
    trains_batch_norm,
)
from tests.harmful import TouchesAFile

NORMS = (nn.BatchNorm2d, nn.LayerNorm)
# Backbone, head, and the modules that `last_block` trains.
FAMILIES = [
    ("alexnet", "classifier.6", {"classifier.4"}),
    ("convnext_tiny", "classifier.2", {"features.7", "classifier"}),
    ("densenet121", "classifier", {"features.denseblock4", "features.norm5"}),
    ("efficientnet_b0", "classifier.1", {"features.8"}),
    ("efficientnet_v2_s", "classifier.1", {"features.7"}),
    ("googlenet", "fc", {"inception5b"}),
    ("inception_v3", "fc", {"Mixed_7c"}),
    ("mnasnet0_5", "classifier.1", {"layers.14", "layers.15"}),
    ("mobilenet_v2", "classifier.1", {"features.18"}),
    ("regnet_y_400mf", "fc", {"trunk_output.block4"}),
    ("resnet18", "fc", {"layer4"}),
    ("resnet50", "fc", {"layer4"}),
    ("resnext50_32x4d", "fc", {"layer4"}),
    ("shufflenet_v2_x0_5", "fc", {"conv5"}),
    ("squeezenet1_1", "classifier.1", {"features.12"}),
    ("swin_t", "head", {"features.7", "norm"}),
    ("swin_v2_t", "head", {"features.7", "norm"}),
    ("vgg11", "classifier.6", {"classifier.3"}),
    ("vit_b_32", "heads.head", {"encoder.layers.encoder_layer_11", "encoder.ln"}),
]
# Their head is a small network of its own, and that is what trains.
DEEP_HEADS = [("maxvit_t", "classifier.5"), ("mobilenet_v3_small", "classifier.3")]

BACKBONE = "shufflenet_v2_x0_5"


def empty_network(backbone: str) -> nn.Module:
    """A network of seven classes without memory for its weights."""
    return network_on_meta(backbone, 7)


def trained_parameters(network: nn.Module, trained: list[nn.Module]) -> list[bool]:
    """Whether each parameter of the network trains, in the network's order."""
    ids = {id(parameter) for part in trained for parameter in part.parameters()}
    return [id(parameter) in ids for parameter in network.parameters()]


def names_of(network: nn.Module, modules: list[nn.Module]) -> set[str]:
    names = {id(module): name for name, module in network.named_modules()}
    return {names[id(module)] for module in modules}


# Head and last block


@pytest.mark.parametrize(("backbone", "head"), [(one[0], one[1]) for one in FAMILIES] + DEEP_HEADS)
def test_head_is_the_layer_that_gives_the_classes(backbone: str, head: str) -> None:
    network = empty_network(backbone)
    assert find_head(network) == head
    layer = network.get_submodule(head)
    assert (layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features) == 7
    assert names_of(network, trainable_modules(network, "head")) == {head}


@pytest.mark.parametrize(("backbone", "head", "block"), FAMILIES, ids=[one[0] for one in FAMILIES])
def test_last_block_is_the_end_of_the_trunk_with_its_norms(backbone: str, head: str, block: set[str]) -> None:
    network = empty_network(backbone)
    modules = trainable_modules(network, "last_block")
    names = names_of(network, modules)
    assert names - {head} == block
    trained = trained_parameters(network, modules)
    first = trained.index(True)
    assert 0 < first < len(trained) - 2
    assert all(trained[first:]), "what trains is everything from one place to the end"


@pytest.mark.parametrize("backbone", [one[0] for one in DEEP_HEADS])
def test_deep_head_trains_whole_and_without_the_trunk(backbone: str) -> None:
    network = empty_network(backbone)
    trained = trained_parameters(network, trainable_modules(network, "last_block"))
    assert sum(trained) == len(list(network.get_submodule("classifier").parameters()))
    assert all(trained[-sum(trained) :])


@pytest.mark.parametrize("backbone", [one[0] for one in FAMILIES] + [one[0] for one in DEEP_HEADS])
def test_last_block_leaves_no_norm_behind_it_frozen(backbone: str) -> None:
    network = empty_network(backbone)
    trained = [part for block in trainable_modules(network, "last_block") for part in block.modules()]
    order = list(network.modules())
    ids = {id(part) for part in trained}
    first = next(index for index, part in enumerate(order) if id(part) in ids and not list(part.children()))
    assert all(id(part) in ids for part in order[first:] if isinstance(part, NORMS))


@pytest.mark.parametrize("depth", ["vgg13", "vgg16", "vgg19", "vgg16_bn"])
def test_last_block_of_a_vgg_does_not_depend_on_its_depth(depth: str) -> None:
    network = empty_network(depth)
    assert names_of(network, trainable_modules(network, "last_block")) == {"classifier.3", "classifier.6"}


@pytest.mark.parametrize("backbone", ["resnet18", "vit_b_32"])
def test_all_trains_the_whole_network(backbone: str) -> None:
    network = empty_network(backbone)
    assert all(trained_parameters(network, trainable_modules(network, "all")))


@pytest.mark.slow
def test_every_classifier_has_a_head_and_a_last_block_and_takes_any_state_dict_of_its_own() -> None:
    for backbone in classifier_names():
        network = empty_network(backbone)
        network.load_state_dict(dict(network.state_dict()))  # without the version that MNASNets ask for
        trained = trained_parameters(network, trainable_modules(network, "last_block"))
        assert any(trained), backbone
        assert not all(trained), backbone


@pytest.mark.parametrize(
    ("backbone", "trainable", "trains"),
    [
        ("resnet18", "head", False),
        ("resnet18", "last_block", True),
        ("resnet18", "all", True),
        ("vit_b_32", "all", False),
        ("vgg11", "all", False),
        ("vgg11_bn", "all", True),
        ("vgg11_bn", "last_block", False),
        ("mobilenet_v3_small", "head", False),
    ],
)
def test_batch_norm_that_trains_is_found(backbone: str, trainable: Trainable, trains: bool) -> None:
    assert trains_batch_norm(empty_network(backbone), trainable) is trains


def test_batches_of_one_image_are_refused_where_batch_norm_would_see_one_value() -> None:
    def check(backbone: str, trainable: Trainable, image_size: int) -> None:
        check_network(backbone, weights="none", dropout=0.0, image_size=image_size, trainable=trainable, batch_size=1)

    for trainable in ("all", "last_block"):
        rule = rf"data\.batch_size must be 2 or more for resnet18 with model\.trainable {trainable} .*32.*, got 1"
        with pytest.raises(UserError, match=rule):
            check("resnet18", trainable, 32)
    check("resnet18", "head", 32)
    check("resnet18", "all", 64)
    check("vgg11", "all", 32)


# Building


@pytest.mark.parametrize(
    ("typed", "hint"),
    [("resnet19", "did you mean resnet1"), ("ResNet50", "did you mean resnet50"), ("x", "list_models")],
)
def test_an_unknown_backbone_is_named_with_the_nearest_known_one(typed: str, hint: str) -> None:
    with pytest.raises(UserError, match=rf"model\.backbone must be .* got '{typed}'; .*{hint}"):
        create_network(typed, 3, weights="none")


@pytest.mark.parametrize("backbone", ["", "deeplabv3_resnet50", "fasterrcnn_resnet50_fpn", "raft_small", "r3d_18"])
def test_what_is_no_image_classifier_is_refused(backbone: str) -> None:
    with pytest.raises(ValueError, match=r"model\.backbone must be a torchvision classifier"):
        create_network(backbone, 3, weights="none")


def test_no_weights_means_random_ones_from_the_global_seed() -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(create_network(BACKBONE, 3, weights="none").state_dict())
    assert torch.equal(states[0]["fc.weight"], states[1]["fc.weight"])
    assert not torch.equal(states[0]["fc.weight"], states[2]["fc.weight"])
    assert states[0]["fc.weight"].shape[0] == 3


@pytest.mark.parametrize("backbone", ["googlenet", "inception_v3"])
def test_networks_with_auxiliary_heads_return_scores_only(backbone: str) -> None:
    network = empty_network(backbone)
    assert not [name for name in network.state_dict() if name.lower().startswith("aux")]
    side = 299 if backbone == "inception_v3" else 64
    assert network.train()(torch.zeros(2, 3, side, side, device="meta")).shape == (2, 7)


# Networks that are built for one image size


@pytest.mark.parametrize(("backbone", "size"), [("vit_h_14", 518), ("vit_b_32", 64), ("maxvit_t", 448)])
def test_a_network_is_built_for_the_image_size(backbone: str, size: int) -> None:
    images = torch.zeros(1, 3, size, size, device="meta")
    assert network_on_meta(backbone, 7, image_size=size)(images).shape == (1, 7)
    check_network(backbone, weights="none", dropout=0.0, image_size=size)


@pytest.mark.parametrize(
    ("backbone", "size", "nearest"), [("vit_b_32", 60, 64), ("vit_h_14", 520, 518), ("maxvit_t", 256, 224)]
)
def test_a_size_that_the_network_refuses_is_refused_with_the_nearest(backbone: str, size: int, nearest: int) -> None:
    with pytest.raises(
        UserError, match=rf"data\.image_size must be .* {backbone} takes, such as {nearest}, got {size}"
    ):
        check_network(backbone, weights="none", dropout=0.0, image_size=size)


def test_a_size_that_the_weights_refuse_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = r"data\.image_size must be 224, on which model\.weights imagenet was trained, got 256"
    with pytest.raises(UserError, match=rule):
        check_network("vit_b_32", weights="imagenet", dropout=0.0, image_size=256)
    trained_on_224 = network_on_meta("vit_b_32").state_dict()
    network = network_on_meta("vit_b_32", image_size=64)
    with pytest.raises(UserError, match=r"must be 224, on which model\.weights some\.pth was trained, got 64"):
        _fitting(network, trained_on_224, find_head(network), "some.pth")
    monkeypatch.setattr("lightning_modules.network._open_imagenet", lambda backbone: io.BytesIO())
    check_network("maxvit_t", weights="imagenet", dropout=0.0, image_size=448)  # its weights know no image size


# Weights from a file


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """The state dict of a network of three classes."""
    torch.manual_seed(0)
    return build_network(BACKBONE, 3).state_dict()


def assert_holds(network: nn.Module, state: dict[str, Tensor]) -> None:
    own = network.state_dict()
    for name, value in state.items():
        assert torch.equal(own[name], value.to(own[name].dtype)), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_safetensors_of_any_precision_become_float32(
    dtype: torch.dtype, state: dict[str, Tensor], tmp_path: Path
) -> None:
    other = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
    save_file(other, tmp_path / "weights.safetensors")
    network = create_network(BACKBONE, 3, weights=str(tmp_path / "weights.safetensors"))
    assert {value.dtype for value in network.state_dict().values()} == {torch.float32, torch.int64}
    assert_holds(network, other)


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "in state_dict"])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_pth_files_are_loaded(wrapped: bool, legacy: bool, state: dict[str, Tensor], tmp_path: Path) -> None:
    content = {"state_dict": state, "epoch": 3} if wrapped else state
    torch.save(content, tmp_path / "weights.pth", _use_new_zipfile_serialization=not legacy)
    assert_holds(create_network(BACKBONE, 3, weights=str(tmp_path / "weights.pth")), state)


def test_head_of_the_same_size_is_loaded_in_silence(
    state: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_file(state, tmp_path / "weights.safetensors")
    network = create_network(BACKBONE, 3, weights=str(tmp_path / "weights.safetensors"))
    assert torch.equal(network.get_parameter("fc.weight"), state["fc.weight"])
    assert not caplog.records


def test_head_of_another_size_is_left_out_without_a_warning(
    state: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """So every fine-tuning begins: nothing is wrong."""
    save_file(state, tmp_path / "weights.safetensors")
    with caplog.at_level(logging.INFO):
        network = create_network(BACKBONE, 11, weights=str(tmp_path / "weights.safetensors"))
    assert network.get_parameter("fc.weight").shape[0] == 11
    assert_holds(network, {name: value for name, value in state.items() if not name.startswith("fc.")})
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "3 classes, not 11" in record.getMessage()
    assert "weights.safetensors" in record.getMessage()


def test_missing_head_is_no_warning(state: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trunk = {name: value for name, value in state.items() if not name.startswith("fc.")}
    save_file(trunk, tmp_path / "weights.safetensors")
    with caplog.at_level(logging.INFO):
        assert_holds(create_network(BACKBONE, 3, weights=str(tmp_path / "weights.safetensors")), trunk)
    assert [record.levelno for record in caplog.records] == [logging.INFO]
    assert "it has no whole head" in caplog.text


def test_half_a_head_is_warned_of(state: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_file({name: value for name, value in state.items() if name != "fc.weight"}, tmp_path / "weights.safetensors")
    create_network(BACKBONE, 5, weights=str(tmp_path / "weights.safetensors"))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "it has no whole head" in caplog.text


def named_as(prefix: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: {f"{prefix}{name}": value for name, value in state.items()}


def saved_under(*names: str) -> Callable[[dict[str, Tensor]], object]:
    """As training programs do, beside an optimiser's state and numbers."""

    def wrap(state: dict[str, Tensor]) -> object:
        wrapped: object = state
        for name in reversed(names):
            wrapped = {"epoch": 3, "optimizer": {"state": {0: torch.ones(1)}, "param_groups": []}, name: wrapped}
        return wrapped

    return wrap


SAVED: dict[str, Callable[[dict[str, Tensor]], object]] = {
    **{name: named_as(name) for name in ("module.", "model.", "network.", "net.", "_orig_mod.", "backbone.")},
    **{name: named_as(name) for name in ("module._orig_mod.", "model.backbone.", "model.module.net.")},
    **{name: saved_under(name) for name in ("state_dict", "model", "model_state_dict", "ema", "net", "model_ema")},
    "ema, module": saved_under("ema", "module"),
    "Lightning with torch.compile": lambda state: saved_under("state_dict")(
        named_as("model._orig_mod.")(state) | {"criterion.weight": torch.ones(3)}  # type: ignore[operator]
    ),
    "averaged": lambda state: {"n_averaged": torch.tensor(9), **named_as("module.")(state)},  # type: ignore[dict-item]
    "model before ema": lambda state: {"ema": {name: value + 1 for name, value in state.items()}, "model": state},
    "head behind its dropout": lambda state: {name.replace("fc.", "fc.1."): value for name, value in state.items()},
}


@pytest.mark.parametrize("kind", SAVED)
def test_weights_load_however_a_program_saved_them(
    kind: str, state: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(SAVED[kind](state), tmp_path / "weights.pth")
    check_network(BACKBONE, weights=str(tmp_path / "weights.pth"), dropout=0.0, image_size=64)
    assert_holds(create_network(BACKBONE, 3, weights=str(tmp_path / "weights.pth")), state)
    assert caplog.records == []


def test_a_head_of_several_layers_is_left_out(
    state: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trunk = {name: value for name, value in state.items() if not name.startswith("fc.")}
    layers = {f"fc.{layer}.weight": torch.ones(4, 4) for layer in (0, 3)}
    torch.save(trunk | layers, tmp_path / "weights.pth")
    assert_holds(create_network(BACKBONE, 3, weights=str(tmp_path / "weights.pth")), trunk)
    assert caplog.records == []


def test_tensors_beside_the_network_are_named(
    state: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save({**named_as("model.")(state), "criterion.weight": torch.ones(3)}, tmp_path / "weights.pth")  # type: ignore[dict-item]
    with caplog.at_level(logging.INFO):
        create_network(BACKBONE, 3, weights=str(tmp_path / "weights.pth"))
    assert "left out what is not of the network: criterion.weight" in caplog.text


@pytest.mark.parametrize(
    ("backbone", "old_name"),
    [
        ("densenet121", lambda name: re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name)),
        ("vit_b_32", lambda name: name.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2.")),
    ],
)
def test_files_that_torchvision_publishes_under_old_names_are_read(
    backbone: str, old_name: Callable[[str], str]
) -> None:
    own = network_on_meta(backbone, 7).state_dict()
    published = {old_name(name): torch.zeros(()).expand(value.shape) for name, value in own.items()}
    assert published.keys() != own.keys()
    network = network_on_meta(backbone, 7)
    assert _fitting(network, published, find_head(network), "published").keys() == own.keys()


def test_batchnorm_counters_may_be_missing(state: dict[str, Tensor], tmp_path: Path) -> None:
    old = {name: value for name, value in state.items() if "num_batches_tracked" not in name}
    save_file(old, tmp_path / "weights.safetensors")
    assert_holds(create_network(BACKBONE, 3, weights=str(tmp_path / "weights.safetensors")), old)


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        ({"conv5.0.weight": None}, "missing"),
        ({"conv5.0.weight": torch.zeros(2)}, "of another shape"),
        ({"conv6.0.weight": torch.zeros(2)}, "unknown"),
        ({"fc.weights": torch.zeros(2)}, "unknown"),
    ],
    ids=["missing", "other shape", "unknown", "unknown in the head"],
)
def test_weights_of_another_network_are_refused_with_the_tensors_that_do_not_fit(
    damage: dict[str, Tensor | None], fault: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    changed = {name: value for name, value in {**state, **damage}.items() if value is not None}
    save_file(changed, tmp_path / "weights.safetensors")
    with pytest.raises(
        UserError, match=rf"^model\.weights .*weights\.safetensors is of another network; {fault}: {next(iter(damage))}"
    ):
        create_network(BACKBONE, 3, weights=str(tmp_path / "weights.safetensors"))


def test_weights_of_another_family_are_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="is of another network"):
        create_network("squeezenet1_1", 3, weights=str(tmp_path / "weights.safetensors"))


@pytest.mark.parametrize("name", ["absent.pth", "absent.safetensors", ".", ""])
def test_missing_weights_file_is_named(name: str, tmp_path: Path) -> None:
    path = str(tmp_path / name) if name else ""
    with pytest.raises(UserError, match=r"model\.weights must be imagenet, none or an existing file, got '"):
        create_network(BACKBONE, 3, weights=path)


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "bin"])
@pytest.mark.parametrize("content", [b"", b"hello", bytes(1000)], ids=["empty", "text", "zeros"])
def test_damaged_weights_file_is_refused_by_name(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"model\.weights: .*weights\.{suffix} can't be read as a state dict"):
        create_network(BACKBONE, 3, weights=str(path))


@pytest.mark.parametrize(
    "content",
    [[1, 2], torch.zeros(2), {1: torch.zeros(2)}, {"state_dict": [1]}, {"conv1.0.weight": 3}],
    ids=["list", "tensor", "numbered", "list in state_dict", "number"],
)
def test_file_without_a_state_dict_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"model\.weights.*weights\.pth"):
        create_network(BACKBONE, 3, weights=str(tmp_path / "weights.pth"))


def test_weights_that_are_no_numbers_are_refused_by_name(state: dict[str, Tensor], tmp_path: Path) -> None:
    for value in (torch.nan, torch.inf):
        changed = {**state, "conv5.0.weight": state["conv5.0.weight"] * value}
        save_file(changed, tmp_path / "weights.safetensors")
        with pytest.raises(UserError, match=r"must hold finite numbers, got NaN or infinity in conv5\.0\.weight"):
            check_network(BACKBONE, weights=str(tmp_path / "weights.safetensors"), dropout=0.0, image_size=64)


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "ckpt"])
def test_a_pointer_of_git_lfs_is_named(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"weights.{suffix}").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n")
    with pytest.raises(UserError, match=r"weights\..* can't be read as a state dict: it is a pointer of Git LFS"):
        create_network(BACKBONE, 3, weights=str(tmp_path / f"weights.{suffix}"))


def test_a_torchscript_archive_and_a_whole_module_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("script/constants.pkl", b"")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    for name, why in (
        ("script.pt", "it is a TorchScript archive"),
        ("module.pth", "Python objects are never unpickled"),
    ):
        with pytest.raises(UserError, match=rf"{name} can't be read as a state dict: .*{why}$"):
            create_network(BACKBONE, 3, weights=str(tmp_path / name))


def test_a_suffix_may_be_in_capitals(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "WEIGHTS.SAFETENSORS")
    assert_holds(create_network(BACKBONE, 3, weights=str(tmp_path / "WEIGHTS.SAFETENSORS")), state)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_pickled_code_is_refused_and_not_run(legacy: bool, state: dict[str, Tensor], tmp_path: Path) -> None:
    content = {**state, "extra": TouchesAFile(tmp_path / "mark")}
    torch.save(content, tmp_path / "weights.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"model\.weights: .*weights\.pth can't be read as a state dict"):
        create_network(BACKBONE, 3, weights=str(tmp_path / "weights.pth"))
    assert not (tmp_path / "mark").exists()
    torch.load(tmp_path / "weights.pth", weights_only=False)
    assert (tmp_path / "mark").exists(), "the file would have done harm"


# ImageNet weights


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty weights cache on a machine without a network."""

    def no_network(*args: object, **kwargs: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("torch.hub.urlopen", no_network)
    monkeypatch.setattr("torch.hub._hub_dir", str(tmp_path))
    return tmp_path / "checkpoints"


def test_imagenet_without_a_network_says_what_to_place_where(hub: Path) -> None:
    url = models.get_model_weights(BACKBONE).DEFAULT.url
    with pytest.raises(UserError) as caught:
        create_network(BACKBONE, 3, weights="imagenet")
    message = str(caught.value)
    assert url in message
    assert str(hub / Path(url).name) in message
    assert "Name or service not known" in message


def publish(hub: Path, content: object, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a file into the cache, and let torchvision have published it."""
    hub.mkdir(exist_ok=True)
    torch.save(content, hub / "draft")
    file = hub / f"shufflenet-{hashlib.sha256((hub / 'draft').read_bytes()).hexdigest()[:8]}.pth"
    (hub / "draft").rename(file)
    published = models.get_model_weights(BACKBONE).DEFAULT.value
    monkeypatch.setattr(published, "url", f"https://download.pytorch.org/models/{file.name}")
    return file


def test_imagenet_weights_that_were_placed_are_used(
    hub: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    published = build_network(BACKBONE, 1000).state_dict()
    publish(hub, published, monkeypatch)
    check_network(BACKBONE, weights="imagenet", dropout=0.0, image_size=224)
    network = create_network(BACKBONE, 3, weights="imagenet")
    assert_holds(network, {name: value for name, value in published.items() if not name.startswith("fc.")})
    assert caplog.records == [], "a head of other classes is how fine-tuning begins"


@pytest.mark.parametrize("content", ["torn", "other weights", "pickle"])
def test_a_cached_file_that_torchvision_did_not_publish_is_refused(content: str, hub: Path, tmp_path: Path) -> None:
    hub.mkdir(exist_ok=True)
    file = hub / Path(models.get_model_weights(BACKBONE).DEFAULT.url).name
    if content == "torn":
        file.write_bytes(b"half a download")
    else:
        torch.save(TouchesAFile(tmp_path / "mark") if content == "pickle" else empty_network(BACKBONE), file)
    rule = rf"{re.escape(str(file))} must have the SHA-256 [0-9a-f]{{8,}}… of the file that torchvision published, got"
    with pytest.raises(UserError, match=rule):
        create_network(BACKBONE, 3, weights="imagenet")
    with pytest.raises(UserError, match=rule):
        check_network(BACKBONE, weights="imagenet", dropout=0.0, image_size=224)
    assert not (tmp_path / "mark").exists()


def test_a_pickle_is_not_run_even_if_its_hash_is_the_published_one(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight digits of a hash can be met by trying."""
    file = publish(hub, TouchesAFile(tmp_path / "mark"), monkeypatch)
    with pytest.raises(UserError, match=rf"{file.name} can't be read, remove it"):
        create_network(BACKBONE, 3, weights="imagenet")
    assert not (tmp_path / "mark").exists()


def test_every_published_file_is_named_by_its_hash() -> None:
    names = [Path(models.get_model_weights(name).DEFAULT.url).stem for name in classifier_names()]
    assert len(names) > 70
    assert [name for name in names if not re.fullmatch("[0-9a-f]{8,}", name.rpartition("-")[2])] == []


@pytest.mark.parametrize(
    "name", ["fasterrcnn_resnet50_fpn", "deeplabv3_resnet101", "quantized_resnet50", "r3d_18", "raft_large", "ResNet18"]
)
def test_only_a_classifier_is_built(name: str) -> None:
    with pytest.raises(ValueError, match=f"backbone must be a torchvision classifier, got '{name}'"):
        build_network(name, 3)


# Dropout


def test_dropout_keeps_names_and_weights(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "weights.safetensors")
    network = create_network(BACKBONE, 3, weights=str(tmp_path / "weights.safetensors"), dropout=0.5)
    assert list(network.state_dict()) == list(state)
    assert_holds(network, state)
    assert find_head(network) == "fc"
    build_network(BACKBONE, 3).load_state_dict(network.state_dict())


@pytest.mark.parametrize(
    ("backbone", "before"),
    [
        ("mobilenet_v2", ["classifier.0"]),
        ("mobilenet_v3_small", ["classifier.2"]),
        ("efficientnet_b0", ["classifier.0"]),
        ("mnasnet0_5", ["classifier.0"]),
        ("vgg11", ["classifier.5"]),
        ("googlenet", ["dropout"]),
        ("inception_v3", ["dropout"]),
        # None in front of the head: between its other layers, at the input of the encoder, or nowhere.
        ("alexnet", []),
        ("vit_b_32", []),
        ("maxvit_t", []),
        ("resnet18", []),
    ],
)
def test_dropout_replaces_the_dropout_in_front_of_the_head(backbone: str, before: list[str]) -> None:
    def dropout(network: nn.Module) -> list[str]:
        return [name for name, part in network.named_modules() if isinstance(part, nn.Dropout)]

    plain = network_on_meta(backbone)
    with torch.device("meta"):
        dropped = create_network(backbone, 2, weights="none", dropout=0.3)
        assert dropout(create_network(backbone, 2, weights="none")) == dropout(plain), "0 leaves it"
    assert [name for name in dropout(plain) if name not in dropout(dropped)] == before
    assert list(dropped.state_dict()) == list(plain.state_dict())


def test_dropout_works_in_training_only() -> None:
    head = create_network(BACKBONE, 3, weights="none", dropout=0.5).get_submodule("fc")
    features = torch.ones(4, 1024)
    assert torch.equal(head.eval()(features), head(features))
    torch.manual_seed(0)
    assert not torch.equal(head.train()(features), head(features))


@pytest.mark.parametrize(("backbone", "size"), [("vit_b_32", 768), ("swin_t", 768), ("densenet121", 1024)])
def test_dropout_fits_heads_of_other_names(backbone: str, size: int) -> None:
    with torch.device("meta"):
        network = create_network(backbone, 3, weights="none", dropout=0.1)
    head = network.get_submodule(find_head(network))
    assert type(head).__name__ == "DropoutLinear"
    assert head.in_features == size


def test_dropout_before_a_head_that_is_not_linear_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.dropout must be 0 for squeezenet1_1, .* got 0\.2"):
        create_network("squeezenet1_1", 3, weights="none", dropout=0.2)
