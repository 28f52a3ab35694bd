"""A user's training script, as in a notebook's `source_dir`: argparse, SM_* variables, a tiny network."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn


def load(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Photos of class folders, 8 x 8 pixels each."""
    classes = sorted(path.name for path in folder.iterdir())
    files = sorted(folder.glob("*/*.jpg"))
    pixels = [np.asarray(Image.open(file).resize((8, 8)), dtype=np.float32).ravel() / 255 for file in files]
    return torch.from_numpy(np.stack(pixels)), torch.tensor([classes.index(file.parent.name) for file in files])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--fail", default="")
    parser.add_argument("--data", type=Path, default=os.environ["SM_CHANNEL_TRAINING"])
    parser.add_argument("--model-dir", type=Path, default=os.environ["SM_MODEL_DIR"])
    parser.add_argument("--output-dir", type=Path, default=os.environ["SM_OUTPUT_DATA_DIR"])
    arguments = parser.parse_args()
    if arguments.fail:
        raise ValueError(arguments.fail)
    # The input folder of File mode can be written to on AWS.
    (arguments.data / "seen.txt").write_text("seen")
    (arguments.data / "seen.txt").unlink()
    torch.manual_seed(0)
    photos, labels = load(arguments.data)
    network = nn.Linear(photos.shape[1], int(labels.max()) + 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=arguments.lr)
    criterion = nn.CrossEntropyLoss()
    for epoch in range(arguments.epochs):
        optimizer.zero_grad()
        loss = criterion(network(photos), labels)
        loss.backward()
        optimizer.step()
        print(f"Epoch {epoch}: Testing Loss: {loss.item():.4f}", flush=True)
    torch.save(network.state_dict(), arguments.model_dir / "model.pth")
    if "CHECKPOINT" in os.environ:
        torch.save(network.state_dict(), os.environ["CHECKPOINT"])
    (arguments.output_dir / "arguments.json").write_text(json.dumps(vars(arguments), default=str))


if __name__ == "__main__":
    main()
