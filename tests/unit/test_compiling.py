"""torch.compile is switched on where the rest of the run earns it back, and the log says so."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from torch import nn

from experiments.compiling import COMPILE_GAIN, COMPILE_SECONDS, CompileWhenItPays

WORTH_IT = COMPILE_SECONDS / COMPILE_GAIN
"""Seconds of training that earn it back."""


def decide(callback: CompileWhenItPays, epoch_seconds: float, *, current_epoch: int = 0, max_epochs: int = 11) -> Mock:
    """Ask after an epoch; the mock that stands for `network.compile`."""
    network = nn.Linear(1, 1)
    network.compile = Mock()  # type: ignore[method-assign]
    trainer = SimpleNamespace(
        current_epoch=current_epoch, max_epochs=max_epochs, callback_metrics={"epoch_seconds": epoch_seconds}
    )
    callback.on_validation_end(trainer, SimpleNamespace(network=network))  # type: ignore[arg-type]
    return network.compile


def test_a_long_run_is_compiled_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    decide(CompileWhenItPays(), WORTH_IT / 10 * 1.01).assert_called_once_with(dynamic=False)
    assert "torch.compile: from here on, 9 min of training are left" in capsys.readouterr().err


def test_a_short_run_is_not_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    decide(CompileWhenItPays(), WORTH_IT / 10 * 0.99).assert_not_called()
    assert "torch.compile: not worth its 60 s" in capsys.readouterr().err


def test_what_counts_is_what_is_left() -> None:
    decide(CompileWhenItPays(), WORTH_IT / 5, current_epoch=6).assert_not_called()
    decide(CompileWhenItPays(), WORTH_IT / 5 * 1.01, current_epoch=5).assert_called_once()


def test_it_is_decided_once() -> None:
    callback = CompileWhenItPays()
    decide(callback, 0.0)
    decide(callback, 10 * WORTH_IT).assert_not_called()
