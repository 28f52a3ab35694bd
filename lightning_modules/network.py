"""The network: any torchvision classifier, its weights, its head, and which part of it trains."""

from __future__ import annotations

import difflib
import functools
import hashlib
import logging
import math
import pickle
import re
import zipfile
from collections.abc import Collection, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision import models
from torchvision.models import VisionTransformer

from lightning_modules.errors import UserError
from lightning_modules.files import is_safetensors
from lightning_modules.inference import Interpolation, Preprocessing, build_network, classifier_names
from lightning_modules.listing import named
from lightning_modules.torch_private import BATCH_NORM

Trainable = Literal["head", "last_block", "all"]

PREFIXES = ("module.", "model.", "network.", "net.", "_orig_mod.", "backbone.")
"""Prefixes of tensor names by DataParallel, Lightning, torch.compile and own modules."""
WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "net", "module", "ema", "model_ema", "state_dict_ema")
"""Keys under which training programs save the state dict; of two, the first counts."""

OLD_NAMES = (
    (r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2"),
    (r"\.mlp\.linear_1\.", ".mlp.0."),
    (r"\.mlp\.linear_2\.", ".mlp.3."),
)
"""Old names in files that torchvision publishes, and the names in its present networks: DenseNets and ViTs."""

_POSITIONS = "encoder.pos_embedding"
"""Name of a ViT's embedding of the class and of each patch."""

_log = logging.getLogger(__name__)


class DropoutLinear(nn.Linear):
    """A linear head with dropout in front, under the same parameter names as the head it replaces.

    So an export loads into torchvision's own network without renaming.
    """

    def __init__(self, head: nn.Linear, dropout: float) -> None:
        super().__init__(head.in_features, head.out_features, bias=head.bias is not None)
        self.load_state_dict(head.state_dict())
        self.dropout = dropout

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        if self.training:
            # Not functional.dropout: of these draws a population makes the masks of many heads at once.
            mask = torch.rand(input.shape, device=input.device) >= self.dropout
            input = input * mask / (1 - self.dropout)
        return super().forward(input)


def recipe(backbone: str) -> Preprocessing:
    """How torchvision prepares images for the best weights of a classifier. Nothing is built or downloaded.

    Raises:
        UserError: for an unknown backbone.
    """
    check_backbone(backbone)
    published = models.get_model_weights(backbone).DEFAULT.transforms()
    assert published.antialias, "as `Preprocessing` resizes"
    return Preprocessing(
        image_size=published.crop_size[0],
        resize_size=published.resize_size[0],
        mean=tuple(published.mean),
        std=tuple(published.std),
        interpolation=Interpolation(published.interpolation.value),
    )


def create_network(
    backbone: str, num_classes: int, *, weights: str, image_size: int | None = None, dropout: float = 0.0
) -> nn.Module:
    """Build a classifier, load its weights and give it a new head.

    Args:
        weights: `imagenet`, `none`, or the path of a .safetensors or .pth state dict.
        image_size: as for `build_network`.
        dropout: share of the features to drop in front of the head, in place of the network's own dropout there; 0
            leaves the network as it is.

    Raises:
        UserError: for an unknown backbone, a weights file of another network or image size, or weights that are
            neither cached nor downloadable; the message says where to place them.
    """
    check_backbone(backbone)
    network = build_network(backbone, num_classes, image_size=image_size)
    head_name = find_head(network)
    if weights == "imagenet":
        _load(network, _imagenet_weights(backbone), head_name, weights)
    elif weights != "none":
        _load(network, _read_weights(Path(weights)), head_name, weights)
    if dropout:
        for name in _dropout_before(network, head_name):
            network.set_submodule(name, nn.Identity())
        network.set_submodule(head_name, DropoutLinear(_linear_head(network, backbone, dropout), dropout))
    return network


def _dropout_before(network: nn.Module, head_name: str) -> list[str]:
    """Names of the dropout layers between the last layer with weights and the head."""
    found: list[str] = []
    for name, module in network.named_modules():
        if name == head_name:
            break
        if isinstance(module, nn.Dropout):
            found.append(name)
        elif next(module.parameters(recurse=False), None) is not None:
            found = []
    return found


def check_backbone(backbone: str) -> None:
    """Refuse a name that torchvision does not know.

    Raises:
        UserError: with the nearest name that it knows.
    """
    if backbone not in classifier_names():
        near = difflib.get_close_matches(backbone.lower(), classifier_names(), n=1)
        hint = f"did you mean {near[0]}?" if near else "torchvision.models.list_models() lists them"
        raise UserError(f"model.backbone must be a torchvision classifier, got {backbone!r}; {hint}")


def check_network(
    backbone: str, *, weights: str, dropout: float, image_size: int, trainable: Trainable = "head", batch_size: int = 2
) -> None:
    """Refuse within a second what would otherwise fail after the photos are decoded.

    Args:
        weights: as for `create_network`; missing ones are downloaded now.

    Raises:
        UserError: as `create_network`, and for images that the network cannot take, or cannot train on one by one.
    """
    trained_on = recipe(backbone).image_size
    network = _network_for(backbone, image_size)
    if network is None:
        others = {32, 64, 96, 128, 160, 224, 299, 384, trained_on}
        nearest_first = sorted(others, key=lambda size: (abs(size - image_size), size))
        nearest = next((size for size in nearest_first if _network_for(backbone, size)), None)
        raise UserError(
            f"data.image_size must be a size that {backbone} takes, such as {nearest}, got {image_size}: set it, or "
            "choose another model.backbone"
        )
    if dropout:
        _linear_head(network, backbone, dropout)
    if batch_size == 1 and trains_batch_norm(network, trainable):
        for module in trainable_modules(network, trainable):
            module.train()
        if not _takes(network, image_size):
            raise UserError(
                f"data.batch_size must be 2 or more for {backbone} with model.trainable {trainable} at data.image_size "
                f"{image_size}: BatchNorm needs more than one value, got 1"
            )
    if weights == "imagenet":
        _check_trained_on(network, trained_on, weights)
        _open_imagenet(backbone).close()
    elif weights != "none":
        _fitting(network, _read_weights(Path(weights)), find_head(network), weights)


def network_on_meta(backbone: str, num_classes: int = 2, *, image_size: int | None = None) -> nn.Module:
    """A classifier in eval mode without values in its weights: its layers and shapes cost no memory.

    Raises:
        ValueError, AssertionError: as `build_network`.
    """
    with _EmptyOnMeta():
        network = build_network(backbone, num_classes, image_size=image_size)
    return network.eval().to("meta")


def _network_for(backbone: str, image_size: int) -> nn.Module | None:
    """The network on the meta device, built for images of this size; None if it cannot take them."""
    try:
        network = network_on_meta(backbone, image_size=image_size)
    except (ValueError, AssertionError):  # a ViT, a MaxViT
        return None
    return network if _takes(network, image_size) else None


class _EmptyOnMeta(TorchFunctionMode):
    """Creates weights on the meta device; RegNets compute their widths with tensors, so those must have values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func`, and `torch.empty` for the meta device."""
        return func(*args, **((kwargs or {}) | ({"device": "meta"} if func is torch.empty else {})))


def _takes(network: nn.Module, image_size: int) -> bool:
    """Whether a network on the meta device takes square images of this size."""
    try:
        network(torch.zeros(1, 3, image_size, image_size, device="meta"))
    except (RuntimeError, AssertionError, ValueError):  # torch's and torchvision's own checks of shapes
        return False
    return True


def _linear_head(network: nn.Module, backbone: str, dropout: float) -> nn.Linear:
    """The head that dropout comes in front of."""
    head = network.get_submodule(find_head(network))
    if not isinstance(head, nn.Linear):
        raise UserError(f"model.dropout must be 0 for {backbone}, whose head is not linear, got {dropout}")
    return head


def find_head(network: nn.Module) -> str:
    """Name of the last layer with weights: what maps features to classes."""
    heads = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return heads[-1]


def trainable_modules(network: nn.Module, trainable: Trainable) -> list[nn.Module]:
    """The modules that training changes.

    `last_block` is the last stage of the trunk (`layer4` of a ResNet, the last encoder layer of a ViT) with every norm
    behind it, and the head.
    """
    head = network.get_submodule(find_head(network))
    if trainable == "all":
        return [network]
    if trainable == "head":
        return [head]
    return [*_last_block(network, head), head]


def trains_batch_norm(network: nn.Module, trainable: Trainable) -> bool:
    """Whether training computes BatchNorm statistics of batches, which a batch of one image may not have."""
    trained = trainable_modules(network, trainable)
    return any(isinstance(layer, BATCH_NORM) for module in trained for layer in module.modules())


def _last_block(trunk: nn.Module, head: nn.Module) -> list[nn.Module]:
    modules = [module for module in trunk.children() if module is not head and _weights(module, head)]
    last = max(index for index, module in enumerate(modules) if _weights(module, head, norms=False))
    block = modules[last]
    # A trunk in one container (features of a VGG, encoder of a ViT) is not a block: search inside.
    if len(list(block.children())) > 1 and _weights(block, head) > 0.8 * _weights(trunk, head):
        return [*_last_block(block, head), *modules[last + 1 :]]
    if any(module is head for module in block.modules()):
        return [module for module in block.children() if module is not head] + modules[last + 1 :]
    return modules[last:]


def _weights(module: nn.Module, head: nn.Module, *, norms: bool = True) -> int:
    skip = {id(parameter) for parameter in head.parameters()}
    return sum(
        parameter.numel()
        for parameter in module.parameters()
        if id(parameter) not in skip and (norms or parameter.ndim > 1)
    )


def _imagenet_weights(backbone: str) -> dict[str, Tensor]:
    """Torchvision's best weights, on the CPU."""
    with _open_imagenet(backbone) as file:
        try:
            loaded: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # each reader has its own error classes
            raise UserError(f"model.weights imagenet: {file.name} can't be read, remove it: {error}") from error
    return loaded


def _open_imagenet(backbone: str) -> BufferedReader:
    """Open the file of torchvision's best weights in PyTorch's cache; it is downloaded first if it is missing.

    Any program may have written into the cache, and PyTorch checks the hash of a download only.

    Raises:
        UserError: if the file can't be downloaded, or is not the one that torchvision published.
    """
    url = models.get_model_weights(backbone).DEFAULT.url
    cache = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    # The first digits of the file's SHA-256; source: torch.hub.load_state_dict_from_url, `check_hash`.
    published = cache.stem.rpartition("-")[2]
    assert re.fullmatch("[0-9a-f]{8,}", published), "torchvision names each file by its hash"
    if not cache.is_file():
        _log_once(logging.INFO, f"model.weights imagenet: downloading {url} to {cache}")
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(cache), published)
        except (OSError, RuntimeError) as error:  # PyTorch raises RuntimeError for a wrong hash
            raise UserError(
                f"model.weights imagenet: {url} can't be downloaded ({error}); place that file at {cache}, "
                "or name another file in model.weights"
            ) from error
    file = cache.open("rb")
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(published):
        file.close()
        raise UserError(
            f"model.weights imagenet: {cache} must have the SHA-256 {published}… of the file that torchvision "
            f"published, got {digest[: len(published)]}…: remove it, and the next run downloads {url}"
        )
    file.seek(0)
    return file


