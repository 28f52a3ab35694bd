"""A user's training script with smdebug's hook in it, as AWS's examples have it."""

from __future__ import annotations

import argparse

import smdebug.pytorch as smd
import torch
from smdebug.core.modes import ModeKeys
from torch import nn


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--lr", type=float, default=0.1)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    network, criterion = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)), nn.CrossEntropyLoss()
    hook = smd.get_hook(create_if_not_exists=True)
    assert hook is not None
    hook.register_module(network)
    hook.register_loss(criterion)
    hook.set_mode(ModeKeys.TRAIN)
    optimizer = torch.optim.SGD(network.parameters(), lr=arguments.lr)
    points, labels = torch.randn(16, 8), torch.randint(0, 2, (16,))
    for _ in range(arguments.steps):
        optimizer.zero_grad()
        criterion(network(points), labels).backward()
        optimizer.step()


if __name__ == "__main__":
    main()
