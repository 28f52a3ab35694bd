"""Score images with an export folder. Stands alone: torch, torchvision, Pillow and the standard library only.

This file is copied into every export as `code/inference.py` and is what an endpoint runs; training, `predict` and the
registered MLflow model decode and crop through the same functions, so serving cannot drift from training.
"""

import base64
import hashlib
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.transforms.v2 import functional as F

WEIGHTS_FILE = "model.safetensors"
MANIFEST_FILE = "model.json"
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS = 40_000_000
"""Pixels that an image may have before it is decoded: a small file can unpack to gigabytes."""
MAX_SIDE = 16_384
MAX_IMAGES = 32
"""Images that one JSON request may hold."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# safetensors' header names; source: github.com/huggingface/safetensors, README 'Format'.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class BadImageError(ValueError):
    """The bytes are not an image that can be scored; the message is one plain sentence."""


class BadExportError(ValueError):
    """The folder is not a whole, unchanged export."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input."""

    image_size: int
    """Side of the square crop in pixels."""
    resize_size: int
    """Short side after resizing, before the crop."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def crop(self, image: Tensor) -> Tensor:
        """Resize the short side and cut out the centre.

        Args:
            image: (3, H, W) uint8.

        Returns:
            (3, image_size, image_size) uint8.
        """
        longest = 8 * min(image.shape[-2:])
        if max(image.shape[-2:]) > longest:
            # Only the middle stays: resizing all of a 1x16384 strip would take gigabytes.
            image = F.center_crop(image, [min(side, longest) for side in image.shape[-2:]])
        resized = F.resize(image, [self.resize_size], antialias=True)
        return F.center_crop(resized, [self.image_size, self.image_size])

    def normalise(self, images: Tensor) -> Tensor:
        """Scale bytes to what the network was trained on.

        Args:
            images: (B, 3, H, W) uint8, or float32 in [0, 1].

        Returns:
            (B, 3, H, W) float32.
        """
        return F.normalize(F.to_dtype(images, torch.float32, scale=True), list(self.mean), list(self.std))

    def to_dict(self) -> dict[str, object]:
        """For `model.json`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Preprocessing":  # type: ignore[type-arg]
        """From `model.json`."""
        return cls(
            int(values["image_size"]),
            int(values["resize_size"]),
            tuple(values["mean"]),
            tuple(values["std"]),
        )