def _read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU."""
    if not path.is_file():
        raise UserError(f"model.weights must be imagenet, none or an existing file, got {str(path)!r}")
    try:
        if why := _why_no_weights(path):
            raise ValueError(why)
        if path.suffix.lower() == ".safetensors" or is_safetensors(path):
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each reader has its own error classes; all mean that the file is unusable
        objects = "it holds more than tensors, and Python objects are never unpickled"
        why = objects if isinstance(error, pickle.UnpicklingError) else str(error).partition("\n")[0]
        raise UserError(f"model.weights: {path} can't be read as a state dict: {why}") from error
    state = _state_dict(loaded)
    if state is None:
        got = named([str(key) for key in loaded]) if isinstance(loaded, Mapping) else type(loaded).__name__
        raise UserError(f"model.weights: {path} must hold a state dict, tensors by name, got {got}")
    return state


def _why_no_weights(path: Path) -> str:
    """Name the format of a file that readers would only call damaged."""
    with path.open("rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            return "it is a pointer of Git LFS; `git lfs pull` fetches the file"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                return "it is a TorchScript archive"
    return ""


def _state_dict(loaded: object) -> dict[str, Tensor] | None:
    """The state dict in a file of a training program: the file itself, or one of its usual keys."""
    if not isinstance(loaded, Mapping):
        return None
    if loaded and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in loaded.items()):
        return dict(loaded)
    return next((state for name in WRAPPERS if (state := _state_dict(loaded.get(name))) is not None), None)


def _load(network: nn.Module, state: dict[str, Tensor], head_name: str, source: str) -> None:
    """Load a state dict into the network, upcast to float32, without a head of another size."""
    kept = _fitting(network, state, head_name, source)
    network.load_state_dict(
        {key: value.float() if value.is_floating_point() else value for key, value in kept.items()},
        strict=False,
    )


def _fitting(network: nn.Module, state: Mapping[str, Tensor], head_name: str, source: str) -> dict[str, Tensor]:
    """The tensors of a state dict that fit a network: all, or all except a head of another size.

    Raises:
        UserError: if it is of another network or image size, or has values that are not finite.
    """
    own = network.state_dict()
    state, beside = _own_names(state, own, head_name)
    if beside:
        _log_once(logging.INFO, f"model.weights {source}: left out what is not of the network: {named(beside)}")
    head = {key for key in own if key.startswith(f"{head_name}.")}
    kept = {key: value for key, value in state.items() if not _auxiliary(key)}
    if not all(key in state and state[key].shape == own[key].shape for key in head):
        _say_of_head(head & state.keys(), own, state, head_name, source)
        kept = {key: value for key, value in kept.items() if not key.startswith(f"{head_name}.")}
    positions = kept.get(_POSITIONS)
    if isinstance(network, VisionTransformer) and positions is not None and positions.ndim == 3:
        _check_trained_on(network, network.patch_size * math.isqrt(positions.shape[1] - 1), source)
    wrong = [
        f"{key} {tuple(value.shape)}, not {tuple(own[key].shape)}"
        for key, value in kept.items()
        if key in own and value.shape != own[key].shape
    ]
    # Files saved by old PyTorch versions lack the counters of BatchNorm, which nothing reads with a fixed momentum.
    missing = [key for key in own if key not in kept and key not in head and "num_batches" not in key]
    unknown = [key for key in kept if key not in own]
    faults = {"missing": missing, "unknown": unknown, "of another shape": wrong}
    if any(faults.values()):
        which = "; ".join(f"{fault}: {named(keys, 3)}" for fault, keys in faults.items() if keys)
        raise UserError(f"model.weights {source} is of another network; {which}")
    if broken := [key for key, value in kept.items() if not value.isfinite().all()]:
        raise UserError(f"model.weights {source} must hold finite numbers, got NaN or infinity in {named(broken, 3)}")
    return kept


def _check_trained_on(network: nn.Module, image_size: int, source: str) -> None:
    """Refuse weights of a ViT that were trained on images of another size: they have an embedding for each patch."""
    if isinstance(network, VisionTransformer) and network.image_size != image_size:
        raise UserError(
            f"data.image_size must be {image_size}, on which model.weights {source} was trained, got "
            f"{network.image_size}"
        )


def _own_names(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], head_name: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors under the names that torchvision gives them today, and the names of those beside the network."""
    prefixes = {match for key in state for match in _prefixes(key)}
    prefix = max(sorted(prefixes, key=len), key=lambda candidate: sum(f"{candidate}{key}" in state for key in own))
    inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    for old, new in OLD_NAMES:
        inside = {re.sub(old, new, key): value for key, value in inside.items()}
    # A head in a Sequential, behind its dropout.
    heads = [key for key in inside if re.fullmatch(rf"{re.escape(head_name)}\.\d+\.weight", key)]
    if len(heads) == 1 and f"{head_name}.weight" not in inside:
        old = heads[0].removesuffix("weight")
        inside = {re.sub(rf"^{re.escape(old)}", f"{head_name}.", key): value for key, value in inside.items()}
    return inside, [key for key in state if not key.startswith(prefix)]


