"""Write the export folder of a finished run, the same at home and inside `model.tar.gz`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from PIL import Image
from safetensors.torch import save_file
from torch import nn

from lightning_modules import inference, ray_serve
from lightning_modules.errors import UserError
from lightning_modules.files import replaced_whole
from lightning_modules.folders import read_photo
from lightning_modules.inference import MANIFEST_FILE, WEIGHTS_FILE, Preprocessing

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "pillow", "safetensors")


def write_export(
    network: nn.Module,
    folder: Path,
    *,
    backbone: str,
    class_names: tuple[str, ...],
    preprocessing: Preprocessing,
    metrics: Mapping[str, float],
    data: Mapping[str, object],
    config: Mapping[str, object],
    golden_photos: Iterable[Path],
) -> Path:
    """Write an export folder under a temporary name and rename it.

    Args:
        network: in eval mode on any device; its weights are written as float32.
        metrics: the metrics of these weights.
        data: the photos that they were trained and scored on: fingerprint, counts, and how they were divided.
        config: the config of the run, with which it can be repeated.
        golden_photos: photos that the network never trained on. The first readable one becomes part of the export:
            every server must compute the same scores for it.

    Returns:
        `folder`.

    Raises:
        UserError: if none of the photos can be read.
    """
    photo = _golden_photo(golden_photos)
    with replaced_whole(folder) as part:
        (part / "code").mkdir(parents=True)
        (part / "golden").mkdir()
        state = {
            name: (value.float() if value.is_floating_point() else value).detach().cpu().contiguous()
            for name, value in network.state_dict().items()
        }
        save_file(state, part / WEIGHTS_FILE)
        (part / WEIGHTS_FILE).chmod(0o644)  # safetensors writes 0600, and a server may run as another user
        manifest = {
            "backbone": backbone,
            "class_names": list(class_names),
            "preprocessing": preprocessing.to_dict(),
            "metrics": dict(metrics),
            "data": dict(data),
            "packages": {name: metadata.version(name) for name in PACKAGES},
            "config": dict(config),
            "sha256": hashlib.sha256((part / WEIGHTS_FILE).read_bytes()).hexdigest(),
        }
        (part / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n")
        shutil.copyfile(inference.__file__, part / "code" / "inference.py")
        # SageMaker's containers have torch, torchvision and Pillow; nothing more is needed, nothing may be installed.
        (part / "code" / "requirements.txt").write_text("")
        (part / ray_serve.CONFIG_FILE).write_text(ray_serve.CONFIG, encoding="utf-8")
        photo.save(part / "golden" / "image.jpg", quality=95)
        model = inference.Model(network, preprocessing, class_names, version=str(manifest["sha256"]))
        scores = model.score([inference.decode_image((part / "golden" / "image.jpg").read_bytes())])[0]
        golden = {"class_name": class_names[int(scores.argmax())], "logits": scores.tolist()}
        (part / "golden" / "scores.json").write_text(json.dumps(golden, indent=2) + "\n")
        check_golden(part)
        shutil.rmtree(folder, ignore_errors=True)
    return folder


def _golden_photo(photos: Iterable[Path]) -> Image.Image:
    """The first photo that is still readable: training may have taken hours since the scan."""
    path = None
    for path in photos:
        with contextlib.suppress(OSError, inference.BadImageError):
            return inference.open_image(read_photo(path))
    raise UserError(f"data.root must keep a validation photo that can be read until a model is exported, lost {path}")


def check_golden(folder: Path) -> None:
    """Load an export and score its golden photo again.

    Raises:
        BadExportError: if it is incomplete, the scores differ, or the best class changed.
    """
    inference.check_golden(folder, inference.load_export(folder))