def decode_image(data: bytes, short_side: int = 0) -> Tensor:
    """Decode one image file to RGB: EXIF-rotated, first frame, transparency on white, 16 bits scaled to 8.

    Args:
        data: the file's bytes.
        short_side: a JPEG may be decoded at a fraction of its size as long as its short side stays this long or
            longer; 0 decodes at full size.

    Returns:
        (3, H, W) uint8.

    Raises:
        BadImageError: if the bytes are no whole image of a known format, or too large.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
                raise BadImageError(
                    f"the image has {width}x{height} pixels; at most {MAX_SIDE} a side and {MAX_PIXELS} in all"
                )
            if short_side:
                # libjpeg scales by 1/2, 1/4 or 1/8 while decoding: the pixels that a resize would drop cost nothing.
                shortest = min(width, height)
                image.draft(None, (-(-width * short_side // shortest), -(-height * short_side // shortest)))
            image.load()
            return F.pil_to_tensor(_to_rgb(_upright(image)))
    except BadImageError:
        raise
    except UnidentifiedImageError as error:
        raise BadImageError("the bytes are not a JPEG, PNG, WebP, BMP, GIF or TIFF image") from error
    # Pillow's decoders raise these for damaged files; SyntaxError is its word for a broken PNG or TIFF.
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError) as error:
        raise BadImageError(f"the image is damaged: {error}") from error
    except (Image.DecompressionBombError, OverflowError, MemoryError) as error:
        raise BadImageError(f"the image is too large: {error}") from error


def _upright(image: Image.Image) -> Image.Image:
    """Turn as EXIF says. Pillow's exif_transpose rewrites the EXIF too, and fails on tags that it can't write."""
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF costs no photo; Pillow raises SyntaxError, struct.error and more for it
        return image
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow's own conversion cuts 16-bit values at 255 and shows white.
        image = image.convert("I").point(lambda value: value * (1 / 257), "L")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")


def build_network(backbone: str, num_classes: int, **options: object) -> nn.Module:
    """A torchvision classifier with random weights and `num_classes` outputs.

    Raises:
        ValueError: if torchvision knows no such classifier.
    """
    if backbone in ("googlenet", "inception_v3"):
        # No auxiliary heads, and the input statistics that their published weights were trained on.
        options = {"aux_logits": False, "init_weights": False, "transform_input": True, **options}
    return get_model(backbone, weights=None, num_classes=num_classes, **options)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a .safetensors file without the package, which AWS's inference images lack.

    Raises:
        BadExportError: if the file is not whole.
    """
    data = memoryview(path.read_bytes())
    try:
        header_size = int.from_bytes(data[:8], "little")
        header = json.loads(bytes(data[8 : 8 + header_size]))
        header.pop("__metadata__", None)
        return {name: _tensor(data[8 + header_size :], part) for name, part in header.items()}
    except (ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise BadExportError(f"{path} is not a whole safetensors file: {error}") from error


def _tensor(data: memoryview, part: dict) -> Tensor:  # type: ignore[type-arg]
    start, end = part["data_offsets"]
    dtype = _DTYPES[part["dtype"]]
    # frombuffer takes no empty buffer.
    values = torch.frombuffer(bytearray(data[start:end]), dtype=dtype) if end > start else torch.empty(0, dtype=dtype)
    return values.reshape(part["shape"])


@dataclass(frozen=True)
class Model:
    """A loaded export folder."""

    network: nn.Module
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    version: str
    """SHA-256 of the weights."""

    def score(self, images: list[Tensor]) -> Tensor:
        """Score decoded images.

        Args:
            images: each (3, H, W) uint8, of any size.

        Returns:
            (len(images), num_classes) float32 logits.
        """
        device = next(self.network.parameters()).device
        batch = torch.stack([self.preprocessing.crop(one) for one in images]).to(device)
        with torch.inference_mode():
            return self.network(self.preprocessing.normalise(batch)).float().cpu()


def load_export(folder: Path, device: str = "cpu") -> Model:
    """Load an export folder: checks the hash, never unpickles, never downloads.

    Raises:
        BadExportError: if a part is missing, changed or of the wrong shape.
    """
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text())
        class_names = tuple(manifest["class_names"])
        version, backbone = manifest["sha256"], str(manifest["backbone"])
        digest = hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()
        preprocessing = Preprocessing.from_dict(manifest["preprocessing"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadExportError(f"{folder} is not an export folder: {error}") from error
    if digest != version:
        raise BadExportError(f"{folder / WEIGHTS_FILE} has SHA-256 {digest}, but {MANIFEST_FILE} says {version}")
    try:
        network = build_network(backbone, len(class_names))
    except ValueError as error:
        raise BadExportError(f"{folder / MANIFEST_FILE}: {error}") from error
    try:
        network.load_state_dict(read_safetensors(folder / WEIGHTS_FILE))
    except RuntimeError as error:
        raise BadExportError(f"{folder} holds weights of another network: {error}") from error
    network = network.eval().to(device).to(memory_format=torch.channels_last)
    return Model(network, preprocessing, class_names, version)


# The four functions that SageMaker's inference toolkit looks for.


def model_fn(model_dir: str) -> Model:
    """Load the model of an endpoint."""
    return load_export(Path(model_dir), "cuda" if torch.cuda.is_available() else "cpu")


def input_fn(body: bytes, content_type: str) -> list[Tensor]:
    """Decode a request: one image's bytes, or JSON `{"images": [base64, ...]}`.

    Raises:
        BadImageError: with one plain sentence.
    """
    kind = content_type.split(";")[0].strip().lower()
    if kind in ("image/jpeg", "image/png", "image/webp"):
        return [decode_image(bytes(body))]
    if kind != "application/json":
        raise BadImageError(f"content type {kind} is not one of image/jpeg, image/png, image/webp, application/json")
    try:
        encoded = json.loads(body)["images"]
        images = [base64.b64decode(one, validate=True) for one in encoded]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadImageError('the JSON must be {"images": [base64, ...]}') from error
    if not 1 <= len(images) <= MAX_IMAGES:
        raise BadImageError(f"the request has {len(images)} images; 1 to {MAX_IMAGES} are taken")
    return [decode_image(one) for one in images]


def predict_fn(images: list[Tensor], model: Model) -> list[list[float]]:
    """Score the images of a request: one list of logits an image."""
    scores: list[list[float]] = model.score(images).tolist()
    return scores


def output_fn(scores: list[list[float]], accept: str) -> str:
    """The plain score list, one row an image: `np.argmax(response[0]) + 1` is the class number."""
    del accept
    return json.dumps(scores)
