"""Scores are of float32 throughout, also where cuDNN would round its factors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from experiments.runs.scoring import predict_log_probabilities
from lightning_modules.precision import exact_float32


def test_cudnn_rounds_nothing_within_and_what_it_did_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    for before in (True, False):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", before)
        with exact_float32():
            assert torch.backends.cudnn.allow_tf32 is False
        assert torch.backends.cudnn.allow_tf32 is before


def test_scores_are_computed_so(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    class Network(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(torch.backends.cudnn.allow_tf32)
            return images

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert predict_log_probabilities(Network(), [torch.zeros(2, 3)]).shape == (2, 3)
    assert seen == [False]