def _prefixes(key: str) -> list[str]:
    """Possible prefixes of a name by modules around the network: `module.model.fc.bias` has three."""
    found = [""]
    while prefix := next((candidate for candidate in PREFIXES if key.startswith(found[-1] + candidate)), None):
        found.append(found[-1] + prefix)
    return found


def _say_of_head(
    there: Collection[str], own: Mapping[str, Tensor], state: Mapping[str, Tensor], head_name: str, source: str
) -> None:
    """Log why a head is left out. A missing head is normal for fine-tuning; a part of a head is a warning."""
    before, level = state.get(f"{head_name}.weight"), logging.INFO
    if before is not None and before.shape != own[f"{head_name}.weight"].shape:
        why = f"its head has {len(before)} classes, not {len(own[f'{head_name}.weight'])}: left out"
    else:
        why, level = "it has no whole head", logging.WARNING if there else logging.INFO
    _log_once(level, f"model.weights {source}: {why}, the new head starts from random weights")


@functools.cache
def _log_once(level: int, message: str) -> None:
    """A sweep builds the same network for every trial."""
    _log.log(level, message)


def _auxiliary(key: str) -> bool:
    """Whether a tensor belongs to the auxiliary heads of GoogLeNet and Inception, which are not built."""
    return key.startswith(("aux1.", "aux2.", "AuxLogits."))
