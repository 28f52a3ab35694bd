"""A user's handlers for AWS's PyTorch inference container, as in a notebook's `source_dir`."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn


def model_fn(model_dir: str) -> nn.Module:
    """Load the network that train_model.py saved."""
    network = nn.Linear(8 * 8 * 3, 3)
    network.load_state_dict(torch.load(Path(model_dir) / "model.pth", weights_only=True))
    return network.eval()


def input_fn(request_body: bytes, content_type: str = "image/jpeg") -> torch.Tensor:
    """A photo as numbers."""
    if content_type != "image/jpeg":
        raise ValueError(f"Requested unsupported ContentType in content_type: {content_type}")
    image = Image.open(io.BytesIO(request_body)).resize((8, 8))
    return torch.from_numpy(np.asarray(image, dtype=np.float32).ravel() / 255)


def predict_fn(input_object: torch.Tensor, model: nn.Module) -> torch.Tensor:
    """Scores of the three classes."""
    with torch.no_grad():
        return model(input_object[None])
